//! What users of the cluster are to see at its objects (I14).

use std::time::SystemTime;

use tokio::sync::mpsc;

use super::types::ObjectName;

/// What a notice is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// This node's Node.
    Node,
    Service(ObjectName),
}

/// One notice. It becomes an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub about: About,
    /// Something is wrong.
    pub warning: bool,
    /// As clients filter by it.
    pub reason: &'static str,
    /// What was being done.
    pub action: &'static str,
    pub note: String,
    pub at: SystemTime,
}

impl Notice {
    /// Nothing is wrong.
    #[must_use]
    pub fn normal(about: About, reason: &'static str, action: &'static str, note: &str) -> Self {
        Self { about, warning: false, reason, action, note: note.to_owned(), at: SystemTime::now() }
    }

    #[must_use]
    pub fn warning(about: About, reason: &'static str, action: &'static str, note: String) -> Self {
        Self { about, warning: true, reason, action, note, at: SystemTime::now() }
    }
}

/// Notices that nobody has taken yet. Whatever they are about is also in the log and in the status.
const ROOM: usize = 256;

/// What came of handing in a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is on its way, or nobody listens.
    Done,
    /// There was no room for it.
    Later,
}

/// Where notices are handed in.
#[derive(Clone, Debug)]
pub struct Notices(mpsc::Sender<Notice>);

impl Notices {
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Notice>) {
        let (sender, receiver) = mpsc::channel(ROOM);
        (Self(sender), receiver)
    }

    /// Never waits: what there is no room for, or nobody to tell, is dropped. Whether it would be of use to try again.
    pub fn tell(&self, notice: Notice) -> Told {
        match self.0.try_send(notice) {
            Err(mpsc::error::TrySendError::Full(_)) => Told::Later,
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Told::Done,
        }
    }
}
