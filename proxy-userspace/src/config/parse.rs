//! A single option: where it was given, its text, and the checks for each shape.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use super::duration;
use super::error::ConfigError;
use super::flags::go_bool;

/// One option as given. `name` is the flag or the field, for error messages.
#[derive(Clone, Debug)]
pub struct Given<'a> {
    pub name: String,
    pub text: Option<&'a str>,
}

impl<'a> Given<'a> {
    pub fn refuse(&self, allowed: &'static str) -> ConfigError {
        ConfigError::Value {
            name: self.name.clone(),
            value: self.text.unwrap_or_default().to_owned(),
            allowed,
        }
    }

    /// The parsed value, `None` if the option was not given.
    pub fn parse<T: FromStr>(&self, allowed: &'static str) -> Result<Option<T>, ConfigError> {
        self.text.map(|text| text.parse().map_err(|_| self.refuse(allowed))).transpose()
    }

    pub fn number(&self, low: i64, high: i64, allowed: &'static str) -> Result<Option<i64>, ConfigError> {
        let number = self.parse::<i64>(allowed)?;
        match number {
            Some(n) if !(low..=high).contains(&n) => Err(self.refuse(allowed)),
            _ => Ok(number),
        }
    }

    pub fn boolean(&self) -> Result<Option<bool>, ConfigError> {
        self.text.map(|text| go_bool(text).map_err(|_| self.refuse("true or false"))).transpose()
    }

    pub fn duration(&self) -> Result<Option<Duration>, ConfigError> {
        self.text.map(|text| duration::parse(text).map_err(|allowed| self.refuse(allowed))).transpose()
    }

    /// A duration for which zero means the default.
    pub fn duration_or(&self, default: Duration) -> Result<Duration, ConfigError> {
        Ok(self.duration()?.filter(|d| !d.is_zero()).unwrap_or(default))
    }

    /// One of a few words, as its index; upper and lower case matter, as they do upstream.
    pub fn word<T: Copy>(
        &self,
        words: &[(&str, T)],
        allowed: &'static str,
    ) -> Result<Option<T>, ConfigError> {
        self.text
            .map(|text| {
                words.iter().find(|(w, _)| *w == text).map(|(_, t)| *t).ok_or_else(|| self.refuse(allowed))
            })
            .transpose()
    }

    /// `IP:PORT`, `[IP]:PORT` or `IP` with the default port.
    pub fn socket(&self, port: u16) -> Result<Option<SocketAddr>, ConfigError> {
        let Some(text) = self.text else { return Ok(None) };
        let parsed = text
            .parse::<SocketAddr>()
            .ok()
            .or_else(|| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port)))
            .or_else(|| {
                let port = text.strip_prefix(':')?.parse().ok()?;
                Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
            });
        parsed
            .map(Some)
            .ok_or_else(|| self.refuse("an IP address and a port such as 0.0.0.0:10256 or [::]:10256"))
    }

    /// Items of a comma-separated list, without empty ones.
    pub fn items(&self) -> impl Iterator<Item = &'a str> {
        self.text.unwrap_or_default().split(',').map(str::trim).filter(|item| !item.is_empty())
    }

    pub fn cidrs(&self, allowed: &'static str) -> Result<Vec<IpNet>, ConfigError> {
        self.items().map(|item| item.parse().map_err(|_| self.refuse(allowed))).collect()
    }
}
