//! How programs learn how a packet's checksum stands: `sk_buff::ip_summed` is in no context, and the one helper that knows
//! it costs more than the rest of a rewrite. `bpf_cast_to_kern_ctx` (kernel 6.2) makes the socket buffer readable; the
//! verifier puts a move in its place.
//!
//! Neither the compiler nor aya knows calls of kernel functions. So the programs call a helper that does not exist, and here
//! it is replaced, before the object is loaded; where the field lies they read from a global.

use std::{fs, io};

use proxy_common::abi::CAST_CALL;

use super::sys;

/// What programs need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Summed {
    /// BTF id of `bpf_cast_to_kern_ctx`.
    cast: u32,
    /// Where `ip_summed` is in `struct sk_buff`, in bits.
    pub at: u32,
}

/// Why programs have to ask the helper.
#[derive(Debug, thiserror::Error)]
pub enum Unsummed {
    #[error("{TYPES} cannot be read ({0}): this kernel was built without CONFIG_DEBUG_INFO_BTF")]
    Types(#[source] io::Error),
    #[error(
        "this kernel has no bpf_cast_to_kern_ctx, or sk_buff::ip_summed is not where programs may read it: 6.2 is needed"
    )]
    Unknown,
    #[error("this kernel refuses programs that call bpf_cast_to_kern_ctx ({0})")]
    Refused(#[source] io::Error),
}

const TYPES: &str = "/sys/kernel/btf/vmlinux";

/// A call: BPF_JMP | BPF_CALL.
const CALL: u8 = 0x85;
/// Source register of a call of a kernel function (BPF_PSEUDO_KFUNC_CALL).
const KERNEL_FUNCTION: u8 = 2;

impl Summed {
    /// What this kernel's types say (about 5 MB are read).
    ///
    /// # Errors
    /// They say nothing, or it does not take a program that makes use of it: programs ask the helper.
    pub fn of_this_kernel() -> Result<Self, Unsummed> {
        let found = find(&fs::read(TYPES).map_err(Unsummed::Types)?).ok_or(Unsummed::Unknown)?;
        sys::try_classifier(&found.probe()).map_err(Unsummed::Refused)?;
        Ok(found)
    }

    /// Calls it, reads the field, and lets the packet pass.
    fn probe(self) -> [u64; 4] {
        let [a, b] = u16::try_from(self.at / 8).unwrap_or(u16::MAX).to_le_bytes();
        let load = u64::from_le_bytes([0x71, 0, a, b, 0, 0, 0, 0]);
        let zero = u64::from_le_bytes([0xb7, 0, 0, 0, 0, 0, 0, 0]);
        let exit = u64::from_le_bytes([0x95, 0, 0, 0, 0, 0, 0, 0]);
        [u64::from_le_bytes(self.call()), load, zero, exit]
    }

    fn call(self) -> [u8; 8] {
        let [a, b, c, d] = self.cast.to_le_bytes();
        [CALL, KERNEL_FUNCTION << 4, 0, 0, a, b, c, d]
    }

    /// A BPF object with calls of `bpf_cast_to_kern_ctx` in it.
    pub fn put(self, object: &[u8]) -> Vec<u8> {
        let [a, b, c, d] = CAST_CALL.to_le_bytes();
        let marked = [CALL, 0, 0, 0, a, b, c, d];
        let mut object = object.to_vec();
        // Sections of instructions begin at multiples of their size.
        for instruction in object.chunks_exact_mut(8).filter(|instruction| **instruction == marked) {
            instruction.copy_from_slice(&self.call());
        }
        object
    }
}

/// BTF kinds (include/uapi/linux/btf.h).
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNC: u32 = 12;
/// Unnamed structures in one another.
const DEPTH: u32 = 8;

/// Types of a kernel, little endian as the programs are.
struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where type number n begins; number 0 is void.
    places: Vec<usize>,
}

/// One type's header.
#[derive(Clone, Copy)]
struct Header {
    name: u32,
    kind: u32,
    /// How many members, or whatever else follows.
    length: u32,
    /// Members have sizes in bits.
    bits: bool,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn find(btf: &[u8]) -> Option<Summed> {
    let types = Types::parse(btf)?;
    let at = types.member(types.id(STRUCT, "sk_buff")?, "ip_summed", 0)?;
    Some(Summed { cast: types.id(FUNC, "bpf_cast_to_kern_ctx")?, at })
}

impl<'a> Types<'a> {
    fn parse(btf: &'a [u8]) -> Option<Self> {
        const MAGIC: [u8; 2] = 0xeb9f_u16.to_le_bytes();
        if btf.get(..2)? != MAGIC {
            return None;
        }
        let header = word(btf, 4)? as usize;
        let part = |at: usize| -> Option<&'a [u8]> {
            let (start, length) = (word(btf, at)? as usize, word(btf, at + 4)? as usize);
            btf.get(header..)?.get(start..)?.get(..length)
        };
        let mut read = Self { types: part(8)?, strings: part(16)?, places: vec![usize::MAX] };
        let mut at = 0;
        while at < read.types.len() {
            read.places.push(at);
            let Header { kind, length, .. } = read.header(at)?;
            let (once, each) = match kind {
                1 | 14 | 17 => (4, 0),
                3 => (12, 0),
                STRUCT | UNION | 15 | 19 => (0, 12),
                6 | 13 => (0, 8),
                _ => (0, 0),
            };
            at += 12 + once + each * length as usize;
        }
        Some(read)
    }

