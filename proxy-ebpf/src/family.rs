//! What differs from one family to the other: maps, global functions, fields of settings.

use crate::global::*;
use crate::maps::*;
use aya_ebpf::{
    bindings::{
        __sk_buff, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    maps::{HashMap, LruHashMap, Queue, lpm_trie::LpmTrie},
};
use proxy_common::{
    abi::{
        Addr, AddressClass, Backend, CHUNK, Cidr, Config, Device, Flow, FlowKey, Fragment, Frontend,
        FrontendKey, Port, SourceRange, Turn, config_flags,
    },
    path::{Asked, Looked, Scratch},
    wire::Headers,
};

/// The maps of one family.
pub trait Family<const N: usize> {
    /// Index into RING_USED.
    const RING: u32;
    fn frontends() -> &'static HashMap<FrontendKey<N>, Frontend>;
    fn addresses() -> &'static HashMap<Addr<N>, AddressClass>;
    fn flows() -> &'static HashMap<FlowKey<N>, Flow<N>>;
    fn ring() -> &'static Queue<Turn<N>>;
    fn slot(slot: u32) -> Option<Backend<N>>;
    fn scratch() -> Option<*mut Scratch<N>>;
    fn make_room() -> u32;
    fn remove_beyond(egress: &FlowKey<N>, kind: u32);
    fn look(room: &mut Looked<N>, time: u64, forgets: u32) -> u32;
    fn insert_pair(
        skb: *mut __sk_buff,
        key: &FlowKey<N>,
        scratch: &mut Scratch<N>,
        keep_port: u32,
        avoid: u32,
    ) -> u32;
    fn attempt(
        skb: *mut __sk_buff,
        key: &FlowKey<N>,
        scratch: &mut Scratch<N>,
        keeps: u32,
        takes_closed: u32,
    ) -> u32;
    fn forget(room: &mut Looked<N>);
    fn enters(skb: *mut __sk_buff, caught: u32, before: u64) -> u32;
    fn leaves(skb: *mut __sk_buff, caught: u32, before: u64) -> u32;
    fn passes_by(skb: *mut __sk_buff, caught: u32) -> u32;
    fn refuse(skb: *mut __sk_buff) -> u32;
    fn quoted(skb: *mut __sk_buff, caught: u32, hook: u32) -> u32;
    fn sticky(asked: &mut Asked<N>, now: u32) -> u32;
    fn headers() -> Option<*mut Headers<N>>;
    fn masquerade(device: &Device) -> Addr<N>;
    fn detector(config: &Config, source: &Addr<N>) -> Option<bool>;
    fn is_service_range(config: &Config, address: &Addr<N>) -> bool;
    fn ranges() -> &'static LpmTrie<SourceRange<N>, u32>;
    fn affinity() -> Option<&'static Records<N>>;
    fn fragments() -> &'static LruHashMap<FlowKey<N>, Fragment<N>>;
    fn tuple(key: &FlowKey<N>, address: &Addr<N>, port: Port) -> (bpf_sock_tuple, u32);
}

pub struct V4;
pub struct V6;

macro_rules! family {
    ($family:ident, $n:literal, $ring:literal, $frontends:ident, $addresses:ident, $flows:ident, $turns:ident, $slots:ident, $scratch:ident, $headers:ident, $make_room:ident, $remove_beyond:ident, $look:ident, $insert_pair:ident, $attempt:ident, $forget:ident, $enters:ident, $leaves:ident, $passes_by:ident, $refuse:ident, $quoted:ident, $sticky:ident, $ranges:ident, $affinity:ident, $fragments:ident, $masquerade:ident,
     $detect:ident, $cluster:ident, $services:ident, $tuple:expr) => {
        impl Family<$n> for $family {
            const RING: u32 = $ring;
            #[inline(always)]
            fn frontends() -> &'static HashMap<FrontendKey<$n>, Frontend> {
                &$frontends
            }
            #[inline(always)]
            fn addresses() -> &'static HashMap<Addr<$n>, AddressClass> {
                &$addresses
            }
            #[inline(always)]
            fn flows() -> &'static HashMap<FlowKey<$n>, Flow<$n>> {
                &$flows
            }
            #[inline(always)]
            fn ring() -> &'static Queue<Turn<$n>> {
                &$turns
            }
            #[inline(always)]
            fn slot(slot: u32) -> Option<Backend<$n>> {
                $slots.get_value(slot / CHUNK, &(slot % CHUNK)).copied()
            }
            #[inline(always)]
            fn scratch() -> Option<*mut Scratch<$n>> {
                $scratch.get_ptr_mut(0)
            }
            #[inline(always)]
            fn make_room() -> u32 {
                $make_room()
            }
            #[inline(always)]
            fn remove_beyond(egress: &FlowKey<$n>, kind: u32) {
                $remove_beyond(egress, kind);
            }
            #[inline(always)]
            fn look(room: &mut Looked<$n>, time: u64, forgets: u32) -> u32 {
                $look(room, time, forgets)
            }
            #[inline(always)]
            fn insert_pair(
                skb: *mut __sk_buff,
                key: &FlowKey<$n>,
                scratch: &mut Scratch<$n>,
                keep_port: u32,
                avoid: u32,
            ) -> u32 {
                $insert_pair(skb, key, scratch, keep_port, avoid)
            }
            #[inline(always)]
            fn attempt(
                skb: *mut __sk_buff,
                key: &FlowKey<$n>,
                scratch: &mut Scratch<$n>,
                keeps: u32,
                takes_closed: u32,
            ) -> u32 {
                $attempt(skb, key, scratch, keeps, takes_closed)
            }
            #[inline(always)]
            fn forget(room: &mut Looked<$n>) {
                $forget(room);
            }
            #[inline(always)]
            fn enters(skb: *mut __sk_buff, caught: u32, before: u64) -> u32 {
                $enters(skb, caught, before)
            }
            #[inline(always)]
            fn leaves(skb: *mut __sk_buff, caught: u32, before: u64) -> u32 {
                $leaves(skb, caught, before)
            }
            #[inline(always)]
            fn passes_by(skb: *mut __sk_buff, caught: u32) -> u32 {
                $passes_by(skb, caught)
            }
            #[inline(always)]
            fn refuse(skb: *mut __sk_buff) -> u32 {
                $refuse(skb)
            }
            #[inline(always)]
            fn quoted(skb: *mut __sk_buff, caught: u32, hook: u32) -> u32 {
                $quoted(skb, caught, hook)
            }
            #[inline(always)]
            fn sticky(asked: &mut Asked<$n>, now: u32) -> u32 {
                $sticky(asked, now)
            }
            #[inline(always)]
            fn headers() -> Option<*mut Headers<$n>> {
                $headers.get_ptr_mut(0)
            }
            #[inline(always)]
            fn masquerade(device: &Device) -> Addr<$n> {
                device.$masquerade
            }
            #[inline(always)]
            fn detector(config: &Config, source: &Addr<$n>) -> Option<bool> {
                (config.flags & config_flags::$detect != 0).then(|| config.$cluster.contains(source))
            }
            #[inline(always)]
            fn is_service_range(config: &Config, address: &Addr<$n>) -> bool {
                Cidr::inside_any(&config.$services, address)
            }
            #[inline(always)]
            fn ranges() -> &'static LpmTrie<SourceRange<$n>, u32> {
                &$ranges
            }
            #[inline(always)]
            fn affinity() -> Option<&'static Records<$n>> {
                $affinity.get(0)
            }
            #[inline(always)]
            fn fragments() -> &'static LruHashMap<FlowKey<$n>, Fragment<$n>> {
                &$fragments
            }
            #[inline(always)]
            fn tuple(key: &FlowKey<$n>, address: &Addr<$n>, port: Port) -> (bpf_sock_tuple, u32) {
                let tuple: fn(&FlowKey<$n>, &Addr<$n>, Port) -> (bpf_sock_tuple__bindgen_ty_1, usize) =
                    $tuple;
                let (addresses, size) = tuple(key, address, port);
                (bpf_sock_tuple { __bindgen_anon_1: addresses }, size as u32)
            }
        }
    };
}

