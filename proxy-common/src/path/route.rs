//! Routes that have been told just now. To ask the stack costs as much as a third of an established packet, and a busy CPU
//! asks the same a thousand times before anything can have changed.

use crate::abi::FlowKey;

/// Whom a route was told for, and when.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Lowest bits of jiffies, a clock that goes a hundred to a thousand times a second; 0: for nobody.
    when: u32,
    ifindex: u32,
    src: [u32; 4],
    dst: [u32; 4],
    protocol: u32,
    /// Of the flow that has asked.
    ports: u32,
}

impl Told {
    /// How many are kept, half of them for each family: an odd place is IPv6's.
    pub const PLACES: u32 = 32;

    /// Where the answer for a packet with these ends is kept that comes in by this device. `by_port`: routes may look at ports.
    #[must_use]
    #[inline(always)]
    pub fn place<const N: usize>(ends: &FlowKey<N>, ifindex: u32, by_port: bool) -> u32 {
        const BITS: u32 = Told::PLACES.trailing_zeros() - 1;
        let mut sum = ifindex;
        if by_port {
            sum ^= ports(ends);
        }
        for word in 0..N.min(4) {
            sum ^= ends.src.0[word].rotate_left(7) ^ ends.dst.0[word];
        }
        sum.wrapping_mul(0x9e37_79b1) >> (u32::BITS - BITS) << 1 | (N == 4) as u32
    }

    /// Whether it is the answer for such a packet now. The transport counts: IPv6 chooses between paths by it as well.
    #[must_use]
    #[inline(always)]
    pub fn is_for<const N: usize>(&self, ends: &FlowKey<N>, ifindex: u32, by_port: bool, now: u32) -> bool {
        let mut other = self.when ^ now | self.ifindex ^ ifindex | self.protocol ^ u32::from(ends.protocol);
        for word in 0..N.min(4) {
            other |= self.src[word] ^ ends.src.0[word] | self.dst[word] ^ ends.dst.0[word];
        }
        if by_port {
            other |= self.ports ^ ports(ends);
        }
        other == 0 && now != 0
    }

    /// From now on it is that.
    #[inline(always)]
    pub fn set<const N: usize>(&mut self, ends: &FlowKey<N>, ifindex: u32, now: u32) {
        self.ifindex = ifindex;
        for word in 0..N.min(4) {
            self.src[word] = ends.src.0[word];
            self.dst[word] = ends.dst.0[word];
        }
        self.ports = ports(ends);
        self.protocol = ends.protocol.into();
        self.when = now;
    }

    /// From now on it is nobody's.
    #[inline(always)]
    pub const fn clear(&mut self) {
        self.when = 0;
    }
}

#[inline(always)]
fn ports<const N: usize>(ends: &FlowKey<N>) -> u32 {
    u32::from(ends.sport.0) << 16 | u32::from(ends.dport.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{Addr, Port, protocol};

    const DEVICE: u32 = 7;
    const NOW: u32 = 4_000;

    fn ends() -> FlowKey<4> {
        FlowKey {
            src: Addr([1, 2, 3, 4]),
            dst: Addr([5, 6, 7, 8]),
            sport: Port(40_000),
            dport: Port(80),
            protocol: protocol::TCP,
            hook: 0,
            pad: 0,
        }
    }

    #[test]
    fn an_answer_is_for_whom_it_was_given_and_for_a_jiffy() {
        let mut told = Told::default();
        told.set(&ends(), DEVICE, NOW);
        let other = |change: fn(&mut FlowKey<4>)| {
            let mut key = ends();
            change(&mut key);
            key
        };
        let source = other(|key| key.src.0[3] = 9);
        let destination = other(|key| key.dst.0[0] = 9);
        let port = other(|key| key.sport = Port(40_001));
        let transport = other(|key| key.protocol = protocol::UDP);
        // (story, ends, device, jiffy, by addresses, by ports)
        let cases = [
            ("the same", ends(), DEVICE, NOW, true, true),
            ("a jiffy later", ends(), DEVICE, NOW + 1, false, false),
            ("by another device", ends(), DEVICE + 1, NOW, false, false),
            ("from another address", source, DEVICE, NOW, false, false),
            ("to another address", destination, DEVICE, NOW, false, false),
            ("another flow between them", port, DEVICE, NOW, true, false),
            ("another transport", transport, DEVICE, NOW, false, false),
        ];
        for (name, key, device, now, by_address, by_port) in cases {
            assert_eq!(told.is_for(&key, device, false, now), by_address, "{name}");
            assert_eq!(told.is_for(&key, device, true, now), by_port, "{name}, by port");
        }
        told.clear();
        assert!(!told.is_for(&ends(), DEVICE, false, NOW), "cleared");
        assert!(!told.is_for(&ends(), DEVICE, false, 0), "cleared, at jiffy 0");
    }

    #[test]
    fn families_have_places_of_their_own() {
        let v4 = |last| FlowKey {
            src: Addr([1]),
            dst: Addr([last]),
            sport: Port(1),
            dport: Port(2),
            protocol: 6,
            hook: 0,
            pad: 0,
        };
        let mut used = [0_u32; 2];
        for last in 0..1_000 {
            let mut v6 = ends();
            v6.dst.0[3] = last;
            for (family, place) in
                [(0, Told::place(&v4(last), DEVICE, false)), (1, Told::place(&v6, DEVICE, false))]
            {
                assert!(place < Told::PLACES && place % 2 == family);
                used[family as usize] |= 1 << (place / 2);
            }
        }
        assert_eq!(used, [0xffff; 2], "every place is used");
    }
}
