//! Whether a program needs a dynamic loader.

/// Program header of the loader's name.
const PT_INTERP: u32 = 3;

/// `None`: not an ELF file of 64 bits. Layout: elf(5), little-endian.
pub fn needs_loader(program: &[u8]) -> Option<bool> {
    if program.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let u16_at = |at: usize| Some(u16::from_le_bytes(program.get(at..at + 2)?.try_into().ok()?));
    let table = u64::from_le_bytes(program.get(0x20..0x28)?.try_into().ok()?);
    let (size, count) = (usize::from(u16_at(0x36)?), usize::from(u16_at(0x38)?));
    let table = usize::try_from(table).ok()?;
    for number in 0..count {
        let at = table.checked_add(number * size)?;
        if u32::from_le_bytes(program.get(at..at.checked_add(4)?)?.try_into().ok()?) == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_with_and_without_a_loader() {
        let this = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(needs_loader(&this), Some(true), "tests are linked dynamically");
        let mut none = this.clone();
        none[0x38..0x3a].fill(0);
        assert_eq!(needs_loader(&none), Some(false), "no program headers");
        assert_eq!(needs_loader(&this[..70]), None, "cut off");
        assert_eq!(needs_loader(b"#!/bin/sh\n"), None);
        assert_eq!(needs_loader(b""), None);
    }
}
