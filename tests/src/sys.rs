//! What the laboratory needs from the kernel that has no safe wrapper. The only `unsafe` of this crate.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes a descriptor that was just received in a control message.
///
/// The caller hands over a number that the kernel has made for this message and that nobody else owns.
#[must_use]
pub fn adopt(received: RawFd) -> OwnedFd {
    // SAFETY: the kernel installed this descriptor for the message it came in; the caller owns it alone.
    unsafe { OwnedFd::from_raw_fd(received) }
}

/// Sets the calling process's nice value.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: setpriority(2) takes numbers only.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A map key or value on its way through aya.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Wire<T>(pub T);

// SAFETY: `Abi` types are integers without padding; the wrapper is transparent.
unsafe impl<T: proxy_common::abi::Abi> aya::Pod for Wire<T> {}

/// Commands of bpf(2) (include/uapi/linux/bpf.h).
mod command {
    pub const MAP_CREATE: i64 = 0;
    pub const MAP_UPDATE_ELEM: i64 = 2;
    pub const PROG_LOAD: i64 = 5;
    pub const PROG_ATTACH: i64 = 8;
    pub const PROG_TEST_RUN: i64 = 10;
    pub const PROG_QUERY: i64 = 16;
}

fn bpf<T>(command: i64, attributes: &mut T) -> io::Result<c_long> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is a repr(C) prefix of `union bpf_attr`, readable and writable for `size` bytes; the
    // pointers in it are made by this module from borrows that outlast the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(adopt(fd))
}

