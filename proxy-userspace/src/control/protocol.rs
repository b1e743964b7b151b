use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::model::Protocol;
use crate::status::{Explanation, FlowView, ServiceView, Status, TraceView, Trouble};

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    Status,
    Services {
        /// `NAMESPACE/NAME`; all if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    Flows(FlowFilter),
    /// What would become of a packet.
    Explain(Query),
    /// Traces packets from or to an address in the agent's log; without an address, ends that.
    Trace {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<IpAddr>,
        /// How long, if nobody ends it before.
        seconds: u64,
    },
    /// Ends the agent as SIGTERM does; the data plane stays.
    Stop {
        /// Cookie of the asker's network namespace: an agent of another one goes on, as its data plane cannot be reached
        /// from there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        netns: Option<u64>,
    },
}

/// Which flows to list; an absent field matches every flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowFilter {
    /// `NAMESPACE/NAME`, or a bare name in any namespace.
    pub service: Option<String>,
    pub client: Option<IpAddr>,
}

impl FlowFilter {
    #[must_use]
    pub fn matches(&self, flow: &FlowView) -> bool {
        let service = |wanted: &str| {
            let Some(name) = flow.service.as_deref() else { return false };
            let name = name.split_once(':').map_or(name, |(name, _)| name);
            name == wanted || name.split_once('/').is_some_and(|(_, bare)| bare == wanted)
        };
        self.service.as_deref().is_none_or(service) && self.client.is_none_or(|ip| flow.client.ip() == ip)
    }
}

/// A packet to be explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    pub from: IpAddr,
    /// Source port; any, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    pub to: SocketAddr,
    pub protocol: Protocol,
    /// Device that it comes in by; by the routes, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<String>,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    Status(Box<Status>),
    Services(Vec<ServiceView>),
    Flows(Vec<FlowView>),
    Explain(Box<Explanation>),
    /// What is traced from now on.
    Trace(Option<TraceView>),
    /// The agent is about to end.
    Stopping,
    Error(Trouble),
}

impl Answer {
    /// One line, newline included. Serialising these types cannot fail; if it ever does, the reason is the answer.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = serde_json::to_string(self).unwrap_or_else(|error| {
            serde_json::json!({"error": {"what": "the answer", "why": error.to_string(), "next": "report this"}})
                .to_string()
        });
        line.push('\n');
        line
    }
}

impl Request {
    /// Reads one line.
    ///
    /// # Errors
    /// What is wrong with it, for the one who sent it.
    pub fn parse(line: &str) -> Result<Self, Trouble> {
        serde_json::from_str(line).map_err(|error| {
            Trouble::new("the request", error, "client and agent should be of the same version of sluice")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire_and_nonsense_is_refused() {
        let requests = [
            (Request::Status, r#"{"command":"status"}"#),
            (Request::Services { name: None }, r#"{"command":"services"}"#),
            (
                Request::Services { name: Some("default/web".to_owned()) },
                r#"{"command":"services","name":"default/web"}"#,
            ),
            (Request::Flows(FlowFilter::default()), r#"{"command":"flows"}"#),
            (
                Request::Flows(FlowFilter { service: None, client: Some([10, 0, 0, 1].into()) }),
                r#"{"command":"flows","client":"10.0.0.1"}"#,
            ),
            (
                Request::Trace { address: Some([10, 0, 0, 1].into()), seconds: 60 },
                r#"{"command":"trace","address":"10.0.0.1","seconds":60}"#,
            ),
            (Request::Stop { netns: None }, r#"{"command":"stop"}"#),
            (Request::Stop { netns: Some(7) }, r#"{"command":"stop","netns":7}"#),
        ];
        for (request, line) in requests {
            assert_eq!(Request::parse(line), Ok(request.clone()), "{line}");
            let own = serde_json::to_string(&request).unwrap();
            assert_eq!(Request::parse(&own), Ok(request), "{own}");
        }
        for line in
            ["", "status", r#"{"command":"reboot"}"#, r#"{"command":"flows","client":"x"}"#, "{}", "\u{0}"]
        {
            assert!(Request::parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn flows_are_filtered_by_service_and_client() {
        let flow = |service: Option<&str>| FlowView {
            client: ([10, 1, 0, 5], 40000).into(),
            frontend: ([10, 96, 0, 1], 80).into(),
            backend: ([10, 2, 0, 5], 8080).into(),
            masquerade: None,
            protocol: "TCP".to_owned(),
            service: service.map(str::to_owned),
            state: "established".to_owned(),
            age: 1,
            idle: 0,
            path: "stack".to_owned(),
        };
        let filter = |service: Option<&str>, client: Option<[u8; 4]>| FlowFilter {
            service: service.map(str::to_owned),
            client: client.map(Into::into),
        };
        let web = Some("default/web:http");
        let cases = [
            ("no filter", filter(None, None), web, true),
            ("full name", filter(Some("default/web"), None), web, true),
            ("bare name", filter(Some("web"), None), web, true),
            ("unnamed port", filter(Some("web"), None), Some("default/web"), true),
            ("other namespace", filter(Some("kube-system/web"), None), web, false),
            ("prefix is no match", filter(Some("we"), None), web, false),
            ("direct flow", filter(Some("web"), None), None, false),
            ("client", filter(None, Some([10, 1, 0, 5])), web, true),
            ("other client", filter(Some("web"), Some([10, 1, 0, 6])), web, false),
        ];
        for (name, filter, service, want) in cases {
            assert_eq!(filter.matches(&flow(service)), want, "{name}");
        }
    }
}
