//! Tells rows: builds each packet, shows it to both nodes, and compares what comes out with what the row says.

use anyhow::{Context, Result, bail, ensure};
use proxy_common::abi::{Config, Device, Reason, protocol};
use proxy_common::path::note;

use super::frame::{self, ETHERNET, End, Flags, Read, read};
use super::shape::{Shape, finished, shaped};
use super::story::{Action, At, Both, Node, Outcome};
use super::tale::{Expect, MarkChange, Party, Spec, Step, Tale};
use super::world::{self, IFINDEX, PODS_IFINDEX, Plan, plan};
use crate::harness::{Group, Story};

/// Rows as stories: one for each family and protocol. Without `ethernet` they are told to the programs for devices that
/// have no such header (P-06). There a test run cannot show how room is made for an ICMP answer: it believes in an Ethernet
/// header, and so does the helper.
#[must_use]
pub fn stories(rows: Vec<Tale>, ethernet: bool) -> Vec<Story<Both>> {
    let mut stories = Vec::new();
    for row in rows {
        for &v6 in &row.families {
            for &number in &row.protocols {
                if !ethernet && number != protocol::TCP && refuses(&row) {
                    continue;
                }
                let name = format!("{}::{}::{}", slug(&row.title), family(v6), transport(number));
                let row = row.clone();
                stories.push(Story::new(name, move |node: &mut Both| {
                    node.reset();
                    Teller::new(node, v6, number, ethernet).tell(&row.steps)
                }));
            }
        }
    }
    stories
}

fn refuses(row: &Tale) -> bool {
    row.steps.iter().any(|step| matches!(step, Step::Hook { expect: Expect::Refused(_), .. }))
}

/// Stories that share loaded programs, which therefore run on one CPU: draws are per CPU.
#[must_use]
pub fn group(name: &str, stories: Vec<Story<Both>>) -> Group<Both> {
    let bed = || {
        pin()?;
        Both::new()
    };
    Group { name: name.into(), bed: Box::new(bed), oracle: |_| Ok(()), stories }
}

/// Keeps this thread where it is.
fn pin() -> Result<()> {
    let mut here = nix::sched::CpuSet::new();
    here.set(nix::sched::sched_getcpu()?)?;
    let this_thread = nix::unistd::Pid::from_raw(0);
    nix::sched::sched_setaffinity(this_thread, &here).context("cannot keep to one CPU")
}

/// A title as part of a test's name.
#[must_use]
pub fn slug(title: &str) -> String {
    title.replace(' ', "_")
}

#[must_use]
pub const fn family(v6: bool) -> &'static str {
    if v6 { "v6" } else { "v4" }
}

#[must_use]
pub const fn transport(number: u8) -> &'static str {
    match number {
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        _ => "sctp",
    }
}

/// One telling.
pub struct Teller<'a> {
    node: &'a mut Both,
    v6: bool,
    protocol: u8,
    ethernet: bool,
    plan: Plan,
    config: Config,
    /// Of what goes straight into the pod, as bytes: destination and source.
    hardware: Vec<u8>,
    /// What the last hook let through.
    /// With the segments of it.
    last: Option<(Outcome, u32)>,
    /// Where that came from.
    seen: Option<End>,
}

