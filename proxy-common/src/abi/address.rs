//! Addresses and ports as they stand on the wire.

use super::{Abi, abi};

/// An address of `N` 32-bit words in wire order: `Addr<1>` is IPv4, `Addr<4>` IPv6.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr<const N: usize>(pub [u32; N]);

impl<const N: usize> Abi for Addr<N> {
    const CHECKED: () = ();
}

impl<const N: usize> Addr<N> {
    /// `0.0.0.0` or `::`. As a frontend's address it stands for every address that serves NodePorts.
    pub const UNSPECIFIED: Self = Self([0; N]);

    /// Equality by words: in the kernel `==` on arrays becomes a call to memcmp.
    #[must_use]
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        let mut difference = 0;
        let mut word = 0;
        while word < N {
            difference |= self.0[word] ^ other.0[word];
            word += 1;
        }
        difference == 0
    }

    /// 127.0.0.0/8 or `::1`.
    #[must_use]
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if N == 1 {
            return self.0[0].to_ne_bytes()[0] == 127;
        }
        let mut others = 0;
        let mut word = 0;
        while word < N - 1 {
            others |= self.0[word];
            word += 1;
        }
        others == 0 && self.0[N - 1] == 1_u32.to_be()
    }
}

/// Bits of the `sieve` array, both families together: 128 KiB, an eighth of them set by 100,000 addresses.
const SIEVE_BITS: u32 = 1 << 20;
/// 64-bit words of the `sieve` array, and of the `endpoint_sieve` array.
pub const SIEVE_WORDS: u32 = SIEVE_BITS / 64;

impl<const N: usize> Addr<N> {
    /// This address's bit in the `sieve` array: index of the word, and the bit in it. An address whose bit is not set
    /// has never been in the `addresses` maps, nor an endpoint's; one whose bit is set may have been.
    ///
    /// Addresses that differ in the last octet alone are neighbours here, too: those of Services and pods are, and one line of
    /// the cache holds the bits of many.
    #[must_use]
    #[inline(always)]
    pub const fn sieve(&self) -> (u32, u64) {
        let last = self.0[N - 1].to_ne_bytes()[3];
        let mut hash = 0_u32;
        let mut word = 0;
        while word < N {
            let octets = if word < N - 1 { u32::MAX } else { u32::from_ne_bytes([0xff, 0xff, 0xff, 0]) };
            hash = (hash ^ self.0[word] & octets).wrapping_mul(0x9e37_79b1);
            hash ^= hash >> 15;
            word += 1;
        }
        let network = hash >> (32 - (SIEVE_BITS / 256).trailing_zeros());
        // Hosts of all networks that have the same number must not meet in the same places.
        let host = (last as u32) ^ hash & 0xff;
        (network * 4 + host / 64, 1 << (host % 64))
    }

    /// This address's bit in the `endpoint_sieve` array, of the same size: endpoints' have it set beside that of [`Addr::sieve`], and
    /// who meets another's bit there hardly meets it here as well (MurmurHash3's finalizer, word by word). There are too many
    /// endpoints to have an element of a hash for each, as Services' addresses have.
    #[must_use]
    #[inline(always)]
    pub const fn endpoint_sieve(&self) -> (u32, u64) {
        let mut hash = 0_u32;
        let mut word = 0;
        while word < N {
            hash ^= self.0[word];
            hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
            hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
            hash ^= hash >> 16;
            word += 1;
        }
        let place = hash % SIEVE_BITS;
        (place / 64, 1 << (place % 64))
    }
}

impl Addr<1> {
    /// From the four octets in reading order.
    #[must_use]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self([u32::from_ne_bytes(octets)])
    }

    /// The four octets in reading order.
    #[must_use]
    pub const fn octets(self) -> [u8; 4] {
        self.0[0].to_ne_bytes()
    }
}

impl Addr<4> {
    /// From the sixteen octets in reading order.
    #[must_use]
    pub const fn v6(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// The sixteen octets in reading order.
    #[must_use]
    pub fn octets(self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }
}

/// A port of TCP, UDP or SCTP in wire order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(pub u16);

impl Abi for Port {
    const CHECKED: () = ();
}

impl Port {
    /// From the number people write.
    #[must_use]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// The number people write.
    #[must_use]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// IP protocol numbers (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6's fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

abi! {
    /// Value of the `addresses` maps: what an address is to this node. An address may be several things at once
    /// (a LoadBalancer address bound locally).
    pub struct AddressClass {
        /// Bits of this type's constants. 8 was an endpoint's once.
        pub bits: u32,
    }
}

impl AddressClass {
    /// A ClusterIP, external IP or LoadBalancer address.
    pub const SERVICE: u32 = 1;
    /// An address of this node. Unlisted ports belong to the node's own sockets (P-28).
    pub const LOCAL: u32 = 2;
    /// Serves NodePorts: one of the node's addresses that `nodePortAddresses` selects (E1 … E3).
    pub const NODE_PORT: u32 = 4;
    /// A Service's that is dialled over SCTP: no hook is called for such sockets, so the agent leads the node's own packets to
    /// the catch-all device (S-20). Nothing to programs.
    pub const SCTP: u32 = 16;
    /// An external IP or LoadBalancer address that another host may have, as software load balancers take the nodes' own: it is on
    /// one of the node's links, or some Service's endpoint. What is not listed there goes on (B9).
    pub const SHARED: u32 = 32;

