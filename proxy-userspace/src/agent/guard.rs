//! The change of guard (L-07): kube-proxy was here before, or takes our place.

use std::fmt::Arguments;

use proxy_common::abi::{config_flags, flags};
use tracing::info;

use super::worker::Worker;
use crate::node::{Leftover, Rules};
use crate::status::Trouble;

impl Worker {
    /// L-07: without it for long, the programs leave new flows to a proxy that listens in our place.
    pub(super) fn show_life(&mut self) {
        if let Err(error) = self.datapath.beat(self.health) {
            self.failed("the sign of life", &error);
        }
    }

    /// L-07: kube-proxy's rules go silent, now that ours are complete; what it has begun, the kernel finishes.
    pub(super) fn take_over(&mut self) {
        self.takes_over = true;
        self.follow_kube_proxy();
    }

    /// Segments without a flow are the stack's while kube-proxy's connections may be there. What cannot be done is tried again
    /// with the next look, a minute later.
    pub(super) fn follow_kube_proxy(&mut self) {
        let troubles = match Rules::look() {
            Ok(rules) => self.follow(&rules),
            Err(error) => {
                self.metrics.guard_failed();
                vec![trouble(format_args!("they cannot be looked for: {error}"))]
            }
        };
        let before = std::mem::replace(&mut self.guard_troubles, troubles.clone());
        self.tell_changes(&before, &troubles);
    }

    fn follow(&mut self, rules: &Rules) -> Vec<Trouble> {
        let mut troubles: Vec<_> = rules.left().iter().map(Leftover::trouble).collect();
        if self.takes_over {
            match rules.silence() {
                Ok(silenced) => {
                    self.takes_over = false;
                    if silenced {
                        info!("kube-proxy's rules are taken out of nf_tables; its connections go on");
                    }
                }
                Err(error) => {
                    self.metrics.guard_failed();
                    troubles.push(trouble(format_args!("they cannot be removed: {error}")));
                }
            }
        }
        let changed = self.change_config(|config| {
            config.flags &= !config_flags::STRAYS_PASS;
            config.flags |= flags([(rules.may_have_connections(), config_flags::STRAYS_PASS)]);
        });
        if let Err(error) = changed {
            self.failed("the settings", &error);
        }
        troubles
    }
}

fn trouble(why: Arguments<'_>) -> Trouble {
    let next =
        "see whether `nft list ruleset` answers, and what else changes its tables; tried again every minute";
    Trouble::new("kube-proxy's rules in nf_tables", why, next)
}
