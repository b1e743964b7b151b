use std::path::PathBuf;

/// Why the agent cannot start as it was told to. Each message names the flag or field, its value and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}; --config must name a readable KubeProxyConfiguration file", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: not a KubeProxyConfiguration: {source}", path.display())]
    Decode { path: PathBuf, source: Box<serde_saphyr::Error> },
    #[error("{name}: {value:?} is not allowed, it must be {allowed}")]
    Value { name: String, value: String, allowed: &'static str },
    #[error("{one} and {other} exclude each other; give one of them")]
    Exclusive { one: &'static str, other: &'static str },
}
