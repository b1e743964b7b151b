//! Counters: one number per thing that can happen to a packet, per CPU.

/// Index into the `COUNTERS` per-CPU array of `u64`. New reasons go to the end: the numbers are part of the layout, and the array
/// gets another name with them, as it cannot grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Reason {
    /// A flow was made (not a drop).
    FlowCreated = 0,
    /// Rejected: the Service has no usable endpoint (B17, P-23).
    NoEndpoint = 1,
    /// Rejected: the address is a Service's, the port or protocol is not (B14, P-24).
    Unlisted = 2,
    /// Rejected: a TCP segment to a Service without a flow and without SYN (P-45).
    NoFlow = 3,
    /// Dropped: endpoints exist, none that the policy allows (C3).
    NoLocalEndpoint = 4,
    /// Dropped: the flow table is full of live flows (J9, P-65).
    FlowTableFull = 5,
    /// Dropped: no free source port for a masqueraded or renumbered flow (P-62).
    PortsExhausted = 6,
    /// Dropped: the device has no address to masquerade with.
    NoMasqueradeAddress = 7,
    /// Dropped: a fragment to a Service address whose flow is not known, or SCTP's first one if its port had to change (P-90).
    Fragment = 8,
    /// Dropped: an ICMP redirect about a translated flow.
    Redirect = 9,
    /// Dropped: headers for a Service address that cannot be parsed (P-01).
    Malformed = 10,
    /// Dropped: an answer to our SYN from another connection's endpoint; the flow was renumbered.
    ChallengeAck = 11,
    /// Dropped: the kernel refused to change the packet.
    Rewrite = 12,
    /// Dropped: an IP protocol that Services do not have, to a Service address (P-91).
    Protocol = 13,
    /// Dropped: it came to the catch-all device and is nothing that can be translated there (L-08).
    CatchAll = 14,
    /// Dropped: the source is in none of the Service's `loadBalancerSourceRanges` (C16).
    SourceRange = 15,
    /// Dropped: to an address of a ServiceCIDR that no Service has, on its way off the node (B15).
    Unassigned = 16,
    /// Dropped: it comes by a device and names a loopback address as its source or destination.
    Loopback = 17,
    /// Dropped: it carries the ends of a flow whose packets come and go by another device.
    Spoofed = 18,
    /// A fragment that came before its first one, or without, and was left to the stack (not a drop; P-10).
    EarlyFragment = 19,
    /// It has passed the stack by (not a drop).
    Shortcut = 20,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 21] = [
        Self::FlowCreated,
        Self::NoEndpoint,
        Self::Unlisted,
        Self::NoFlow,
        Self::NoLocalEndpoint,
        Self::FlowTableFull,
        Self::PortsExhausted,
        Self::NoMasqueradeAddress,
        Self::Fragment,
        Self::Redirect,
        Self::Malformed,
        Self::ChallengeAck,
        Self::Rewrite,
        Self::Protocol,
        Self::CatchAll,
        Self::SourceRange,
        Self::Unassigned,
        Self::Loopback,
        Self::Spoofed,
        Self::EarlyFragment,
        Self::Shortcut,
    ];

    /// Number of counters.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The name used in metrics, `status` and events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FlowCreated => "flow_created",
            Self::NoEndpoint => "no_endpoint",
            Self::Unlisted => "unlisted",
            Self::NoFlow => "no_flow",
            Self::NoLocalEndpoint => "no_local_endpoint",
            Self::FlowTableFull => "flow_table_full",
            Self::PortsExhausted => "ports_exhausted",
            Self::NoMasqueradeAddress => "no_masquerade_address",
            Self::Fragment => "fragment",
            Self::Redirect => "redirect",
            Self::Malformed => "malformed",
            Self::ChallengeAck => "challenge_ack",
            Self::Rewrite => "rewrite_failed",
            Self::Protocol => "protocol",
            Self::CatchAll => "catch_all",
            Self::SourceRange => "source_range",
            Self::Unassigned => "unassigned",
            Self::Loopback => "loopback",
            Self::Spoofed => "spoofed",
            Self::EarlyFragment => "early_fragment",
            Self::Shortcut => "shortcut",
        }
    }

    /// What became of the packet, for people: `drop`, `reject`, `pass` when it was left to the stack without what would have made
    /// it useful, or `count` for a plain event.
    #[must_use]
    pub const fn verdict(self) -> &'static str {
        match self {
            Self::FlowCreated | Self::Shortcut => "count",
            Self::EarlyFragment => "pass",
            Self::NoEndpoint | Self::Unlisted | Self::NoFlow => "reject",
            _ => "drop",
        }
    }

    /// Whether a packet's way has ended with it.
    #[must_use]
    pub const fn is_end(self) -> bool {
        !matches!(self, Self::FlowCreated | Self::EarlyFragment | Self::Shortcut)
    }
}
