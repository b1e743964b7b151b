//! Sluice's BPF programs: thin shims around `proxy_common::path`.
//!
//! ```text
//! programs/  one entry point per hook: context in, verdict out
//! packet.rs  the one place that touches packet memory
//! route.rs   the stack's routes, and what they told just now
//! maps.rs    map statics
//! tables.rs  proxy_common's Tables over them, one family at a time
//! family.rs  what differs from one family to the other
//! global.rs  functions that the verifier looks at once
//! element.rs a flow element in place
//! shared.rs  numbers that all CPUs write
//! clock.rs   what time it is
//! dice.rs    random draws
//! trace.rs   the packet trace of one address, off unless it is loaded on
//! ```
//!
//! On the host this crate is an empty binary, so that the whole workspace builds and lints with one command.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod clock;
#[cfg(target_arch = "bpf")]
mod dice;
#[cfg(target_arch = "bpf")]
mod element;
#[cfg(target_arch = "bpf")]
mod family;
#[cfg(target_arch = "bpf")]
mod global;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod route;
#[cfg(target_arch = "bpf")]
mod shared;
#[cfg(target_arch = "bpf")]
mod tables;
#[cfg(target_arch = "bpf")]
mod trace;

/// Helpers that the kernel only offers to GPL-compatible programs are used.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
