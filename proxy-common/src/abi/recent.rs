//! What has been done with packets a moment ago, to be done again with the next ones of their flow.

use super::{Addr, FlowKey, Port, abi};

abi! {
    /// Element of the `recent` arrays, of which each CPU has its own: a packet that has passed the stack by, and what has become of it.
    ///
    /// It holds for the packets with these ends, by this device and no longer than that one, within the same moment, as long as there is no
    /// news. Zero: nothing yet.
    pub struct Recent<const N: usize> {
        /// The packet's ends as it came in.
        pub key: FlowKey<N>,
        /// New source address, that of all rewrites together.
        pub src: Addr<N>,
        /// New destination address.
        pub dst: Addr<N>,
        /// New source port.
        pub sport: Port,
        /// New destination port.
        pub dport: Port,
        /// Ones' complement sum of what the address change adds to a checksum.
        pub address_diff: u32,
        /// Device it came in by.
        pub ifindex: u32,
        /// Device it has left by.
        pub device: u32,
        /// Its length in bytes as a device sends it.
        pub size: u32,
        /// Hardware addresses of its frame, as [`super::Device::frames`]: it went straight into the pod. Zero: to the next hop that the routes
        /// name.
        pub frame: [u32; 3],
        /// When that was, in moments.
        pub moment: u32,
        /// Its client's place in the `news` array.
        pub client: u32,
        /// What the `news` array had in the agent's place, and in the client's.
        pub news: [u32; 2],
    }
}

impl<const N: usize> Recent<N> {
    /// How many a CPU keeps of each family.
    pub const PLACES: u32 = 4_096;

    /// Where what has become of a packet with these ends is kept.
    #[must_use]
    #[inline(always)]
    pub fn place(key: &FlowKey<N>) -> u32 {
        key.tag() >> (u32::BITS - Self::PLACES.trailing_zeros())
    }
}

/// Places of the `news` array: numbers that whoever changes what flows lead to makes other ones.
pub mod news {
    use super::{Addr, Port};

    /// The agent's, for all flows.
    pub const OF_AGENT: u32 = 0;
    /// How many places there are for clients. Several share one.
    const CLIENTS: u32 = 4_096;
    /// All places.
    pub const PLACES: u32 = CLIENTS + 1;

    /// That of the flows that this client has: some pair of theirs is new, or a connection begins or ends. Not [`OF_AGENT`].
    #[must_use]
    #[inline(always)]
    pub fn of_client<const N: usize>(address: &Addr<N>, port: Port) -> u32 {
        let mut hash = u32::from(port.0);
        let mut word = 0;
        while word < N {
            hash = (hash ^ address.0[word]).wrapping_mul(0x9e37_79b1);
            hash ^= hash >> 15;
            word += 1;
        }
        1 + (hash.wrapping_mul(0x85eb_ca6b) >> (u32::BITS - CLIENTS.trailing_zeros()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_spread_over_their_places_and_leave_the_agents() {
        let mut used = [false; news::PLACES as usize];
        for host in 0..256_u32 {
            for port in 0..256_u16 {
                let place = news::of_client(&Addr([(0x0a00_0000 + host).to_be()]), Port::new(32_768 + port));
                *used.get_mut(place as usize).expect("a place") = true;
            }
        }
        assert!(!used[news::OF_AGENT as usize]);
        let share = used.iter().filter(|used| **used).count();
        assert!(share > 4_000, "65,536 clients have {share} places");
    }
}
