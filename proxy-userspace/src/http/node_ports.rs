//! Health check node ports: whether this node has endpoints for a LoadBalancer's Service (H7 … H9).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::Health;
use super::connections;
use super::server::AGAIN;
use crate::cluster::types::ObjectName;
use crate::cluster::{About, Notice, Notices};
use crate::model::{Family, HealthCheck};
use crate::status::{Board, Trouble};

/// Name of this part on the board: the first port that cannot be opened stands for all.
const PART: &str = "health check node ports";

/// Of the Event about a port that cannot be opened (H8).
const REASON: &str = "FailedToStartServiceHealthcheck";

/// Where health check node ports are open; the unspecified address stands for all of its family.
pub type Places = BTreeSet<IpAddr>;

/// The checks of all Services.
pub type Checks = BTreeMap<ObjectName, HealthCheck>;

/// Every listener that there should be: an address, the Service, its number of endpoints in that family. Of two Services with
/// one port the first by name counts.
fn wanted(checks: &Checks, places: &Places) -> BTreeMap<SocketAddr, (ObjectName, usize)> {
    let mut wanted = BTreeMap::new();
    for (service, check) in checks {
        for (family, ready) in &check.ready {
            for ip in places.iter().filter(|ip| Family::of(ip) == *family) {
                let socket = SocketAddr::new(*ip, check.port);
                wanted.entry(socket).or_insert_with(|| (service.clone(), *ready));
            }
        }
    }
    wanted
}

/// Services whose port is another's, with the one that has it (C-37). The API server gives each its own.
fn refused(checks: &Checks) -> impl Iterator<Item = (&ObjectName, &ObjectName, u16)> {
    let mut holders = BTreeMap::new();
    checks.iter().filter_map(move |(service, check)| {
        let holder = *holders.entry(check.port).or_insert(service);
        (holder != service).then_some((service, holder, check.port))
    })
}

/// What one listener answers by.
#[derive(Debug)]
struct Answerer {
    /// The Service and its number of endpoints. A port that becomes another Service's stays open.
    of: Mutex<(ObjectName, usize)>,
    health: Arc<Health>,
}

#[derive(Debug)]
struct Listening {
    answerer: Arc<Answerer>,
    task: AbortHandle,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens and closes listeners as the checks and the node's addresses change. Ends when nobody can change them any more.
pub async fn serve_node_ports(
    mut checks: watch::Receiver<Checks>,
    mut places: watch::Receiver<Places>,
    health: Arc<Health>,
    board: Board,
    notices: Notices,
) {
    let mut open: BTreeMap<SocketAddr, Listening> = BTreeMap::new();
    let mut closed = BTreeSet::new();
    loop {
        let (wanted, mut failed) = {
            let checks = checks.borrow_and_update();
            let trouble = |(service, holder, port)| {
                let what = format!("Service {service}: health check node port {port}");
                let next = "give one of them another healthCheckNodePort";
                Trouble::new(what, format_args!("Service {holder} has it"), next)
            };
            (wanted(&checks, &places.borrow_and_update()), refused(&checks).next().map(trouble))
        };
        open.retain(|socket, _| wanted.contains_key(socket));
        let mut retry = false;
        closed.retain(|socket| wanted.contains_key(socket));
        for (socket, of) in wanted {
            if let Some(listening) = open.get(&socket) {
                *listening.answerer.of.lock().unwrap_or_else(PoisonError::into_inner) = of;
                continue;
            }
            let service = of.0.clone();
            // A socket of its own for each family: the two have their own counts (H9).
            match connections::listen(socket) {
                Ok(listener) => {
                    info!(%service, %socket, "health check node port open");
                    closed.remove(&socket);
                    let answerer = Arc::new(Answerer { of: Mutex::new(of), health: health.clone() });
                    open.insert(socket, serve(listener, answerer));
                }
                Err(error) => {
                    let what = format!("Service {service}: health check node port {socket}");
                    let next = "free the port; it is tried again every 5 s";
                    let trouble = Trouble::new(what, error, next);
                    if closed.insert(socket) {
                        let (about, note) = (About::Service(service), trouble.to_string());
                        notices.tell(Notice::warning(about, REASON, "Listen", note));
                    }
                    failed.get_or_insert(trouble);
                    retry = true;
                }
            }
        }
        match failed {
            Some(trouble) => {
                if board.post(PART, trouble.clone()) {
                    warn!("{trouble}");
                }
            }
            None => drop(board.clear(PART)),
        }
        let ended = tokio::select! {
            changed = checks.changed() => changed.is_err(),
            changed = places.changed() => changed.is_err(),
            () = tokio::time::sleep(AGAIN), if retry => false,
        };
        if ended {
            return;
        }
    }
}

fn serve(listener: TcpListener, answerer: Arc<Answerer>) -> Listening {
    let routes = Router::new().fallback(answer).with_state(answerer.clone());
    let task = tokio::spawn(connections::serve(listener, routes));
    Listening { answerer, task: task.abort_handle() }
}

/// Every path answers.
async fn answer(State(answerer): State<Arc<Answerer>>) -> Response {
    let (service, ready) = answerer.of.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let healthy = answerer.health.is_healthy();
    let code = if ready > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("x-load-balancing-endpoint-weight"), HeaderValue::from(ready)),
    ];
    (code, headers, body(&service, ready, healthy)).into_response()
}

