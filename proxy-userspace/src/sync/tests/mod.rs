//! The syncer against maps in memory that check themselves after every step.

mod fake;
mod room;
mod stories;
mod whole;
