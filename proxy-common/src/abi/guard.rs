//! Whether the agent lives, and who has taken its place if not.

use super::{Port, abi};

abi! {
    /// Value of the `guard` array's only element. The agent writes it whole; while it is away the programs write `since`
    /// and `looked`.
    pub struct Guard {
        /// When the agent last lived, in ticks.
        pub beat: u32,
        /// Since when another proxy has been seen to listen; 0: none has.
        pub since: u32,
        /// When that was last looked for.
        pub looked: u32,
        /// Where kube-proxy's health server listens, a port of this node; 0: nobody is looked for.
        pub port: Port,
        /// Zero.
        pub pad: u16,
    }
}

/// `SO_PRIORITY` of the agent's own health server, by which programs tell it from another proxy's.
pub const OWN_PRIORITY: u32 = 6;

impl Guard {
    /// An agent that shows no life for so many ticks is away. A restart is over sooner.
    pub const AWAY: u32 = 10;
    /// Another proxy opens its port before its rules are there: it is given so many ticks.
    pub const SETTLE: u32 = 20;

    /// Whether new flows are another proxy's: the agent has gone, and one has been there for long enough. Flows that exist
    /// are served to their end.
    #[must_use]
    #[inline(always)]
    pub const fn handed_over(&self, now: u32) -> bool {
        self.since != 0 && self.is_away(now) && now.wrapping_sub(self.since) >= Self::SETTLE
    }

    /// Whether it is time to look for another proxy: once a tick, while the agent is away.
    #[must_use]
    #[inline(always)]
    pub const fn looks(&self, now: u32) -> bool {
        self.port.0 != 0 && self.looked != now && self.is_away(now)
    }

    /// What [`Guard::since`] becomes when another proxy has been looked for.
    #[must_use]
    #[inline(always)]
    pub const fn seen(&self, now: u32, found: bool) -> u32 {
        match (found, self.since) {
            (false, _) => 0,
            // 0 means none.
            (true, 0) => {
                if now == 0 {
                    1
                } else {
                    now
                }
            }
            (true, since) => since,
        }
    }

    #[inline(always)]
    const fn is_away(&self, now: u32) -> bool {
        now.wrapping_sub(self.beat) >= Self::AWAY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What programs make of it at `now`, if another proxy listens or does not.
    fn tell(guard: &mut Guard, now: u32, listens: bool) -> bool {
        if guard.looks(now) {
            guard.since = guard.seen(now, listens);
            guard.looked = now;
        }
        guard.handed_over(now)
    }

    #[test]
    fn l07_new_flows_are_left_to_a_proxy_that_came_after_the_agent() {
        let fresh = Guard { beat: 100, since: 0, looked: 0, port: Port::new(10_256), pad: 0 };
        let nobody = Guard { port: Port(0), ..fresh };
        type Looks = &'static [(u32, bool)];
        let stories: [(&str, Guard, Looks, bool); 8] = [
            ("the agent lives", fresh, &[(105, true), (109, true)], false),
            ("it is away for long, and nobody comes", fresh, &[(120, false), (9_000, false)], false),
            ("somebody has only just come", fresh, &[(115, true), (134, true)], false),
            ("somebody has come to stay", fresh, &[(115, true), (135, true)], true),
            ("was seen, and has gone again", fresh, &[(115, true), (135, false)], false),
            (
                "came back: it counts anew",
                fresh,
                &[(115, true), (120, false), (125, true), (140, true)],
                false,
            ),
            ("nobody is looked for", nobody, &[(115, true), (200, true)], false),
            ("the clock wraps", Guard { beat: u32::MAX - 5, ..fresh }, &[(8, true), (28, true)], true),
        ];
        for (name, mut guard, looks, want) in stories {
            let last = looks.iter().fold(false, |_, (now, listens)| tell(&mut guard, *now, *listens));
            assert_eq!(last, want, "{name}");
        }
        let mut handed = fresh;
        tell(&mut handed, 115, true);
        assert!(tell(&mut handed, 200, true));
        handed = Guard { beat: 201, since: 0, ..handed };
        assert!(!tell(&mut handed, 202, true), "the agent has come back");
    }

    #[test]
    fn looking_costs_something_once_a_tick_and_only_while_the_agent_is_away() {
        let guard = Guard { beat: 100, since: 0, looked: 111, port: Port::new(10_256), pad: 0 };
        for (now, looks) in [(100, false), (109, false), (110, true), (111, false), (112, true)] {
            assert_eq!(guard.looks(now), looks, "{now}");
        }
    }
}
