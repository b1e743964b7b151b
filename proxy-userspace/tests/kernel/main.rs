//! The agent's kernel side in a real kernel. Needs root; every test has a network namespace of its own.

#[cfg(test)]
mod common;
#[cfg(test)]
mod datapath;
#[cfg(test)]
mod guard;
#[cfg(test)]
mod node;
#[cfg(test)]
mod privileges;
#[cfg(test)]
mod sync;
