//! The loop against a data plane made of a channel: what it orders, and when.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::plane::{Installed, Order, PlaneReport};
use super::{Agent, Parts, Plane};
use crate::cluster::types::{Node, Problem, Service, Slice, Watched};
use crate::cluster::{Change, Event};
use crate::config::{Config, RunArgs, load};
use crate::control::{Answer, Question, Request};
use crate::http::{Clock, Health};
use crate::metrics::Metrics;
use crate::model::PortChange;
use crate::status::{Board, Status, Trouble};

/// Long enough for a loaded machine; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bed {
    events: mpsc::Sender<Event>,
    questions: mpsc::Sender<Question>,
    orders: UnboundedReceiver<Order>,
    /// An installation was ordered.
    installed: bool,
    ended: JoinHandle<Result<(), Trouble>>,
}

fn config() -> Config {
    let mut args = RunArgs::default();
    args.sluice.manifests = Some("/unused".into());
    args.sluice.edges = "auto".to_owned();
    args.sluice.sockets = "host".to_owned();
    load(&args).unwrap()
}

fn bed() -> Bed {
    let (plane, orders) = mpsc::unbounded_channel();
    let (events, told) = mpsc::channel(64);
    let (questions, asked) = mpsc::channel(4);
    let (metrics, clock) = (std::sync::Arc::new(Metrics::new()), Clock::start());
    let config = config();
    let health = Health::new(clock, config.sync.period, metrics.clone()).into();
    let plane = Plane::new(plane);
    let parts = Parts {
        plane,
        events: told,
        questions: asked,
        health,
        checks: watch::channel(std::collections::BTreeMap::new()).0,
        metrics,
        board: Board::default(),
        clock,
    };
    let agent = Agent::new(&config, "n1".into(), parts);
    Bed {
        events,
        questions,
        orders,
        installed: false,
        ended: tokio::spawn(agent.run(super::Stops::listen().unwrap())),
    }
}

impl Bed {
    async fn tell(&self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.events.send(event).await.unwrap();
        }
    }

    async fn ask(&self, request: Request) -> oneshot::Receiver<Answer> {
        let (answer, wait) = oneshot::channel();
        self.questions.send(Question { request, answer }).await.unwrap();
        wait
    }

    /// The next order that matters here; signs of life are given on the way.
    async fn order(&mut self) -> Order {
        loop {
            match tokio::time::timeout(PATIENCE, self.orders.recv()).await.unwrap().unwrap() {
                Order::Beat(answer) => answer.send(()).unwrap(),
                Order::OwnNode(_) | Order::ServiceCidrs(_) | Order::Check | Order::TakeOver => {}
                order => return order,
            }
        }
    }

    async fn install(&mut self) -> (Vec<PortChange>, oneshot::Sender<Installed>) {
        match self.order().await {
            Order::Install { changes, complete, done } => {
                assert_eq!(complete, !std::mem::replace(&mut self.installed, true), "only the first is all");
                (changes, done)
            }
            order => panic!("{order:?}"),
        }
    }

    async fn status(&mut self) -> Status {
        let wait = self.ask(Request::Status).await;
        let Order::Report(answer) = self.order().await else { panic!("no report was asked for") };
        answer.send(PlaneReport::default()).unwrap();
        match wait.await.unwrap() {
            Answer::Status(status) => *status,
            answer => panic!("{answer:?}"),
        }
    }
}

fn service() -> Service {
    let text = r#"{"metadata":{"namespace":"default","name":"web"},"spec":{"type":"ClusterIP",
        "clusterIP":"10.96.0.9","clusterIPs":["10.96.0.9"],"ipFamilies":["IPv4"],
        "ports":[{"name":"http","port":80,"protocol":"TCP","targetPort":8080}]}}"#;
    serde_json::from_str::<Watched<Service>>(text).unwrap().object
}

fn slice(address: &str) -> Slice {
    let text = r#"{"metadata":{"namespace":"default","name":"web-1",
        "labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4",
        "ports":[{"name":"http","port":8080,"protocol":"TCP"}],
        "endpoints":[{"addresses":["ADDRESS"],"conditions":{"ready":true}}]}"#;
    serde_json::from_str::<Watched<Slice>>(&text.replace("ADDRESS", address)).unwrap().object
}

fn everything() -> [Event; 3] {
    [
        Event::Connection { connected: true },
        Event::Services(Change::Snapshot(vec![service()])),
        Event::Slices(Change::Snapshot(vec![slice("10.2.0.1")])),
    ]
}

fn endpoints(changes: &[PortChange]) -> Vec<SocketAddr> {
    changes.iter().filter_map(|(_, state)| state.as_ref()).flat_map(|state| state.internal.to_vec()).collect()
}

