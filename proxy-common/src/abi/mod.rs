//! What lies in the maps: the contract between agent and programs.
//!
//! Rules for every type here (checked by [`abi!`] at compile time): `repr(C)`, only unsigned integers, arrays
//! of them and other types of this module, no padding. No enum, bool or `usize`: values are decoded on read.
//! Addresses and ports stay in wire order ([`Addr`], [`Port`]); everything else is in host order.

mod address;
mod config;
mod counters;
mod device;
mod flow;
mod frontend;
mod guard;
mod recent;
mod service;
mod socket;
mod trace;

pub use address::{Addr, AddressClass, Port, SIEVE_WORDS, protocol};
pub use config::{Cidr, Config, SERVICE_CIDRS, config_flags};
pub use counters::Reason;
pub use device::{Device, device_flags};
pub use flow::{Flow, FlowKey, Fragment, Hook, Kind, MOMENTS, MORE, TURNS_HELD_BACK, Turn, state};
pub use frontend::{Frontend, FrontendKey, FrontendKind};
pub use guard::{Guard, OWN_PRIORITY};
pub use recent::{Recent, news};
pub use service::{
    Affinity, AffinityKey, Backend, CHUNK, GENERATIONS_CHUNK, Generations, RangeKey, Run, SERVICES_CHUNK,
    Service, SourceRange, service_flags,
};
pub use socket::{SOCKET_PAIRS, SocketPair, SocketPairs, SocketRecord};
pub use trace::TraceRecord;

/// Those of the flags that are on.
#[must_use]
pub fn flags<const K: usize>(list: [(bool, u32); K]) -> u32 {
    list.iter().filter(|(on, _)| *on).fold(0, |flags, (_, flag)| flags | flag)
}

/// Version of all shapes in this module together. It is part of the pin directory's name; a change of any type,
/// of a constant's meaning or of a map's kind raises it.
///
/// Agents of two layouts take over each other's maps without knowing each other's types, so that flows survive an upgrade and
/// the way back. Hence the rule: keys stay as they are, values of hashes, arrays and tries only grow at their end, and zero
/// there means what was before; values of what lies in another map stay as they are, too. Whatever needs more is a map by another name,
/// which starts empty. One exception: the unit of
/// [`Flow::created`], by which at most the order changes in which flows are forgotten where there is no room.
pub const LAYOUT: u32 = 12 + GROWS as u32;

/// The first layout that the rule holds for.
pub const INHERITS_FROM: u32 = 7;

/// A build as if it were the next version, to test upgrades with: flows have a field more.
pub const GROWS: bool = cfg!(feature = "next-layout");

/// Number of the helper in whose place the agent puts `bpf_cast_to_kern_ctx` (kernel 6.2): the compiler knows no calls of kernel
/// functions. No helper has it, and where the agent leaves it in its place it is never called.
pub const CAST_CALL: u32 = 0x5105_ca57;

/// A type that may lie in a map: no padding, every bit pattern valid, safe to copy bytewise.
///
/// bytemuck's `Pod` derive cannot see through generics, and the path is generic over the address size, so the
/// [`abi!`] macro makes the same two checks (integer fields, no padding) and implements this trait instead. Only
/// the macro should implement it.
pub trait Abi: Copy + 'static {
    /// Evaluated by users of the type: fails to compile when the type has padding.
    const CHECKED: ();
}

macro_rules! plain {
    ($($t:ty),*) => { $(impl Abi for $t { const CHECKED: () = (); })* };
}
plain!(u8, u16, u32, u64);

impl<T: Abi, const N: usize> Abi for [T; N] {
    const CHECKED: () = T::CHECKED;
}

/// Declares a map type: `repr(C)`, the usual derives, and a compile-time proof that it is plain and unpadded.
macro_rules! abi {
    ($(#[$meta:meta])* pub struct $name:ident $(<const $n:ident: usize>)? { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)+ }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name $(<const $n: usize>)? { $($(#[$fmeta])* pub $field: $ty,)+ }

        impl $(<const $n: usize>)? $crate::abi::Abi for $name $(<$n>)? {
            const CHECKED: () = {
                $(let () = <$ty as $crate::abi::Abi>::CHECKED;)+
                assert!(size_of::<Self>() == 0 $(+ size_of::<$ty>())+, "padding must be explicit");
            };
        }
    };
}
use abi;

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes are part of the contract with pinned maps of older agents, and of the memory goals (64 bytes for a
    /// v4 flow with its key).
    #[test]
    fn sizes_are_fixed() {
        const {
            let () = FlowKey::<1>::CHECKED;
            let () = FlowKey::<4>::CHECKED;
            let () = Flow::<1>::CHECKED;
            let () = Flow::<4>::CHECKED;
            let () = Turn::<1>::CHECKED;
            let () = Turn::<4>::CHECKED;
            let () = Recent::<1>::CHECKED;
            let () = Recent::<4>::CHECKED;
        }
        let sizes = [
            ("flow key v4", size_of::<FlowKey<1>>(), 16),
            ("flow key v6", size_of::<FlowKey<4>>(), 40),
            ("flow v4", size_of::<Flow<1>>(), 64 + 4 * MORE),
            ("flow v6", size_of::<Flow<4>>(), 88 + 4 * MORE),
            ("turn v4", size_of::<Turn<1>>(), 20),
            ("turn v6", size_of::<Turn<4>>(), 44),
            ("frontend key v4", size_of::<FrontendKey<1>>(), 8),
            ("frontend key v6", size_of::<FrontendKey<4>>(), 20),
            ("backend v4", size_of::<Backend<1>>(), 12),
            ("backend v6", size_of::<Backend<4>>(), 24),
            ("service", size_of::<Service>(), 32),
        ];
        for (what, is, want) in sizes {
            assert_eq!(is, want, "{what}");
        }
    }
}
