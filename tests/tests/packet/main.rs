//! Suite `packet`: stories told to the path on the host and to the programs in the kernel, every byte compared.

mod errors;
mod flows;
mod malformed;
