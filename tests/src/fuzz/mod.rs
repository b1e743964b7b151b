//! Arbitrary bytes where the world outside speaks to Sluice, and what must hold whatever they are. Each target is a function
//! that panics on a finding; `cargo xtask fuzz` has libFuzzer look for such bytes (`tests/fuzz`), and the suite `host` runs
//! each target on its seeds and on what a few thousand small changes make of them.
//!
//! ```text
//! packet.rs    frames on the way of packets           watch.rs  an API server's watch
//! manifest.rs  files in the manifest folder           maps.rs   what a new agent finds in the maps
//! ```

mod manifest;
mod maps;
mod packet;
mod settled;
#[cfg(test)]
mod tests;
mod watch;

/// One place where bytes come in.
pub struct Target {
    pub name: &'static str,
    /// Panics on a finding.
    pub run: fn(&[u8]),
    /// Inputs that lead deep, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: [Target; 4] = [
    Target { name: "packet", run: packet::run, seeds: packet::seeds },
    Target { name: "manifest", run: manifest::run, seeds: manifest::seeds },
    Target { name: "watch", run: watch::run, seeds: watch::seeds },
    Target { name: "maps", run: maps::run, seeds: maps::seeds },
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
