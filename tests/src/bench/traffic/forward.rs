//! Forwarding without sockets: datagrams as if received by the node, dropped at the other end of the device that they leave by.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use proxy_common::abi::protocol;

use super::beds::{Path, Site};
use crate::bench::place::pin;
use crate::bpf::{Alu, Asm, R1, R2, R3, R4, R6, R7, R8, Type, Width, Words};
use crate::lab::command::with_input;
use crate::lab::wiring::host_device;
use crate::lab::{Family, Who, Wiring};
use crate::packet::frame;
use crate::sys::{Run, test_run};

/// The router's device towards the node.
const ROUTER: (&str, &str) = ("rt", "n1");
/// Of number 0.
const FIRST_PORT: u16 = 4_096;
/// Packets that are received at once, as a driver would.
const BATCH: u32 = 64;
/// Of UDP.
const HEADER: i16 = 8;
/// What port and address are changed to is taken back right behind the headers, so the checksum is every packet's.
const BALANCE: i16 = 4;
/// IPv4's identification, which does the same for the header's checksum, and the address's lower half.
const IDENTIFICATION: i16 = 18;
const ADDRESS: i16 = 32;
/// `data` and `data_end` in `xdp_md`, and where its `ingress_ifindex` is; its size.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const INGRESS: std::ops::Range<usize> = 12..16;
const XDP_MD: usize = 24;
/// Verdicts of XDP programs.
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

/// The flows that packets belong to by turns: powers of two.
#[derive(Clone, Copy, Debug)]
pub struct Flows {
    /// Source ports.
    pub ports: u32,
    /// Services whose addresses follow each other, in IPv4; the first one's ends in 0.0.
    pub services: u32,
    /// Those from this number on have no packet yet; `None`: all are opened before the first packet is counted.
    pub new: Option<u32>,
}

impl Flows {
    /// Of one Service, open.
    pub const KNOWN: Self = Self { ports: 1_024, services: 1, new: None };
}

/// What injects packets into one bed.
pub struct Injector<'a> {
    site: &'a Site,
    /// The namespace and the device beyond the node's.
    beyond: (&'static str, &'static str),
    program: OwnedFd,
    packet: Vec<u8>,
    context: [u8; XDP_MD],
    numbers: Words,
    flows: Flows,
}

impl<'a> Injector<'a> {
    /// Prepares packets of these flows from the path's client to `to`.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn new(site: &'a Site, path: Path, to: SocketAddr, flows: Flows) -> Result<Self> {
        let (ifindex, gateway, neighbour) = if path.client == Who::Client {
            let (ifindex, own) = link(site, "n1", "eth0")?;
            (ifindex, own, link(site, ROUTER.0, ROUTER.1)?.1)
        } else {
            let device = host_device(site.bed.config.wiring, path.client.name());
            let (ifindex, own) = link(site, "n1", &device)?;
            let gateway = match site.bed.config.wiring {
                Wiring::Routed => own,
                Wiring::Bridged if Who::LOCAL_PODS.iter().any(|pod| pod.address(path.family) == to.ip()) => {
                    link(site, path.server.namespace(), "eth0")?.1
                }
                Wiring::Bridged => link(site, "n1", "cni0")?.1,
            };
            (ifindex, gateway, link(site, path.client.namespace(), "eth0")?.1)
        };
        let beyond = if path.server == Who::Pd { ROUTER } else { (path.server.namespace(), "eth0") };
        let from = (path.client.address(path.family), FIRST_PORT);
        // All ones are nothing to a checksum: what an address that ends in 0.0 is balanced by.
        let mut payload = [0xff; 18];
        payload[..2].copy_from_slice(&(!FIRST_PORT).to_be_bytes());
        let mut packet = frame::packet(protocol::UDP, frame::ACK, from, (to.ip(), to.port()), &payload);
        packet.splice(..12, gateway.into_iter().chain(neighbour));
        let numbers = Words::new(1)?;
        let program = assemble(&packet, path.family, flows, &numbers).load_as(Type::Xdp, "bench_inject")?;
        let mut context = [0; XDP_MD];
        context[4..8].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
        context[INGRESS].copy_from_slice(&ifindex.to_ne_bytes());
        Ok(Self { site, beyond, program, packet, context, numbers, flows })
    }

    /// Nanoseconds a packet, nearly all of which arrive. One that opens its flow is as good as any.
    ///
    /// # Errors
    /// As the kernel says, or packets do not arrive.
    pub fn nanoseconds(&self, packets: u32) -> Result<f64> {
        let before = self.arrived()?;
        let took = self.dropping(|| {
            self.site.bed.namespace("n1").within(|| {
                pin(0)?;
                match self.flows.new {
                    Some(first) => self.numbers.set(0, first.into())?,
                    None => drop(self.inject(2 * self.flows.ports)?),
                }
                self.inject(packets)
            })
        })?;
        let arrived = self.arrived()? - before;
        // A busy machine loses one now and then.
        let enough = u64::from(packets - packets / 100);
        ensure!(arrived >= enough, "{arrived} of {packets} packets arrived");
        Ok(took)
    }

    fn inject(&self, packets: u32) -> Result<f64> {
        let run = Run { packet: &self.packet, context: &self.context, repeat: packets, live: BATCH };
        let (_, nanoseconds) = test_run(self.program.as_fd(), &run, &mut []).context("live packets")?;
        Ok(f64::from(nanoseconds))
    }

    /// Packets that the device beyond has received so far.
    fn arrived(&self) -> Result<u64> {
        let told = self.site.bed.ip(self.beyond.0, &format!("-s -j link show dev {}", self.beyond.1))?;
        let told: serde_json::Value = serde_json::from_str(&told)?;
        told[0]["stats64"]["rx"]["packets"].as_u64().context("iproute2 tells of no received packets")
    }

    /// Has the device beyond drop what it receives as long as `work` lasts.
    fn dropping<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let netns = self.site.bed.namespace(self.beyond.0).path();
        let nft = |rules: &str| {
            with_input("nsenter", &[&format!("--net={}", netns.display()), "nft", "-f", "-"], rules).map(drop)
        };
        // UDP only: neighbours must still find each other.
        let chain =
            format!("type filter hook ingress device {} priority 0; meta l4proto udp drop;", self.beyond.1);
        nft(&format!("table netdev bench {{ chain in {{ {chain} }}; }}"))?;
        let done = work();
        nft("delete table netdev bench")?;
        done
    }
}

