//! A datagram in parts, and parts put together again, as RFC 791 and RFC 8200 have it.

use anyhow::{Context, Result, ensure};

use super::frame::ETHERNET;
use super::shape::finish_header;

/// IPv6's fragment header, and its number.
const FRAGMENT: (usize, u8) = (8, 44);

/// Each order of three.
pub const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

const fn is_v6(frame: &[u8]) -> bool {
    frame[ETHERNET] >> 4 == 6
}

const fn network(frame: &[u8]) -> usize {
    ETHERNET + if is_v6(frame) { 40 } else { 20 }
}

/// Cuts a frame without options or extension headers behind each of these bytes of its transport packet, which must be
/// multiples of eight.
#[must_use]
pub fn cut(frame: &[u8], id: u16, at: &[usize]) -> Vec<Vec<u8>> {
    let transport = &frame[network(frame)..];
    let starts = [&[0], at].concat();
    let ends = [at, &[transport.len()]].concat();
    starts
        .into_iter()
        .zip(ends)
        .map(|(start, end)| part(frame, id, start, &transport[start..end], end < transport.len()))
        .collect()
}

fn part(frame: &[u8], id: u16, start: usize, bytes: &[u8], more: bool) -> Vec<u8> {
    let mut part = frame[..network(frame)].to_vec();
    let start = u16::try_from(start).unwrap_or(u16::MAX);
    if is_v6(frame) {
        let [a, b] = (start | u16::from(more)).to_be_bytes();
        let [c, d] = id.to_be_bytes();
        let next = std::mem::replace(&mut part[ETHERNET + 6], FRAGMENT.1);
        part.extend([next, 0, a, b, 0x5a, 0xa5, c, d]);
        let length = u16::try_from(FRAGMENT.0 + bytes.len()).unwrap_or(u16::MAX);
        part[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
    } else {
        part[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&id.to_be_bytes());
        let word = (start / 8) | (u16::from(more) << 13);
        part[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&word.to_be_bytes());
        let length = u16::try_from(20 + bytes.len()).unwrap_or(u16::MAX);
        part[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
        finish_header(&mut part);
    }
    part.extend(bytes);
    part
}

/// Puts the parts, in whatever order, together.
///
/// # Errors
/// They are not parts of one datagram between the same ends, or not all of it.
pub fn join(parts: &[Vec<u8>]) -> Result<Vec<u8>> {
    let first = parts.first().context("no parts")?;
    let (v6, behind) = (is_v6(first), network(first));
    let addresses = if v6 { 8..40 } else { 12..20 };
    let ends = |part: &[u8]| part[ETHERNET..][addresses.clone()].to_vec();
    let word = |part: &[u8]| {
        let at = if v6 { behind + 2 } else { ETHERNET + 6 };
        u16::from_be_bytes([part[at], part[at + 1]])
    };
    let start = |part: &[u8]| usize::from(if v6 { word(part) & 0xfff8 } else { (word(part) & 0x1fff) * 8 });
    let bytes = |part: &[u8]| part[behind + if v6 { FRAGMENT.0 } else { 0 }..].to_vec();
    let mut parts = parts.to_vec();
    parts.sort_by_key(|part| start(part));
    let mut transport = Vec::new();
    for part in &parts {
        ensure!(ends(part) == ends(first), "a part goes elsewhere");
        ensure!(start(part) == transport.len(), "a part is missing");
        transport.extend(bytes(part));
    }
    let mut whole = first[..behind].to_vec();
    let length = u16::try_from(transport.len() + if v6 { 0 } else { 20 })?;
    let at = ETHERNET + if v6 { 4 } else { 2 };
    whole[at..at + 2].copy_from_slice(&length.to_be_bytes());
    if v6 {
        whole[ETHERNET + 6] = first[behind];
    } else {
        whole[ETHERNET + 6..ETHERNET + 8].fill(0);
        // Each part's own header must have been right.
        for part in &parts {
            let mut again = part.clone();
            finish_header(&mut again);
            ensure!(again == *part, "the header checksum of a part is wrong");
        }
        finish_header(&mut whole);
    }
    whole.extend(transport);
    Ok(whole)
}
