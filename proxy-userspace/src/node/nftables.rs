//! Messages of nf_tables. Pure; constants of include/uapi/linux/netfilter/nf_tables.h.

use std::io;

use netlink_packet_core::{DecodeError, NetlinkBuffer};

use super::netlink::{self, ACK, DONE, DUMP, ERROR, REQUEST};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;

const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

/// NFPROTO_INET.
pub const INET: u8 = 1;
/// NFPROTO_IPV4.
pub const IPV4: u8 = 2;
/// NFPROTO_IPV6.
pub const IPV6: u8 = 10;

/// NF_INET_PRE_ROUTING and NF_IP_PRI_NAT_DST.
const HOOK: u32 = 0;
const PRIORITY: i32 = -100;

/// A chain of somebody's rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    pub family: u8,
    pub table: String,
    pub name: String,
}

/// A rule that leads from one chain of a table to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump {
    pub from: Chain,
    pub handle: u64,
    pub to: Chain,
}

/// One message of an answer.
#[derive(Debug)]
pub enum Reply {
    Chain(Chain),
    Jump(Jump),
    /// The end of a dump, or a transaction that was done.
    Done,
    Failed(io::Error),
}

/// Asks for all chains of all families.
pub fn list_chains() -> Vec<u8> {
    dump(GET_CHAIN)
}

/// Asks for all rules of all families.
pub fn list_rules() -> Vec<u8> {
    dump(GET_RULE)
}

fn dump(kind: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    message(&mut bytes, kind, REQUEST | DUMP, 0, 0, &[]);
    bytes
}

