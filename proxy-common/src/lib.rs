//! Sluice's packet path and the shape of everything that lies in BPF maps.
//!
//! Three rooms, read in this order:
//!
//! * [`abi`]: map keys and values. Plain integers, explicit padding, one [`abi::LAYOUT`] number.
//! * [`wire`]: headers and checksums. Offsets and byte order, no policy.
//! * [`path`]: decisions. What happens to a packet at an edge and to a socket at connect time, generic
//!   over [`path::Packet`] and [`path::Tables`].
//!
//! The kernel programs, the agent's `explain`, the host tests and the fuzzers all run this same code. It has
//! no `unsafe`, no allocation, and no dependency on aya: aya-ebpf must never be linked into a host binary.

#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod abi;
pub mod path;
pub mod wire;
