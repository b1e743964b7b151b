//! One port's change: whether it fits, what it takes, what is written.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use foldhash::HashMap;
use ipnet::IpNet;
use proxy_common::abi::{Frontend, Run, service_flags};
use thiserror::Error;

use super::PerFamily;
use super::classes::{ClassWrites, Classes};
use super::ids::{Generations, Ids};
use super::lists::{self, Lists};
use super::port::{List, Member, Port, Ranges, WORDS};
use super::runs::Runs;
use super::store::{Capacity, Dialled, EndpointId, Slot, Step, Word};
use crate::model::{Family, PortFrontend, PortId, PortState};
use crate::sorted::Sorted;

/// What there is not enough of (C-32). The port as a whole waits for room, with all others of a Service that is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Lack {
    #[error("no room for another Service port: all {0} are in use")]
    Services(u32),
    #[error("no room for its endpoints: all {0} are in use")]
    Endpoints(u32),
    #[error("no room for its frontends: all {0} of its family are in use")]
    Frontends(u32),
    #[error("no room for its source ranges: all {0} of its family are in use")]
    Ranges(u32),
    #[error("no room for its addresses: all {0} of its family are in use")]
    Addresses(u32),
    #[error("no room for a list of {0} endpoints: a list holds at most 16384, all lists of its family {1}")]
    Slots(u32, u32),
}

impl Lack {
    /// What `--limits` calls it.
    #[must_use]
    pub const fn limit(self) -> &'static str {
        match self {
            Self::Services(_) => "services",
            Self::Endpoints(_) => "endpoints",
            Self::Frontends(_) => "frontends",
            Self::Ranges(_) => "ranges",
            Self::Addresses(_) => "addresses",
            Self::Slots(..) => "slots",
        }
    }
}

/// Writes of many changes, in the order in which they keep the maps whole.
#[derive(Debug, Default)]
pub struct Batch {
    chunks: PerFamily<Vec<u32>>,
    /// Some port asks for affinity.
    affinity: PerFamily<bool>,
    endpoints: Vec<EndpointId>,
    slots: PerFamily<Vec<(u32, Slot)>>,
    words: Vec<(u32, Word)>,
    /// In force before the services that ask for them, and until those ask no more.
    ranges: Vec<(u32, IpNet)>,
    closed: PerFamily<Vec<(u32, IpNet)>>,
    /// `None`: to be removed.
    frontends: HashMap<Dialled, Option<Frontend>>,
    /// Services and endpoints that nothing leads to any more.
    cleared: Vec<(u32, Word)>,
    gone: Vec<EndpointId>,
    /// Frontends that are still in the maps when new ones come.
    leaving: PerFamily<u32>,
    /// Endpoints of a UDP port are among those that go.
    departs: bool,
}

impl Batch {
    /// Something goes, so there may be room for what waits. Ids rest before they are given again.
    pub fn frees(&self) -> bool {
        let leaves = |family| self.leaving[family] > 0 || !self.closed[family].is_empty();
        !self.gone.is_empty() || leaves(Family::V4) || leaves(Family::V6)
    }

    /// See [`super::Report::departed`].
    pub const fn departs(&self) -> bool {
        self.departs
    }

    /// Endpoint ids that nothing refers to.
    pub fn bury(&mut self, endpoints: impl IntoIterator<Item = u32>) {
        self.gone.extend(endpoints.into_iter().map(EndpointId::gone));
    }

