//! What is measured under which circumstances, and what Sluice should reach there.

use proxy_userspace::config::Shortcuts;

use super::beds::{Path, Translator};
use super::load::Load;
use crate::bench::report::Aim;
use crate::lab::Wiring;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Datagrams without sockets.
    Packets,
    /// Transactions.
    Load(Load),
}

pub const FORWARDING: Kind = Kind::Packets;
pub const CRR: Kind = Kind::Load(Load::Crr);
pub const RR1: Kind = Kind::Load(Load::Rr { connections: 1 });
pub const RR32: Kind = Kind::Load(Load::Rr { connections: 32 });
pub const UDP: Kind = Kind::Load(Load::Udp);

/// The circumstances of some rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    pub path: Path,
    /// With the rules of a CNI on the node.
    pub policy: bool,
    pub wiring: Wiring,
    /// What is measured here.
    pub kinds: &'static [Kind],
    /// By a quick run too.
    pub quick: bool,
}

impl Setting {
    const fn new(path: Path, kinds: &'static [Kind]) -> Self {
        Self { path, policy: false, wiring: Wiring::Routed, kinds, quick: false }
    }

    const fn quick(self) -> Self {
        Self { quick: true, ..self }
    }

    const fn policy(self) -> Self {
        Self { policy: true, ..self }
    }

    const fn bridged(self) -> Self {
        Self { wiring: Wiring::Bridged, ..self }
    }

    /// As a row's name begins.
    #[must_use]
    pub fn name(&self) -> String {
        let house = if self.policy { "policy" } else { "bare" };
        let wiring = if self.wiring == Wiring::Bridged { ", bridged" } else { "" };
        format!("{}{wiring}, {house}", self.path.name)
    }

    /// Whether this is the same as `other` in IPv6.
    #[must_use]
    pub fn is_ipv6_of(&self, other: &Self) -> bool {
        (self.path, other.path) == (Path::LOCAL_V6, Path::LOCAL)
            && (self.policy, self.wiring) == (other.policy, other.wiring)
    }

    /// Those of a run.
    fn of(quick: bool) -> impl Iterator<Item = Self> {
        SETTINGS.into_iter().filter(move |setting| setting.quick || !quick)
    }

    /// Those of one kind.
    pub fn all(kind: Kind, quick: bool) -> impl Iterator<Item = Self> {
        Self::of(quick).filter(move |setting| setting.kinds.contains(&kind))
    }

    /// Whether a run needs nodes that are wired so.
    #[must_use]
    pub fn need(wiring: Wiring, quick: bool) -> bool {
        Self::of(quick).any(|setting| setting.wiring == wiring)
    }
}

/// Every setting.
pub const SETTINGS: [Setting; 11] = [
    Setting::new(Path::LOCAL, &[FORWARDING, CRR, RR1, RR32, UDP]).quick(),
    Setting::new(Path::LOCAL, &[FORWARDING, CRR, RR32]).policy().quick(),
    Setting::new(Path::LOCAL_V6, &[FORWARDING, CRR, RR32, UDP]),
    Setting::new(Path::REMOTE, &[FORWARDING, CRR, RR32]),
    Setting::new(Path::NODE_PORT_LOCAL, &[FORWARDING, CRR]),
    Setting::new(Path::NODE_PORT_REMOTE, &[FORWARDING, CRR]),
    Setting::new(Path::NODE_PORT_REMOTE, &[CRR]).policy(),
    Setting::new(Path::HAIRPIN, &[CRR, RR32]),
    Setting::new(Path::STRAIGHT, &[FORWARDING, CRR, RR32]),
    Setting::new(Path::LOCAL, &[FORWARDING, CRR, RR32]).bridged(),
    Setting::new(Path::REMOTE, &[CRR]).bridged(),
];

/// What a rate or a time is compared with, in the order of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Nobody,
    Limit,
    Ipv4,
    KubeProxy,
}

impl Base {
    pub const ALL: [Self; 4] = [Self::Nobody, Self::Limit, Self::Ipv4, Self::KubeProxy];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "to no proxy",
            Self::Limit => "to redirects",
            Self::Ipv4 => "to IPv4",
            Self::KubeProxy => "to kube-proxy",
        }
    }
}

struct Goal {
    kind: Kind,
    path: Path,
    policy: bool,
    modes: &'static [Shortcuts],
    base: Base,
    least: f64,
}

const fn goal(
    kind: Kind,
    path: Path,
    policy: bool,
    modes: &'static [Shortcuts],
    (base, least): (Base, f64),
) -> Goal {
    Goal { kind, path, policy, modes, base, least }
}