    fn header(&self, at: usize) -> Option<Header> {
        let info = word(self.types, at + 4)?;
        Some(Header {
            name: word(self.types, at)?,
            kind: info >> 24 & 0x1f,
            length: info & 0xffff,
            bits: info >> 31 != 0,
        })
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let found = self.strings.get(name as usize..).and_then(|rest| rest.strip_prefix(wanted.as_bytes()));
        found.is_some_and(|rest| rest.first() == Some(&0))
    }

    fn id(&self, kind: u32, name: &str) -> Option<u32> {
        let found = self.places.iter().skip(1).position(|&at| {
            self.header(at).is_some_and(|header| header.kind == kind && self.is_named(header.name, name))
        })?;
        u32::try_from(found + 1).ok()
    }

    /// Where a member is in a structure, in bits; members of unnamed members are its own.
    fn member(&self, id: u32, wanted: &str, depth: u32) -> Option<u32> {
        let at = *self.places.get(id as usize)?;
        let header = self.header(at)?;
        if depth > DEPTH || !matches!(header.kind, STRUCT | UNION) {
            return None;
        }
        (0..header.length as usize).find_map(|n| {
            let member = at + 12 + 12 * n;
            let (name, of, place) =
                (word(self.types, member)?, word(self.types, member + 4)?, word(self.types, member + 8)?);
            let place = if header.bits { place & 0x00ff_ffff } else { place };
            if name != 0 {
                return self.is_named(name, wanted).then_some(place);
            }
            Some(place + self.member(of, wanted, depth + 1)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct sk_buff { int len; union { struct { int; ip_summed:2 at bit 69 … } } }`, and the function.
    fn btf() -> Vec<u8> {
        let strings = b"\0int\0sk_buff\0len\0ip_summed\0bpf_cast_to_kern_ctx\0";
        let name = |wanted: &str| {
            let at = strings.windows(wanted.len() + 1).position(|w| w == [wanted.as_bytes(), &[0]].concat());
            u32::try_from(at.unwrap()).unwrap()
        };
        let types: Vec<u32> = [
            &[name("int"), 1 << 24, 4, 32][..],
            &[name("sk_buff"), STRUCT << 24 | 2, 16, name("len"), 1, 0, 0, 3, 64],
            &[0, UNION << 24 | 1, 8, 0, 4, 0],
            &[0, 1 << 31 | STRUCT << 24 | 2, 8, name("len"), 1, 0, name("ip_summed"), 1, 2 << 24 | 5],
            &[name("bpf_cast_to_kern_ctx"), FUNC << 24, 0],
        ]
        .concat();
        let (types_length, strings_length) = (4 * types.len() as u32, strings.len() as u32);
        let header = [0x0001_eb9f, 24, 0, types_length, types_length, strings_length];
        let words = header.iter().chain(&types).flat_map(|word| word.to_le_bytes());
        words.chain(strings.iter().copied()).collect()
    }

    #[test]
    fn the_field_is_found_in_unnamed_structures() {
        assert_eq!(find(&btf()), Some(Summed { cast: 5, at: 69 }));
    }

    #[test]
    fn what_is_cut_short_says_nothing_and_does_no_harm() {
        let whole = btf();
        for length in 0..whole.len() {
            assert_eq!(find(&whole[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn the_programs_call_it_and_no_other_call_is_touched() {
        let summed = Summed { cast: 7, at: 69 };
        let object = summed.put(crate::OBJECT);
        let calls = |object: &[u8], call: [u8; 8]| object.chunks_exact(8).filter(|i| **i == call).count();
        let [a, b, c, d] = CAST_CALL.to_le_bytes();
        let marked = calls(crate::OBJECT, [CALL, 0, 0, 0, a, b, c, d]);
        assert!(marked > 0, "the programs have no such call");
        assert_eq!(calls(&object, summed.call()), marked);
        let changed =
            object.chunks_exact(8).zip(crate::OBJECT.chunks_exact(8)).filter(|(a, b)| a != b).count();
        assert_eq!(changed, marked);
    }
}
