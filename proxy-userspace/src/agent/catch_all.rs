//! The safety net of the node's own processes: what no socket hook translates for them, the catch-all device does. That is
//! everything where there are no hooks, and SCTP where there are: the kernel calls none for its sockets (S-20).

use std::collections::HashMap;
use std::net::IpAddr;

use proxy_common::abi::AddressClass;
use tracing::{error, info, warn};

use super::edges::State;
use super::start::OFF;
use super::worker::Worker;
use crate::node::{self, EdgeKind, OUTER, SOURCE_V4, SOURCE_V6, remove_catch_all};
use crate::status::{Trouble, story};
use crate::sync::Store;

/// What the device cannot do, for the status.
pub const LIMITS: &str = "NodePorts on the node's own addresses are not reachable from the node itself";

/// What the device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Nothing,
    /// Addresses that are dialled over SCTP.
    Sctp,
    /// Every Service's.
    All,
}

impl Wanted {
    /// Whether packets to an address of this class are to be led into the device. Another host's are not: everything to it would be.
    const fn leads(self, bits: u32) -> bool {
        let asked = match self {
            Self::Nothing => 0,
            Self::Sctp => AddressClass::SCTP,
            Self::All => AddressClass::SERVICE,
        };
        bits & asked != 0 && bits & (AddressClass::LOCAL | AddressClass::SHARED) == 0
    }
}

/// The device, and what of it could not be had.
#[derive(Debug, Default)]
pub struct CatchAll {
    device: Option<node::CatchAll>,
    /// What it was wanted for when this was last settled; `None`: that has not been done yet.
    settled: Option<Wanted>,
    /// Why there is none although there should be one.
    failed: Option<String>,
    /// Addresses whose routes could not be written.
    refused: HashMap<IpAddr, String>,
}

impl CatchAll {
    pub const fn is_there(&self) -> bool {
        self.device.is_some()
    }

    pub fn troubles(&self) -> Vec<Trouble> {
        let what = "the catch-all device";
        let next = "it is tried again every minute; with socket hooks (--sockets host) only SCTP needs it";
        let failed = self.failed.iter().map(|why| Trouble::new(what, why, next));
        let refused = self.refused.iter().map(|(ip, why)| {
            let next =
                "the node's own processes do not reach this address; remove the route that is in the way";
            Trouble::new(format_args!("{what}'s route to {ip}"), why, next)
        });
        failed.chain(refused).collect()
    }
}

impl Worker {
    /// What the node's own processes need the device for, and why.
    fn wanted_of_catch_all(&self) -> (Wanted, String) {
        let sockets = &self.sockets;
        match (sockets.mode.as_str(), sockets.why.as_str()) {
            (OFF, "") => (Wanted::All, "sockets are off".to_owned()),
            (OFF, why) => (Wanted::All, format!("sockets are off: {why}")),
            (_, "") if self.syncer.has_sctp() => (Wanted::Sctp, "over SCTP, which passes no hook".to_owned()),
            (_, "") => (Wanted::Nothing, String::new()),
            (_, why) => (Wanted::All, format!("sockets are not translated: {why}")),
        }
    }

    /// Whether packets to this address are led into the device.
    pub fn is_caught(&self, to: IpAddr) -> bool {
        self.catch_all.device.as_ref().is_some_and(|device| device.routes().contains(&to))
    }

    /// Why the device is there and what it cannot do.
    pub fn catch_all_note(&self) -> String {
        let (_, why) = self.wanted_of_catch_all();
        let note = format!("serves the node's own processes as {SOURCE_V4} and {SOURCE_V6}, {why}; {LIMITS}");
        let limits = self.catch_all.device.as_ref().filter(|device| !device.has_v6()).map(|_| "; no IPv6");
        note + limits.unwrap_or_default()
    }

    /// Makes the device, takes over an earlier agent's, or takes it away, whatever the sockets' state and the Services ask for.
    pub fn settle_catch_all(&mut self) {
        let (wanted, _) = self.wanted_of_catch_all();
        self.catch_all.settled = Some(wanted);
        let result = match (wanted, self.catch_all.is_there()) {
            (Wanted::Nothing, _) => self.close_catch_all(),
            (_, false) => self.open_catch_all(),
            (_, true) => self.lead(),
        };
        self.catch_all.failed = result.err().map(|trouble| {
            error!("{trouble}");
            self.latest.note(&trouble);
            trouble.why
        });
    }

