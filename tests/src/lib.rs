//! Sluice's laboratory: nodes, pods and clients as network namespaces, real traffic, and oracles that judge it.

pub mod api;
pub mod bench;
pub mod bpf;
pub mod cluster;
pub mod demo;
#[cfg(test)]
mod deploy;
pub mod fuzz;
pub mod harness;
pub mod lab;
pub mod oracle;
pub mod packet;
pub mod simulation;
mod sys;
pub mod traffic;
pub mod wait;
pub mod wire;
