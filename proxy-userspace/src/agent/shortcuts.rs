//! Which packets may pass the stack by: what was asked for, and what keeps it from being so.

use proxy_common::abi::config_flags;
use tracing::info;

use super::conntrack;
use super::worker::Worker;
use crate::config::Shortcuts;
use crate::node::{are_routes_by_address, xfrm_policies};
use crate::status::{Mode, Trouble};

const ALL: u32 = config_flags::SHORTCUT_TCP
    | config_flags::SHORTCUT_UDP
    | config_flags::SHORTCUT_ALWAYS
    | config_flags::ROUTES_BY_ADDRESS;

/// What is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// Bits of [`config_flags`].
    flags: u32,
    pub mode: Mode,
    /// What keeps it from being what was asked for.
    pub trouble: Option<Trouble>,
}

/// TCP depends on connection tracking's being liberal: it sees few of the segments that pass it by, takes the next for invalid,
/// and the FINs with them. What is to be encrypted must not be sent by its route alone.
fn in_force(asked: Shortcuts, liberal: Result<(), Trouble>, encrypted: Result<u32, String>) -> InForce {
    const BOTH: u32 = config_flags::SHORTCUT_TCP | config_flags::SHORTCUT_UDP;
    let mode = |mode: Shortcuts, why: &str| Mode { mode: mode.name().to_owned(), why: why.to_owned() };
    if asked == Shortcuts::Off {
        return InForce { flags: 0, mode: mode(asked, "asked for"), trouble: None };
    }
    let (bits, trouble) = match liberal {
        Ok(()) => (BOTH, None),
        Err(trouble) => (config_flags::SHORTCUT_UDP, Some(trouble)),
    };
    let only =
        if bits == BOTH { "" } else { "UDP only: connection tracking cannot be made liberal, see degraded" };
    let established = Shortcuts::Established;
    let refused = |why: String| {
        let next = "remove the policies, or ask for --shortcuts established";
        let trouble = trouble.clone().unwrap_or_else(|| Trouble::new("--shortcuts always", &why, next));
        InForce {
            flags: bits,
            mode: mode(established, &format!("always was asked for: {why}")),
            trouble: Some(trouble),
        }
    };
    match (asked, encrypted) {
        (Shortcuts::Always, Ok(0)) => {
            let flags = bits | config_flags::SHORTCUT_ALWAYS;
            InForce { flags, mode: mode(asked, only), trouble }
        }
        (Shortcuts::Always, Ok(n)) => refused(format!("{n} xfrm policies may want packets encrypted")),
        (Shortcuts::Always, Err(why)) => {
            refused(format!("whether there are xfrm policies cannot be told: {why}"))
        }
        _ => InForce { flags: bits, mode: mode(established, only), trouble },
    }
}

impl Worker {
    /// Puts in force what can be. Others may change connection tracking's setting at any time.
    pub(super) fn follow_shortcuts(&mut self) {
        let liberal = match self.asked_shortcuts {
            Shortcuts::Off => Ok(false),
            Shortcuts::Established | Shortcuts::Always => conntrack::be_liberal(true),
        };
        let encrypted = match self.asked_shortcuts {
            Shortcuts::Off | Shortcuts::Established => Ok(0),
            Shortcuts::Always => xfrm_policies().map_err(|error| error.to_string()),
        };
        let made = if liberal == Ok(true) { config_flags::MADE_LIBERAL } else { 0 };
        // Where it cannot be told programs ask more often, and nothing else changes.
        let by_address = self.asked_shortcuts != Shortcuts::Off && are_routes_by_address().unwrap_or(false);
        let routes = if by_address { config_flags::ROUTES_BY_ADDRESS } else { 0 };
        let now = in_force(self.asked_shortcuts, liberal.map(drop), encrypted);
        let bits = now.flags;
        let changed = self.change_config(|config| {
            config.flags &= !ALL;
            config.flags |= bits | made | routes;
        });
        if let Err(error) = changed {
            self.failed("the settings", &error);
        }
        if now == self.shortcuts {
            return;
        }
        info!(mode = now.mode.mode, why = now.mode.why, "shortcuts");
        let before = std::mem::replace(&mut self.shortcuts, now.clone());
        self.tell_changes(before.trouble.as_slice(), now.trouble.as_slice());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_in_force_as_far_as_it_can_be() {
        use Shortcuts::{Always, Established, Off};
        const UDP: u32 = config_flags::SHORTCUT_UDP;
        const BOTH: u32 = config_flags::SHORTCUT_TCP | UDP;
        const EVER: u32 = config_flags::SHORTCUT_ALWAYS;
        const ONLY: &str = "UDP only: connection tracking cannot be made liberal, see degraded";
        let refused = || Err(Trouble::new("/proc/sys", "read-only", "set it"));
        let cases = [
            ("off", Off, Ok(()), Ok(0), (0, "off", "asked for", false)),
            ("established", Established, Ok(()), Ok(0), (BOTH, "established", "", false)),
            ("connection tracking insists", Established, refused(), Ok(0), (UDP, "established", ONLY, true)),
            ("always", Always, Ok(()), Ok(0), (BOTH | EVER, "always", "", false)),
            ("always, but for TCP", Always, refused(), Ok(0), (UDP | EVER, "always", ONLY, true)),
            (
                "packets may have to be encrypted",
                Always,
                Ok(()),
                Ok(2),
                (
                    BOTH,
                    "established",
                    "always was asked for: 2 xfrm policies may want packets encrypted",
                    true,
                ),
            ),
            (
                "who knows",
                Always,
                Ok(()),
                Err("no answer".to_owned()),
                (
                    BOTH,
                    "established",
                    "always was asked for: whether there are xfrm policies cannot be told: no answer",
                    true,
                ),
            ),
        ];
        for (name, asked, liberal, encrypted, (bits, mode, why, degraded)) in cases {
            let now = in_force(asked, liberal, encrypted);
            assert_eq!(
                (now.flags, now.mode.mode.as_str(), now.mode.why.as_str()),
                (bits, mode, why),
                "{name}"
            );
            assert_eq!(now.trouble.is_some(), degraded, "{name}");
        }
    }
}
