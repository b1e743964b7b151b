//! What kube-proxy has left on the node: its rules in nf_tables, its own or by way of iptables; and what is elsewhere.

use std::io;

use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::leftovers::{self, Leftover};
use super::netlink;
use super::nftables::{self, Chain, INET, IPV4, IPV6, Jump, Operation, Reply};

/// kube-proxy's table in nftables mode, one in each family.
const TABLE: &str = "kube-proxy";
/// Ours.
const KEEPER: &str = "sluice-keeps-nat";
/// The built-in tables of iptables.
const IPTABLES: [&str; 3] = ["nat", "filter", "mangle"];
/// Chains of its iptables mode. The kubelet has some that begin likewise, and keeps them.
const CHAINS: [&str; 9] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-LOAD-BALANCER",
];
/// Chains that iptables has by itself.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-"];

const ROOM: usize = 64 << 10;
/// Operations in one transaction: the longest of them, a thousand times, are well below what a socket may send at once, 208 KiB.
const AT_ONCE: usize = 1_000;

/// The rules' chains, of the network namespace of the thread that looked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    chains: Vec<Chain>,
    keeper: bool,
    left: Vec<Leftover>,
}

impl Rules {
    /// Looks. A kernel without nf_tables has none there.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn look() -> io::Result<Self> {
        Ok(Self { left: leftovers::look()?, ..Self::among(chains()?) })
    }

    fn among(chains: Vec<Chain>) -> Self {
        let keeper = chains.iter().any(|chain| chain.family == INET && chain.table == KEEPER);
        Self { chains: chains.into_iter().filter(is_kube_proxys).collect(), keeper, left: Vec::new() }
    }

    /// What is found and never changed.
    #[must_use]
    pub fn left(&self) -> &[Leftover] {
        &self.left
    }

    /// Whether there may be connections of which the kernel's NAT knows and we do not (L-07).
    #[must_use]
    pub const fn may_have_connections(&self) -> bool {
        self.keeper || !self.chains.is_empty() || !self.left.is_empty()
    }

    /// Takes all rules out of nf_tables, so that nothing is translated by what nobody keeps up any more. Connections that
    /// they have begun go on. Whether there were any: chains of iptables stay where they are, so those that are found beside
    /// our own table count as emptied before.
    ///
    /// # Errors
    /// The kernel refuses. Of many chains some may be empty then; the next time goes on with the rest.
    pub fn silence(&self) -> io::Result<bool> {
        let operations = self.silencing();
        transact(&operations)?;
        Ok(operations.iter().any(|operation| !matches!(operation, Operation::EmptyChain(_))))
    }

    fn silencing(&self) -> Vec<Operation<'_>> {
        let mut operations = Vec::new();
        if self.chains.is_empty() {
            return operations;
        }
        if !self.keeper {
            operations.push(Operation::Keep { table: KEEPER });
        }
        self.take_out(&mut operations);
        operations
    }

    /// Removes our own table, and with `all` what kube-proxy has in nf_tables: of iptables' chains also the rules that lead
    /// there, as its own `--cleanup` does. Whether there was anything.
    ///
    /// # Errors
    /// The kernel refuses. Of many chains some may be empty or gone then; the next time goes on with the rest.
    pub fn remove(&self, all: bool) -> io::Result<bool> {
        let jumps = if all && self.iptables().next().is_some() { jumps()? } else { Vec::new() };
        let operations = self.removal(all, &jumps);
        transact(&operations)?;
        Ok(!operations.is_empty())
    }

    /// A chain to which somebody's own chain leads is emptied, and stays.
    fn removal<'a>(&'a self, all: bool, jumps: &'a [Jump]) -> Vec<Operation<'a>> {
        let mut operations = Vec::new();
        if all {
            let (lead, others): (Vec<_>, Vec<_>) =
                jumps.iter().partition(|jump| BUILT_IN.contains(&jump.from.name.as_str()));
            operations.extend(lead.into_iter().map(Operation::DeleteRule));
            self.take_out(&mut operations);
            let is_needed = |chain: &Chain| others.iter().any(|jump| jump.to == *chain);
            operations.extend(self.iptables().filter(|chain| !is_needed(chain)).map(Operation::DeleteChain));
        }
        if self.keeper {
            operations.push(Operation::DeleteTable { family: INET, table: KEEPER });
        }
        operations
    }

    fn iptables(&self) -> impl Iterator<Item = &Chain> {
        self.chains.iter().filter(|chain| chain.table != TABLE)
    }

    /// Its own tables whole, for kube-proxy does not count on them; of iptables' tables its chains' rules: others jump there.
    fn take_out<'a>(&'a self, operations: &mut Vec<Operation<'a>>) {
        for family in [IPV4, IPV6] {
            if self.chains.iter().any(|chain| chain.family == family && chain.table == TABLE) {
                operations.push(Operation::DeleteTable { family, table: TABLE });
            }
        }
        operations.extend(self.iptables().map(Operation::EmptyChain));
    }
}

