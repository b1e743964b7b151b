use std::path::PathBuf;

use crate::status::first_line;

/// Why the agent cannot start as it was told to. Each message names the flag or field, its value and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}; --config must name a readable KubeProxyConfiguration file", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: not a KubeProxyConfiguration: {}; correct the file", path.display(), first_line(cause))]
    Decode { path: PathBuf, cause: Box<serde_saphyr::Error> },
    #[error("{name}: {value:?} is not allowed; it must be {allowed}")]
    Value { name: String, value: String, allowed: &'static str },
    #[error("{one} and {other} exclude each other; give one of them")]
    Exclusive { one: &'static str, other: &'static str },
}

impl ConfigError {
    /// The command line itself is wrong, not a file that it names.
    #[must_use]
    pub fn is_wrong_use(&self) -> bool {
        match self {
            Self::Read { .. } | Self::Decode { .. } => false,
            Self::Value { name, .. } => name.starts_with("--"),
            Self::Exclusive { .. } => true,
        }
    }
}
