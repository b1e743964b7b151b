//! What is found in the maps: whose ports are not known yet, and which slots are free.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use proxy_common::abi::{Run, service_flags};

use super::PerFamily;
use super::port::{self, Found, List, Member, Port};
use super::runs::Runs;
use super::store::{EndpointId, Slot};
use crate::model::Family;

/// The slots that no port's runs cover.
pub fn free_runs(
    max: u32,
    slots: &PerFamily<Vec<Slot>>,
    ports: &BTreeMap<u32, Box<Port>>,
) -> PerFamily<Runs> {
    let free = |family| {
        let used = ports.values().filter(|port| port.family == family).flat_map(|port| port.runs());
        let chunks = slots[family].len() / proxy_common::abi::CHUNK as usize;
        Runs::new(u32::try_from(chunks).unwrap_or(u32::MAX), max, used)
    };
    PerFamily { v4: free(Family::V4), v6: free(Family::V6) }
}

/// A port as found; it takes its endpoints from `unheld`. Lists whose endpoints are not all there are not trusted, nor are
/// those with one that another address or port holds already.
pub fn stray(found: &Found, unheld: &mut HashSet<EndpointId>) -> Port {
    let mut endpoints: BTreeMap<_, Member> = BTreeMap::new();
    let mut dead = BTreeSet::new();
    let mut list = |which: usize, run: Run| {
        let Some(slots) = &found.lists[which] else { return NOTHING };
        let mut sound = slots.is_sorted_by(|a, b| a.address < b.address);
        for slot in slots {
            let member = endpoints.entry(slot.address).or_insert_with(|| {
                if !unheld.remove(&slot.endpoint) {
                    dead.insert(slot.address);
                }
                Member::new(slot.endpoint)
            });
            member.lists |= 1 << which;
            sound &= member.endpoint() == slot.endpoint;
        }
        List { run, sound }
    };
    let runs = port::runs_of(&found.service);
    let mut lists = [0, 1, 2].map(|which: usize| list(which, runs[which]));
    for member in dead.iter().filter_map(|address| endpoints.remove(address)) {
        for (which, list) in lists.iter_mut().enumerate() {
            list.sound &= !member.is_in(which);
        }
    }
    if found.frontends.is_empty() || found.service.flags & service_flags::IN_USE == 0 {
        // Nothing leads here, or a frontend to what is not in use, of which nothing is known: the slots may be another's by now.
        lists = [NOTHING; 3];
    }
    Port {
        index: found.index,
        family: found.family().unwrap_or(Family::V4),
        frontends: found.frontends.clone(),
        lists,
        ranges: found.ranges.clone(),
        flags: found.service.flags,
        affinity_timeout: found.service.affinity_timeout,
        endpoints: endpoints.into_iter().map(|(address, member)| (address.into(), member)).collect(),
    }
}

const NOTHING: List = List { run: Run::EMPTY, sound: false };
