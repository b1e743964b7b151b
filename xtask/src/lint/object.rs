//! Looks into the eBPF object that the agent carries.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell::{self, Workspace};

/// A panic in a program would be code that the verifier happens to accept and that ends in a lie to the caller.
const FORBIDDEN: &str = "panicking";
const SHT_SYMTAB: u32 = 2;
const SHF_EXECINSTR: u64 = 4;
const EM_BPF: u16 = 247;
const INSTRUCTION: u64 = 8;

pub fn check(workspace: &Workspace) -> Result<bool> {
    let mut cargo = workspace.cargo("check");
    let messages =
        shell::output(cargo.args(["--quiet", "--package", "proxy-userspace", "--message-format=json"]))?;
    let script = messages.lines().filter(|line| {
        line.contains("\"reason\":\"build-script-executed\"") && line.contains("proxy-userspace")
    });
    let out = script.filter_map(|line| shell::json_field(line, "out_dir")).next_back();
    let path = Path::new(out.context("the build script of proxy-userspace did not run")?).join("sluice.o");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let object = parse(&bytes).with_context(|| format!("{} is no eBPF object", path.display()))?;
    println!("{} bytes", bytes.len());
    for program in &object.programs {
        println!("{:>8} instructions  {}", program.instructions, program.section);
    }
    let bad: Vec<&String> = object.symbols.iter().filter(|symbol| symbol.contains(FORBIDDEN)).collect();
    for symbol in &bad {
        println!("panic symbol in the object: {symbol}: make the code that needs it return a reason instead");
    }
    Ok(bad.is_empty())
}

/// What an object holds.
#[derive(Debug, PartialEq, Eq)]
struct Object {
    programs: Vec<Program>,
    symbols: Vec<String>,
}

/// A section with code.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    section: String,
    instructions: u64,
}

/// A section header's fields that matter here.
struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    offset: u64,
    size: u64,
    link: u32,
}

/// Reads a little-endian ELF64 file for eBPF; one without symbols or code cannot be judged and is an error.
fn parse(bytes: &[u8]) -> Result<Object> {
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("not a little-endian 64-bit ELF file");
    }
    let machine = u16::from_le_bytes(array(bytes, 18)?);
    if machine != EM_BPF {
        bail!("made for machine {machine}, not {EM_BPF} (eBPF)");
    }
    let table = u64::from_le_bytes(array(bytes, 40)?);
    let entry = u64::from(u16::from_le_bytes(array(bytes, 58)?));
    let count = u64::from(u16::from_le_bytes(array(bytes, 60)?));
    let names = usize::from(u16::from_le_bytes(array(bytes, 62)?));
    let sections: Vec<Section> =
        (0..count).map(|i| section(bytes, table.saturating_add(i * entry))).collect::<Result<_>>()?;
    let names = contents(bytes, sections.get(names).context("no section of section names")?)?;

    let mut object = Object { programs: Vec::new(), symbols: Vec::new() };
    for section in &sections {
        if section.flags & SHF_EXECINSTR != 0 && section.size > 0 {
            let name = text(names, section.name)?;
            object.programs.push(Program { section: name, instructions: section.size / INSTRUCTION });
        }
        if section.kind == SHT_SYMTAB {
            let strings = sections.get(usize::try_from(section.link)?).context("symbols without names")?;
            let strings = contents(bytes, strings)?;
            for symbol in contents(bytes, section)?.chunks_exact(24) {
                let name = text(strings, u32::from_le_bytes(array(symbol, 0)?))?;
                object.symbols.extend((!name.is_empty()).then_some(name));
            }
        }
    }
    if object.programs.is_empty() || object.symbols.is_empty() {
        bail!("{} programs and {} symbols in it", object.programs.len(), object.symbols.len());
    }
    Ok(object)
}

fn section(bytes: &[u8], at: u64) -> Result<Section> {
    let at = usize::try_from(at)?;
    let header = bytes.get(at..).and_then(|rest| rest.get(..64)).context("cut off in the section headers")?;
    Ok(Section {
        name: u32::from_le_bytes(array(header, 0)?),
        kind: u32::from_le_bytes(array(header, 4)?),
        flags: u64::from_le_bytes(array(header, 8)?),
        offset: u64::from_le_bytes(array(header, 24)?),
        size: u64::from_le_bytes(array(header, 32)?),
        link: u32::from_le_bytes(array(header, 40)?),
    })
}

fn contents<'a>(bytes: &'a [u8], section: &Section) -> Result<&'a [u8]> {
    let start = usize::try_from(section.offset)?;
    let size = usize::try_from(section.size)?;
    bytes.get(start..).and_then(|rest| rest.get(..size)).context("cut off in a section")
}

fn text(strings: &[u8], at: u32) -> Result<String> {
    let rest = strings.get(usize::try_from(at)?..).context("a name lies outside its table")?;
    Ok(String::from_utf8_lossy(rest.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned())
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().context("cut off")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object with one program section `tc`, and the given symbols.
    fn elf(machine: u16, symbols: &[&str]) -> Vec<u8> {
        let names = b"\0tc\0symtab\0strtab\0".to_vec();
        let mut strings = vec![0];
        let mut table = vec![0; 24];
        for symbol in symbols {
            let at = u32::try_from(strings.len()).unwrap();
            table.extend(at.to_le_bytes());
            table.extend([0; 20]);
            strings.extend(symbol.as_bytes());
            strings.push(0);
        }
        let parts = [vec![0; 16], table, strings, names];
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(64, 0);
        let mut headers = vec![0; 64];
        for (part, (name, kind, flags, link)) in
            parts.iter().zip([(1u32, 1u32, 4u64, 0u32), (4, 2, 0, 3), (11, 3, 0, 0), (0, 3, 0, 0)])
        {
            headers.extend(name.to_le_bytes());
            headers.extend(kind.to_le_bytes());
            headers.extend(flags.to_le_bytes());
            headers.extend([0; 8]);
            headers.extend((bytes.len() as u64).to_le_bytes());
            headers.extend((part.len() as u64).to_le_bytes());
            headers.extend(link.to_le_bytes());
            headers.extend([0; 20]);
            bytes.extend(part);
        }
        let at = (bytes.len() as u64).to_le_bytes();
        bytes.extend(headers);
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[40..48].copy_from_slice(&at);
        for (offset, value) in [(58, 64u16), (60, 5), (62, 4)] {
            bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn programs_and_symbols_are_found() {
        let object = parse(&elf(EM_BPF, &["ingress", "core::panicking::panic"])).unwrap();
        assert_eq!(object.programs, [Program { section: "tc".into(), instructions: 2 }]);
        assert_eq!(object.symbols, ["ingress", "core::panicking::panic"]);
    }

    #[test]
    fn files_that_cannot_be_judged_are_errors() {
        let good = elf(EM_BPF, &["ingress"]);
        let table = [
            ("empty", Vec::new(), "not a little-endian"),
            ("a host program", elf(62, &["main"]), "made for machine 62"),
            ("stripped of its symbols", elf(EM_BPF, &[]), "1 programs and 0 symbols"),
            ("cut in the header", good[..40].to_vec(), "cut off"),
            ("cut in the section headers", good[..good.len() - 1].to_vec(), "cut off in the section headers"),
        ];
        for (name, bytes, expected) in table {
            let error = format!("{:#}", parse(&bytes).expect_err(name));
            assert!(error.contains(expected), "{name}: {error}");
        }
        for length in 0..good.len() {
            assert!(parse(&good[..length]).is_err(), "cut at {length}");
        }
    }
}