/// Number and hardware address of a device.
fn link(site: &Site, netns: &str, device: &str) -> Result<(u32, [u8; 6])> {
    let told = site.bed.ip(netns, &format!("-j link show dev {device}"))?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    let index = told[0]["ifindex"].as_u64().context("no number")?;
    let mut bytes = [0; 6];
    let address = told[0]["address"].as_str().context("no hardware address")?;
    for (byte, text) in bytes.iter_mut().zip(address.split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    Ok((u32::try_from(index)?, bytes))
}

/// Writes all headers anew, as pages come back from the stack as it has left them, then what makes it the next flow's.
fn assemble(packet: &[u8], family: Family, flows: Flows, numbers: &Words) -> Asm {
    let transport: i16 = if family == Family::V4 { 34 } else { 54 };
    let headers = transport + HEADER;
    let end = headers + BALANCE;
    let mut asm = Asm::default();
    asm.reg(Alu::Mov, R6, R1).load(Width::Word, R7, R6, DATA).load(Width::Word, R8, R6, DATA_END);
    asm.reg(Alu::Mov, R2, R7).imm(Alu::Add, R2, end.into());
    asm.skip_if_at_most(R2, R8, 2).exit(XDP_DROP);
    for (at, half) in (0..).step_by(2).zip(packet.chunks_exact(2).take((headers / 2) as usize)) {
        let value = u16::from_ne_bytes([half[0], half[1]]);
        asm.store_imm(Width::Half, R7, at, value.into());
    }
    asm.value(R1, numbers.as_fd()).load(Width::Double, R3, R1, 0);
    asm.reg(Alu::Mov, R4, R3).imm(Alu::Add, R4, 1).store(Width::Double, R1, 0, R4);
    if flows.services > 1 {
        asm.reg(Alu::Mov, R4, R3).imm(Alu::And, R4, (flows.services - 1).cast_signed()).wire(R4, 16);
        asm.store(Width::Half, R7, ADDRESS, R4).imm(Alu::Xor, R4, 0xffff);
        asm.store(Width::Half, R7, IDENTIFICATION, R4).store(Width::Half, R7, headers + 2, R4);
    }
    asm.imm(Alu::And, R3, (flows.ports - 1).cast_signed()).imm(Alu::Add, R3, FIRST_PORT.into());
    asm.wire(R3, 16).store(Width::Half, R7, transport, R3);
    asm.imm(Alu::Xor, R3, 0xffff).store(Width::Half, R7, headers, R3);
    asm.exit(XDP_PASS);
    asm
}
