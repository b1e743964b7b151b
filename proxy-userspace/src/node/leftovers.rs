//! What kube-proxy has left outside nf_tables: rules of iptables' older kind, and IPVS. It is found and named, and never
//! changed: connections may depend on it, and nothing keeps them when it goes.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;

use super::kube_proxy::is_iptables_chain;
use crate::datapath::socket_option;
use crate::status::Trouble;

/// The device on which kube-proxy's ipvs mode has all Service addresses.
pub const IPVS_DEVICE: &str = "kube-ipvs0";

/// Something of kube-proxy's that is not ours to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// Tables of iptables-legacy or ip6tables-legacy that have chains of its.
    Legacy { command: &'static str, tables: Vec<String> },
    /// Its ipvs mode was here.
    Ipvs,
}

impl Leftover {
    /// What it does, and how it goes away.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        let cleanup =
            "once no connection depends on them, run upstream's `kube-proxy --cleanup` on this node";
        match self {
            Self::Legacy { command, tables } => Trouble::new(
                format_args!("kube-proxy's rules in {command} ({})", tables.join(", ")),
                "Sluice takes rules out of nf_tables only: these go on translating what its programs leave alone",
                format_args!("{cleanup}, with {command} as its iptables; or restart the node"),
            ),
            Self::Ipvs => Trouble::new(
                format_args!("kube-proxy's IPVS services and device {IPVS_DEVICE}"),
                "Sluice does not remove them: the node takes every Service address for its own",
                format_args!("{cleanup}, or `ipvsadm --clear` and `ip link delete {IPVS_DEVICE}`"),
            ),
        }
    }
}

/// Looks in the network namespace of this thread.
///
/// # Errors
/// The kernel does not answer.
pub fn look() -> io::Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for family in &FAMILIES {
        let mut tables = Vec::new();
        for table in names(family)? {
            if has_chains(&family.entries(&table)?) {
                tables.push(table);
            }
        }
        tables.sort_unstable();
        if !tables.is_empty() {
            found.push(Leftover::Legacy { command: family.command, tables });
        }
    }
    if nix::net::if_::if_nametoindex(IPVS_DEVICE).is_ok() {
        found.push(Leftover::Ipvs);
    }
    Ok(found)
}

/// One family's tables (include/uapi/linux/netfilter_ipv4/ip_tables.h, and the same for IPv6).
struct Tables {
    command: &'static str,
    /// Lists tables that are in use; to ask for another would bring it into use.
    names: &'static str,
    v6: bool,
}

const FAMILIES: [Tables; 2] = [
    Tables { command: "iptables-legacy", names: "/proc/thread-self/net/ip_tables_names", v6: false },
    Tables { command: "ip6tables-legacy", names: "/proc/thread-self/net/ip6_tables_names", v6: true },
];

const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// A table's name, zero padded, is where each request begins.
const NAME: usize = 32;
/// `struct ipt_getinfo`, and where it has the size of all entries.
const INFO: usize = 84;
const INFO_SIZE: usize = 80;
/// `struct ipt_get_entries` without the entries, and where it has their size.
const ENTRIES: usize = 40;
const ENTRIES_SIZE: usize = 32;

/// A table may have changed between its size and its entries this often.
const ATTEMPTS: usize = 8;

fn names(family: &Tables) -> io::Result<Vec<String>> {
    match std::fs::read_to_string(family.names) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        // A kernel without such tables.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

impl Tables {
    fn entries(&self, table: &str) -> io::Result<Vec<u8>> {
        let (socket, level) = if self.v6 {
            (UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?, libc::IPPROTO_IPV6)
        } else {
            (UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?, libc::IPPROTO_IP)
        };
        for _ in 0..ATTEMPTS {
            let mut info = [0; INFO];
            named(&mut info, table)?;
            socket_option(socket.as_fd(), level, GET_INFO, &mut info)?;
            let size: [u8; 4] = info[INFO_SIZE..].try_into().map_err(io::Error::other)?;
            let mut entries = vec![0; ENTRIES + u32::from_ne_bytes(size) as usize];
            named(&mut entries, table)?;
            entries[ENTRIES_SIZE..ENTRIES_SIZE + size.len()].copy_from_slice(&size);
            match socket_option(socket.as_fd(), level, GET_ENTRIES, &mut entries) {
                Ok(_) => return Ok(entries.split_off(ENTRIES)),
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }
}

fn named(request: &mut [u8], table: &str) -> io::Result<()> {
    let place = request.get_mut(..table.len()).filter(|place| place.len() < NAME);
    place.ok_or(io::ErrorKind::InvalidData)?.copy_from_slice(table.as_bytes());
    Ok(())
}

/// A chain's name is text in the entry that begins it, ended by a zero; whatever else is in entries is no such text.
fn has_chains(entries: &[u8]) -> bool {
    entries.split(|&byte| byte == 0).any(|text| str::from_utf8(text).is_ok_and(is_iptables_chain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_found_by_their_names() {
        let cases: [(&str, &[u8], bool); 5] = [
            ("no chains", b"\x00\x02ERROR\x00\x00", false),
            ("kube-proxy's", b"\x00\x02ERROR\x00\x00KUBE-SERVICES\x00\x00", true),
            ("one of a Service", b"ERROR\x00KUBE-SVC-ABCDEF\x00\x07", true),
            ("the kubelet's", b"ERROR\x00KUBE-FIREWALL\x00\x07", false),
            ("a comment that names one", b"\x00see KUBE-SERVICES\x00", false),
        ];
        for (name, entries, want) in cases {
            assert_eq!(has_chains(entries), want, "{name}");
        }
    }
}