    /// Whether any of `bits` is set.
    #[must_use]
    pub const fn any(self, bits: u32) -> bool {
        self.bits & bits != 0
    }

    /// Whether this is a Service's address, and no host's: not bound here either (P-28). Nothing goes on there untranslated (P-24).
    #[must_use]
    pub const fn is_services_alone(self) -> bool {
        self.any(Self::SERVICE) && !self.any(Self::LOCAL | Self::SHARED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::{collections::HashSet, vec::Vec};

    /// An address that shares its bit with another one costs look-ups: ranges as clusters have them must spread.
    #[test]
    fn the_sieve_tells_addresses_apart() {
        let spread = |what: &str, places: Vec<(u32, u64)>| {
            let (count, distinct) = (places.len(), places.into_iter().collect::<HashSet<_>>());
            assert!(distinct.iter().all(|(word, _)| *word < SIEVE_WORDS), "{what}");
            assert!(
                distinct.len() * 100 >= count * 95,
                "{what}: {} bits for {count} addresses",
                distinct.len()
            );
        };
        let each = |place: fn(u8, u8) -> (u32, u64)| {
            (0..=u16::MAX).step_by(3).map(|n| place((n >> 8) as u8, n as u8)).collect()
        };
        spread("one /16", each(|a, b| Addr::v4([10, 96, a, b]).sieve()));
        spread("first hosts of networks", each(|a, b| Addr::v4([10, a, b, 1]).sieve()));
        spread(
            "one /112",
            each(|a, b| Addr::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b]).sieve()),
        );
        spread(
            "pods of 256 nodes",
            each(|a, b| Addr::v6([0xfd, 0, 0, 0x10, 0, a, 0, 0, 0, 0, 0, 0, 0, 0, 0, b]).sieve()),
        );
    }

    /// In a cluster of 100,000 endpoints hardly a host is taken for one that is none.
    #[test]
    fn who_meets_another_in_one_sieve_does_not_in_the_other() {
        const HOSTS: u32 = 10_000;
        type Places = [(u32, u64); 2];
        fn v4(address: u32) -> Places {
            let address = Addr::v4(address.to_be_bytes());
            [address.sieve(), address.endpoint_sieve()]
        }
        fn v6(network: u8, n: u32) -> Places {
            let [_, a, b, c] = n.to_be_bytes();
            let address = Addr::v6([network, 0, 0, 0, 0, a, 0, 0, 0, 0, 0, 0, 0, 0, b, c]);
            [address.sieve(), address.endpoint_sieve()]
        }
        type Host = fn(u32) -> Places;
        let pods: Host = |n| v4(0x0a00_0000 + n);
        let cases: [(&str, Host, Host); 4] = [
            ("all over the Internet", pods, |n| v4(n.wrapping_mul(0x9e37_79b1))),
            ("in a row", pods, |n| v4(0xc0a8_0000 + n)),
            ("in a row, in the middle", |n| v4(0x0af4_0000 + n), |n| v4(0xac10_0000 + n)),
            ("in a row, IPv6", |n| v6(0xfd, n), |n| v6(0x20, n)),
        ];
        for (what, endpoint, host) in cases {
            let places = |side: usize| (0..100_000).map(|n| endpoint(n)[side]).collect::<HashSet<_>>();
            let sieves = [places(0), places(1)];
            let wrong = (0..HOSTS)
                .filter(|n| sieves.iter().zip(host(*n)).all(|(sieve, place)| sieve.contains(&place)))
                .count();
            // On average a hundredth. Neighbours meet others' neighbours in the one sieve, all of them or none.
            assert!(wrong * 40 < HOSTS as usize, "{what}: {wrong} of {HOSTS}");
        }
    }

    #[test]
    fn neighbours_share_a_line_of_the_cache() {
        let lines: HashSet<u32> = (0..=255).map(|host| Addr::v4([10, 96, 7, host]).sieve().0 / 8).collect();
        assert_eq!(lines.len(), 1);
    }
}
