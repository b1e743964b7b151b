//! `explain`: a packet's way through this node, told by the programs that would see it.

use std::net::{IpAddr, SocketAddr};

use proxy_common::abi::Hook;
use proxy_common::path::Verdict;

use super::start::OFF;
use super::worker::Worker;
use crate::control::Query;
use crate::datapath::{Asked, Made, Question};
use crate::model::Protocol;
use crate::node::{Edge, EdgeKind, Routed, Way, way};
use crate::status::{Explanation, Trouble, story};

/// Source port of a packet whose sender did not say: one that no flow of the client is likely to have.
const ANY_PORT: u16 = 61_001;

/// Where a packet comes from.
enum Origin {
    /// By a device.
    Edge(Edge),
    /// From a socket that is translated when it connects.
    Socket,
}

impl Worker {
    /// What would become of a packet. Changes nothing.
    pub fn explain(&mut self, query: &Query) -> Result<Explanation, Trouble> {
        let from = SocketAddr::new(query.from, query.port.unwrap_or(ANY_PORT));
        let ends = (from, query.to);
        if from.is_ipv4() != query.to.is_ipv4() {
            let next = "give two addresses of one family";
            return Err(Trouble::new(
                "explain",
                format_args!("{} and {} are of two", query.from, query.to),
                next,
            ));
        }
        let mut told = Explanation { frontend: None, path: "stack".to_owned(), ..Explanation::default() };
        match self.origin(query, &mut told)? {
            Some(Origin::Edge(edge)) => self.by_edge(&edge, ends, query.protocol, &mut told)?,
            Some(Origin::Socket) => self.by_socket(ends, query.protocol, &mut told)?,
            None => {
                finish(&mut told, Verdict::Pass, "no_edge");
                let made = Made { verdict: Verdict::Pass, ends, mark: 0, service: None, known: false };
                self.onwards(None, &made, (query.protocol, &Asked::default()), &mut told)?;
            }
        }
        Ok(told)
    }

    /// `None`: the packet meets no program; a step says why.
    fn origin(&self, query: &Query, told: &mut Explanation) -> Result<Option<Origin>, Trouble> {
        if let Some(name) = &query.edge {
            let found = self.edges.values().find(|served| served.edge.name == *name);
            let edge = found.ok_or_else(|| {
                Trouble::new(
                    format_args!("device {name}"),
                    "it is no edge",
                    "see `sluice status` for the edges",
                )
            })?;
            return Ok(Some(Origin::Edge(edge.edge.clone())));
        }
        match self.way(Routed { to: query.from, from: None, mark: 0 })? {
            // No hook is called for sockets of SCTP (S-20).
            Way::Local
                if self.sockets.mode != OFF
                    && self.sockets.why.is_empty()
                    && query.protocol != Protocol::Sctp =>
            {
                Ok(Some(Origin::Socket))
            }
            Way::Local => self.caught(query.to.ip(), "the node's own; its socket is not translated", told),
            Way::Out { ifindex, ports } => match self.edge_of(ifindex, &ports) {
                Some(edge) => Ok(Some(Origin::Edge(edge))),
                None => {
                    let how = format!("{} is reached by device {ifindex}, which is no edge", query.from);
                    self.caught(query.to.ip(), &how, told)
                }
            },
            Way::Nowhere(why) => Err(Trouble::new(
                format_args!("address {}", query.from),
                format_args!("the device it would come in by is not known: {why}"),
                "name it with --edge",
            )),
        }
    }

    /// A packet that comes by no edge, as it came `how`: the routes may lead it into the catch-all device.
    fn caught(&self, to: IpAddr, how: &str, told: &mut Explanation) -> Result<Option<Origin>, Trouble> {
        let edge = self.edges.values().find(|served| served.edge.kind == EdgeKind::CatchAll);
        if let (Some(served), Way::Out { .. }) = (edge, self.way(Routed { to, from: None, mark: 0 })?)
            && self.is_caught(to)
        {
            told.steps.push(format!("{how}; routed into the catch-all device"));
            return Ok(Some(Origin::Edge(served.edge.clone())));
        }
        told.steps.push(format!("{how}, and no catch-all route leads there"));
        Ok(None)
    }

    /// The edge that a device is, or a port of the bridge that it is: what is decided is the same at each.
    fn edge_of(&self, ifindex: u32, ports: &[u32]) -> Option<Edge> {
        let found = std::iter::once(&ifindex).chain(ports).find_map(|ifindex| self.edges.get(ifindex));
        found.map(|served| served.edge.clone())
    }