    /// Additions from the endpoints up to the frontends, then removals the other way.
    pub fn steps(self, classes: ClassWrites) -> Vec<Step> {
        let (mut set, mut remove) = (Vec::new(), Vec::new());
        for (dialled, frontend) in self.frontends {
            match frontend {
                Some(frontend) => set.push((dialled, frontend)),
                None => remove.push(dialled),
            }
        }
        set.sort_unstable_by_key(|(dialled, _)| *dialled);
        remove.sort_unstable();
        let mut steps =
            vec![Step::Chunks(Family::V4, self.chunks.v4), Step::Chunks(Family::V6, self.chunks.v6)];
        steps.extend(self.affinity.v4.then_some(Step::Affinity(Family::V4)));
        steps.extend(self.affinity.v6.then_some(Step::Affinity(Family::V6)));
        steps.extend([
            Step::Endpoints(self.endpoints),
            Step::Slots(Family::V4, self.slots.v4),
            Step::Slots(Family::V6, self.slots.v6),
            Step::Ranges(self.ranges),
            Step::Services(self.words),
            Step::Frontends(set),
            Step::Addresses(classes.gain),
            Step::Addresses(classes.lose),
            Step::RemoveAddresses(classes.remove),
            Step::RemoveFrontends(remove),
            Step::Services(self.cleared),
            Step::RemoveRanges([self.closed.v4, self.closed.v6].concat()),
            Step::Endpoints(self.gone),
        ]);
        steps.retain(|step| match step {
            Step::Chunks(_, list) => !list.is_empty(),
            Step::Affinity(_) => true,
            Step::Endpoints(list) => !list.is_empty(),
            Step::Slots(_, list) => !list.is_empty(),
            Step::Services(list) => !list.is_empty(),
            Step::Ranges(list) | Step::RemoveRanges(list) => !list.is_empty(),
            Step::Frontends(list) => !list.is_empty(),
            Step::RemoveFrontends(list) => !list.is_empty(),
            Step::Addresses(list) => !list.is_empty(),
            Step::RemoveAddresses(list) => !list.is_empty(),
        });
        steps
    }
}

/// Everything that ports share: what is free, who owns what.
#[derive(Debug)]
pub struct Room {
    pub capacity: Capacity,
    pub services: Ids,
    pub endpoints: Ids,
    pub generations: Generations,
    pub runs: PerFamily<Runs>,
    pub classes: Classes,
    /// Frontend → index of the service it leads to.
    pub owners: HashMap<Dialled, u32>,
    pub owned: PerFamily<u32>,
    /// Source ranges in the maps.
    pub ranged: PerFamily<usize>,
    /// Those of services that nothing is known of, by index.
    pub stray_ranges: Ranges,
    /// The next epoch of affinity records (D5).
    pub epoch: u16,
}

impl Room {
    /// Makes `port` (new, if `None`) into what `want` says. On `Err` nothing has changed and the port is as before.
    pub fn upsert(
        &mut self,
        id: &PortId,
        port: &mut Option<Box<Port>>,
        want: &PortState,
        until: Duration,
        batch: &mut Batch,
    ) -> Result<(), Lack> {
        let frontends = frontends(id, want);
        let fresh = fresh_endpoints(port.as_deref(), want);
        let ports = usize::from(port.is_none());
        self.check_shared(ports, fresh.len())?;
        self.check(id.family, &frontends.keys().collect::<Vec<_>>(), batch)?;
        self.check_ranges(id.family, more_ranges(port.as_deref(), want), batch)?;
        let lists = lists::grant(&mut self.runs[id.family], port.as_deref(), want)
            .map_err(|length| Lack::Slots(length, self.capacity.slots))?;
        batch.chunks[id.family].extend(&lists.chunks);
        let asked = port.as_deref().is_some_and(|port| port.affinity_timeout != 0);
        batch.affinity[id.family] |= want.affinity_timeout != 0 && !asked;
        let is_new = port.is_none();
        let index = if is_new { self.services.take() } else { None };
        let port = match index {
            Some(index) => {
                let ranges = self.stray_ranges.remove(&index).unwrap_or_default();
                port.insert(Port { ranges, ..empty(index, id.family) }.into())
            }
            None => port.as_mut().ok_or(Lack::Services(self.capacity.services))?,
        };
        self.add_endpoints(port, &fresh, batch);
        batch.slots[id.family].extend(lists.slots(port, want));
        self.set_ranges(port, want.ranges.iter().copied().collect(), batch);
        let epoch = self.epoch_of(port, want);
        lists.switch(port, want, epoch, is_new, |word| batch.words.push(word));
        self.set_frontends(port, frontends, batch);
        self.retire_lists(port, want, &lists, until, batch);
        Ok(())
    }

    /// Takes `port` away. What others own by now stays.
    pub fn remove(&mut self, mut port: Port, until: Duration, batch: &mut Batch) {
        batch.departs |= port.is_udp();
        self.set_frontends(&mut port, Sorted::default(), batch);
        self.set_ranges(&mut port, BTreeSet::new(), batch);
        // A damaged frontend may lead to a service that there cannot be (L-05).
        if self.services.has(port.index) {
            let settings = Word::Settings { flags: 0, affinity_timeout: 0 };
            let words = std::iter::once(settings).chain(WORDS.map(|word| word(Run::EMPTY)));
            batch.cleared.extend(words.map(|word| (port.index, word)));
        }
        for run in port.runs() {
            self.runs[port.family].retire(run, until);
        }
        for (address, member) in port.endpoints {
            self.drop_endpoint(address.into(), member.endpoint(), until, batch);
        }
        self.services.retire(port.index, until);
    }

