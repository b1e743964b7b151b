//! Who owns an address and port that several Services name (A17, C-28): a ClusterIP is never taken; else the oldest
//! Service wins, then the first by namespace and name, on every node alike.

use std::collections::BTreeMap;
use std::net::IpAddr;

use foldhash::HashMap;
use proxy_common::abi::FrontendKind;

use super::addresses::frontend_refusal;
use super::desired::Protocol;
use super::plan::{Frontend, frontends};
use crate::cluster::types::{ObjectName, Service};
use crate::sorted::Sorted;

/// What can be claimed. Addresses come first so that all claims on one are neighbours; a NodePort has the
/// unspecified address of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimKey {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

/// A Service and its rank; the smallest wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    /// False for a ClusterIP.
    external: bool,
    created: i64,
    service: ObjectName,
}

/// All claims of all Services that are served.
#[derive(Debug, Default)]
pub struct Claims {
    claims: BTreeMap<ClaimKey, Vec<Claimant>>,
    cluster_ips: HashMap<IpAddr, Vec<ObjectName>>,
}

impl Claims {
    /// Replaces `old`'s claims by `new`'s; both are states of one Service. Returns the other Services whose
    /// frontends may change by it.
    pub fn replace(&mut self, old: Option<&Service>, new: Option<&Service>) -> Vec<ObjectName> {
        let mut touched = Vec::new();
        let (before, after) = (claims_of(old), claims_of(new));
        for (key, claimant) in before.iter() {
            if after.get(key) != Some(claimant) {
                self.remove(key, claimant, &mut touched);
            }
        }
        for (key, claimant) in after.iter() {
            if before.get(key) != Some(claimant) {
                self.add(*key, claimant, &mut touched);
            }
        }
        let (before, after) = (cluster_ips_of(old), cluster_ips_of(new));
        let gone = before.iter().filter(|address| !after.contains(address));
        let come = after.iter().filter(|address| !before.contains(address));
        for address in gone.chain(come) {
            let owners = self.cluster_ips.entry(*address).or_default();
            match (old, new) {
                (_, Some(service)) if after.contains(address) => {
                    owners.reserve_exact(1);
                    owners.push(service.name.clone());
                }
                (Some(service), _) => owners.retain(|name| *name != service.name),
                _ => {}
            }
            if owners.is_empty() {
                self.cluster_ips.remove(address);
            }
            touched.extend(self.claimants(*address));
        }
        touched
    }

    /// The Service that has the frontend instead of `service`, `None` if it is `service`'s own.
    pub fn owner(&self, service: &ObjectName, frontend: &Frontend) -> Option<&ObjectName> {
        if frontend.kind.is_external()
            && let Some(owner) = self.cluster_ips.get(&frontend.key.address).and_then(|owners| owners.first())
        {
            return Some(owner);
        }
        let winner = self.claims.get(&frontend.key).and_then(|claimants| claimants.first())?;
        Some(&winner.service).filter(|winner| *winner != service)
    }

    fn add(&mut self, key: ClaimKey, claimant: &Claimant, touched: &mut Vec<ObjectName>) {
        let claimants = self.claims.entry(key).or_default();
        touched.extend(claimants.iter().map(|c| c.service.clone()));
        let place = claimants.partition_point(|c| c < claimant);
        // Nearly all have one claimant.
        claimants.reserve_exact(1);
        claimants.insert(place, claimant.clone());
    }

    fn remove(&mut self, key: &ClaimKey, claimant: &Claimant, touched: &mut Vec<ObjectName>) {
        let Some(claimants) = self.claims.get_mut(key) else { return };
        claimants.retain(|c| c != claimant);
        touched.extend(claimants.iter().map(|c| c.service.clone()));
        if claimants.is_empty() {
            self.claims.remove(key);
        }
    }

    fn claimants(&self, address: IpAddr) -> impl Iterator<Item = ObjectName> {
        let first = ClaimKey { address, protocol: Protocol::Tcp, port: 0 };
        let last = ClaimKey { address, protocol: Protocol::Sctp, port: u16::MAX };
        self.claims.range(first..=last).flat_map(|(_, claimants)| claimants.iter().map(|c| c.service.clone()))
    }
}

fn claims_of(service: Option<&Service>) -> Sorted<ClaimKey, Claimant> {
    let Some(service) = service else { return Sorted::default() };
    let claim = |frontend: Frontend| {
        let external = frontend.kind != FrontendKind::ClusterIp;
        (frontend.key, Claimant { external, created: service.created, service: service.name.clone() })
    };
    service.ports.iter().flat_map(|port| frontends(service, port)).map(claim).collect()
}

fn cluster_ips_of(service: Option<&Service>) -> Vec<IpAddr> {
    let addresses = service.filter(|s| s.is_served()).map(|s| &s.cluster_ips[..]).unwrap_or_default();
    let mut served: Vec<_> =
        addresses.iter().filter(|address| frontend_refusal(address).is_none()).copied().collect();
    served.sort_unstable();
    served.dedup();
    served
}
