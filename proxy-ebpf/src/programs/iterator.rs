//! What is remembered of sockets, written out for the agent: storage of sockets cannot be read by key.

use aya_ebpf::{
    cty::c_void,
    helpers::generated::{bpf_get_socket_cookie, bpf_seq_write},
};
use proxy_common::abi::SocketPairs;

/// `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    map: *const c_void,
    /// Null at the end.
    socket: *mut c_void,
    /// Null at the end.
    value: *const SocketPairs,
}

/// First part of `struct bpf_iter_meta`.
#[repr(C)]
struct Meta {
    file: *mut c_void,
}

/// Writes a `SocketRecord` for every socket with a value in SOCKETS, whatever its network namespace. A record that
/// does not fit is undone by the kernel and comes first in the next read.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub extern "C" fn sluice_sockets(ctx: *const Context) -> i32 {
    // SAFETY: the kernel hands every iterator a valid context.
    let Context { meta, socket, value, .. } = unsafe { ctx.read() };
    if socket.is_null() || value.is_null() {
        return 0;
    }
    // SAFETY: never null, by the kernel's own types.
    let file = unsafe { (*meta).file }.cast();
    // SAFETY: a socket that the kernel holds while the program runs.
    let mut cookie = unsafe { bpf_get_socket_cookie(socket) };
    // SAFETY: reads 8 bytes of the stack.
    unsafe { bpf_seq_write(file, (&raw mut cookie).cast(), size_of::<u64>() as u32) };
    // SAFETY: reads the value, which is this long.
    unsafe { bpf_seq_write(file, value.cast_mut().cast(), size_of::<SocketPairs>() as u32) };
    0
}