    /// What there is not enough of for ports that are new, all together. Nothing is taken.
    pub fn lacks(&self, news: &[(&PortId, &PortState)], batch: &Batch) -> Option<Lack> {
        let fresh = news.iter().map(|(_, want)| fresh_endpoints(None, want).len()).sum();
        let check = || {
            self.check_shared(news.len(), fresh)?;
            for family in [Family::V4, Family::V6] {
                let mine = || news.iter().filter(|(id, _)| id.family == family);
                let frontends: Vec<_> = mine().map(|(id, want)| frontends(id, want)).collect();
                let dialled: Vec<_> = frontends.iter().flat_map(Sorted::keys).collect();
                self.check(family, &dialled, batch)?;
                let ranges = mine().map(|(_, want)| more_ranges(None, want)).sum();
                self.check_ranges(family, ranges, batch)?;
                let lists: Vec<_> = mine().flat_map(|(_, want)| lists::lengths(want)).collect();
                if let Some(length) = self.runs[family].lacks(&lists) {
                    return Err(Lack::Slots(length, self.capacity.slots));
                }
            }
            Ok(())
        };
        check().err()
    }

    /// Of what both families share.
    fn check_shared(&self, ports: usize, endpoints: usize) -> Result<(), Lack> {
        if ports > self.services.available() {
            return Err(Lack::Services(self.capacity.services));
        }
        if endpoints > self.endpoints.available() {
            return Err(Lack::Endpoints(self.capacity.endpoints));
        }
        Ok(())
    }

    fn check(&self, family: Family, frontends: &[&Dialled], batch: &Batch) -> Result<(), Lack> {
        let frontends_used = (self.owned[family] + batch.leaving[family]) as usize;
        let addresses_used = self.classes.len(family);
        // Which of them are there already matters only where there is no room for all of them.
        if frontends_used + frontends.len() <= self.capacity.frontends as usize
            && addresses_used + frontends.len() <= self.capacity.addresses as usize
        {
            return Ok(());
        }
        let more = frontends.iter().filter(|dialled| !self.owners.contains_key(dialled)).count();
        if frontends_used + more > self.capacity.frontends as usize {
            return Err(Lack::Frontends(self.capacity.frontends));
        }
        let dialled =
            frontends.iter().map(|dialled| dialled.address).filter(|address| !address.is_unspecified());
        let mut addresses: Vec<_> = dialled.filter(|address| !self.classes.contains(address)).collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses_used + addresses.len() > self.capacity.addresses as usize {
            return Err(Lack::Addresses(self.capacity.addresses));
        }
        Ok(())
    }

    fn check_ranges(&self, family: Family, more: usize, batch: &Batch) -> Result<(), Lack> {
        if more > 0 && self.ranged[family] + batch.closed[family].len() + more > self.capacity.ranges as usize
        {
            return Err(Lack::Ranges(self.capacity.ranges));
        }
        Ok(())
    }

    fn set_ranges(&mut self, port: &mut Port, want: BTreeSet<IpNet>, batch: &mut Batch) {
        for range in want.difference(&port.ranges) {
            self.ranged[Family::of(&range.addr())] += 1;
            batch.ranges.push((port.index, *range));
        }
        for range in port.ranges.difference(&want) {
            self.close(port.index, *range, batch);
        }
        port.ranges = want;
    }

    fn close(&mut self, index: u32, range: IpNet, batch: &mut Batch) {
        // A port found without frontends does not tell its family.
        let family = Family::of(&range.addr());
        self.ranged[family] -= 1;
        batch.closed[family].push((index, range));
    }

    /// Source ranges that nobody has claimed.
    pub fn bury_ranges(&mut self, batch: &mut Batch) {
        for (index, ranges) in std::mem::take(&mut self.stray_ranges) {
            ranges.into_iter().for_each(|range| self.close(index, range, batch));
        }
    }

    /// D5: a port that begins to ask for affinity does not remember what was before.
    fn epoch_of(&mut self, port: &Port, want: &PortState) -> u16 {
        if port.affinity_timeout != 0 || want.affinity_timeout == 0 {
            return service_flags::epoch(port.flags);
        }
        self.epoch = self.epoch.wrapping_add(1);
        self.epoch
    }

