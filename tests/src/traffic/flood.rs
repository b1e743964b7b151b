//! Packets of nobody: they open flows and are never heard of again.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage};
use nix::sys::socket::{sendto, socket};

use crate::lab::namespace::Namespace;
use crate::packet::frame::{ETHERNET, SYN, packet};
use crate::sys;
use crate::wire::Transport;

/// Sends `number` SYNs or datagrams to `to`, each from another port of one of 100 addresses beside `own`.
///
/// # Errors
/// The kernel refuses to send.
pub fn flood(from: &Namespace, own: IpAddr, to: SocketAddr, transport: Transport, number: u32) -> Result<()> {
    let protocol = if transport == Transport::Tcp { 6 } else { 17 };
    let frames = (0..number).map(|n| {
        let source = (beside(own, 100 + (n % 100) as u8), 1024 + (n / 100) as u16);
        packet(protocol, SYN, source, (to.ip(), to.port()), b"flood")
    });
    send(from, to.ip(), frames)
}

/// Sends frames to `to` from a namespace, as they are but for their Ethernet headers.
///
/// # Errors
/// The kernel refuses to send.
pub fn send(from: &Namespace, to: IpAddr, frames: impl IntoIterator<Item = Vec<u8>> + Send) -> Result<()> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // A port would be taken for a protocol number.
    let target = SockaddrStorage::from(SocketAddr::new(to, 0));
    from.within(|| {
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        for (n, frame) in frames.into_iter().enumerate() {
            sendto(socket.as_raw_fd(), &frame[ETHERNET..], &target, MsgFlags::empty())
                .with_context(|| format!("packet {n} to {to}"))?;
        }
        Ok(())
    })
}

/// Sends frames out of a namespace's device to a neighbour's hardware address, whatever routes say.
///
/// # Errors
/// The kernel refuses to send.
pub fn send_by(
    from: &Namespace,
    device: &str,
    neighbour: &[u8; 6],
    frames: impl IntoIterator<Item = Vec<u8>> + Send,
) -> Result<()> {
    from.within(|| {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        let ifindex = if_nametoindex(device).with_context(|| format!("no device {device}"))?;
        for mut frame in frames {
            frame[..6].copy_from_slice(neighbour);
            sys::send_frame(socket.as_fd(), ifindex, &frame).with_context(|| format!("out of {device}"))?;
        }
        Ok(())
    })
}

/// The address with another last byte.
fn beside(address: IpAddr, last: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            [a, b, c, last].into()
        }
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[15] = last;
            octets.into()
        }
    }
}