family!(
    V4,
    1,
    0,
    FRONTENDS_V4,
    ADDRESSES_V4,
    FLOWS_V4,
    RING_V4,
    SLOTS_V4,
    SCRATCH_V4,
    HEADERS_V4,
    make_room_v4,
    remove_beyond_v4,
    look_v4,
    insert_pair_v4,
    attempt_v4,
    forget_v4,
    enters_v4,
    leaves_v4,
    passes_by_v4,
    refuse_v4,
    quoted_v4,
    sticky_v4,
    RANGES_V4,
    AFFINITY_V4,
    FRAGMENTS_V4,
    masquerade_v4,
    DETECT_V4,
    cluster_v4,
    services_v4,
    |key, address, port| {
        let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: key.dst.0[0],
            daddr: address.0[0],
            sport: key.dport.0,
            dport: port.0,
        };
        (bpf_sock_tuple__bindgen_ty_1 { ipv4 }, size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>())
    }
);
family!(
    V6,
    4,
    1,
    FRONTENDS_V6,
    ADDRESSES_V6,
    FLOWS_V6,
    RING_V6,
    SLOTS_V6,
    SCRATCH_V6,
    HEADERS_V6,
    make_room_v6,
    remove_beyond_v6,
    look_v6,
    insert_pair_v6,
    attempt_v6,
    forget_v6,
    enters_v6,
    leaves_v6,
    passes_by_v6,
    refuse_v6,
    quoted_v6,
    sticky_v6,
    RANGES_V6,
    AFFINITY_V6,
    FRAGMENTS_V6,
    masquerade_v6,
    DETECT_V6,
    cluster_v6,
    services_v6,
    |key, address, port| {
        let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: key.dst.0,
            daddr: address.0,
            sport: key.dport.0,
            dport: port.0,
        };
        (bpf_sock_tuple__bindgen_ty_1 { ipv6 }, size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>())
    }
);