    fn open_catch_all(&mut self) -> Result<(), Trouble> {
        let runtime = self.runtime.clone();
        let device = runtime.block_on(node::CatchAll::open()).map_err(|error| trouble(&error))?;
        let edge = device.edge();
        let ifindex = edge.ifindex;
        self.catch_all.device = Some(device);
        // The program first: what is led into the device without it would be led there again.
        self.attach(edge, None);
        let failed = match self.edges.get(&ifindex).map(|served| &served.state) {
            Some(State::Attached { .. }) => None,
            Some(State::Failed(why)) => Some(why.clone()),
            None => Some("it went away at once".to_owned()),
        };
        if let Some(why) = failed {
            self.close_catch_all()?;
            return Err(Trouble::new("the catch-all device", why, "see the log"));
        }
        info!(device = OUTER, "the catch-all device serves the node's own processes");
        self.lead()
    }

    fn close_catch_all(&mut self) -> Result<(), Trouble> {
        let gone = self.edges.iter().find(|(_, served)| served.edge.kind == EdgeKind::CatchAll);
        if let Some(ifindex) = gone.map(|(ifindex, _)| *ifindex) {
            self.edges.remove(&ifindex);
            self.datapath.forget_edge(ifindex).map_err(|error| trouble(&error))?;
        }
        self.catch_all.refused.clear();
        self.catch_all.device = None;
        // Also one that an earlier agent has left.
        let removed = self.runtime.clone().block_on(remove_catch_all());
        if removed.map_err(|error| trouble(&error))? {
            info!(device = OUTER, "the catch-all device is not needed any more");
        }
        Ok(())
    }

    /// Compares all routes with the maps: at the start, and once a minute, since others may remove routes.
    fn lead(&mut self) -> Result<(), Trouble> {
        let Some(device) = &mut self.catch_all.device else { return Ok(()) };
        self.runtime.block_on(device.refresh()).map_err(|error| trouble(&error))?;
        let classes = self.datapath.addresses().map_err(|error| trouble(&error))?;
        let mut changes: HashMap<IpAddr, u32> = device.routes().iter().map(|ip| (*ip, 0)).collect();
        changes.extend(classes);
        self.follow_catch_all(changes);
        Ok(())
    }

    /// Routes follow the classes of addresses that have been written. The cost is that of the change.
    pub fn follow_catch_all(&mut self, changes: impl IntoIterator<Item = (IpAddr, u32)>) {
        let (wanted, _) = self.wanted_of_catch_all();
        if self.catch_all.settled.is_some_and(|settled| settled != wanted) {
            // Of all addresses, these among them.
            return self.settle_catch_all();
        }
        let Some(device) = &mut self.catch_all.device else { return };
        // The last of several changes counts.
        let latest: HashMap<IpAddr, bool> =
            changes.into_iter().map(|(ip, bits)| (ip, wanted.leads(bits))).collect();
        for ip in latest.keys() {
            self.catch_all.refused.remove(ip);
        }
        for (ip, error) in self.runtime.block_on(device.route(latest)) {
            let why = story(&error);
            warn!(address = %ip, "the catch-all device: {why}");
            self.catch_all.refused.insert(ip, why);
        }
    }
}

fn trouble(error: &(dyn std::error::Error + 'static)) -> Trouble {
    Trouble::new("the catch-all device", story(error), "it is tried again every minute")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_a_services_and_not_the_nodes_are_led() {
        let (service, local) = (AddressClass::SERVICE, AddressClass::LOCAL);
        let sctp = service | AddressClass::SCTP;
        let cases = [
            ("ClusterIP", service, true, false),
            ("ClusterIP with a port of SCTP", sctp, true, true),
            ("LoadBalancer address bound on the node", service | local, false, false),
            ("the same, with a port of SCTP", sctp | local, false, false),
            ("LoadBalancer address that may be another host's", service | AddressClass::SHARED, false, false),
            ("node's address with NodePorts", local | AddressClass::NODE_PORT, false, false),
            ("gone", 0, false, false),
        ];
        for (what, bits, all, only_sctp) in cases {
            let led = [Wanted::All, Wanted::Sctp, Wanted::Nothing].map(|wanted| wanted.leads(bits));
            assert_eq!(led, [all, only_sctp, false], "{what}");
        }
    }
}
