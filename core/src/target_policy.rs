//! The target policy: which endpoints may be called.

use std::{fmt, net::IpAddr, str::FromStr, sync::LazyLock};

use ipnet::IpNet;
use url::Url;

/// The target policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetPolicy {
    /// `https` only, and every address of the host must be public.
    Public,
    /// Any URL, for a developer's machine.
    Any,
}

/// The text is not a target policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `public` or `any`")]
pub struct TargetPolicyError;

impl FromStr for TargetPolicy {
    type Err = TargetPolicyError;

    fn from_str(text: &str) -> Result<Self, TargetPolicyError> {
        match text {
            "public" => Ok(Self::Public),
            "any" => Ok(Self::Any),
            _ => Err(TargetPolicyError),
        }
    }
}

impl fmt::Display for TargetPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Any => "any",
        })
    }
}

/// The rule that blocks plain HTTP.
pub const NOT_HTTPS: &str = "it is not https";
/// The rule that blocks an address. It does not say which range the address is in, because a name
/// could then be used to explore a network.
pub const NOT_ALLOWED: &str = "it resolves to an address that is not allowed";

/// The target policy with the ranges that the operator allows in addition or denies.
#[derive(Clone, Debug)]
pub struct TargetRules {
    policy: TargetPolicy,
    allowed: Vec<IpNet>,
    denied: Vec<IpNet>,
}

impl TargetRules {
    /// Makes rules of a policy and the ranges that are allowed in addition to public addresses.
    pub const fn new(policy: TargetPolicy, allowed: Vec<IpNet>) -> Self {
        Self {
            policy,
            allowed,
            denied: Vec::new(),
        }
    }

    /// Denies ranges, whatever the policy is and whichever ranges are allowed.
    #[must_use]
    pub fn with_denied(self, denied: Vec<IpNet>) -> Self {
        Self { denied, ..self }
    }

    /// The rule that blocks the scheme of a URL; `None` if the scheme is allowed.
    pub fn blocked_scheme(&self, url: &Url) -> Option<&'static str> {
        if self.policy == TargetPolicy::Public && url.scheme() != "https" {
            return Some(NOT_HTTPS);
        }
        None
    }

    /// The rule that blocks a host name before it is resolved; `None` if it is allowed. Names below
    /// `localhost` mean this machine, whatever a name server says (RFC 6761, section 6.3).
    pub fn blocked_name(&self, name: &str) -> Option<&'static str> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let is_local = name == "localhost" || name.ends_with(".localhost");
        if self.policy == TargetPolicy::Public && is_local {
            return Some(NOT_ALLOWED);
        }
        None
    }

    /// The rule that blocks an address; `None` if the address is allowed.
    pub fn blocked_address(&self, address: IpAddr) -> Option<&'static str> {
        // A connection to an IPv4-mapped address goes to the IPv4 address (RFC 4291, section
        // 2.5.5.2).
        let reached = [address, address.to_canonical()];
        if self
            .denied
            .iter()
            .any(|range| reached.iter().any(|address| range.contains(address)))
        {
            return Some(NOT_ALLOWED);
        }
        if self.policy == TargetPolicy::Any {
            return None;
        }
        if self.allowed.iter().any(|range| range.contains(&address)) {
            return None;
        }
        blocked_reason(address).map(|_| NOT_ALLOWED)
    }
}

/// Ranges that are not public, with their names.
///
/// See also the IANA special-purpose address registries.
const BLOCKED_RANGES: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this network"),                // RFC 791, section 3.2
    ("10.0.0.0/8", "private address"),            // RFC 1918
    ("100.64.0.0/10", "shared address space"),    // RFC 6598
    ("127.0.0.0/8", "loopback address"),          // RFC 1122, section 3.2.1.3
    ("169.254.0.0/16", "link-local address"),     // RFC 3927; instance and task metadata
    ("172.16.0.0/12", "private address"),         // RFC 1918
    ("192.0.0.0/24", "protocol assignments"),     // RFC 6890
    ("192.0.2.0/24", "documentation address"),    // RFC 5737
    ("192.88.99.0/24", "6to4 relay address"),     // RFC 7526
    ("192.168.0.0/16", "private address"),        // RFC 1918
    ("198.18.0.0/15", "benchmarking address"),    // RFC 2544
    ("198.51.100.0/24", "documentation address"), // RFC 5737
    ("203.0.113.0/24", "documentation address"),  // RFC 5737
    ("224.0.0.0/4", "multicast address"),         // RFC 5771
    ("240.0.0.0/4", "reserved address"),          // RFC 1112, section 4
    ("168.63.129.16/32", "platform service address"), // Azure's host agent
    ("2001::/23", "protocol assignments"),        // RFC 2928; holds Teredo, RFC 4380
    ("2001:db8::/32", "documentation address"),   // RFC 3849
    ("2002::/16", "6to4 address"),                // RFC 3056
    ("3fff::/20", "documentation address"),       // RFC 9637
];

/// The only public range of IPv6 (RFC 4291, section 2.4; IANA has allocated `2000::/3`). Loopback,
/// unique local, link-local, multicast, IPv4-mapped (RFC 4291) and NAT64 (RFC 6052) addresses are
/// outside.
const GLOBAL_UNICAST: &str = "2000::/3";

