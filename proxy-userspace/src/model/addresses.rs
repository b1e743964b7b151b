//! Addresses that may not be what an object says they are.

use std::net::IpAddr;

use super::desired::Family;

/// Why an address must not be a backend (C-21), `None` if it may be one. Link-local and loopback addresses would
/// reach services of the node itself (CVE-2021-25737).
#[must_use]
pub fn endpoint_refusal(address: &IpAddr, family: Family) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    if Family::of(address) != family {
        return Some("not of the slice's addressType");
    }
    if mapped {
        return Some("an IPv4-mapped address");
    }
    if link_local {
        return Some("a link-local address");
    }
    frontend_refusal(address)
}

/// Why an address must not be a Service's (C-28), `None` if it may be one.
#[must_use]
pub fn frontend_refusal(address: &IpAddr) -> Option<&'static str> {
    if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_unspecified() || matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 0) {
        Some("an unspecified address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if matches!(address, IpAddr::V4(v4) if v4.is_broadcast()) {
        Some("the broadcast address")
    } else if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        Some("an IPv4-mapped address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c21_c28_refused_addresses() {
        let cases = [
            ("10.0.0.1", true, true),
            ("203.0.113.255", true, true),
            ("127.0.0.1", false, false),
            ("127.255.255.254", false, false),
            ("169.254.169.254", false, true),
            ("0.0.0.0", false, false),
            ("0.1.2.3", false, false),
            ("224.0.0.1", false, false),
            ("239.255.255.255", false, false),
            ("255.255.255.255", false, false),
            ("fd00::1", true, true),
            ("2001:db8::1", true, true),
            ("::1", false, false),
            ("::", false, false),
            ("fe80::1", false, true),
            ("febf::1", false, true),
            ("ff02::1", false, false),
            ("::ffff:10.0.0.1", false, false),
        ];
        for (text, endpoint, frontend) in cases {
            let address: IpAddr = text.parse().unwrap();
            let family = Family::of(&address);
            assert_eq!(endpoint_refusal(&address, family).is_none(), endpoint, "{text} as endpoint");
            assert_eq!(frontend_refusal(&address).is_none(), frontend, "{text} as frontend");
            let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
            assert!(endpoint_refusal(&address, other).is_some(), "{text} in a slice of the other family");
        }
    }
}