    fn way(&self, packet: Routed) -> Result<Way, Trouble> {
        self.runtime
            .block_on(way(packet))
            .map_err(|error| Trouble::new("netlink", error, "CAP_NET_ADMIN and AF_NETLINK are needed"))
    }

    fn by_edge(
        &mut self,
        edge: &Edge,
        ends: (SocketAddr, SocketAddr),
        protocol: Protocol,
        told: &mut Explanation,
    ) -> Result<(), Trouble> {
        let asked = self.datapath.asked(edge, ends, protocol).map_err(|error| unknown(&error))?;
        self.tell_asked(&asked, ends.1, told);
        let Some(made) =
            self.made(Question { edge, hook: Hook::Ingress, ends, mark: 0, protocol, asked: &asked }, told)?
        else {
            finish(told, Verdict::Pass, "no_program");
            return Ok(());
        };
        if let Some(service) = made.service.filter(|_| told.service.is_none()) {
            told.service = self.name(service);
        }
        let translated = made.ends.1 != ends.1;
        let reason = match (translated, made.known) {
            (true, false) => "new_flow",
            (_, true) => "known_flow",
            (false, false) => "not_a_service",
        };
        finish(told, made.verdict, reason);
        match made.verdict {
            Verdict::Drop(_) | Verdict::Reject(_) => return Ok(()),
            Verdict::Shortcut => "shortcut".clone_into(&mut told.path),
            Verdict::Pass => {}
        }
        told.verdict = if translated { "translate" } else { "pass" }.to_owned();
        told.backend = Some(made.ends.1).filter(|_| translated);
        if made.verdict == Verdict::Shortcut && made.mark == 0 {
            // A request that was to be masqueraded has been; of an answer the source is the frontend.
            told.masquerade = Some(made.ends.0).filter(|source| translated && source.ip() != ends.0.ip());
            return Ok(());
        }
        // What is still to be masqueraded meets the program of the device that it leaves by either way.
        self.onwards(Some(edge.ifindex), &made, (protocol, &asked), told)
    }

    /// From the stack, where it came in by the device `by` or is the node's own, to the device it leaves by.
    fn onwards(
        &mut self,
        by: Option<u32>,
        made: &Made,
        (protocol, asked): (Protocol, &Asked),
        told: &mut Explanation,
    ) -> Result<(), Trouble> {
        let (source, to) = (made.ends.0.ip(), made.ends.1.ip());
        // A bridge's port is no input device for the kernel's routes.
        let routed = Routed { to, from: by.map(|ifindex| (source, ifindex)), mark: made.mark };
        let mut way = self.way(routed)?;
        if matches!(way, Way::Nowhere(_)) {
            way = self.way(Routed { from: None, ..routed })?;
        }
        let (ifindex, ports) = match way {
            Way::Local => {
                told.steps.push(format!("stack: {to} is this node's own"));
                return Ok(());
            }
            Way::Nowhere(why) => {
                told.steps.push(format!("stack: no way to {to}: {why}"));
                return Ok(());
            }
            Way::Out { ifindex, ports } => (ifindex, ports),
        };
        let Some(out) = self.edge_of(ifindex, &ports) else {
            told.steps.push(format!("stack: out by device {ifindex}, which is no edge"));
            return Ok(());
        };
        told.steps.push(format!("stack: routed to {}", out.name));
        let (ends, mark) = (made.ends, made.mark);
        let question = Question { edge: &out, hook: Hook::Egress, ends, mark, protocol, asked };
        let Some(left) = self.made(question, told)? else {
            return Ok(());
        };
        if left.verdict != Verdict::Pass {
            finish(told, left.verdict, "");
        // Of an answer the source becomes the frontend, a Service's.
        } else if left.ends.0 != made.ends.0 && left.service.and_then(|service| self.name(service)).is_none()
        {
            told.masquerade = Some(left.ends.0);
        }
        Ok(())
    }

