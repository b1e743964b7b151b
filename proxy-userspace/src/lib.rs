//! The agent of Sluice.
//!
//! One object's way: a source ([`cluster`](self)) → `model` (compact state, pure) → plan → `sync` (difference to what
//! is installed) → `datapath` (ordered map writes).

pub mod cluster;
pub mod config;
pub mod model;