#[tokio::test]
async fn i1_c35_nothing_is_installed_before_both_lists_are_complete() {
    let mut bed = bed();
    let [connection, services, slices] = everything();
    bed.tell([connection, services]).await;
    // An order to install would panic here: only reports are expected.
    let status = loop {
        let status = bed.status().await;
        if status.services == 1 {
            break status;
        }
    };
    assert!(!status.synced && status.source.connected);
    bed.tell([slices]).await;
    let (changes, done) = bed.install().await;
    assert_eq!(endpoints(&changes), ["10.2.0.1:8080".parse().unwrap()]);
    assert!(!bed.status().await.synced, "a question is answered while the data plane is busy");
    done.send(Installed::default()).unwrap();
    while !bed.status().await.synced {}
    assert_eq!(bed.status().await.services, 1);
}

#[tokio::test]
async fn changes_during_a_round_make_one_round_after_it() {
    let mut bed = bed();
    bed.tell(everything()).await;
    let (_, done) = bed.install().await;
    let update = |address| Event::Slices(Change::Apply(slice(address)));
    bed.tell([update("10.2.0.2"), update("10.2.0.3"), update("10.2.0.4")]).await;
    // The loop takes events in before it answers this.
    while bed.status().await.endpoints != 1 {}
    done.send(Installed::default()).unwrap();
    let (changes, _done) = bed.install().await;
    assert_eq!(endpoints(&changes), ["10.2.0.4:8080".parse().unwrap()], "only the last state counts");
}

#[tokio::test]
async fn a_failed_round_is_reported_and_repeated() {
    let mut bed = bed();
    bed.tell(everything()).await;
    let (_, done) = bed.install().await;
    done.send(Installed { failed: Some("no room in frontends_v4".to_owned()) }).unwrap();
    let (_, done) = bed.install().await;
    let status = bed.status().await;
    assert_eq!(status.last_error.as_deref(), Some("no room in frontends_v4"));
    assert!(!status.synced);
    done.send(Installed::default()).unwrap();
    while !bed.status().await.synced {}
    let last = bed.status().await.last_error;
    assert_eq!(last.as_deref(), Some("no room in frontends_v4"), "it stays readable");
}

#[tokio::test]
async fn a_lost_source_changes_nothing_but_the_status() {
    let mut bed = bed();
    bed.tell(everything()).await;
    let (_, done) = bed.install().await;
    done.send(Installed::default()).unwrap();
    while !bed.status().await.synced {}
    bed.tell([Event::Connection { connected: false }]).await;
    let status = loop {
        let status = bed.status().await;
        if !status.source.connected {
            break status;
        }
    };
    assert!(status.source.age_seconds.is_some() && status.services == 1, "{status:?}");
}

#[tokio::test]
async fn c31_a_problem_of_the_source_is_told_until_it_is_over() {
    let mut bed = bed();
    let problem = Problem::new("File bad.yaml", "it is no YAML", "correct it");
    bed.tell([Event::Problems(vec![problem.clone()])]).await;
    let status = loop {
        let status = bed.status().await;
        if !status.degraded.is_empty() {
            break status;
        }
    };
    assert_eq!(status.degraded, [Trouble::from(problem.clone())]);
    assert_eq!(status.last_error, Some(problem.to_string()));
    bed.tell([Event::Problems(Vec::new())]).await;
    while !bed.status().await.degraded.is_empty() {}
    assert_eq!(bed.status().await.last_error, Some(problem.to_string()), "it stays readable");
}

#[tokio::test]
async fn i5_the_nodes_addresses_go_to_the_data_plane() {
    let mut bed = bed();
    let text = r#"{"metadata":{"name":"n1"},
        "status":{"addresses":[{"type":"InternalIP","address":"192.0.2.11"}]}}"#;
    let node = serde_json::from_str::<Watched<Node>>(text).unwrap().object;
    bed.tell([Event::Nodes(Change::Apply(node))]).await;
    let ips = loop {
        match tokio::time::timeout(PATIENCE, bed.orders.recv()).await.unwrap().unwrap() {
            Order::OwnNode(own) if !own.ips.is_empty() => break own.ips,
            _ => {}
        }
    };
    assert_eq!(ips, ["192.0.2.11".parse::<std::net::IpAddr>().unwrap()]);
}

#[tokio::test]
async fn l21_a_request_to_stop_is_answered_and_ends_the_loop() {
    let bed = bed();
    let elsewhere = bed.ask(Request::Stop { netns: Some(u64::MAX) }).await.await.unwrap();
    assert!(
        matches!(&elsewhere, Answer::Error(trouble) if trouble.why.contains("another network namespace"))
    );
    let wait = bed.ask(Request::Stop { netns: crate::datapath::netns_cookie().ok() }).await;
    assert_eq!(wait.await.unwrap(), Answer::Stopping, "it has not ended before");
    assert_eq!(bed.ended.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn l18_a_dead_part_ends_the_agent() {
    let Bed { events, orders, ended, questions: _questions, .. } = bed();
    drop(orders);
    for event in everything() {
        events.send(event).await.unwrap();
    }
    assert!(ended.await.unwrap().unwrap_err().what.contains("data plane"));
    let Bed { events, ended, orders: _orders, questions: _questions, .. } = bed();
    drop(events);
    assert_eq!(ended.await.unwrap().unwrap_err().what, "the source");
}
