//! cgroup programs: sockets of the node's own processes.

use crate::clock::Exact;
use crate::family::{V4, V6};
use crate::global::{REMEMBERED, last_stamp, remember_pair};
use crate::maps::{CONFIG, SOCKETS};
use crate::tables::Maps;
use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use core::ptr::{read_volatile, write_volatile};
use proxy_common::{
    abi::{Addr, Port, SocketPair, SocketPairs, config_flags, protocol},
    path::{
        Tables,
        socket::{self, Dial},
    },
};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
/// Third word of an IPv4-mapped IPv6 address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// connect(2) on an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn sluice_connect4(ctx: SockAddrContext) -> i32 {
    dial_v4(&ctx)
}

/// connect(2) on an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn sluice_connect6(ctx: SockAddrContext) -> i32 {
    dial_v6(&ctx)
}

/// sendto(2), sendmsg(2) with an address on an IPv4 UDP socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn sluice_sendmsg4(ctx: SockAddrContext) -> i32 {
    dial_v4(&ctx)
}

/// sendto(2), sendmsg(2) with an address on an IPv6 UDP socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn sluice_sendmsg6(ctx: SockAddrContext) -> i32 {
    dial_v6(&ctx)
}

/// recvmsg(2) on an IPv4 UDP socket: the sender's address.
#[cgroup_sock_addr(recvmsg4)]
pub fn sluice_recvmsg4(ctx: SockAddrContext) -> i32 {
    show_v4(&ctx)
}

/// recvmsg(2) on an IPv6 UDP socket: the sender's address.
#[cgroup_sock_addr(recvmsg6)]
pub fn sluice_recvmsg6(ctx: SockAddrContext) -> i32 {
    show_v6(&ctx)
}

/// getpeername(2) on an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn sluice_getpeer4(ctx: SockAddrContext) -> i32 {
    show_v4(&ctx)
}

/// getpeername(2) on an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn sluice_getpeer6(ctx: SockAddrContext) -> i32 {
    show_v6(&ctx)
}

/// An address and port as the hook shows them, IPv4 in mapped form. Aligned for stores of two words at once.
#[repr(align(8))]
#[derive(Clone, Copy)]
struct Name {
    address: [u32; 4],
    port: Port,
}

impl Name {
    #[inline(always)]
    const fn mapped(address: u32, port: Port) -> Self {
        Self { address: [0, 0, MAPPED, address], port }
    }

    #[inline(always)]
    const fn is_mapped(&self) -> bool {
        self.address[0] | self.address[1] | (self.address[2] ^ MAPPED) == 0
    }
}

#[inline(always)]
fn dial_v4(ctx: &SockAddrContext) -> i32 {
    let mut name = read_v4(ctx.sock_addr);
    match dial(ctx, &mut name) {
        Answer::Rewrite => write_v4(ctx.sock_addr, name),
        Answer::Leave => {}
        Answer::Refuse => return DENY,
    }
    ALLOW
}

#[inline(always)]
fn dial_v6(ctx: &SockAddrContext) -> i32 {
    let mut name = read_v6(ctx.sock_addr);
    match dial(ctx, &mut name) {
        Answer::Rewrite => write_v6(ctx.sock_addr, name),
        Answer::Leave => {}
        Answer::Refuse => return DENY,
    }
    ALLOW
}

#[inline(always)]
fn show_v4(ctx: &SockAddrContext) -> i32 {
    if let Some(name) = shown(ctx, read_v4(ctx.sock_addr)) {
        write_v4(ctx.sock_addr, name);
    }
    ALLOW
}

#[inline(always)]
fn show_v6(ctx: &SockAddrContext) -> i32 {
    if let Some(name) = shown(ctx, read_v6(ctx.sock_addr)) {
        write_v6(ctx.sock_addr, name);
    }
    ALLOW
}

/// What becomes of a name that a socket dials.
#[repr(u32)]
enum Answer {
    Leave = 0,
    /// Use the name as it is now.
    Rewrite = 1,
    Refuse = 2,
}

/// Decides about `name` and puts the backend in its place. The name is changed in place because LLVM computes with the
/// parts of a result that was not returned, which the verifier refuses.
///
/// A subprogram of its own: in one frame the program's own result would be kept on the stack, where the verifier loses it.
#[inline(never)]
fn dial(ctx: &SockAddrContext, name: &mut Name) -> Answer {
    // SAFETY: the kernel hands every sock_addr program a valid context.
    let transport = unsafe { (*ctx.sock_addr).protocol } as u8;
    let Some(of_node) = served(ctx, transport) else { return Answer::Leave };
    if !matches!(transport, protocol::TCP | protocol::UDP) {
        return Answer::Leave;
    }
    let mut pair = SocketPair {
        frontend: name.address,
        // Of a mapped one three words are right already. Zeros would be written by memset, byte by byte.
        backend: name.address,
        frontend_port: name.port,
        backend_port: name.port,
        endpoint: 0,
        generation: 0,
        used: 1,
    };
    let as_ptr = ctx.sock_addr.cast();
    let answer = if name.is_mapped() {
        let Some(maps) = Maps::<V4, Exact>::new(as_ptr) else { return Answer::Leave };
        if kept(ctx, &maps, name, transport) {
            return Answer::Rewrite;
        }
        let dialled = socket::dial::<1, _>(&maps, &Addr([name.address[3]]), name.port, transport, of_node);
        chosen(dialled, &mut pair, |to, address| to[3] = address.0[0])
    } else {
        let Some(maps) = Maps::<V6, Exact>::new(as_ptr) else { return Answer::Leave };
        if kept(ctx, &maps, name, transport) {
            return Answer::Rewrite;
        }
        let dialled = socket::dial::<4, _>(&maps, &Addr(name.address), name.port, transport, of_node);
        chosen(dialled, &mut pair, |to, address| *to = address.0)
    };
    if !matches!(answer, Answer::Rewrite) {
        return answer;
    }
    // Without memory for it the packet path is left with it: the reply must show the address that was dialled.
    if !remember(ctx, &pair) {
        return Answer::Leave;
    }
    name.address = pair.backend;
    name.port = pair.backend_port;
    Answer::Rewrite
}

