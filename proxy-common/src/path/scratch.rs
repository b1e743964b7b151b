//! Room for a flow in the making.

use super::pair::End;
use crate::abi::{Addr, Affinity, AffinityKey, Flow, FlowKey, Fragment, MORE, Port, Run, Service, Turn};
use crate::wire::Headers;

/// Room for a flow in the making. The kernel's stack has 512 bytes for all frames together; an IPv6 pair alone takes
/// half of them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scratch<const N: usize> {
    /// The half of the packet's own direction.
    pub flow: Flow<N>,
    /// Key of the reply's half.
    pub reply_key: FlowKey<N>,
    /// The reply's half.
    pub reply: Flow<N>,
    /// The turn to be queued.
    pub turn: Turn<N>,
    /// What has been before under the key of the packet's own direction.
    pub before: End,
    /// The packet that an ICMP error quotes.
    pub quoted: Headers<N>,
    /// The client of the flow.
    pub asked: Asked<N>,
    /// What is known of a datagram's fragments.
    pub fragment: Fragment<N>,
}

/// A client that an endpoint is asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Asked<const N: usize> {
    /// The list.
    pub run: Run,
    /// [`Service::affinity_timeout`].
    pub timeout: u32,
    /// [`Service::epoch`].
    pub epoch: u32,
    /// Client and service.
    pub key: AffinityKey<N>,
    /// Its record, once it has been read.
    pub last: Affinity<N>,
}

impl<const N: usize> Asked<N> {
    /// `client`, of no service yet.
    #[must_use]
    #[inline(always)]
    pub const fn new(client: Addr<N>) -> Self {
        let last = Affinity { address: Addr::UNSPECIFIED, port: Port(0), epoch: 0, seen: 0 };
        Self { run: Run::EMPTY, timeout: 0, epoch: 0, key: AffinityKey { client, service: 0 }, last }
    }

    /// It dials the service with this index, and is served from this list of its.
    #[inline(always)]
    pub const fn set(&mut self, index: u32, service: &Service, run: Run) {
        self.key.service = index;
        self.run = run;
        self.timeout = service.affinity_timeout;
        self.epoch = service.epoch() as u32;
    }
}

impl<const N: usize> Scratch<N> {
    /// Holds nothing yet.
    pub const EMPTY: Self = {
        let key = Headers::<N>::EMPTY.key;
        let flow = Flow {
            src: key.src,
            dst: key.dst,
            sport: key.sport,
            dport: key.dport,
            address_diff: 0,
            seen: 0,
            created: 0,
            service: 0,
            endpoint: 0,
            ifindex: 0,
            serial: 0,
            generation: 0,
            kind: 0,
            state: 0,
            tag: 0,
            proof: 0,
            lease: 0,
            far: 0,
            size: 0,
            more: [0; MORE],
        };
        let turn = Turn { key, serial: 0 };
        let asked = Asked::new(key.src);
        let fragment = Fragment { src: key.src, dst: key.dst, mark: 0, seen: 0, tag: 0 };
        Self {
            flow,
            reply_key: key,
            reply: flow,
            turn,
            before: End::NO_TURN,
            quoted: Headers::EMPTY,
            asked,
            fragment,
        }
    };
}