    /// A connection that is translated when it is made. The kernel cannot test-run socket programs; the look-up is that
    /// of an edge's program for a packet from the node itself.
    fn by_socket(
        &mut self,
        ends: (SocketAddr, SocketAddr),
        protocol: Protocol,
        told: &mut Explanation,
    ) -> Result<(), Trouble> {
        "socket".clone_into(&mut told.path);
        told.steps
            .push("the node's own; translated when the socket connects: asked is an edge's program".into());
        let leaves = self.way(Routed { to: ends.1.ip(), from: None, mark: 0 })?;
        let edges = || self.edges.values().map(|served| &served.edge);
        // A packet that comes in by where it leaves would circle, which the node's own does not.
        let circles = |edge: &Edge| matches!(leaves, Way::Out { ifindex, .. } if ifindex == edge.ifindex);
        let rank = |edge: &&Edge| (circles(edge), edge.ifindex);
        let Some(edge) = edges().filter(|edge| edge.kind != EdgeKind::CatchAll).min_by_key(rank).cloned()
        else {
            told.steps.push("there is no edge to ask".to_owned());
            finish(told, Verdict::Pass, "no_edge");
            return Ok(());
        };
        let asked = self.datapath.asked(&edge, ends, protocol).map_err(|error| unknown(&error))?;
        let asked = Asked { own: true, ..asked };
        self.tell_asked(&asked, ends.1, told);
        let ends = if asked.service.is_some() { self.off_loopback(ends)? } else { ends };
        let Some(made) = self.made(
            Question { edge: &edge, hook: Hook::Ingress, ends, mark: 0, protocol, asked: &asked },
            told,
        )?
        else {
            finish(told, Verdict::Pass, "no_program");
            return Ok(());
        };
        let translated = made.ends.1 != ends.1;
        finish(told, made.verdict, if translated { "new_flow" } else { "not_a_service" });
        match made.verdict {
            Verdict::Pass if translated => {
                "translate".clone_into(&mut told.verdict);
                told.backend = Some(made.ends.1);
            }
            Verdict::Pass => return self.onwards(None, &made, (protocol, &asked), told),
            // A socket is refused, never kept waiting.
            Verdict::Drop(_) => "reject".clone_into(&mut told.verdict),
            _ => {}
        }
        Ok(())
    }

    /// These ends at another address of the node's, if they are loopback addresses: a NodePort is found by its number alone (E5), and a
    /// packet with such an address has no business at an edge.
    fn off_loopback(&self, ends: (SocketAddr, SocketAddr)) -> Result<(SocketAddr, SocketAddr), Trouble> {
        let served = self.served_node_ports().map_err(|error| unknown(&error))?;
        let other = served.into_iter().find(|ip| !ip.is_loopback() && ip.is_ipv4() == ends.1.is_ipv4());
        let off = |at: SocketAddr| match other {
            Some(ip) if at.ip().is_loopback() => SocketAddr::new(ip, at.port()),
            _ => at,
        };
        Ok((off(ends.0), off(ends.1)))
    }

    fn made(&mut self, question: Question<'_>, told: &mut Explanation) -> Result<Option<Made>, Trouble> {
        let made = self.datapath.make(&question).map_err(|error| unknown(&error))?;
        let Question { edge, hook, ends, .. } = question;
        let place = format!("{} {}", if hook == Hook::Ingress { "ingress" } else { "egress" }, edge.name);
        told.steps.push(match &made {
            None => format!("{place}: this agent's program is not there"),
            Some(made) => {
                let now = match made.verdict {
                    Verdict::Drop(reason) => format!("drop ({})", reason.name()),
                    Verdict::Reject(reason) => format!("reject ({})", reason.name()),
                    Verdict::Shortcut => format!("now {} > {}, past the stack", made.ends.0, made.ends.1),
                    Verdict::Pass if made.ends == ends => "pass".to_owned(),
                    Verdict::Pass => format!("now {} > {}", made.ends.0, made.ends.1),
                };
                let mark = if made.mark == 0 { String::new() } else { format!(", mark {:#x}", made.mark) };
                format!("{place}: {} > {}: {now}{mark}", ends.0, ends.1)
            }
        });
        Ok(made)
    }

    fn tell_asked(&self, asked: &Asked, dialled: SocketAddr, told: &mut Explanation) {
        let Some(service) = asked.service else { return };
        told.frontend = Some(dialled);
        told.service = self.name(service);
        told.candidates.clone_from(&asked.candidates);
        told.candidates.sort_unstable();
    }

    fn name(&self, service: u32) -> Option<String> {
        self.syncer.names().get(&service).map(ToString::to_string)
    }
}

/// The verdict's word and its reason; `otherwise` where nothing was counted.
fn finish(told: &mut Explanation, verdict: Verdict, otherwise: &str) {
    let (word, reason) = match verdict {
        Verdict::Pass | Verdict::Shortcut => ("pass", otherwise),
        Verdict::Drop(reason) => ("drop", reason.name()),
        Verdict::Reject(reason) => ("reject", reason.name()),
    };
    word.clone_into(&mut told.verdict);
    reason.clone_into(&mut told.reason);
}

fn unknown(error: &(dyn std::error::Error + 'static)) -> Trouble {
    Trouble::new("explain", story(error), "see the agent's log")
}
