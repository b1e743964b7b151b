//! The control socket: how operators ask a running agent.
//!
//! One request, one answer, each a line of JSON; then the agent hangs up.

mod client;
mod lock;
mod protocol;
mod server;
mod services;

pub use client::{ClientError, ask};
pub use lock::{Lock, LockError, RunDir};
pub use protocol::{Answer, FlowFilter, Query, Request};
pub use server::{Listener, Question};
pub use services::service_view;