#[inline(always)]
fn chosen<const N: usize>(
    dialled: Dial<N>,
    pair: &mut SocketPair,
    set: impl Fn(&mut [u32; 4], Addr<N>),
) -> Answer {
    match dialled {
        Dial::Pass => Answer::Leave,
        Dial::Refuse => {
            // SAFETY: takes a number only.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            Answer::Refuse
        }
        Dial::To(backend) => {
            set(&mut pair.backend, backend.address);
            pair.backend_port = backend.port;
            pair.endpoint = backend.id;
            pair.generation = backend.generation;
            Answer::Rewrite
        }
    }
}

/// The backend that a UDP socket has used for this frontend before, while it may still be used.
#[inline(always)]
fn kept<const N: usize, T: Tables<N>>(
    ctx: &SockAddrContext,
    tables: &T,
    name: &mut Name,
    transport: u8,
) -> bool {
    // Nobody follows endpoints any more once another proxy has taken over (L-07).
    if transport != protocol::UDP || tables.handed_over() {
        return false;
    }
    let Some(pairs) = pairs(ctx) else { return false };
    let last = last_stamp(pairs) as u16;
    let Some(pair) = socket::recall(pairs, &name.address, name.port, last) else { return false };
    if tables.endpoint_generation(pair.endpoint) != u32::from(pair.generation) {
        return false;
    }
    name.address = pair.backend;
    name.port = pair.backend_port;
    true
}

/// What a socket is shown in place of a backend.
#[inline(always)]
fn shown(ctx: &SockAddrContext, name: Name) -> Option<Name> {
    let pair = socket::dialled(pairs(ctx)?, &name.address, name.port)?;
    Some(Name { address: pair.frontend, port: pair.frontend_port })
}

#[inline(always)]
fn pairs(ctx: &SockAddrContext) -> Option<&'static mut SocketPairs> {
    // SAFETY: the context's socket is valid while the program runs; the storage lives as long as the socket.
    let storage = unsafe { SOCKETS.get_ptr_mut(ctx) };
    // SAFETY: null or what the look-up found.
    unsafe { storage.as_mut() }
}

#[inline(always)]
fn remember(ctx: &SockAddrContext, pair: &SocketPair) -> bool {
    // SAFETY: as in `pairs`.
    let storage = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None) };
    !storage.is_null() && remember_pair(storage, pair) == REMEMBERED
}

/// Whether this socket is the node's own; `None` for one that is not translated. `--sockets all` translates TCP of pods as
/// well; their UDP takes the packet path, which follows endpoints that depart (S-08).
#[inline(always)]
fn served(ctx: &SockAddrContext, transport: u8) -> Option<bool> {
    let config = CONFIG.get(0)?;
    // SAFETY: the kernel hands every sock_addr program a valid context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let of_node = cookie == config.netns_cookie;
    let pods = config.flags & config_flags::SOCKETS_ALL != 0 && transport == protocol::TCP;
    (of_node || pods).then_some(of_node)
}

#[inline(always)]
fn read_v4(ctx: *mut bpf_sock_addr) -> Name {
    // SAFETY: the kernel hands every sock_addr program a valid context.
    let address = unsafe { (*ctx).user_ip4 };
    Name::mapped(address, read_port(ctx))
}

#[inline(always)]
fn read_v6(ctx: *mut bpf_sock_addr) -> Name {
    let mut address = [0; 4];
    for (i, word) in address.iter_mut().enumerate() {
        // SAFETY: the kernel hands every sock_addr program a valid context. Volatile, so that LLVM does not merge
        // the words into an access that the verifier refuses.
        let field = unsafe { &raw const (*ctx).user_ip6[i] };
        // SAFETY: a field of that context.
        *word = unsafe { read_volatile(field) };
    }
    Name { address, port: read_port(ctx) }
}

#[inline(always)]
fn read_port(ctx: *mut bpf_sock_addr) -> Port {
    // SAFETY: the kernel hands every sock_addr program a valid context.
    Port(unsafe { (*ctx).user_port } as u16)
}

#[inline(always)]
fn write_v4(ctx: *mut bpf_sock_addr, name: Name) {
    // SAFETY: the kernel hands every sock_addr program a valid context.
    unsafe { (*ctx).user_ip4 = name.address[3] };
    write_port(ctx, name.port);
}

#[inline(always)]
fn write_v6(ctx: *mut bpf_sock_addr, name: Name) {
    for (i, word) in name.address.iter().enumerate() {
        // SAFETY: as in `read_v6`.
        let field = unsafe { &raw mut (*ctx).user_ip6[i] };
        // SAFETY: a field of that context.
        unsafe { write_volatile(field, *word) };
    }
    write_port(ctx, name.port);
}

#[inline(always)]
fn write_port(ctx: *mut bpf_sock_addr, port: Port) {
    // SAFETY: the kernel hands every sock_addr program a valid context.
    unsafe { (*ctx).user_port = u32::from(port.0) };
}