/// kube-proxy's text, white space included. Names of objects need no escaping.
fn body(service: &ObjectName, ready: usize, healthy: bool) -> String {
    let ObjectName { namespace, name } = service;
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\t\"localEndpoints\": {ready},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::http::Clock;
    use crate::metrics::Metrics;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("ns", name)
    }

    fn check(port: u16, v4: usize, v6: usize) -> HealthCheck {
        HealthCheck { port, ready: vec![(Family::V4, v4), (Family::V6, v6)] }
    }

    #[test]
    fn h7_h9_listeners_by_family_and_place() {
        let checks = Checks::from([(name("a"), check(31_000, 2, 0)), (name("b"), check(31_000, 5, 5))]);
        let cases: [(&[&str], _); 3] = [
            (&["0.0.0.0", "::"], vec!["0.0.0.0:31000 ns/a 2", "[::]:31000 ns/a 0"]),
            (&["192.0.2.11", "fd00:2::11"], vec!["192.0.2.11:31000 ns/a 2", "[fd00:2::11]:31000 ns/a 0"]),
            (&[], vec![]),
        ];
        for (places, want) in cases {
            let places: Places = places.iter().map(|ip| ip.parse().unwrap()).collect();
            let got: Vec<_> = wanted(&checks, &places)
                .into_iter()
                .map(|(socket, (service, ready))| format!("{socket} {service} {ready}"))
                .collect();
            assert_eq!(got, want, "{places:?}");
        }
    }

    #[test]
    fn h7_body_is_kube_proxys() {
        let text = body(&name("web"), 2, true);
        let want = "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(text, want);
        let value: Value = serde_json::from_str(&text).unwrap();
        let service = json!({"namespace": "ns", "name": "web"});
        assert_eq!(value, json!({"service": service, "localEndpoints": 2, "serviceProxyHealthy": true}));
    }

    /// Status and weight that `socket` answers with; `None`: nobody listens.
    fn ask(socket: SocketAddr) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(socket).ok()?;
        stream.write_all(b"GET /any/path HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let code = text.split(' ').nth(1)?.parse().ok()?;
        let weight = text.lines().find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: "))?;
        assert!(text.contains("content-type: application/json\r\n"), "{text}");
        assert!(text.contains("x-content-type-options: nosniff\r\n"), "{text}");
        Some((code, weight.to_owned()))
    }

    async fn until(holds: impl Fn() -> bool) {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn becomes(socket: SocketAddr, want: Option<(u16, &str)>) {
        let want = want.map(|(code, weight)| (code, weight.to_owned()));
        loop {
            let got = tokio::task::spawn_blocking(move || ask(socket)).await.unwrap();
            if got == want {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn h7_h8_ports_open_follow_the_count_and_close() {
        // Both families at one number, as the node would have it: found by binding to none.
        let port =
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let (v4, v6) = (
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
            SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
        );
        let (checks, checked) = watch::channel(Checks::new());
        let (_places, placed) =
            watch::channel(Places::from([Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]));
        let health = Health::new(Clock::start(), Duration::from_secs(30), Arc::new(Metrics::new()));
        let board = Board::default();
        let (notices, mut told) = Notices::channel();
        let server =
            tokio::spawn(serve_node_ports(checked, placed, Arc::new(health), board.clone(), notices));
        let set = |list: Vec<(ObjectName, HealthCheck)>| {
            checks.send(list.into_iter().collect()).unwrap();
        };
        let patience = Duration::from_secs(60);
        let story = async {
            set(vec![(name("a"), check(port, 2, 0))]);
            becomes(v4, Some((200, "2"))).await;
            becomes(v6, Some((503, "0"))).await;
            set(vec![(name("a"), check(port, 0, 3))]);
            becomes(v4, Some((503, "0"))).await;
            becomes(v6, Some((200, "3"))).await;
            set(vec![(name("a"), check(port, 0, 3)), (name("b"), check(port, 4, 4))]);
            until(|| board.all().iter().any(|trouble| trouble.what.contains("Service ns/b"))).await;
            assert!(board.all()[0].why.contains("Service ns/a has it"), "C-37 {:?}", board.all());
            set(vec![(name("b"), check(port, 4, 4))]);
            becomes(v6, Some((200, "4"))).await;
            becomes(v4, Some((200, "4"))).await;
            set(vec![]);
            becomes(v4, None).await;
            let squatter = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
            set(vec![(name("b"), check(port, 1, 1))]);
            becomes(v6, Some((200, "1"))).await;
            assert!(board.all()[0].what.contains("Service ns/b"), "H8 {:?}", board.all());
            let notice = told.try_recv().expect("H8: an Event");
            assert_eq!((notice.about, notice.reason), (About::Service(name("b")), REASON));
            drop(squatter);
            becomes(v4, Some((200, "1"))).await;
            becomes(v6, Some((200, "1"))).await;
        };
        tokio::time::timeout(patience, story).await.expect("the ports follow");
        until(|| board.all().is_empty()).await;
        server.abort();
    }
}
