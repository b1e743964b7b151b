//! Answers for people.

use std::fmt::Display;

use crate::status::{Explanation, FlowView, FrontendView, ServiceView, Status, TraceView};

/// Rows in columns, two spaces apart, without trailing spaces.
fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row<const N: usize>(cells: [&dyn Display; N]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

fn list<T: Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// `sluice status`.
pub fn status(status: &Status) -> String {
    let source = match (status.source.connected, status.source.age_seconds) {
        (true, _) => "connected".to_owned(),
        (false, Some(age)) => format!("last heard of {age} s ago"),
        (false, None) => "never heard of".to_owned(),
    };
    let because = |why: &str| if why.is_empty() { String::new() } else { format!(" ({why})") };
    let mode = |mode: &crate::status::Mode| format!("{}{}", mode.mode, because(&mode.why));
    let mut text = table(&[
        row([&"version", &format!("{}, layout {}", status.version, status.layout)]),
        row([&"node", &format!("{}: {}", status.node.name, list(&status.node.addresses))]),
        row([&"source", &format!("{}, {source}", status.source.kind)]),
        row([&"synced", if status.synced { &"yes" } else { &"no" }]),
        row([&"known", &format!("{} services, {} endpoints", status.services, status.endpoints)]),
        row([&"sockets", &mode(&status.sockets)]),
        row([&"checksums", &mode(&status.checksums)]),
        row([&"shortcuts", &mode(&status.shortcuts)]),
        row([&"flows", &format!("{} of {} entries", status.flows.used, status.flows.max)]),
    ]);
    if let Some(traced) = status.trace {
        text.push_str(&format!("trace      {}, ends in {} s\n", traced.address, traced.seconds));
    }
    text.push_str("\nedges\n");
    let mut rows = vec![row([&"  NAME", &"INDEX", &"KIND", &"HOOKS", &"MODE"])];
    rows.extend(status.edges.iter().map(|edge| {
        let name = format!("  {}", edge.name);
        let mode = format!("{}{}", edge.mode, because(&edge.why));
        row([&name, &edge.ifindex, &edge.kind, &list(&edge.hooks), &mode])
    }));
    text.push_str(&table(&rows));
    for (title, counts) in [("dropped or rejected packets", &status.drops), ("other counts", &status.counts)]
    {
        if counts.is_empty() {
            continue;
        }
        text.push_str(&format!("\n{title}\n"));
        let rows: Vec<_> = counts.iter().map(|(reason, n)| row([&format!("  {reason}"), n])).collect();
        text.push_str(&table(&rows));
    }
    if !status.degraded.is_empty() {
        text.push_str("\ndegraded\n");
        for trouble in &status.degraded {
            text.push_str(&format!("  {trouble}\n"));
        }
    }
    if let Some(error) = &status.last_error {
        text.push_str(&format!("\nlast error\n  {error}\n"));
    }
    text
}

/// `sluice explain`.
pub fn explanation(told: &Explanation) -> String {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut text = table(&[
        row([&"verdict", &format!("{} ({})", told.verdict, told.reason)]),
        row([&"service", &or_none(told.service.clone())]),
        row([&"frontend", &or_none(told.frontend.map(|at| at.to_string()))]),
        row([&"candidates", &list(&told.candidates)]),
        row([&"backend", &or_none(told.backend.map(|at| at.to_string()))]),
        row([&"masquerade", &or_none(told.masquerade.map(|at| at.to_string()))]),
        row([&"path", &told.path]),
    ]);
    text.push_str("\nsteps\n");
    told.steps.iter().for_each(|step| text.push_str(&format!("  {step}\n")));
    text
}

/// `sluice trace`: what is traced from now on.
pub fn trace(trace: Option<TraceView>) -> String {
    trace.map_or_else(
        || "nothing is traced".to_owned(),
        |TraceView { address, seconds }| {
            format!("packets from and to {address} are told in the agent's log for {seconds} s")
        },
    )
}

/// `sluice services`: one block a Service port.
pub fn services(services: &[ServiceView]) -> String {
    if services.is_empty() {
        return "no Services are installed".to_owned();
    }
    let frontend = |f: &FrontendView| {
        format!("{} {}/{}", f.kind, std::net::SocketAddr::new(f.address, f.port), f.protocol)
    };
    let mut text = String::new();
    for service in services {
        let port = if service.port.is_empty() { String::new() } else { format!(":{}", service.port) };
        text.push_str(&format!("{}{port} {} {}\n", service.name, service.family, service.protocol));
        let frontends: Vec<_> = service.frontends.iter().map(frontend).collect();
        let mut rows = vec![row([&"  frontends", &list(&frontends)])];
        if service.external == service.internal {
            rows.push(row([&"  endpoints", &list(&service.internal)]));
        } else {
            rows.push(row([&"  internal", &list(&service.internal)]));
            rows.push(row([&"  external", &list(&service.external)]));
        }
        if !service.cluster.is_empty() {
            rows.push(row([&"  this node", &list(&service.cluster)]));
        }
        if !service.ranges.is_empty() {
            rows.push(row([&"  sources", &list(&service.ranges)]));
        }
        if !service.flags.is_empty() {
            rows.push(row([&"  flags", &list(&service.flags)]));
        }
        text.push_str(&table(&rows));
    }
    text
}

/// `sluice flows`: one line a flow.
pub fn flows(flows: &[FlowView]) -> String {
    let mut rows = vec![row([
        &"PROTOCOL",
        &"CLIENT",
        &"FRONTEND",
        &"BACKEND",
        &"MASQUERADE",
        &"SERVICE",
        &"STATE",
        &"AGE",
        &"IDLE",
        &"PATH",
    ])];
    rows.extend(flows.iter().map(|flow| {
        let masquerade = flow.masquerade.map_or_else(|| "-".to_owned(), |at| at.to_string());
        let service = flow.service.as_deref().unwrap_or("-");
        let (age, idle) = (format!("{}s", flow.age), format!("{}s", flow.idle));
        row([
            &flow.protocol,
            &flow.client,
            &flow.frontend,
            &flow.backend,
            &masquerade,
            &service,
            &flow.state,
            &age,
            &idle,
            &flow.path,
        ])
    }));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Edge, Mode, Node, Source, Trouble, Usage};

    fn mode(mode: &str, why: &str) -> Mode {
        Mode { mode: mode.to_owned(), why: why.to_owned() }
    }

    #[test]
    fn status_page() {
        let edge = |name: &str, kind: &str, hooks: &[&str], why: &str| Edge {
            name: name.to_owned(),
            ifindex: 7,
            kind: kind.to_owned(),
            hooks: hooks.iter().map(|hook| (*hook).to_owned()).collect(),
            mode: if hooks.is_empty() { "unserved" } else { "tcx" }.to_owned(),
            why: why.to_owned(),
            attach_ms: None,
        };
        let page = status(&Status {
            version: "0.1.0".to_owned(),
            layout: 1,
            synced: true,
            source: Source { kind: "manifests".to_owned(), connected: false, age_seconds: Some(90) },
            node: Node { name: "n1".to_owned(), addresses: vec![[192, 0, 2, 1].into()] },
            services: 2,
            endpoints: 5,
            edges: vec![
                edge("eth0", "uplink", &["ingress", "egress"], ""),
                edge("br0", "bridge", &[], "its ports are the edges"),
            ],
            sockets: mode("host", ""),
            checksums: mode("programs", ""),
            shortcuts: mode("off", "asked for"),
            flows: Usage { used: 4, max: 1024 },
            drops: [("no_endpoint".to_owned(), 3)].into(),
            counts: [("shortcut".to_owned(), 7)].into(),
            trace: Some(TraceView { address: [10, 0, 0, 1].into(), seconds: 9 }),
            degraded: vec![Trouble::new("Service default/web", "no usable port", "set spec.ports")],
            last_error: None,
            pid: 1,
        });
        assert_eq!(
            page,
            "\
version    0.1.0, layout 1
node       n1: 192.0.2.1
source     manifests, last heard of 90 s ago
synced     yes
known      2 services, 5 endpoints
sockets    host
checksums  programs
shortcuts  off (asked for)
flows      4 of 1024 entries
trace      10.0.0.1, ends in 9 s

edges
  NAME  INDEX  KIND    HOOKS            MODE
  eth0  7      uplink  ingress, egress  tcx
  br0   7      bridge  -                unserved (its ports are the edges)

dropped or rejected packets
  no_endpoint  3

other counts
  shortcut  7

degraded
  Service default/web: no usable port; set spec.ports
"
        );
    }

    #[test]
    fn services_page() {
        let view = ServiceView {
            name: "default/web".to_owned(),
            port: "http".to_owned(),
            family: "IPv6".to_owned(),
            protocol: "TCP".to_owned(),
            frontends: vec![FrontendView {
                kind: "ClusterIP".to_owned(),
                address: "fd00::1".parse().unwrap(),
                port: 80,
                protocol: "TCP".to_owned(),
            }],
            external: vec!["[fd00:2::1]:8080".parse().unwrap()],
            internal: Vec::new(),
            cluster: Vec::new(),
            ranges: Vec::new(),
            flags: vec!["drop-internal".to_owned()],
        };
        assert_eq!(
            services(&[view]),
            "\
default/web:http IPv6 TCP
  frontends  ClusterIP [fd00::1]:80/TCP
  internal   -
  external   [fd00:2::1]:8080
  flags      drop-internal
"
        );
        assert_eq!(services(&[]), "no Services are installed");
    }
}
