//! The syncer against maps in memory that check themselves after every step.

mod fake;
mod stories;
mod whole;