/// The hardware addresses that frames into the pod have, or will have when they are known.
fn hardware(device: &Device) -> Vec<u8> {
    let known = if device.frames == [0; 3] { world::pods_device().frames } else { device.frames };
    known.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl<'a> Teller<'a> {
    pub fn new(node: &'a mut Both, v6: bool, protocol: u8, ethernet: bool) -> Self {
        let (plan, config) = (plan(v6), world::config());
        let hardware = hardware(&world::pods_device());
        Self { node, v6, protocol, ethernet, plan, config, hardware, last: None, seen: None }
    }

    /// # Errors
    /// If anything is not as the steps say; the error names the step.
    pub fn tell(&mut self, steps: &[Step]) -> Result<()> {
        for (number, step) in steps.iter().enumerate() {
            self.step(step).with_context(|| format!("step {}", number + 1))?;
        }
        // Compared between the two nodes.
        self.node.flows();
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Hook { ingress, ifindex, packet, expect } => {
                return self.hook(*ingress, *ifindex, packet.as_ref(), *expect);
            }
            Step::After(ticks) => {
                self.config.test_clock += ticks;
                self.node.set_config(self.config);
            }
            Step::Endpoint(generation) => self.node.set_endpoint(self.v6, *generation),
            Step::Removed(who) => {
                let address = who.address(&self.plan).context("nobody in particular")?;
                self.node.remove(address);
            }
            Step::Config(change) => {
                change(&mut self.config);
                self.node.set_config(self.config);
            }
            Step::Device(change) => {
                let mut device = world::device();
                change(&mut device);
                self.node.set_device(IFINDEX, Some(device));
            }
            Step::HandOver => self.node.set_guard(world::handed_over(&self.config)),
            Step::PodsDevice(change) => {
                let mut device = world::pods_device();
                change(&mut device);
                self.hardware = hardware(&device);
                self.node.set_device(PODS_IFINDEX, Some(device));
            }
            Step::DeviceGone => self.node.set_device(IFINDEX, None),
            Step::Count(reason, times) => {
                let is = self.node.count(*reason);
                ensure!(is == *times, "{} was counted {is} times, not {times}", reason.name());
            }
            Step::Entries(number) => {
                let is = self.node.flows().len();
                ensure!(is == *number, "the flow table has {is} entries, not {number}");
            }
        }
        Ok(())
    }

    fn end(&self, party: Party) -> Result<End> {
        match party.0.address(&self.plan) {
            Some(address) => Ok((address, party.1)),
            None => self.seen.context("no packet has come out of a hook yet"),
        }
    }

    fn build(&self, spec: &Spec) -> Result<Vec<u8>> {
        let (from, to) = (self.end(spec.from)?, self.end(spec.to)?);
        Ok(shaped(frame::packet(self.protocol, spec.flags, from, to, &spec.payload), &spec.shapes))
    }

    fn hook(&mut self, ingress: bool, ifindex: u32, spec: Option<&Spec>, expect: Expect) -> Result<()> {
        let (bytes, mark, note, segments) = match (spec, &self.last) {
            (Some(spec), _) => (self.build(spec)?, spec.mark, note::NONE, spec.segments),
            (None, Some((last, segments))) => (last.bytes.clone(), last.mark, last.note, *segments),
            (None, None) => bail!("no packet has come out of a hook yet"),
        };
        // Unless a story says otherwise, routes lead to where its packet leaves.
        let routes = match (spec, expect) {
            (Some(spec), _) if spec.routes != [0; 2] => spec.routes,
            (_, Expect::PassesBy(.., by)) => [by.device; 2],
            _ => [0; 2],
        };
        let flooded = spec.is_some_and(|spec| spec.flooded);
        let forwarded = spec.is_some_and(|spec| spec.forwarded);
        let at = At { ingress, ethernet: self.ethernet, segments, ifindex, note, flooded, forwarded, routes };
        let before = self.node.counts();
        let shown = &bytes[if self.ethernet { 0 } else { ETHERNET }..];
        let mut out = self.node.run(&at, shown, mark);
        if !self.ethernet && out.action != Action::Drop {
            out.bytes.splice(0..0, bytes[..ETHERNET].iter().copied());
        }
        let counted = difference(&before, &self.node.counts());
        let finished = spec.is_none_or(|spec| !spec.shapes.contains(&Shape::Unfinished));
        self.judge(&bytes, mark, &out, &counted, expect, finished)?;
        if let Expect::Becomes(..) | Expect::PassesBy(..) = expect {
            self.seen = Some(read(&out.bytes).src);
        }
        if let Action::Pass | Action::Shortcut(_) = out.action {
            self.last = Some((out, segments));
        }
        Ok(())
    }

    fn judge(
        &self,
        sent: &[u8],
        mark: u32,
        out: &Outcome,
        counted: &[Reason],
        expect: Expect,
        finished: bool,
    ) -> Result<()> {
        let (action, why) = match expect {
            Expect::Becomes(..) | Expect::Untouched => (Action::Pass, None),
            Expect::PassesBy(_, _, _, by) => (Action::Shortcut(by), None),
            Expect::Dropped(reason) => (Action::Drop, Some(reason)),
            Expect::Refused(reason) => (Action::Reject, Some(reason)),
        };
        ensure!(out.action == action, "{:?}, counted {counted:?}; it should be {expect:?}", out.action);
        ensure!(counted == why.as_slice(), "counted {counted:?}, not {why:?}");
        match expect {
            Expect::Untouched => {
                ensure!(out.bytes == sent, "the bytes have changed");
                ensure!(out.mark == mark, "the mark was {mark:#x} and is {:#x}", out.mark);
            }
            Expect::Becomes(from, to, change) | Expect::PassesBy(from, to, change, _) => {
                let want = match change {
                    MarkChange::Kept => mark,
                    MarkChange::Set => mark | self.config.masquerade_mark,
                    MarkChange::Cleared => mark & !self.config.masquerade_mark,
                };
                ensure!(out.mark == want, "the mark was {mark:#x} and is {:#x}, not {want:#x}", out.mark);
                let (before, after) = (read(sent), read(&out.bytes));
                self.is_end("source", after.src, from)?;
                self.is_end("destination", after.dst, to)?;
                let mut sent = sent.to_vec();
                if let Expect::PassesBy(.., by) = expect {
                    if by.peer {
                        sent[..12].copy_from_slice(&self.hardware);
                    }
                    sent[ETHERNET + if self.v6 { 7 } else { 8 }] -= 1;
                }
                ensure!(bare(&sent, &before) == bare(&out.bytes, &after), "more has changed than the ends");
            }
            Expect::Refused(_) if finished || self.protocol == protocol::SCTP => {
                self.is_refusal(sent, &out.bytes)?
            }
            Expect::Refused(_) if self.protocol == protocol::TCP => {
                let unfinished = shaped(out.bytes.clone(), &[Shape::Unfinished]) == out.bytes;
                ensure!(unfinished, "the refusal's checksum is not left for the device to finish");
            }
            Expect::Refused(_) => self.is_refusal_either_way(sent, &out.bytes)?,
            Expect::Dropped(_) => {}
        }
        Ok(())
    }

    fn is_end(&self, what: &str, is: End, want: Party) -> Result<()> {
        let want = self.end(want)?;
        ensure!(is.0 == want.0 && (is.1 == want.1 || want.1 == 0), "{what} is {is:?}, not {want:?}");
        Ok(())
    }

    /// RST or port unreachable, from whom the packet was for, to whom it came from (B17).
    fn is_refusal(&self, sent: &[u8], answer: &[u8]) -> Result<()> {
        let (asked, told) = (read(sent), read(answer));
        ensure!(
            (told.src.0, told.dst.0) == (asked.dst.0, asked.src.0),
            "from {} to {}",
            told.src.0,
            told.dst.0
        );
        if self.ethernet {
            ensure!(answer[..6] == sent[6..12] && answer[6..12] == sent[..6], "sent to the wrong neighbour");
        }
        if self.protocol == protocol::TCP {
            ensure!((told.src.1, told.dst.1) == (asked.dst.1, asked.src.1), "ports of another connection");
            // RFC 9293 section 3.5.2: an unexpected ACK is reset at its own number.
            let want = Flags { rst: true, ack: !asked.flags.ack, ..Flags::default() };
            ensure!(told.flags == want, "{:?}, not {want:?}", told.flags);
            return Ok(());
        }
        let (kind, code, quoted) = told.icmp.context("no ICMP message")?;
        ensure!((kind, code) == if self.v6 { (1, 4) } else { (3, 3) }, "ICMP {kind}/{code}");
        let packet = &sent[ETHERNET..];
        // RFC 9260 section 10: an answer to an INIT is believed by the tag that it proposes.
        let behind = if self.protocol == protocol::SCTP { 20.min(sent.len() - asked.l4) } else { 8 };
        let least = (asked.l4 - ETHERNET + behind).min(128);
        ensure!(quoted.len() >= least, "{} bytes are quoted", quoted.len());
        ensure!(packet.starts_with(&quoted), "another packet is quoted");
        Ok(())
    }

    /// A datagram that its device was to finish is still marked so when it has become an ICMP message: that is right as it
    /// is, and after the device has written into what is quoted (P-80).
    fn is_refusal_either_way(&self, sent: &[u8], answer: &[u8]) -> Result<()> {
        let quoted = read(answer).l4 + 8;
        let header = if self.v6 { 40 } else { 20 };
        for answer in [answer.to_vec(), finished(answer.to_vec(), quoted + header, self.protocol)] {
            let (kind, code, quote) = read(&answer).icmp.context("no ICMP message")?;
            ensure!((kind, code) == if self.v6 { (1, 4) } else { (3, 3) }, "ICMP {kind}/{code}");
            let all_but_checksum = quote.len() - 2;
            ensure!(sent[ETHERNET..].starts_with(&quote[..all_but_checksum]), "another packet is quoted");
        }
        Ok(())
    }
}

/// Every reason that was counted meanwhile, as often as it was, but for what ends no packet's way.
fn difference(before: &[u64], after: &[u64]) -> Vec<Reason> {
    let times = |(reason, (b, a)): (Reason, (&u64, &u64))| std::iter::repeat_n(reason, (a - b) as usize);
    let counted = Reason::ALL.into_iter().zip(before.iter().zip(after)).flat_map(times);
    counted.filter(|reason| reason.is_end()).collect()
}

/// The frame without ends and checksums.
fn bare(frame: &[u8], read: &Read) -> Vec<u8> {
    let mut bare = frame.to_vec();
    let (addresses, sum) = if frame[ETHERNET] >> 4 == 6 { (8..40, 0..0) } else { (12..20, 10..12) };
    for field in [addresses, sum] {
        bare[ETHERNET..][field].fill(0);
    }
    for field in [read.l4..read.l4 + 4, read.checksum.clone()] {
        bare[field].fill(0);
    }
    bare
}
