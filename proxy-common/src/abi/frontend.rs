//! Frontends: what clients dial.

use super::{Addr, Port, abi};

abi! {
    /// Key of the `frontends` maps. A NodePort has the unspecified address: it is looked up so when the
    /// destination's class has [`super::AddressClass::NODE_PORT`].
    pub struct FrontendKey<const N: usize> {
        /// Destination address, wire order.
        pub address: Addr<N>,
        /// Destination port, wire order.
        pub port: Port,
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub pad: u8,
    }
}

abi! {
    /// Value of the `frontends` maps. Written once per frontend: hash elements are reused by the kernel at
    /// once, readers have seen another key's value, so nothing that changes lives here.
    pub struct Frontend {
        /// Index into the `services` map.
        pub service: u32,
        /// One of [`FrontendKind`], decoded by [`Frontend::kind`].
        pub kind: u32,
    }
}

/// Which of a Service's addresses a frontend is. Decides the endpoint list and the masquerade rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum FrontendKind {
    /// ClusterIP: the internal list (C4), masquerade by the local-traffic detector (F4, F5).
    ClusterIp = 1,
    /// NodePort (B10).
    NodePort = 2,
    /// `spec.externalIPs` (B8).
    ExternalIp = 3,
    /// `status.loadBalancer.ingress[].ip` (B9).
    LoadBalancer = 4,
}

impl FrontendKind {
    /// Reached from outside by design: the external list and the external masquerade rule apply.
    #[must_use]
    pub const fn is_external(self) -> bool {
        !matches!(self, Self::ClusterIp)
    }
}

impl Frontend {
    /// The kind, or `None` for a number that no version of this layout writes.
    #[must_use]
    pub const fn kind(&self) -> Option<FrontendKind> {
        Some(match self.kind {
            1 => FrontendKind::ClusterIp,
            2 => FrontendKind::NodePort,
            3 => FrontendKind::ExternalIp,
            4 => FrontendKind::LoadBalancer,
            _ => return None,
        })
    }
}
