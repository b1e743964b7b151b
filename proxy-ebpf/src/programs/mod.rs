//! Entry points, one file per kind of hook.

mod edge;
mod iterator;
mod socket;
