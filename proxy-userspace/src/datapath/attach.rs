//! Attachment without links: what is attached stays when the agent goes, and is replaced in place when it comes back.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use proxy_common::abi::{Addr, Device, device_flags, flags};

use super::error::DatapathError;
use super::hooks::{self, Found, Hook, Ours, SOCKETS, TC_EGRESS, TC_INGRESS, attach_error};
use super::loader::{self, CAUGHT, ETHERNET, PLAIN};
use super::owner::{self, Owners};
use super::sys::{self, Target, attach_flags};
use super::{Datapath, netns_cookie};
use crate::node::{Edge, EdgeKind, Ways};

/// What attaching did at one hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The program was there.
    None,
    /// No program of ours was there.
    Attached,
    /// An earlier agent's program was there, and gave its place.
    Replaced,
}

/// Our program at one hook, among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    pub change: Change,
    /// Foreign programs that run before ours. At ingress they see untranslated packets, and may end the chain.
    pub before: usize,
    /// Foreign programs that run after ours. At egress they see restored packets.
    pub after: usize,
}

/// An edge with both of its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    pub ingress: Placement,
    pub egress: Placement,
    /// How long it took. A first attachment waits for readers under RTNL, some 12 ms.
    pub took: Duration,
}

/// What an edge's hooks hold now; see [`Datapath::inspect_edge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookState {
    /// This agent's own program is attached. Otherwise it was removed, or another agent took over (L-05, L-10).
    pub ours: bool,
    pub before: usize,
    pub after: usize,
}

/// Programs that were taken away because nothing asks for them any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Devices that carried our programs and are no edges.
    pub devices: Vec<String>,
    /// Pins of earlier agents' programs.
    pub pins: usize,
    /// Entries for devices that are gone.
    pub entries: usize,
}

/// The programs that these edges need, those of ingress first: they are the longest.
pub fn edge_programs(edges: &[Edge]) -> Vec<&'static str> {
    let mut needed: Vec<_> = edges.iter().flat_map(names).collect();
    needed.sort_unstable_by_key(|name| std::cmp::Reverse(*name));
    needed.dedup();
    needed
}

/// A race with somebody who attaches at the same time is lost this often before it is an error.
const ATTEMPTS: usize = 8;

/// The edge's programs, ingress first.
const fn names(edge: &Edge) -> [&'static str; 2] {
    match edge.kind {
        EdgeKind::CatchAll => CAUGHT,
        _ if edge.ethernet => ETHERNET,
        _ => PLAIN,
    }
}

impl Datapath {
    /// Puts both programs on `edge`, exactly one copy each: the first at ingress, the last at egress, so that other
    /// programs see the same pair of addresses both ways (L-10). Does nothing where they are already there, and
    /// replaces an earlier agent's in place. Writes the edge's entry in the `devices` map first, without shortcuts:
    /// [`Datapath::set_ways`] opens them.
    ///
    /// # Errors
    /// [`DatapathError::is_gone`] if the device went away meanwhile: not worth a message.
    pub fn attach_edge(&mut self, edge: &Edge) -> Result<Attached, DatapathError> {
        let started = Instant::now();
        self.require(edge)?;
        // Until it is known who else is there.
        self.set_ways(edge, None)?;
        let [ingress, egress] = names(edge);
        let target = Target::Device(edge.ifindex);
        let place = |hook, name, flags| self.place(target, hook, name, flags, &|_| true);
        let ingress = place(TC_INGRESS, ingress, attach_flags::BEFORE);
        let both = ingress.and_then(|ingress| Ok((ingress, place(TC_EGRESS, egress, attach_flags::AFTER)?)));
        match both {
            Ok((ingress, egress)) => Ok(Attached { ingress, egress, took: started.elapsed() }),
            Err(error) => {
                if error.is_gone() {
                    self.forget_edge(edge.ifindex)?;
                }
                Err(error)
            }
        }
    }

    fn require(&mut self, edge: &Edge) -> Result<(), DatapathError> {
        let needed = edge_programs(std::slice::from_ref(edge));
        let object = |make| loader::load_again(&self.pins, &self.recipe, make, None);
        self.programs.require(&self.pins, &needed, object)
    }

    /// Takes our programs off a device that is there but is no edge any more.
    ///
    /// # Errors
    /// Names the hook.
    pub fn detach_edge(&self, ifindex: u32) -> Result<(), DatapathError> {
        for hook in [TC_INGRESS, TC_EGRESS] {
            hooks::clear(Target::Device(ifindex), hook, &self.programs.known)?;
        }
        self.forget_edge(ifindex)
    }