/// What is done in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Keeps the kernel's NAT and connection tracking at work for connections that have them, without a rule that would
    /// begin another: a chain for NAT, and an expression that looks at a connection. Either alone does not suffice.
    Keep {
        table: &'a str,
    },
    /// Empties a chain.
    EmptyChain(&'a Chain),
    /// Of an empty chain to which no rule leads.
    DeleteChain(&'a Chain),
    DeleteRule(&'a Jump),
    DeleteTable {
        family: u8,
        table: &'a str,
    },
}

/// One transaction. What fails is answered unasked and first; of the rest only the last message is, since the kernel queues all
/// answers before the sender can read one.
pub fn batch(operations: &[Operation<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    message(&mut bytes, BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, &[]);
    let messages: Vec<_> = operations.iter().flat_map(messages).collect();
    for (at, (kind, flags, family, body)) in messages.iter().enumerate() {
        let ack = if at + 1 == messages.len() { ACK } else { 0 };
        message(&mut bytes, *kind, REQUEST | ack | flags, *family, 0, body);
    }
    message(&mut bytes, BATCH_END, REQUEST, 0, SUBSYSTEM, &[]);
    bytes
}

fn messages(operation: &Operation<'_>) -> Vec<(u16, u16, u8, Vec<u8>)> {
    match operation {
        Operation::Keep { table } => {
            let hook = [number(1, HOOK), number(2, PRIORITY as u32)].concat();
            let nat = [text(1, table), text(3, "nat"), attribute(4 | NESTED, &hook), text(7, "nat")].concat();
            let keep = [text(1, table), text(3, "keep")].concat();
            // Into register 1, the state.
            let connection = [number(1, 1), number(2, 0)].concat();
            let expression = [text(1, "ct"), attribute(2 | NESTED, &connection)].concat();
            let list = attribute(1 | NESTED, &expression);
            let rule = [text(1, table), text(2, "keep"), attribute(4 | NESTED, &list)].concat();
            vec![
                (NEW_TABLE, CREATE, INET, text(1, table)),
                (NEW_CHAIN, CREATE, INET, nat),
                (NEW_CHAIN, CREATE, INET, keep),
                (NEW_RULE, CREATE | APPEND, INET, rule),
            ]
        }
        Operation::EmptyChain(Chain { family, table, name }) => {
            vec![(DELETE_RULE, 0, *family, [text(1, table), text(2, name)].concat())]
        }
        Operation::DeleteChain(Chain { family, table, name }) => {
            vec![(DELETE_CHAIN, 0, *family, [text(1, table), text(3, name)].concat())]
        }
        Operation::DeleteRule(Jump { from: Chain { family, table, name }, handle, .. }) => {
            let handle = attribute(3, &handle.to_be_bytes());
            vec![(DELETE_RULE, 0, *family, [text(1, table), text(2, name), handle].concat())]
        }
        Operation::DeleteTable { family, table } => vec![(DELETE_TABLE, 0, *family, text(1, table))],
    }
}

fn message(into: &mut Vec<u8>, kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) {
    let [high, low] = resource.to_be_bytes();
    into.extend(netlink::message(kind, flags, &[&[family, 0, high, low], body].concat()));
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

/// Takes a datagram of the kernel's apart.
///
/// # Errors
/// It is not what the kernel sends.
pub fn replies(datagram: &[u8]) -> Result<Vec<Reply>, DecodeError> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest)?;
        let body = message.payload();
        match message.message_type() {
            // Both carry an error number, negative, or 0.
            ERROR | DONE => {
                let number = body.first_chunk().map_or(0, |number| i32::from_ne_bytes(*number));
                found.push(match number {
                    0 => Reply::Done,
                    number => Reply::Failed(io::Error::from_raw_os_error(-number)),
                });
            }
            NEW_CHAIN => found.push(Reply::Chain(chain(body)?)),
            NEW_RULE => found.extend(jump(body)?.map(Reply::Jump)),
            _ => {}
        }
        let length = (message.length() as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(found)
}

fn chain(body: &[u8]) -> Result<Chain, DecodeError> {
    let (family, attributes) = family_of(body)?;
    let mut chain = Chain { family, table: String::new(), name: String::new() };
    for (kind, value) in attributes {
        match kind {
            1 => chain.table = told(value),
            3 => chain.name = told(value),
            _ => {}
        }
    }
    Ok(chain)
}

/// `None`: the rule leads to no chain.
fn jump(body: &[u8]) -> Result<Option<Jump>, DecodeError> {
    let (family, found) = family_of(body)?;
    let mut from = Chain { family, table: String::new(), name: String::new() };
    let (mut handle, mut to) = (0, None);
    for (kind, value) in found {
        match kind {
            1 => from.table = told(value),
            2 => from.name = told(value),
            3 => handle = value.first_chunk().map_or(0, |handle| u64::from_be_bytes(*handle)),
            4 => to = target(value)?,
            _ => {}
        }
    }
    Ok(to.map(|name| Jump { to: Chain { name, ..from.clone() }, from, handle }))
}

/// Where a rule's expressions lead: an `immediate` has a verdict with a chain in its data.
fn target(expressions: &[u8]) -> Result<Option<String>, DecodeError> {
    for (_, expression) in attributes(expressions)? {
        if attributes(expression)?.iter().any(|(kind, name)| *kind == 1 && told(name) == "immediate") {
            // Its data, the value there, the verdict, the chain: each the second attribute of what it is in.
            let mut inside = Some(expression);
            for _ in 0..4 {
                inside = inside.map(second).transpose()?.flatten();
            }
            if let Some(chain) = inside {
                return Ok(Some(told(chain)));
            }
        }
    }
    Ok(None)
}

fn second(nested: &[u8]) -> Result<Option<&[u8]>, DecodeError> {
    Ok(attributes(nested)?.into_iter().find(|(kind, _)| *kind == 2).map(|(_, value)| value))
}

fn told(text: &[u8]) -> String {
    String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()
}

/// In order, each with its kind.
type Attributes<'a> = Vec<(u16, &'a [u8])>;

/// An object's family, and its attributes.
fn family_of(body: &[u8]) -> Result<(u8, Attributes<'_>), DecodeError> {
    let cut = || DecodeError::from("an object's message is cut");
    Ok((*body.first().ok_or_else(cut)?, attributes(body.get(4..).ok_or_else(cut)?)?))
}

fn attributes(mut rest: &[u8]) -> Result<Attributes<'_>, DecodeError> {
    let mut found = Vec::new();
    while let Some(&[l0, l1, k0, k1]) = rest.first_chunk() {
        let (length, kind) = (usize::from(u16::from_ne_bytes([l0, l1])), u16::from_ne_bytes([k0, k1]));
        let value = rest.get(4..length).ok_or_else(|| DecodeError::from("an attribute is cut"))?;
        found.push((kind & !NESTED, value));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_read_as_the_kernel_writes_it() {
        let body = [vec![IPV6, 0, 0, 0], text(1, "nat"), number(2, 7), text(3, "KUBE-SERVICES")].concat();
        let mut datagram = Vec::new();
        message(&mut datagram, NEW_CHAIN, 2, IPV6, 0, &body[4..]);
        message(&mut datagram, DONE, 2, 0, 0, &[]);
        let replies = replies(&datagram).unwrap();
        let [Reply::Chain(chain), Reply::Done] = &replies[..] else { panic!("{replies:?}") };
        let want = Chain { family: IPV6, table: "nat".into(), name: "KUBE-SERVICES".into() };
        assert_eq!(*chain, want);
        assert!(super::chain(&body[..9]).is_err() && super::chain(&[]).is_err(), "cut off");
    }

    /// As `nft --debug=netlink` shows one with a condition: `ct state new jump KUBE-SERVICES`.
    #[test]
    fn a_rule_that_leads_to_a_chain_is_read_as_the_kernel_writes_it() {
        let nested = |kind, value: &[u8]| attribute(kind | NESTED, value);
        let rule = |target: &str| {
            let lookup = nested(1, &[text(1, "ct"), nested(2, &number(2, 0))].concat());
            let verdict = nested(2, &[number(1, -3_i32 as u32), text(2, target)].concat());
            let data = nested(2, &[number(1, 0), nested(2, &verdict)].concat());
            let jump = nested(1, &[text(1, "immediate"), data].concat());
            let handle = attribute(3, &7_u64.to_be_bytes());
            [text(1, "nat"), text(2, "OUTPUT"), handle, nested(4, &[lookup, jump].concat())].concat()
        };
        let plain = [text(1, "nat"), text(2, "OUTPUT"), nested(4, &nested(1, &text(1, "counter")))].concat();
        let mut datagram = Vec::new();
        for body in [rule("KUBE-SERVICES"), plain] {
            message(&mut datagram, NEW_RULE, 2, IPV4, 0, &body);
        }
        let replies = replies(&datagram).unwrap();
        let [Reply::Jump(jump)] = &replies[..] else { panic!("{replies:?}") };
        let chain = |name: &str| Chain { family: IPV4, table: "nat".into(), name: name.into() };
        assert_eq!(*jump, Jump { from: chain("OUTPUT"), handle: 7, to: chain("KUBE-SERVICES") });
        let whole = [vec![IPV4, 0, 0, 0], rule("X")].concat();
        assert!(super::jump(&whole[..whole.len() - 9]).is_err(), "cut off");
    }

    #[test]
    fn a_transaction_is_framed_and_answered_once() {
        let chain = Chain { family: IPV4, table: "nat".into(), name: "KUBE-SVC-X".into() };
        let operations = [
            Operation::Keep { table: "t" },
            Operation::DeleteTable { family: IPV4, table: "kube-proxy" },
            Operation::EmptyChain(&chain),
            Operation::DeleteChain(&chain),
            Operation::DeleteTable { family: INET, table: "t" },
        ];
        let bytes = batch(&operations);
        let (mut kinds, mut answered, mut rest) = (Vec::new(), Vec::new(), &bytes[..]);
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).unwrap();
            kinds.push(message.message_type());
            answered.push(message.flags() & ACK != 0);
            rest = &rest[(message.length() as usize).next_multiple_of(4)..];
        }
        assert_eq!(answered.iter().rposition(|answered| *answered), Some(kinds.len() - 2));
        assert_eq!(answered.iter().filter(|answered| **answered).count(), 1);
        assert_eq!((kinds[0], kinds[kinds.len() - 1]), (BATCH_BEGIN, BATCH_END));
        assert_eq!(kinds[1..5], [NEW_TABLE, NEW_CHAIN, NEW_CHAIN, NEW_RULE]);
        assert_eq!(kinds[5..9], [DELETE_TABLE, DELETE_RULE, DELETE_CHAIN, DELETE_TABLE]);
    }
}
