//! Small BPF programs of the laboratory's own, written as instructions: drivers, sinks and redirects of the bench.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::Btf;
use aya_obj::btf::BtfKind;

use crate::sys;

/// Program types (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Type {
    Classifier = 3,
    Xdp = 6,
}

/// Map types.
const ARRAY: u32 = 2;
const PROG_ARRAY: u32 = 3;

/// Registers.
pub const R0: u8 = 0;
pub const R1: u8 = 1;
pub const R2: u8 = 2;
pub const R3: u8 = 3;
pub const R4: u8 = 4;
pub const R6: u8 = 6;
pub const R7: u8 = 7;
pub const R8: u8 = 8;
/// The end of the stack's frame.
pub const R10: u8 = 10;

/// Sizes of loads and stores.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Width {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

/// Operations on registers (64 bits).
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Alu {
    Add = 0x00,
    Or = 0x40,
    And = 0x50,
    Lsh = 0x60,
    Rsh = 0x70,
    Xor = 0xa0,
    Mov = 0xb0,
}

/// A program in the making.
#[derive(Clone, Debug, Default)]
pub struct Asm(Vec<u64>);

impl Asm {
    fn push(&mut self, code: u8, dst: u8, src: u8, offset: i16, imm: i32) -> &mut Self {
        let [a, b] = offset.to_le_bytes();
        let [c, d, e, f] = imm.to_le_bytes();
        self.0.push(u64::from_le_bytes([code, dst | src << 4, a, b, c, d, e, f]));
        self
    }

    /// `dst = dst op imm`.
    pub fn imm(&mut self, op: Alu, dst: u8, imm: i32) -> &mut Self {
        self.push(0x07 | op as u8, dst, 0, 0, imm)
    }

    /// `dst = dst op src`.
    pub fn reg(&mut self, op: Alu, dst: u8, src: u8) -> &mut Self {
        self.push(0x0f | op as u8, dst, src, 0, 0)
    }

    /// The lowest `bits` (16, 32) of `dst` in network order.
    pub fn wire(&mut self, dst: u8, bits: i32) -> &mut Self {
        self.push(0xdc, dst, 0, 0, bits)
    }

    /// `dst = *(src + offset)`.
    pub fn load(&mut self, width: Width, dst: u8, src: u8, offset: i16) -> &mut Self {
        self.push(0x61 | width as u8, dst, src, offset, 0)
    }

    /// `*(dst + offset) = src`.
    pub fn store(&mut self, width: Width, dst: u8, offset: i16, src: u8) -> &mut Self {
        self.push(0x63 | width as u8, dst, src, offset, 0)
    }

    /// `*(dst + offset) = imm`.
    pub fn store_imm(&mut self, width: Width, dst: u8, offset: i16, imm: i32) -> &mut Self {
        self.push(0x62 | width as u8, dst, 0, offset, imm)
    }

    /// Skips `instructions` if `a <= b`.
    pub fn skip_if_at_most(&mut self, a: u8, b: u8, instructions: i16) -> &mut Self {
        self.push(0xbd, a, b, instructions, 0)
    }

    /// `dst` = a map.
    pub fn map(&mut self, dst: u8, map: BorrowedFd<'_>) -> &mut Self {
        self.push(0x18, dst, 1, 0, map.as_raw_fd()).push(0, 0, 0, 0, 0)
    }

    /// `dst` = address of an array map's value.
    pub fn value(&mut self, dst: u8, map: BorrowedFd<'_>) -> &mut Self {
        self.push(0x18, dst, 2, 0, map.as_raw_fd()).push(0, 0, 0, 0, 0)
    }

    /// Calls a helper by its number.
    pub fn call(&mut self, helper: i32) -> &mut Self {
        self.push(0x85, 0, 0, 0, helper)
    }

    /// Does `body` if the lower half of `reg` is `value`.
    pub fn only_if(&mut self, reg: u8, value: i32, body: &Self) -> &mut Self {
        self.push(0x56, reg, 0, body.0.len() as i16, value).append(body)
    }

    /// What `other` does comes next.
    pub fn append(&mut self, other: &Self) -> &mut Self {
        self.0.extend(&other.0);
        self
    }

    /// Returns `value`.
    pub fn exit(&mut self, value: i32) -> &mut Self {
        self.imm(Alu::Mov, R0, value).leave()
    }

    /// Returns what is in `R0`.
    pub fn leave(&mut self) -> &mut Self {
        self.push(0x95, 0, 0, 0, 0)
    }

    /// Loads it.
    ///
    /// # Errors
    /// What the verifier refuses, with its log.
    pub fn load_as(&self, kind: Type, name: &str) -> io::Result<OwnedFd> {
        sys::load_program(kind as u32, (0, 0), &self.0, name)
    }

    /// Loads it for sockets of a cgroup that call connect(2) with an IPv4 or IPv6 address, and attaches it there beside others.
    /// It goes with the cgroup.
    ///
    /// # Errors
    /// What the verifier refuses, with its log, and that attaching fails.
    pub fn attach_to_connect(&self, cgroup: &Path, v6: bool) -> io::Result<()> {
        // BPF_PROG_TYPE_CGROUP_SOCK_ADDR; BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET6_CONNECT.
        let (kind, attach_type) = (18, if v6 { 11 } else { 10 });
        let program = sys::load_program(kind, (attach_type, 0), &self.0, "foreign")?;
        sys::attach_to_cgroup(File::open(cgroup)?.as_fd(), program.as_fd(), attach_type)
    }
}

/// Whether programs may look at sockets here, as those that end the sockets of departed endpoints do: some kernels keep all programs from it that
/// read the kernel's memory.
///
/// # Errors
/// Why not.
pub fn may_iterate_over_sockets() -> io::Result<()> {
    // BPF_PROG_TYPE_TRACING; BPF_TRACE_ITER.
    let (kind, attach_type) = (26, 28);
    let types = Btf::from_sys_fs().map_err(io::Error::other)?;
    let function = types.id_by_type_name_kind("bpf_iter_bpf_sk_storage_map", BtfKind::Func);
    let attach = (attach_type, function.map_err(io::Error::other)?);
    sys::load_program(kind, attach, &Asm::default().exit(0).0, "looks").map(drop)
}

/// An array of values, of 8 bytes each, that a program and we share.
#[derive(Debug)]
pub struct Words(OwnedFd);

impl Words {
    /// # Errors
    /// As the kernel says.
    pub fn new(count: u32) -> io::Result<Self> {
        sys::create_map(ARRAY, 4, 8, count, 0).map(Self)
    }

    /// # Errors
    /// As the kernel says.
    pub fn set(&self, index: u32, value: u64) -> io::Result<()> {
        sys::update_map(self.0.as_fd(), &index.to_ne_bytes(), &value.to_ne_bytes())
    }
}

impl AsFd for Words {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Where a driver goes when it has prepared the packet.
#[derive(Debug)]
pub struct Target(OwnedFd);

impl Target {
    /// # Errors
    /// As the kernel says.
    pub fn new(program: BorrowedFd<'_>) -> io::Result<Self> {
        let map = sys::create_map(PROG_ARRAY, 4, 4, 1, 0)?;
        sys::update_map(map.as_fd(), &0_u32.to_ne_bytes(), &program.as_raw_fd().to_ne_bytes())?;
        Ok(Self(map))
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