const ESTABLISHED: &[Shortcuts] = &[Shortcuts::Established];
const ALWAYS: &[Shortcuts] = &[Shortcuts::Always];
const BOTH: &[Shortcuts] = &[Shortcuts::Established, Shortcuts::Always];
const ANY: &[Shortcuts] = &[Shortcuts::Off, Shortcuts::Established, Shortcuts::Always];

/// As many times the base as Sluice should be.
const GOALS: [Goal; 24] = [
    goal(FORWARDING, Path::LOCAL, false, BOTH, (Base::KubeProxy, 3.0)),
    goal(FORWARDING, Path::REMOTE, false, BOTH, (Base::KubeProxy, 2.2)),
    goal(FORWARDING, Path::NODE_PORT_REMOTE, false, BOTH, (Base::KubeProxy, 2.4)),
    goal(FORWARDING, Path::LOCAL, false, BOTH, (Base::Limit, 0.85)),
    goal(CRR, Path::LOCAL, false, ESTABLISHED, (Base::KubeProxy, 1.15)),
    goal(CRR, Path::LOCAL, false, ALWAYS, (Base::KubeProxy, 1.28)),
    goal(CRR, Path::LOCAL, true, ESTABLISHED, (Base::KubeProxy, 1.08)),
    goal(CRR, Path::LOCAL, true, ALWAYS, (Base::KubeProxy, 1.30)),
    goal(RR32, Path::LOCAL, false, ESTABLISHED, (Base::KubeProxy, 1.30)),
    goal(RR32, Path::LOCAL, false, ALWAYS, (Base::KubeProxy, 1.33)),
    goal(RR32, Path::LOCAL, true, ESTABLISHED, (Base::KubeProxy, 1.30)),
    goal(RR32, Path::LOCAL, true, ALWAYS, (Base::KubeProxy, 1.35)),
    goal(CRR, Path::LOCAL, false, ALWAYS, (Base::Nobody, 1.03)),
    goal(RR32, Path::LOCAL, false, ALWAYS, (Base::Nobody, 1.10)),
    goal(CRR, Path::REMOTE, false, ALWAYS, (Base::KubeProxy, 1.20)),
    goal(CRR, Path::NODE_PORT_REMOTE, false, ALWAYS, (Base::KubeProxy, 1.20)),
    goal(UDP, Path::LOCAL, false, ALWAYS, (Base::KubeProxy, 1.15)),
    goal(FORWARDING, Path::STRAIGHT, false, ANY, (Base::Nobody, 0.97)),
    goal(CRR, Path::STRAIGHT, false, ANY, (Base::Nobody, 0.97)),
    goal(RR32, Path::STRAIGHT, false, ANY, (Base::Nobody, 0.97)),
    goal(FORWARDING, Path::LOCAL_V6, false, ANY, (Base::Ipv4, 0.93)),
    goal(CRR, Path::LOCAL_V6, false, ANY, (Base::Ipv4, 0.93)),
    goal(RR32, Path::LOCAL_V6, false, ANY, (Base::Ipv4, 0.93)),
    goal(UDP, Path::LOCAL_V6, false, ANY, (Base::Ipv4, 0.93)),
];

/// What somebody's figure should reach, beside this base.
#[must_use]
pub fn aims(kind: Kind, setting: &Setting, proxy: Translator, base: Base) -> Vec<Aim> {
    let Translator::Sluice(mode) = proxy else { return Vec::new() };
    let concerns = |goal: &&Goal| {
        setting.wiring == Wiring::Routed
            && (goal.kind, goal.path, goal.policy, goal.base) == (kind, setting.path, setting.policy, base)
            && goal.modes.contains(&mode)
    };
    GOALS.iter().filter(concerns).map(|goal| Aim::AtLeast(goal.least)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_goal_is_measured() {
        for goal in &GOALS {
            let measured = SETTINGS.iter().any(|setting| {
                (setting.path, setting.policy) == (goal.path, goal.policy)
                    && setting.kinds.contains(&goal.kind)
            });
            assert!(measured, "{:?} {} {}", goal.kind, goal.path.name, goal.policy);
        }
    }

    #[test]
    fn goals_are_those_of_the_mode() {
        let bare = SETTINGS[0];
        let aims = |proxy, base| aims(CRR, &bare, proxy, base);
        let sluice = Translator::Sluice;
        assert_eq!(aims(sluice(Shortcuts::Established), Base::KubeProxy), [Aim::AtLeast(1.15)]);
        assert_eq!(aims(sluice(Shortcuts::Always), Base::KubeProxy), [Aim::AtLeast(1.28)]);
        assert_eq!(aims(sluice(Shortcuts::Always), Base::Nobody), [Aim::AtLeast(1.03)]);
        assert_eq!(aims(sluice(Shortcuts::Off), Base::KubeProxy), []);
        assert_eq!(aims(Translator::Nobody, Base::Nobody), []);
    }
}