fn is_kube_proxys(chain: &Chain) -> bool {
    let Chain { family, table, name } = chain;
    if ![IPV4, IPV6].contains(family) {
        return false;
    }
    table == TABLE || (IPTABLES.contains(&table.as_str()) && is_iptables_chain(name))
}

/// Whether a chain of this name in a table of iptables is kube-proxy's.
pub fn is_iptables_chain(name: &str) -> bool {
    CHAINS.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// All chains of nf_tables, whosever.
fn chains() -> io::Result<Vec<Chain>> {
    let chain = |reply| if let Reply::Chain(chain) = reply { Some(chain) } else { None };
    Ok(dump(&nftables::list_chains())?.into_iter().filter_map(chain).collect())
}

/// Rules that lead from a chain that is not kube-proxy's to one that is.
fn jumps() -> io::Result<Vec<Jump>> {
    let jump = |reply| if let Reply::Jump(jump) = reply { Some(jump) } else { None };
    let mut jumps: Vec<_> = dump(&nftables::list_rules())?.into_iter().filter_map(jump).collect();
    jumps.retain(|jump| !is_kube_proxys(&jump.from) && is_kube_proxys(&jump.to));
    Ok(jumps)
}

fn dump(request: &[u8]) -> io::Result<Vec<Reply>> {
    let Some(socket) = open()? else { return Ok(Vec::new()) };
    socket.send(request, 0)?;
    match answer(&socket) {
        Err(error) if absent(&error) => Ok(Vec::new()),
        answered => answered,
    }
}

/// `None`: the kernel has no netfilter.
fn open() -> io::Result<Option<Socket>> {
    match netlink::open(NETLINK_NETFILTER) {
        Err(error) if absent(&error) => Ok(None),
        opened => opened.map(Some),
    }
}

/// What kernels say that lack netfilter's netlink, or nf_tables.
fn absent(error: &io::Error) -> bool {
    let missing = [libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP, libc::EINVAL];
    error.raw_os_error().is_some_and(|number| missing.contains(&number))
}

fn transact(operations: &[Operation<'_>]) -> io::Result<()> {
    for operations in operations.chunks(AT_ONCE) {
        let Some(socket) = open()? else { return Ok(()) };
        socket.send(&nftables::batch(operations), 0)?;
        answer(&socket)?;
    }
    Ok(())
}

/// Reads a dump or a transaction's answers to the end; the first failure counts.
fn answer(socket: &Socket) -> io::Result<Vec<Reply>> {
    let mut room = vec![0; ROOM];
    let mut replies = Vec::new();
    loop {
        let length = socket.recv(&mut &mut room[..], 0)?;
        for reply in nftables::replies(&room[..length]).map_err(io::Error::other)? {
            match reply {
                Reply::Done => return Ok(replies),
                Reply::Failed(error) => return Err(error),
                object => replies.push(object),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(family: u8, table: &str, name: &str) -> Chain {
        Chain { family, table: table.into(), name: name.into() }
    }

    #[test]
    fn l07_kube_proxys_chains_and_nobody_elses() {
        let cases = [
            (chain(IPV4, "kube-proxy", "services"), true),
            (chain(IPV6, "kube-proxy", "nat-prerouting"), true),
            (chain(INET, "kube-proxy", "x"), false),
            (chain(IPV4, "nat", "KUBE-SERVICES"), true),
            (chain(IPV6, "filter", "KUBE-FORWARD"), true),
            (chain(IPV4, "nat", "KUBE-SEP-AAAA"), true),
            (chain(IPV4, "nat", "KUBE-FW-AAAA"), true),
            (chain(IPV4, "nat", "PREROUTING"), false),
            (chain(IPV4, "filter", "KUBE-FIREWALL"), false),
            (chain(IPV4, "mangle", "KUBE-IPTABLES-HINT"), false),
            (chain(IPV4, "nat", "KUBE-KUBELET-CANARY"), false),
            (chain(IPV4, "mine", "KUBE-SERVICES"), false),
        ];
        for (chain, want) in cases {
            assert_eq!(is_kube_proxys(&chain), want, "{chain:?}");
        }
    }

    #[test]
    fn l07_what_is_silenced_and_what_is_removed() {
        let own = chain(IPV4, "kube-proxy", "services");
        let six = chain(IPV6, "kube-proxy", "services");
        let old = chain(IPV4, "nat", "KUBE-SVC-A");
        let foreign = chain(IPV4, "nat", "POSTROUTING");
        let keeper = chain(INET, KEEPER, "nat");
        type Told = &'static [&'static str];
        let lead =
            |from, handle, to| Jump { from: chain(IPV4, "nat", from), handle, to: chain(IPV4, "nat", to) };
        let jumps = [lead("PREROUTING", 5, "KUBE-SVC-A"), lead("CNI-HOSTPORT", 6, "KUBE-MARK-MASQ")];
        let cases: [(&str, Vec<Chain>, Told, Told, Told); 5] = [
            ("nothing of its", vec![foreign.clone()], &[], &[], &[]),
            (
                "nftables mode, both families",
                vec![own.clone(), six, foreign.clone()],
                &["keep", "delete 2", "delete 10"],
                &[],
                &["delete 2", "delete 10"],
            ),
            (
                "iptables mode",
                vec![old, foreign],
                &["keep", "empty nat KUBE-SVC-A"],
                &[],
                &["cut 5", "empty nat KUBE-SVC-A", "delete nat KUBE-SVC-A"],
            ),
            (
                "iptables mode, and somebody leads there",
                vec![chain(IPV4, "nat", "KUBE-MARK-MASQ")],
                &["keep", "empty nat KUBE-MARK-MASQ"],
                &[],
                &["cut 5", "empty nat KUBE-MARK-MASQ"],
            ),
            ("silenced before", vec![own, keeper], &["delete 2"], &["delete 1"], &["delete 2", "delete 1"]),
        ];
        let tell = |operations: Vec<Operation<'_>>| -> Vec<String> {
            let tell = |operation: &Operation<'_>| match operation {
                Operation::Keep { .. } => "keep".to_owned(),
                Operation::EmptyChain(chain) => format!("empty {} {}", chain.table, chain.name),
                Operation::DeleteChain(chain) => format!("delete {} {}", chain.table, chain.name),
                Operation::DeleteRule(jump) => format!("cut {}", jump.handle),
                Operation::DeleteTable { family, .. } => format!("delete {family}"),
            };
            operations.iter().map(tell).collect()
        };
        for (name, chains, silencing, cleaning, removal) in cases {
            let rules = Rules::among(chains);
            assert_eq!(tell(rules.silencing()), silencing, "{name}");
            // Asked for only where there are chains of iptables.
            let jumps = if rules.iptables().next().is_some() { &jumps[..] } else { &[] };
            assert_eq!(tell(rules.removal(false, &[])), cleaning, "{name}");
            assert_eq!(tell(rules.removal(true, jumps)), removal, "{name}");
        }
    }
}