    /// `check` has seen that there are enough ids.
    fn add_endpoints(&mut self, port: &mut Port, fresh: &[SocketAddr], batch: &mut Batch) {
        port.endpoints.reserve(fresh.len());
        port.endpoints.extend(fresh.iter().map_while(|&address| {
            let id = self.endpoints.take()?;
            let endpoint = EndpointId { id, generation: self.generations.advance(id) };
            batch.endpoints.push(endpoint);
            self.classes.add_endpoint(address.ip());
            Some((address.into(), Member::new(endpoint)))
        }));
    }

    fn drop_endpoint(
        &mut self,
        address: SocketAddr,
        endpoint: EndpointId,
        until: Duration,
        batch: &mut Batch,
    ) {
        batch.gone.push(EndpointId::gone(endpoint.id));
        self.classes.remove_endpoint(address.ip());
        self.endpoints.retire(endpoint.id, until);
    }

    fn set_frontends(&mut self, port: &mut Port, want: Sorted<Dialled, u32>, batch: &mut Batch) {
        for (dialled, &kind) in port.frontends.iter() {
            // First what leads nowhere else: an address keeps its class where only the kind changes.
            if want.get(dialled) != Some(&kind) {
                self.classes.remove_frontend(dialled, kind);
            }
            if want.contains_key(dialled) {
                continue;
            }
            // Another port may have taken it over.
            if self.owners.get(dialled) == Some(&port.index) {
                let family = Family::of(&dialled.address);
                self.owners.remove(dialled);
                self.owned[family] -= 1;
                batch.leaving[family] += 1;
                batch.frontends.insert(*dialled, None);
            }
        }
        for (dialled, &kind) in want.iter() {
            let before = port.frontends.get(dialled);
            if before != Some(&kind) {
                self.classes.add_frontend(dialled, kind);
            }
            let owner = self.owners.insert(*dialled, port.index);
            if owner.is_none() {
                self.owned[Family::of(&dialled.address)] += 1;
            }
            if owner != Some(port.index) || before != Some(&kind) {
                batch.frontends.insert(*dialled, Some(Frontend { service: port.index, kind }));
            }
        }
        port.frontends = want;
    }

    fn retire_lists(
        &mut self,
        port: &mut Port,
        want: &PortState,
        lists: &Lists,
        until: Duration,
        batch: &mut Batch,
    ) {
        for run in port.runs() {
            if !lists.runs.contains(&run) {
                self.runs[port.family].retire(run, until);
            }
        }
        let unused = port.set_lists(lists.runs, want);
        batch.departs |= !unused.is_empty() && port.is_udp();
        for (address, member) in unused {
            self.drop_endpoint(address.into(), member.endpoint(), until, batch);
        }
    }
}

/// With the kind's number.
fn frontends(id: &PortId, want: &PortState) -> Sorted<Dialled, u32> {
    let dialled = |frontend: &PortFrontend| {
        let (address, port) = (frontend.address, frontend.port);
        (Dialled { address, port, protocol: id.protocol }, frontend.kind as u32)
    };
    want.frontends.iter().map(dialled).collect()
}

/// Source ranges that the port does not have yet.
fn more_ranges(port: Option<&Port>, want: &PortState) -> usize {
    let known = |range: &&IpNet| port.is_some_and(|port| port.ranges.contains(range));
    want.ranges.iter().filter(|range| !known(range)).count()
}

fn empty(index: u32, family: Family) -> Port {
    Port {
        index,
        family,
        frontends: Sorted::default(),
        lists: [List { run: Run::EMPTY, sound: true }; 3],
        ranges: BTreeSet::new(),
        flags: 0,
        affinity_timeout: 0,
        endpoints: Sorted::default(),
    }
}

/// Endpoints that are to have an id and have none yet, each once, sorted.
fn fresh_endpoints(port: Option<&Port>, want: &PortState) -> Vec<SocketAddr> {
    let known =
        |address: &&SocketAddr| !port.is_some_and(|port| port.endpoints.contains_key(&(**address).into()));
    let [external, others @ ..] = want.lists();
    let mut fresh = Vec::with_capacity(external.len());
    fresh.extend(external.iter().filter(known));
    for list in others.into_iter().filter(|list| *list != external) {
        fresh.extend(list.iter().filter(known));
    }
    fresh.sort_unstable();
    fresh.dedup();
    fresh
}