static PARSED_RANGES: LazyLock<Vec<(IpNet, &'static str)>> = LazyLock::new(|| {
    let mut ranges = Vec::with_capacity(BLOCKED_RANGES.len());
    for (range, rule) in BLOCKED_RANGES {
        ranges.push((range.parse().expect("the table has CIDR ranges"), *rule));
    }
    ranges
});

static PARSED_UNICAST: LazyLock<IpNet> = LazyLock::new(|| {
    GLOBAL_UNICAST
        .parse()
        .expect("the constant is a CIDR range")
});

/// The name of the range by which an address is not public; `None` for a public address.
pub fn blocked_reason(address: IpAddr) -> Option<&'static str> {
    if address.is_ipv6() && !PARSED_UNICAST.contains(&address) {
        return Some("not a global unicast address");
    }
    let (_, rule) = PARSED_RANGES
        .iter()
        .find(|(range, _)| range.contains(&address))?;
    Some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(address: &str) -> Option<&'static str> {
        blocked_reason(address.parse().unwrap())
    }

    #[test]
    fn bounds_of_ranges_are_blocked() {
        for (range, rule) in PARSED_RANGES.iter() {
            assert_eq!(blocked_reason(range.addr()), Some(*rule), "{range}");
            assert_eq!(blocked_reason(range.broadcast()), Some(*rule), "{range}");
        }
    }

    #[test]
    fn metadata_services_are_blocked() {
        for address in [
            "127.0.0.1",       // Lambda's runtime API, by the name `localhost`
            "169.254.100.1",   // Lambda's runtime API
            "169.254.169.254", // instance metadata: EC2, Azure, GCP and others
            "fd00:ec2::254",   // EC2's over IPv6
            "169.254.170.2",   // ECS: credentials of the task
            "169.254.170.23",  // EKS: credentials of the pod
            "fd00:ec2::23",    // EKS's over IPv6
            "169.254.169.253", // the VPC's resolver
            "168.63.129.16",   // Azure's host agent
            "100.100.100.200", // Alibaba's metadata
            "192.0.0.192",     // Oracle's metadata
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe", // through NAT64
            "2002:a9fe:a9fe::1",  // through 6to4
        ] {
            assert!(reason(address).is_some(), "{address}");
        }
    }

    #[test]
    fn neighbors_of_ranges_are_public() {
        for address in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "168.63.129.15",
            "168.63.129.17",
            "2001:200::1",
            "2606:4700::1111",
            "2003::1",
            "3fff:1000::1",
        ] {
            assert_eq!(reason(address), None, "{address}");
        }
    }

    #[test]
    fn ipv6_outside_global_unicast_is_blocked() {
        for address in [
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "100::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "4000::1",
        ] {
            assert!(reason(address).is_some(), "{address}");
        }
    }

    /// Allowed ranges and the policy `any` override the ranges, but not the scheme.
    #[test]
    fn operator_can_allow_ranges() {
        let private: IpAddr = "10.1.2.3".parse().unwrap();
        let http = Url::parse("http://10.1.2.3/").unwrap();
        let rules = TargetRules::new(TargetPolicy::Public, vec!["10.1.0.0/16".parse().unwrap()]);
        assert_eq!(rules.blocked_address(private), None);
        assert_eq!(rules.blocked_scheme(&http), Some(NOT_HTTPS));
        let other: IpAddr = "10.2.2.3".parse().unwrap();
        assert_eq!(rules.blocked_address(other), Some(NOT_ALLOWED));
        let any = TargetRules::new(TargetPolicy::Any, vec![]);
        assert_eq!(any.blocked_address(private), None);
        assert_eq!(any.blocked_scheme(&http), None);
    }

    /// Denied ranges win over the policy and over allowed ranges.
    #[test]
    fn operator_can_deny_ranges() {
        let denied = ["10.1.2.0/24", "93.184.215.14/32", "2606:4700::/32"];
        let denied: Vec<IpNet> = denied.iter().map(|range| range.parse().unwrap()).collect();
        let allowed = vec!["10.1.0.0/16".parse().unwrap()];
        let public = TargetRules::new(TargetPolicy::Public, allowed).with_denied(denied.clone());
        let any = TargetRules::new(TargetPolicy::Any, vec![]).with_denied(denied);
        for address in [
            "10.1.2.3",
            "::ffff:10.1.2.3",
            "93.184.215.14",
            "2606:4700::1",
        ] {
            let parsed = address.parse().unwrap();
            assert_eq!(
                public.blocked_address(parsed),
                Some(NOT_ALLOWED),
                "{address}"
            );
            assert_eq!(any.blocked_address(parsed), Some(NOT_ALLOWED), "{address}");
        }
        for address in ["10.1.3.3", "93.184.215.15", "2606:4701::1"] {
            let parsed = address.parse().unwrap();
            assert_eq!(public.blocked_address(parsed), None, "{address}");
            assert_eq!(any.blocked_address(parsed), None, "{address}");
        }
    }

    #[test]
    fn names_of_this_machine_are_blocked() {
        let rules = TargetRules::new(TargetPolicy::Public, vec![]);
        for name in ["localhost", "LocalHost.", "x.localhost", "a.b.localhost."] {
            assert_eq!(rules.blocked_name(name), Some(NOT_ALLOWED), "{name}");
        }
        for name in ["localhost.example", "notlocalhost", "example.com."] {
            assert_eq!(rules.blocked_name(name), None, "{name}");
        }
        let any = TargetRules::new(TargetPolicy::Any, vec![]);
        assert_eq!(any.blocked_name("localhost"), None);
    }
}
