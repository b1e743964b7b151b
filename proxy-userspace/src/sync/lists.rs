//! One port's endpoint lists: where they lie, and how it is switched to them.

use std::net::SocketAddr;

use proxy_common::abi::{Run, service_flags};

use super::port::{Port, WORDS};
use super::runs::Runs;
use super::store::{Slot, Word};
use crate::model::PortState;

/// Runs for all lists of a port, and which of them must be written.
pub struct Lists {
    /// In the order of [`WORDS`].
    pub runs: [Run; 3],
    /// Chunks that must be added before.
    pub chunks: Vec<u32>,
    /// Lists that were given a new run.
    written: Vec<usize>,
}

/// Lengths of the lists of a port that is new; equal lists share one run.
pub fn lengths(want: &PortState) -> impl Iterator<Item = u32> {
    let lists = want.lists();
    let first = move |which: &usize| (0..*which).all(|other| lists[other] != lists[*which]);
    (0..lists.len()).filter(first).map(move |which| length(lists[which]))
}

fn length(list: &[SocketAddr]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

/// Keeps runs whose lists are the same; equal lists share one. `Err`: the list that there is no room for; nothing is taken.
pub fn grant(runs: &mut Runs, port: Option<&Port>, want: &PortState) -> Result<Lists, u32> {
    let want = want.lists();
    let mut found: [Option<Run>; 3] = [0, 1, 2].map(|which: usize| {
        let port = port?;
        port.lists(which, want[which]).then_some(port.lists[which].run)
    });
    let mut lists = Lists { runs: [Run::EMPTY; 3], chunks: Vec::new(), written: Vec::new() };
    for which in 0..want.len() {
        let twin = || (0..want.len()).find_map(|other| found[other].filter(|_| want[other] == want[which]));
        let run = match found[which].or_else(twin) {
            Some(run) => run,
            None => {
                let count = length(want[which]);
                let Some(granted) = runs.allocate(count) else {
                    lists.written.iter().for_each(|taken| runs.cancel(lists.runs[*taken]));
                    return Err(count);
                };
                lists.chunks.extend(granted.chunk);
                if count > 0 {
                    lists.written.push(which);
                }
                granted.run
            }
        };
        found[which] = Some(run);
        lists.runs[which] = run;
    }
    Ok(lists)
}

impl Lists {
    /// The slots to be written. Every endpoint in `want` is among the port's.
    pub fn slots(&self, port: &Port, want: &PortState) -> impl Iterator<Item = (u32, Slot)> {
        let lists = want.lists();
        let slot = move |&address: &SocketAddr| {
            port.endpoints.get(&address.into()).map(|member| Slot { address, endpoint: member.endpoint() })
        };
        let written = self.written.iter().map(move |which| (self.runs[*which].offset().., lists[*which]));
        written.flat_map(move |(offsets, list)| offsets.zip(list.iter().filter_map(slot)))
    }

    /// Switches a port to its new lists and settings. "Silence" bits only matter for empty lists: old and new ones are both
    /// in force while the lists are switched, so that no packet is rejected that neither state rejects. The list for
    /// clients that are not bound by policy Local is there for as long as the policy is.
    pub fn switch(
        &self,
        port: &mut Port,
        want: &PortState,
        epoch: u16,
        is_new: bool,
        mut store: impl FnMut((u32, Word)),
    ) {
        const BOTH: u32 =
            service_flags::DROP_EXTERNAL | service_flags::DROP_INTERNAL | service_flags::LOCAL_EXTERNAL;
        let index = port.index;
        let flags = want.flags | service_flags::IN_USE | u32::from(epoch) << service_flags::EPOCH_SHIFT;
        let affinity_timeout = want.affinity_timeout;
        let both = flags | (port.flags & BOTH);
        let switch = |which: usize, store: &mut dyn FnMut((u32, Word))| {
            let found = &port.lists[which];
            if is_new || !found.sound || self.runs[which] != found.run {
                store((index, WORDS[which](self.runs[which])));
            }
        };
        let is_local = flags & service_flags::LOCAL_EXTERNAL != 0;
        if is_local {
            switch(2, &mut store);
        }
        if !is_new && (both, affinity_timeout) != (port.flags, port.affinity_timeout) {
            store((index, Word::Settings { flags: both, affinity_timeout }));
        }
        switch(0, &mut store);
        switch(1, &mut store);
        if is_new || flags != both {
            store((index, Word::Settings { flags, affinity_timeout }));
        }
        if !is_local {
            switch(2, &mut store);
        }
        (port.flags, port.affinity_timeout) = (flags, affinity_timeout);
    }
}
