//! What has happened in a history: a simulation in which nothing goes wrong shows nothing.

use std::collections::BTreeMap;

/// What chance is there to bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A packet was lost,
    Lost,
    /// came twice,
    Doubled,
    /// or came before one that was sent earlier.
    Overtook,
    /// A packet came between two map writes that belong together.
    AmidWrites,
    /// A program worked with what it had read before the agent wrote.
    OldValue,
    ServiceCame,
    ServiceWent,
    EndpointCame,
    EndpointWent,
    AgentRestarted,
    /// The same, while it was writing.
    AgentKilled,
    /// A process of the node dialled a Service.
    SocketDialled,
    /// A connection was established,
    Established,
    /// closed by both sides,
    Closed,
    /// or reset.
    Reset,
    /// A flow got another endpoint, as its own had left.
    Moved,
    /// A packet reached its endpoint from the node's address.
    Masqueraded,
    /// A flow's packets took another source port, as theirs was another's.
    Renumbered,
    /// A pair was forgotten after its time,
    Expired,
    /// or before it, for there was little room.
    Pressed,
    /// There was no room for a flow.
    TableFull,
    /// Nobody served a client, which was told so.
    Refused,
    /// A packet has passed the stack by.
    PassedBy,
}

impl Event {
    const ALL: [Self; 23] = [
        Self::Lost,
        Self::Doubled,
        Self::Overtook,
        Self::AmidWrites,
        Self::OldValue,
        Self::ServiceCame,
        Self::ServiceWent,
        Self::EndpointCame,
        Self::EndpointWent,
        Self::AgentRestarted,
        Self::AgentKilled,
        Self::SocketDialled,
        Self::Established,
        Self::Closed,
        Self::Reset,
        Self::Moved,
        Self::Masqueraded,
        Self::Renumbered,
        Self::Expired,
        Self::Pressed,
        Self::TableFull,
        Self::Refused,
        Self::PassedBy,
    ];
}

/// How often what has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events(BTreeMap<Event, u64>);

impl Events {
    pub fn note(&mut self, event: Event) {
        *self.0.entry(event).or_default() += 1;
    }

    /// Takes in another history's.
    pub fn add(&mut self, other: &Self) {
        for (event, times) in &other.0 {
            *self.0.entry(*event).or_default() += times;
        }
    }

    /// What has never happened.
    #[must_use]
    pub fn missing(&self) -> Vec<Event> {
        Event::ALL.into_iter().filter(|event| !self.0.contains_key(event)).collect()
    }
}