    /// Forgets a device that is gone, with its programs: its number may be given to another (L-08).
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn forget_edge(&self, ifindex: u32) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Map { operation: "write", map: "DEVICES", source };
        self.tables.devices.remove(&ifindex).map_err(failed)?;
        self.tables.tell_news()
    }

    /// What the two hooks of an edge hold, ingress first. Changes nothing.
    ///
    /// # Errors
    /// As for [`Datapath::attach_edge`].
    pub fn inspect_edge(&self, edge: &Edge) -> Result<[HookState; 2], DatapathError> {
        let names = names(edge);
        let target = Target::Device(edge.ifindex);
        let state = |hook, name| {
            let found = self.look(target, hook)?;
            let id = sys::program_info(self.program(name)?)
                .map_err(|source| attach_error("look for our programs", target, hook, source))?
                .id;
            let ours = found.ours.iter().any(|ours| ours.info.id == id);
            Ok(HookState { ours, before: found.before, after: found.after })
        };
        Ok([state(TC_INGRESS, names[0])?, state(TC_EGRESS, names[1])?])
    }

    /// Puts the socket programs on the cgroup, exactly one copy each. Nothing where no cgroup was given. Those of an agent in
    /// another network namespace stay beside them: each agent's programs pass by the other's sockets.
    ///
    /// # Errors
    /// Names the hook.
    pub fn attach_sockets(&self) -> Result<(), DatapathError> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        let target = Target::Cgroup(cgroup.as_fd());
        let (here, owners) = (netns_cookie().ok(), Owners::on(target, &self.programs.known)?);
        let mine = |ours: &Ours| {
            self.programs.known.contains_key(&ours.info.id) || owner::is_here(here, owners.of(ours))
        };
        for (hook, name) in SOCKETS {
            self.place(target, hook, name, attach_flags::ALLOW_MULTI, &mine)?;
        }
        Ok(())
    }

    /// Takes the socket programs of this data plane's earlier agents off a cgroup that is not served any more. Those
    /// of another agent of this machine, which use other maps, stay. How many were taken.
    ///
    /// # Errors
    /// Names the directory or the hook.
    pub fn clear_sockets(&self, cgroup: &Path) -> Result<usize, DatapathError> {
        let cgroup = loader::open_cgroup(cgroup)?;
        let target = Target::Cgroup(cgroup.as_fd());
        let failed = |source| DatapathError::Map { operation: "describe", map: "CONFIG", source };
        let own = sys::map_info(self.tables.config.fd()).map_err(failed)?.id;
        let mut taken = 0;
        for (hook, _) in SOCKETS {
            for ours in self.look(target, hook)?.ours.iter().filter(|ours| ours.info.maps.contains(&own)) {
                sys::detach(target, hook.attach_type, ours.fd.as_fd())
                    .map_err(|source| attach_error("detach", target, hook, source))?;
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// Once `edges` have been attached: takes our programs off every other device, and forgets what an earlier agent
    /// left that is no longer used.
    ///
    /// # Errors
    /// Names the object.
    pub fn retire(&mut self, edges: &[u32]) -> Result<Retired, DatapathError> {
        let mut retired = Retired::default();
        let devices = hooks::devices()?;
        for (name, ifindex) in devices.iter().filter(|(_, ifindex)| !edges.contains(ifindex)) {
            let mut removed = 0;
            for hook in [TC_INGRESS, TC_EGRESS] {
                removed += hooks::clear(Target::Device(*ifindex), hook, &self.programs.known)?;
            }
            if removed > 0 {
                retired.devices.push(name.clone());
            }
        }
        let failed = |source| DatapathError::Map { operation: "read", map: "DEVICES", source };
        for (ifindex, _) in self.tables.devices.dump().map_err(failed)? {
            if !edges.contains(&ifindex) {
                self.forget_edge(ifindex)?;
                retired.entries += 1;
            }
        }
        retired.pins = self.programs.unpin_earlier()?;
        self.let_go(devices.into_iter().map(|(_, ifindex)| ifindex));
        Ok(retired)
    }

    fn let_go(&mut self, devices: impl Iterator<Item = u32>) {
        let devices =
            devices.map(Target::Device).flat_map(|device| [(device, TC_INGRESS), (device, TC_EGRESS)]);
        let cgroup = self.cgroup.iter().map(|cgroup| Target::Cgroup(cgroup.as_fd()));
        let cgroup = cgroup.flat_map(|cgroup| SOCKETS.map(|(hook, _)| (cgroup, hook)));
        let found = devices.chain(cgroup).filter_map(|(target, hook)| self.look(target, hook).ok());
        let carried: Vec<_> = found.flat_map(|found| found.ours).map(|ours| ours.info.id).collect();
        self.programs.let_go(carried.into_iter());
    }

    /// How shortcuts may end at `edge`; `None`: they neither begin nor end there.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn set_ways(&self, edge: &Edge, ways: Option<Ways>) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Map { operation: "write", map: "DEVICES", source };
        let current = self.tables.devices.get(&edge.ifindex).map_err(failed)?;
        let device = Device {
            masquerade_v4: edge.masquerade_v4.map_or(Addr::UNSPECIFIED, |address| Addr::v4(address.octets())),
            masquerade_v6: edge.masquerade_v6.map_or(Addr::UNSPECIFIED, |address| Addr::v6(address.octets())),
            mtu: edge.mtu,
            flags: flags([
                (edge.pod, device_flags::POD),
                (edge.detected, device_flags::DETECTED),
                (ways.is_some(), device_flags::SHORTCUT),
                (ways.is_some_and(|ways| ways.peer), device_flags::PEER),
                (ways.is_some_and(|ways| ways.neighbour), device_flags::NEIGHBOUR),
                (edge.port, device_flags::PORT),
            ]),
            // The programs write these.
            frames: current.map_or([0; 3], |current| current.frames),
        };
        if current == Some(device) {
            return Ok(());
        }
        self.tables.devices.set(&edge.ifindex, &device).map_err(failed)?;
        self.tables.tell_news()
    }

    fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>, DatapathError> {
        let tracing = self.tracing.as_ref().and_then(|tracing| tracing.program(name));
        let tracing = tracing.and_then(|id| self.programs.known.get(&id)).map(AsFd::as_fd);
        tracing.or_else(|| self.programs.get(name)).ok_or(DatapathError::NoProgram { program: name })
    }

    fn look(&self, target: Target<'_>, hook: Hook) -> Result<Found, DatapathError> {
        hooks::look(target, hook, &self.programs.known).map_err(|source| {
            DatapathError::of("look for our programs", source, |source| {
                attach_error("look for our programs", target, hook, source)
            })
        })
    }

    /// Exactly one copy of program `name` at the hook among those that are `mine`. `flags` say where a new one goes.
    fn place(
        &self,
        target: Target<'_>,
        hook: Hook,
        name: &'static str,
        flags: u32,
        mine: &dyn Fn(&Ours) -> bool,
    ) -> Result<Placement, DatapathError> {
        let program = self.program(name)?;
        let failed = |operation, source| match target {
            // The programs are loaded, so EPERM from a cgroup is another program's doing.
            Target::Cgroup(_) => attach_error(operation, target, hook, source),
            Target::Device(_) => {
                DatapathError::of(operation, source, |source| attach_error(operation, target, hook, source))
            }
        };
        let id = sys::program_info(program).map_err(|source| failed("describe our program", source))?.id;
        let mut change = Change::None;
        for _ in 0..ATTEMPTS {
            let mut found = self.look(target, hook)?;
            found.ours.retain(mine);
            if found.ours.iter().any(|ours| ours.info.id == id) {
                for stray in found.ours.iter().filter(|ours| ours.info.id != id) {
                    sys::detach(target, hook.attach_type, stray.fd.as_fd())
                        .map_err(|source| failed("detach an earlier copy", source))?;
                }
                return Ok(Placement { change, before: found.before, after: found.after });
            }
            // Only tcx counts revisions on every kernel that has it.
            let revision = if matches!(target, Target::Device(_)) { found.revision } else { 0 };
            let earlier = found.ours.first().map(|ours| ours.fd.as_fd());
            let flags = match (target, earlier) {
                (_, None) => flags,
                (Target::Device(_), Some(_)) => attach_flags::REPLACE,
                (Target::Cgroup(_), Some(_)) => flags | attach_flags::REPLACE,
            };
            match sys::attach(target, hook.attach_type, program, flags, earlier, revision) {
                Ok(()) => change = if earlier.is_some() { Change::Replaced } else { Change::Attached },
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ESTALE | libc::ENOENT | libc::EEXIST)) => {}
                Err(error) => return Err(failed("attach", error)),
            }
        }
        Err(failed("attach", std::io::Error::from_raw_os_error(libc::EBUSY)))
    }
}
