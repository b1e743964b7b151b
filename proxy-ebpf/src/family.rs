//! What differs from one family to the other: maps, fields of settings. Its global functions are `global.rs`'s.

use crate::global::Steps;
use crate::maps::*;
use aya_ebpf::{
    bindings::{
        bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    maps::{HashMap, LruHashMap, Queue, lpm_trie::LpmTrie},
};
use proxy_common::{
    abi::{
        Addr, Backend, CHUNK, Cidr, Config, Device, Flow, FlowKey, Fragment, Port, Recent, SourceRange, Turn,
        config_flags,
    },
    path::{Beyond, Looked, Scratch},
    wire::Headers,
};

/// The maps of one family.
pub trait Family<const N: usize>: Steps<N> {
    /// Index into RING_USED.
    const RING: u32;
    fn frontends() -> Option<&'static Frontends<N>>;
    fn addresses() -> Option<&'static Addresses<N>>;
    fn flows() -> &'static HashMap<FlowKey<N>, Flow<N>>;
    fn ring() -> &'static Queue<Turn<N>>;
    fn slot(slot: u32) -> Option<Backend<N>>;
    fn scratch() -> Option<*mut Scratch<N>>;
    fn recent(place: u32) -> Option<*mut Recent<N>>;
    fn looked() -> Option<*mut Looked<N>>;
    fn beyond() -> Option<*mut Beyond<N>>;
    fn headers() -> Option<*mut Headers<N>>;
    fn masquerade_of(device: &Device) -> Addr<N>;
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
    ($family:ident, $n:literal, $ring:literal, $frontends:ident, $addresses:ident, $flows:ident, $turns:ident, $slots:ident, $scratch:ident, $recent:ident, $looked:ident, $beyond:ident, $headers:ident, $ranges:ident, $affinity:ident, $fragments:ident, $masquerade:ident,
     $detect:ident, $cluster:ident, $services:ident, $tuple:expr) => {
        impl Family<$n> for $family {
            const RING: u32 = $ring;
            #[inline(always)]
            fn frontends() -> Option<&'static Frontends<$n>> {
                $frontends.get(0)
            }
            #[inline(always)]
            fn addresses() -> Option<&'static Addresses<$n>> {
                $addresses.get(0)
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
            fn recent(place: u32) -> Option<*mut Recent<$n>> {
                $recent.get_ptr_mut(place)
            }
            #[inline(always)]
            fn looked() -> Option<*mut Looked<$n>> {
                $looked.get_ptr_mut(0)
            }
            #[inline(always)]
            fn beyond() -> Option<*mut Beyond<$n>> {
                $beyond.get_ptr_mut(0)
            }
            #[inline(always)]
            fn headers() -> Option<*mut Headers<$n>> {
                $headers.get_ptr_mut(0)
            }
            #[inline(always)]
            fn masquerade_of(device: &Device) -> Addr<$n> {
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
    FRONTENDS_OF_V4,
    ADDRESSES_OF_V4,
    FLOWS_V4,
    RING_V4,
    SLOTS_V4,
    SCRATCH_V4,
    RECENT_V4,
    LOOKED_V4,
    BEYOND_V4,
    HEADERS_V4,
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
    FRONTENDS_OF_V6,
    ADDRESSES_OF_V6,
    FLOWS_V6,
    RING_V6,
    SLOTS_V6,
    SCRATCH_V6,
    RECENT_V6,
    LOOKED_V6,
    BEYOND_V6,
    HEADERS_V6,
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
