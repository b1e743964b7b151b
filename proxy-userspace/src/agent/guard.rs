//! The change of guard (L-07): kube-proxy was here before, or takes our place.

use proxy_common::abi::{config_flags, flags};
use tracing::info;

use super::worker::Worker;
use crate::node::Rules;

impl Worker {
    /// L-07: without it for long, the programs leave new flows to a proxy that listens in our place.
    pub(super) fn show_life(&mut self) {
        if let Err(error) = self.datapath.beat(self.health) {
            self.failed("the sign of life", &error);
        }
    }

    /// L-07: kube-proxy's rules go silent, now that ours are complete; what it has begun, the kernel finishes.
    pub(super) fn take_over(&mut self) {
        match Rules::look() {
            Ok(rules) if rules.may_have_connections() => match rules.silence() {
                Ok(()) => info!("kube-proxy's rules are taken out of nf_tables; its connections go on"),
                Err(error) => self.complain(&format!("kube-proxy's rules cannot be removed: {error}")),
            },
            Ok(_) => {}
            Err(error) => self.complain(&format!("kube-proxy's rules cannot be looked for: {error}")),
        }
        self.follow_kube_proxy();
    }

    /// Segments without a flow are the stack's while kube-proxy's connections may be there.
    pub(super) fn follow_kube_proxy(&mut self) {
        let Ok(rules) = Rules::look() else { return };
        let changed = self.change_config(|config| {
            config.flags &= !config_flags::STRAYS_PASS;
            config.flags |= flags([(rules.may_have_connections(), config_flags::STRAYS_PASS)]);
        });
        if let Err(error) = changed {
            self.failed("the settings", &error);
        }
    }
}
