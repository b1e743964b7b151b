//! The limit of what can be reached: packets redirected by their destination and by nothing else. No table, no rewrite.

use std::net::IpAddr;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use crate::bpf::{Alu, Asm, R0, R1, R2, R3, R4, R6, R7, R8, R10, Type, Width};
use crate::lab::wiring::host_device;
use crate::lab::{Bed, Family, Who, Wiring};
use crate::sys;

/// Helpers (include/uapi/linux/bpf.h).
const CHANGE_TYPE: i32 = 32;
const REDIRECT_NEIGH: i32 = 152;
const REDIRECT_PEER: i32 = 155;
/// `protocol`, `data` and `data_end` in `__sk_buff`.
const PROTOCOL: i16 = 16;
const DATA: i16 = 76;
const DATA_END: i16 = 80;
/// `struct bpf_redir_neigh`: a family, and an address with room for either one.
const NEIGHBOUR: i16 = 20;
/// What the next program or the stack decides.
const NEXT: i32 = -1;

/// Where packets for an address go.
#[derive(Clone, Copy)]
enum Way {
    /// Into the pod behind this device.
    Pod(u32),
    /// Out of this device, to this neighbour.
    Out(u32, IpAddr),
}

/// Attaches a program to each device of the node's.
///
/// # Errors
/// The kernel refuses.
pub fn attach(bed: &Bed) -> Result<()> {
    let wiring = bed.config.wiring;
    bed.namespace("n1").within(|| {
        let uplink = if_nametoindex("eth0")?;
        let (mut ways, mut edges) = (Vec::new(), vec![uplink]);
        for pod in Who::LOCAL_PODS {
            let device = host_device(wiring, pod.name());
            let ifindex = if_nametoindex(device.as_str()).with_context(|| device.clone())?;
            ways.extend(Family::BOTH.map(|family| (pod.address(family), Way::Pod(ifindex))));
            edges.push(ifindex);
        }
        for family in Family::BOTH {
            let router = family.pick([192, 0, 2, 1].into(), [0xfd00, 2, 0, 0, 0, 0, 0, 1].into());
            ways.extend([Who::Pd, Who::Client].map(|who| (who.address(family), Way::Out(uplink, router))));
        }
        let program = assemble(&ways, wiring).load_as(Type::Classifier, "bench_redirect")?;
        edges.into_iter().try_for_each(|edge| Ok(sys::attach_to_ingress(edge, program.as_fd())?))
    })
}

fn assemble(ways: &[(IpAddr, Way)], wiring: Wiring) -> Asm {
    let mut asm = Asm::default();
    asm.reg(Alu::Mov, R6, R1).load(Width::Word, R7, R6, DATA).load(Width::Word, R8, R6, DATA_END);
    asm.load(Width::Word, R0, R6, PROTOCOL);
    // EtherTypes, and where a destination begins and ends.
    for (family, ether_type, begin, end) in [(Family::V4, 0x0800_u16, 30, 34), (Family::V6, 0x86dd, 38, 54)] {
        let mut body = Asm::default();
        body.reg(Alu::Mov, R2, R7).imm(Alu::Add, R2, end).skip_if_at_most(R2, R8, 2).exit(NEXT);
        for (address, way) in ways.iter().filter(|(address, _)| Family::of(address) == family) {
            let mut inner = act(*way, wiring);
            for (at, word) in (begin..).step_by(4).zip(words(*address)).collect::<Vec<_>>().into_iter().rev()
            {
                let mut outer = Asm::default();
                outer.load(Width::Word, R3, R7, at).only_if(R3, word, &inner);
                inner = outer;
            }
            body.append(&inner);
        }
        asm.only_if(R0, ether_type.to_be().into(), &body);
    }
    asm.exit(NEXT);
    asm
}

fn act(way: Way, wiring: Wiring) -> Asm {
    let mut asm = Asm::default();
    match way {
        Way::Pod(device) => {
            // Packets for a bridge's or another port's hardware address are others' until it is said otherwise.
            if wiring == Wiring::Bridged {
                asm.reg(Alu::Mov, R1, R6).imm(Alu::Mov, R2, 0).call(CHANGE_TYPE);
            }
            asm.imm(Alu::Mov, R1, device.cast_signed()).imm(Alu::Mov, R2, 0).call(REDIRECT_PEER);
        }
        Way::Out(device, neighbour) => {
            let family = if neighbour.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let rest = words(neighbour).into_iter().chain(std::iter::repeat(0));
            for (at, word) in (-NEIGHBOUR..0).step_by(4).zip(std::iter::once(family).chain(rest)) {
                asm.store_imm(Width::Word, R10, at, word);
            }
            asm.imm(Alu::Mov, R1, device.cast_signed()).reg(Alu::Mov, R2, R10);
            asm.imm(Alu::Add, R2, (-NEIGHBOUR).into()).imm(Alu::Mov, R3, NEIGHBOUR.into());
            asm.imm(Alu::Mov, R4, 0).call(REDIRECT_NEIGH);
        }
    }
    asm.leave();
    asm
}

/// An address as loads of it see it.
fn words(address: IpAddr) -> Vec<i32> {
    let bytes = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    bytes.chunks_exact(4).map(|word| i32::from_ne_bytes([word[0], word[1], word[2], word[3]])).collect()
}
