//! A map by address in which those of a family take no more room than the family's addresses do: most are IPv4's, and an
//! `IpAddr` is four times as large.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::HashMap;

use crate::model::Family;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct ByAddress<V> {
    v4: HashMap<Ipv4Addr, V>,
    v6: HashMap<Ipv6Addr, V>,
}

impl<V: Default> ByAddress<V> {
    pub fn len(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.v4.len(),
            Family::V6 => self.v6.len(),
        }
    }

    pub fn get(&self, ip: &IpAddr) -> Option<&V> {
        match ip {
            IpAddr::V4(ip) => self.v4.get(ip),
            IpAddr::V6(ip) => self.v6.get(ip),
        }
    }

    pub fn get_mut(&mut self, ip: &IpAddr) -> Option<&mut V> {
        match ip {
            IpAddr::V4(ip) => self.v4.get_mut(ip),
            IpAddr::V6(ip) => self.v6.get_mut(ip),
        }
    }

    /// The address's value, made if there is none.
    pub fn of(&mut self, ip: IpAddr) -> &mut V {
        match ip {
            IpAddr::V4(ip) => self.v4.entry(ip).or_default(),
            IpAddr::V6(ip) => self.v6.entry(ip).or_default(),
        }
    }

    pub fn remove(&mut self, ip: &IpAddr) {
        match ip {
            IpAddr::V4(ip) => drop(self.v4.remove(ip)),
            IpAddr::V6(ip) => drop(self.v6.remove(ip)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &V)> {
        let v4 = self.v4.iter().map(|(ip, value)| (IpAddr::V4(*ip), value));
        v4.chain(self.v6.iter().map(|(ip, value)| (IpAddr::V6(*ip), value)))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (IpAddr, &mut V)> {
        let v4 = self.v4.iter_mut().map(|(ip, value)| (IpAddr::V4(*ip), value));
        v4.chain(self.v6.iter_mut().map(|(ip, value)| (IpAddr::V6(*ip), value)))
    }
}
