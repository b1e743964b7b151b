//! Drivers: each run of a driver turns the packet into the next flow's and goes on to the program that is measured.
//!
//! A test run repeats one program on one packet, and the programs rewrite it. So every repetition needs the tuple put
//! back, and new flows need a new one: a dozen instructions and a tail call do both. The floor is the same driver in
//! front of an empty program.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::bpf::{Alu, Asm, R1, R2, R3, R4, R6, R7, R8, Target, Type, Width, Words};

/// `bpf_tail_call` (include/uapi/linux/bpf.h).
const TAIL_CALL: i32 = 12;
/// `data`, `data_end` and `mark` in `__sk_buff`.
const DATA: i16 = 76;
const DATA_END: i16 = 80;
const MARK: i16 = 8;
/// Ports run from here, so many of them; then comes the next client.
pub const FIRST_PORT: u16 = 0x4000;
const PORT_BITS: i32 = 14;

/// One of the packet's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Of the address, in the frame.
    pub at: i16,
    /// The address of number 0 in words of reading order; the last word grows with the number.
    pub address: [u32; 4],
    /// Of the port, in the frame.
    pub port_at: i16,
}

/// What a driver makes of the packet for flow number `n`, `n` counting from 0 modulo a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drive {
    pub v6: bool,
    /// Flows, a power of two.
    pub flows: u32,
    /// Flow `n` comes from client `n >> 14` and port [`FIRST_PORT`] + the rest.
    pub client: End,
    /// Flow `n` goes to (or comes from) service `n` modulo this power of two, always the same port.
    pub services: u32,
    pub service: End,
    pub service_port: u16,
    /// The packet's mark, written anew each time.
    pub mark: u32,
}

fn signed(value: u32) -> i32 {
    value.cast_signed()
}

/// The driver's instructions.
pub fn assemble(drive: &Drive, numbers: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Asm {
    let mut asm = Asm::default();
    asm.reg(Alu::Mov, R6, R1).load(Width::Word, R7, R6, DATA).load(Width::Word, R8, R6, DATA_END);
    // Ethernet, addresses and ports: 14 + 20 or 40 + 4.
    asm.reg(Alu::Mov, R2, R7).imm(Alu::Add, R2, if drive.v6 { 58 } else { 38 });
    asm.skip_if_at_most(R2, R8, 2).exit(0);
    asm.value(R1, numbers).load(Width::Double, R3, R1, 0);
    asm.reg(Alu::Mov, R4, R3).imm(Alu::Add, R4, 1).store(Width::Double, R1, 0, R4);
    asm.imm(Alu::And, R3, signed(drive.flows - 1));
    // Both ports in one store: the program loads them in one, and would wait for two.
    let client_first = drive.client.port_at < drive.service.port_at;
    let (client_shift, service_shift) = if client_first { (16, 0) } else { (0, 16) };
    asm.reg(Alu::Mov, R4, R3).imm(Alu::And, R4, (1 << PORT_BITS) - 1).imm(Alu::Or, R4, FIRST_PORT.into());
    asm.imm(Alu::Lsh, R4, client_shift).imm(
        Alu::Or,
        R4,
        signed(u32::from(drive.service_port) << service_shift),
    );
    asm.wire(R4, 32).store(Width::Word, R7, drive.client.port_at.min(drive.service.port_at), R4);
    // The client's address.
    asm.reg(Alu::Mov, R4, R3).imm(Alu::Rsh, R4, PORT_BITS);
    address(&mut asm, drive.v6, &drive.client);
    // The service's.
    asm.reg(Alu::Mov, R4, R3).imm(Alu::And, R4, signed(drive.services - 1));
    address(&mut asm, drive.v6, &drive.service);
    asm.imm(Alu::Mov, R4, signed(drive.mark)).store(Width::Word, R6, MARK, R4);
    asm.reg(Alu::Mov, R1, R6).map(R2, target).imm(Alu::Mov, R3, 0).call(TAIL_CALL).exit(0);
    asm
}

/// Writes the address whose number is in R4.
fn address(asm: &mut Asm, v6: bool, end: &End) {
    let words = if v6 { &end.address[..] } else { &end.address[..1] };
    let Some((last, prefix)) = words.split_last() else { return };
    let mut at = end.at;
    for word in prefix {
        asm.store_imm(Width::Word, R7, at, signed(word.to_be()));
        at += 4;
    }
    asm.imm(Alu::Add, R4, signed(*last)).wire(R4, 32).store(Width::Word, R7, at, R4);
}

/// A loaded driver in front of a program.
#[derive(Debug)]
pub struct Driver {
    program: OwnedFd,
    numbers: Words,
    _target: Target,
}

impl Driver {
    /// # Errors
    /// What the kernel refuses.
    pub fn load(drive: &Drive, program: BorrowedFd<'_>) -> io::Result<Self> {
        let (numbers, target) = (Words::new(1)?, Target::new(program)?);
        let asm = assemble(drive, numbers.as_fd(), target.as_fd());
        Ok(Self { program: asm.load_as(Type::Classifier, "bench_driver")?, numbers, _target: target })
    }

    /// The next run is flow number `n`.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn begin(&self, n: u64) -> io::Result<()> {
        self.numbers.set(0, n)
    }
}

impl AsFd for Driver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}
