//! The packet trace: one record a packet, as it passes through aya-log.

use super::{Port, abi};

abi! {
    /// What one hook made of one packet. IPv4 addresses are in mapped form.
    pub struct TraceRecord {
        /// Source address as the packet came.
        pub src: [u32; 4],
        /// Destination address as the packet came.
        pub dst: [u32; 4],
        /// Source address as the packet left; meaningless where it was turned into an answer.
        pub new_src: [u32; 4],
        /// Destination address as the packet left.
        pub new_dst: [u32; 4],
        /// Source port as the packet came, 0 where there is none.
        pub sport: Port,
        /// Destination port as the packet came.
        pub dport: Port,
        /// Source port as the packet left.
        pub new_sport: Port,
        /// Destination port as the packet left.
        pub new_dport: Port,
        /// Device.
        pub ifindex: u32,
        /// The packet's mark as it left.
        pub mark: u32,
        /// [`crate::path::Verdict::code`].
        pub verdict: u32,
        /// Index into `services`, `u32::MAX`: none.
        pub service: u32,
        /// IP protocol number.
        pub protocol: u8,
        /// A [`super::Hook`].
        pub hook: u8,
        /// A [`super::Kind`]: what the flow that the packet belongs to makes of it; 0: it belongs to none.
        pub kind: u8,
        /// Zero.
        pub pad: u8,
    }
}

impl TraceRecord {
    /// Bytes of a record.
    pub const SIZE: usize = size_of::<Self>();

    /// From its bytes, as another program of this machine wrote them.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let mut at = 0;
        let mut word = || {
            let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            at += 4;
            word
        };
        let mut words = || [(); 4].map(|()| u32::from_ne_bytes(word()));
        let (src, dst, new_src, new_dst) = (words(), words(), words(), words());
        let ports =
            |[a, b, c, d]: [u8; 4]| (Port(u16::from_ne_bytes([a, b])), Port(u16::from_ne_bytes([c, d])));
        let ((sport, dport), (new_sport, new_dport)) = (ports(word()), ports(word()));
        let mut number = || u32::from_ne_bytes(word());
        let (ifindex, mark, verdict, service) = (number(), number(), number(), number());
        let [protocol, hook, kind, pad] = word();
        Self {
            src,
            dst,
            new_src,
            new_dst,
            sport,
            dport,
            new_sport,
            new_dport,
            ifindex,
            mark,
            verdict,
            service,
            protocol,
            hook,
            kind,
            pad,
        }
    }
}
