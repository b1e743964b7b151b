//! What the cluster wants, and what follows from it for this node. Pure: no clock, no I/O, no aya.

mod desired;

pub use desired::{Family, PortChange, PortFrontend, PortId, PortState, Protocol};
