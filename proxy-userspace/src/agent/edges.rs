use std::collections::BTreeMap;
use std::time::Duration;

use crate::datapath::Attached;
use crate::node::{Edge, Ways};
use crate::status::{self, Trouble};

/// An edge and what came of attaching to it.
#[derive(Clone, Debug)]
pub struct Served {
    pub edge: Edge,
    pub state: State,
    /// From the device's event to both programs attached; `None` if it was there at start.
    pub took: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Both programs are there, among so many foreign ones that run before ours and after it, at ingress and egress.
    Attached {
        before: [usize; 2],
        after: [usize; 2],
    },
    Failed(String),
}

impl From<&Attached> for State {
    fn from(attached: &Attached) -> Self {
        let hooks = [&attached.ingress, &attached.egress];
        Self::Attached { before: hooks.map(|hook| hook.before), after: hooks.map(|hook| hook.after) }
    }
}

/// The node's edges by ifindex.
pub type Edges = BTreeMap<u32, Served>;

impl Served {
    /// How shortcuts may end at the edge, or what keeps them from beginning and ending there. Programs before ours at ingress have
    /// their turn either way.
    pub fn ways(&self) -> Result<Ways, String> {
        let State::Attached { before, after } = &self.state else {
            return Err("it is not served".to_owned());
        };
        let ways = self.edge.ways.clone()?;
        if after[0] + before[1] + after[1] > 0 {
            return Err("other programs are there".to_owned());
        }
        Ok(ways)
    }
}

/// The edge as `status` shows it.
pub fn view(served: &Served) -> status::Edge {
    let edge = &served.edge;
    let (hooks, mode, why): (&[&str], _, _) = match &served.state {
        State::Attached { before, after } => (&["ingress", "egress"], "tcx", neighbours(before, after)),
        State::Failed(error) => (&[], "unserved", error.clone()),
    };
    status::Edge {
        name: edge.name.clone(),
        ifindex: edge.ifindex,
        kind: edge.kind.name().to_owned(),
        hooks: hooks.iter().map(|hook| (*hook).to_owned()).collect(),
        mode: mode.to_owned(),
        why,
        attach_ms: served.took.map(|took| took.as_secs_f64() * 1e3),
    }
}

/// Foreign programs that see other packets than they might expect (section 4 of the design): those that run before
/// ours at ingress, and after ours at egress.
fn neighbours(before: &[usize; 2], after: &[usize; 2]) -> String {
    let programs =
        |n: usize| if n == 1 { "1 other program".to_owned() } else { format!("{n} other programs") };
    let mut notes = Vec::new();
    if before[0] > 0 {
        notes.push(format!("{} before ours at ingress, may keep packets from it", programs(before[0])));
    }
    if after[1] > 0 {
        notes.push(format!("{} after ours at egress", programs(after[1])));
    }
    notes.join("; ")
}

/// What is wrong with the edge, if anything.
pub fn trouble(served: &Served) -> Option<Trouble> {
    let what = format!("device {}", served.edge.name);
    match &served.state {
        State::Failed(error) => Some(Trouble::new(
            what,
            error,
            "it is tried again every minute; --edges can leave the device out",
        )),
        State::Attached { before, .. } if before[0] > 0 => Some(Trouble::new(
            what,
            neighbours(before, &[0; 2]),
            "have the other program attached after sluice_ingress, see `bpftool net`",
        )),
        State::Attached { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{EdgeKind, Ways};

    fn served(state: State) -> Served {
        let edge = Edge {
            name: "eth0".to_owned(),
            ifindex: 2,
            kind: EdgeKind::Nic,
            ethernet: true,
            masquerade_v4: None,
            masquerade_v6: None,
            mtu: 1500,
            pod: false,
            address: Vec::new(),
            port: false,
            detected: false,
            ways: Ok(Ways { peer: false, neighbour: true }),
        };
        Served { edge, state, took: Some(Duration::from_micros(12_500)) }
    }

    #[test]
    fn edges_tell_their_hooks_and_their_neighbours() {
        let attached = |before, after| State::Attached { before, after };
        let cases = [
            ("alone", attached([0, 0], [0, 0]), 2, "tcx", "", false),
            ("harmless neighbours", attached([0, 3], [1, 0]), 2, "tcx", "", false),
            (
                "somebody before us",
                attached([1, 0], [0, 2]),
                2,
                "tcx",
                "1 other program before ours at ingress, may keep packets from it; 2 other programs after ours at egress",
                true,
            ),
            ("refused", State::Failed("no tcx".to_owned()), 0, "unserved", "no tcx", true),
        ];
        for (name, state, hooks, mode, why, degraded) in cases {
            let served = served(state);
            let shown = view(&served);
            assert_eq!(
                (shown.hooks.len(), shown.mode.as_str(), shown.why.as_str()),
                (hooks, mode, why),
                "{name}"
            );
            assert_eq!(shown.attach_ms, Some(12.5), "{name}");
            assert_eq!(trouble(&served).is_some(), degraded, "{name}");
        }
    }
}
