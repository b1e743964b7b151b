//! Taking away what agents left in the kernel: attachments and pins, nothing else.

use std::os::fd::AsFd;

use super::error::DatapathError;
use super::hooks::{self, Known, SOCKETS, TC_EGRESS, TC_INGRESS};
use super::loader::{self, Options};
use super::pins::Pins;
use super::sys::{self, Target};

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Devices of this network namespace that carried our programs.
    pub devices: Vec<String>,
    /// Programs on the cgroup.
    pub sockets: usize,
    /// Pins and directories of pins, of every layout.
    pub pins: usize,
}

/// Detaches every program of ours from this network namespace's devices and from the cgroup, and removes all pins.
/// A second call finds nothing. Maps go with the last program that uses them.
///
/// # Errors
/// Names what could not be taken away; everything before it is gone.
pub fn cleanup(options: &Options) -> Result<Cleaned, DatapathError> {
    let mut cleaned = Cleaned::default();
    let layouts = match &options.bpffs {
        Some(bpffs) => Pins::layouts(bpffs)?,
        None => Vec::new(),
    };
    let mut known = Known::new();
    for pins in &layouts {
        for (path, fd) in pins.programs()? {
            let failed = |source| DatapathError::File { operation: "read pin", path, source };
            known.insert(sys::program_info(fd.as_fd()).map_err(failed)?.id, fd);
        }
    }
    hooks::check_sight(&known)?;
    for (name, ifindex) in hooks::devices()? {
        let mut removed = 0;
        for hook in [TC_INGRESS, TC_EGRESS] {
            removed += hooks::clear(Target::Device(ifindex), hook, &known)?;
        }
        if removed > 0 {
            cleaned.devices.push(name);
        }
    }
    if let Some(path) = &options.cgroup {
        let cgroup = loader::open_cgroup(path)?;
        for (hook, _) in SOCKETS {
            cleaned.sockets += hooks::clear(Target::Cgroup(cgroup.as_fd()), hook, &known)?;
        }
    }
    for pins in layouts {
        cleaned.pins += pins.remove()?.len();
    }
    Ok(cleaned)
}
