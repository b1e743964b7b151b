//! Sluice's own flags.

use super::error::ConfigError;
use super::parse::Given;
use super::{EdgePattern, Edges, Limits, Shortcuts, SluiceArgs, Sockets};

pub struct Own {
    pub edges: Edges,
    pub sockets: Sockets,
    pub shortcuts: Shortcuts,
    pub flows: Option<u32>,
    pub limits: Limits,
}

pub fn resolve(args: &SluiceArgs) -> Result<Own, ConfigError> {
    let given = |name: &str, text| Given { name: name.to_owned(), text };
    let sockets = given("--sockets", Some(args.sockets.as_str()));
    let flows = given("--flows", args.flows.as_deref());
    let flows = flows.number(1_024, 16_777_216, "a number of entries from 1024 to 16777216")?;
    Ok(Own {
        edges: edges(&given("--edges", Some(args.edges.as_str())))?,
        sockets: sockets
            .word(
                &[("off", Sockets::Off), ("host", Sockets::Host), ("all", Sockets::All)],
                "off, host or all",
            )?
            .unwrap_or(Sockets::Host),
        shortcuts: given("--shortcuts", args.shortcuts.as_deref())
            .word(
                &[
                    ("off", Shortcuts::Off),
                    ("established", Shortcuts::Established),
                    ("always", Shortcuts::Always),
                ],
                "off, established or always",
            )?
            .unwrap_or(Shortcuts::Established),
        flows: flows.and_then(|n| u32::try_from(n).ok()),
        limits: limits(&args.limits)?,
    })
}

/// The last one of a table counts.
fn limits(given: &[String]) -> Result<Limits, ConfigError> {
    let allowed = "TABLE=N, separated by commas: services, frontends, endpoints, slots, addresses, ranges or affinity, and a number from 1 to 16777216";
    let text = given.join(",");
    let given = Given { name: "--limits".to_owned(), text: Some(text.as_str()) };
    let mut limits = Limits::default();
    for item in given.items() {
        let (table, number) = item.split_once('=').ok_or_else(|| given.refuse(allowed))?;
        let place = match table {
            "services" => &mut limits.services,
            "frontends" => &mut limits.frontends,
            "endpoints" => &mut limits.endpoints,
            "slots" => &mut limits.slots,
            "addresses" => &mut limits.addresses,
            "ranges" => &mut limits.ranges,
            "affinity" => &mut limits.affinity,
            _ => return Err(given.refuse(allowed)),
        };
        let number = number.parse().ok().filter(|number| (1..=16_777_216).contains(number));
        *place = Some(number.ok_or_else(|| given.refuse(allowed))?);
    }
    Ok(limits)
}

/// Linux limits device names to 15 bytes without `/` and white space.
fn edges(given: &Given<'_>) -> Result<Edges, ConfigError> {
    let allowed =
        "auto, or device names of at most 15 bytes separated by commas, each either exact or ending in *";
    let items: Vec<_> = given.items().collect();
    if items == ["auto"] {
        return Ok(Edges::Auto);
    }
    let pattern = |item: &str| {
        let (name, prefix) = item.strip_suffix('*').map_or((item, false), |name| (name, true));
        let clean = !name.contains(|c: char| c == '/' || c == '*' || c.is_whitespace()) && name != "auto";
        if !clean || name.len() > 15 || (name.is_empty() && !prefix) {
            return Err(given.refuse(allowed));
        }
        Ok(if prefix { EdgePattern::Prefix(name.to_owned()) } else { EdgePattern::Name(name.to_owned()) })
    };
    if items.is_empty() {
        return Err(given.refuse(allowed));
    }
    items.into_iter().map(pattern).collect::<Result<_, _>>().map(Edges::Names)
}