fn length(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// Makes a map.
pub fn create_map(
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = MapCreate { kind, key_size, value_size, max_entries, flags };
    bpf(command::MAP_CREATE, &mut attributes).and_then(owned)
}

#[repr(C)]
#[derive(Default)]
struct MapUpdate {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Writes an element of a map that [`create_map`] has made with keys and values of these sizes.
pub fn update_map(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attributes = MapUpdate {
        map: map.as_raw_fd().cast_unsigned(),
        key: key.as_ptr().expose_provenance() as u64,
        value: value.as_ptr().expose_provenance() as u64,
        ..Default::default()
    };
    bpf(command::MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
    types: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    attach_to: u32,
}

/// Loads a program, for this kind of attachment where its type has several, and to the kernel's function with this number where it has those.
/// The error has the verifier's log.
pub fn load_program(
    kind: u32,
    (attach_type, attach_to): (u32, u32),
    instructions: &[u64],
    name: &str,
) -> io::Result<OwnedFd> {
    let mut log = vec![0_u8; 1 << 16];
    let mut attributes = ProgramLoad {
        kind,
        count: length(instructions.len())?,
        instructions: instructions.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
        log_level: 1,
        log_size: length(log.len())?,
        log: log.as_mut_ptr().expose_provenance() as u64,
        attach_type,
        attach_to,
        ..Default::default()
    };
    for (to, from) in attributes.name.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    bpf(command::PROG_LOAD, &mut attributes).and_then(owned).map_err(|error| {
        let said: Vec<u8> = log.into_iter().take_while(|byte| *byte != 0).collect();
        io::Error::new(error.kind(), format!("{error}: {}", String::from_utf8_lossy(&said).trim_end()))
    })
}

#[repr(C)]
#[derive(Default)]
struct ProgramAttach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
    relative: u32,
    revision: u64,
}

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` (include/uapi/linux/bpf.h).
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

/// Attaches a program to a cgroup, beside others. It goes with the cgroup.
pub fn attach_to_cgroup(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>, attach_type: u32) -> io::Result<()> {
    /// `BPF_F_ALLOW_MULTI` (include/uapi/linux/bpf.h).
    const ALLOW_MULTI: u32 = 1 << 1;
    let (target, program) = (cgroup.as_raw_fd().cast_unsigned(), program.as_raw_fd().cast_unsigned());
    let mut attributes =
        ProgramAttach { target, program, attach_type, flags: ALLOW_MULTI, ..Default::default() };
    bpf(command::PROG_ATTACH, &mut attributes).map(drop)
}

/// Attaches a program by tcx to what a device of this thread's network namespace receives. It goes with the device.
pub fn attach_to_ingress(ifindex: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let program = program.as_raw_fd().cast_unsigned();
    let mut attributes =
        ProgramAttach { target: ifindex, program, attach_type: TCX_INGRESS, ..Default::default() };
    bpf(command::PROG_ATTACH, &mut attributes).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct ProgramQuery {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
    more: [u64; 4],
}

/// How many programs are attached by tcx to a device of this thread's network namespace.
pub fn attached(ifindex: u32, ingress: bool) -> io::Result<u32> {
    let attach_type = if ingress { TCX_INGRESS } else { TCX_EGRESS };
    let mut attributes = ProgramQuery { target: ifindex, attach_type, ..Default::default() };
    bpf(command::PROG_QUERY, &mut attributes)?;
    Ok(attributes.count)
}

/// Sends a frame out of a device by a socket of `AF_PACKET`.
pub fn send_frame(socket: BorrowedFd<'_>, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: ifindex.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let (to, size) = (std::ptr::from_ref(&to).cast(), size_of::<libc::sockaddr_ll>() as u32);
    // SAFETY: sendto(2) reads `frame` and the address, which is of the size that is given.
    let sent = unsafe { libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, size) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// `BPF_F_TEST_XDP_LIVE_FRAMES` (include/uapi/linux/bpf.h).
const TEST_LIVE_FRAMES: u32 = 1 << 1;

/// What a test run is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run<'a> {
    pub packet: &'a [u8],
    pub context: &'a [u8],
    pub repeat: u32,
    /// Not zero: an XDP program's packets go on as it says, as if received, so many at a time (kernel 5.18).
    pub live: u32,
}

/// Runs a program; returns what it returned last and how long a run took on average, in nanoseconds. `out`, if it is
/// long enough for it, receives the packet as the last run left it.
pub fn test_run(program: BorrowedFd<'_>, run: &Run<'_>, out: &mut [u8]) -> io::Result<(u32, u32)> {
    let mut attributes = TestRun {
        program: program.as_raw_fd().cast_unsigned(),
        data_size_in: length(run.packet.len())?,
        data_in: run.packet.as_ptr().expose_provenance() as u64,
        data_size_out: length(out.len())?,
        data_out: if out.is_empty() { 0 } else { out.as_mut_ptr().expose_provenance() as u64 },
        repeat: run.repeat,
        context_size_in: length(run.context.len())?,
        context_in: if run.context.is_empty() { 0 } else { run.context.as_ptr().expose_provenance() as u64 },
        flags: if run.live == 0 { 0 } else { TEST_LIVE_FRAMES },
        batch_size: run.live,
        ..Default::default()
    };
    bpf(command::PROG_TEST_RUN, &mut attributes)?;
    Ok((attributes.result, attributes.duration))
}

/// Lets the kernel refuse bpf(2) with `errno` to `command` and all that it starts, as a container's seccomp profile does.
pub fn deny_bpf(command: &mut std::process::Command, errno: u16) {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog};
    // The number of the call is the first word of `struct seccomp_data`.
    const NUMBER_AT: u32 = 0;
    let step = |code: u32, jf: u8, k: u32| sock_filter { code: code as u16, jt: 0, jf, k };
    let filter = [
        step(BPF_LD | BPF_W | BPF_ABS, 0, NUMBER_AT),
        step(BPF_JMP | BPF_JEQ | BPF_K, 1, libc::SYS_bpf as u32),
        step(BPF_RET | BPF_K, 0, libc::SECCOMP_RET_ERRNO | u32::from(errno)),
        step(BPF_RET | BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        let pointer = std::ptr::from_ref(&program);
        // SAFETY: seccomp(2) reads `program` and the instructions that it points to, both on this stack frame.
        let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, pointer) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec only a system call is made.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, install) };
}
