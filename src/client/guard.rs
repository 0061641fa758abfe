//! Which addresses may be called: the target policy, and the resolver through which every connection goes.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::LazyLock,
    time::Duration,
};

use ipnet::IpNet;
use url::Host;

use super::resolver::Resolver;
use nano_webhooks_core::{delivery::attempt::Failure, endpoint_url::EndpointUrl};

/// The target policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetPolicy {
    /// https only, and every address that the name resolves to must be public.
    Public,
    /// Any URL: for a developer's machine.
    Any,
}

impl FromStr for TargetPolicy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "public" => Ok(Self::Public),
            "any" => Ok(Self::Any),
            _ => Err("expected `public` or `any`"),
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

/// Ranges that are not public, each with the rule that a refusal names.
/// Where an RFC is named, see also the IANA special-purpose address registries.
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

/// Of IPv6 only global unicast is public (RFC 4291, section 2.4; IANA has allocated `2000::/3`). Loopback, unique local,
/// link-local, multicast, IPv4-mapped (RFC 4291) and NAT64 (RFC 6052) addresses lie outside.
const GLOBAL_UNICAST: &str = "2000::/3";

static RANGES: LazyLock<Vec<(IpNet, &'static str)>> = LazyLock::new(|| {
    let range = |(net, rule): &(&str, &'static str)| {
        (net.parse().expect("the table holds CIDR ranges"), *rule)
    };
    BLOCKED_RANGES.iter().map(range).collect()
});

static UNICAST: LazyLock<IpNet> = LazyLock::new(|| GLOBAL_UNICAST.parse().expect("a CIDR range"));

/// Why `address` is not public; `None` if it is.
pub fn blocked_reason(address: IpAddr) -> Option<&'static str> {
    if address.is_ipv6() && !UNICAST.contains(&address) {
        return Some("not a global unicast address");
    }
    RANGES
        .iter()
        .find(|(net, _)| net.contains(&address))
        .map(|(_, rule)| *rule)
}

/// Decides which targets may be called, and resolves their names.
#[derive(Clone, Debug)]
pub struct TargetGuard {
    policy: TargetPolicy,
    allowed: Vec<IpNet>,
    resolver: Resolver,
}

impl TargetGuard {
    /// How long a name may take to resolve when a webhook is created; one that takes longer is accepted, as one that
    /// does not resolve yet.
    const CREATION_TIMEOUT: Duration = Duration::from_secs(2);

    /// A guard with this policy; `allowed` are ranges that the operator permits beside it. Names go through the system's
    /// resolver.
    pub fn new(policy: TargetPolicy, allowed: Vec<IpNet>) -> Self {
        Self {
            policy,
            allowed,
            resolver: Resolver::system(),
        }
    }

    /// The same guard, with names going through another resolver.
    #[must_use]
    pub fn with_resolver(self, resolver: Resolver) -> Self {
        Self { resolver, ..self }
    }

    /// Checks a URL when a webhook is created or changed. A name that does not resolve is accepted: its attempts will say `dns`.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub async fn check(&self, url: &EndpointUrl) -> Result<(), String> {
        match tokio::time::timeout(Self::CREATION_TIMEOUT, self.resolve(url)).await {
            Ok(Err(Failure::Blocked(rule))) => Err(format!(
                "expected a public https address; this target is refused ({rule})"
            )),
            _ => Ok(()),
        }
    }

    /// The addresses that may be connected to for this URL: all that its host resolves to, after each was checked.
    ///
    /// # Errors
    /// [`Failure::Blocked`] if the policy refuses the scheme or one of the addresses, [`Failure::Dns`] if there are none.
    pub async fn resolve(&self, url: &EndpointUrl) -> Result<Vec<SocketAddr>, Failure> {
        let url = url.url();
        if self.policy == TargetPolicy::Public && url.scheme() != "https" {
            return Err(Failure::Blocked("not https"));
        }
        let port = url.port_or_known_default().ok_or(Failure::Dns)?;
        let addresses: Vec<SocketAddr> = match url.host().ok_or(Failure::Dns)? {
            Host::Ipv4(ip) => vec![(ip, port).into()],
            Host::Ipv6(ip) => vec![(ip, port).into()],
            Host::Domain(name) => {
                let found = self.resolver.addresses(name).await.into_iter();
                found.map(|address| (address.ip(), port).into()).collect()
            }
        };
        if addresses.is_empty() {
            return Err(Failure::Dns);
        }
        match addresses
            .iter()
            .find_map(|address| self.blocked_reason(address.ip()))
        {
            Some(rule) => Err(Failure::Blocked(rule)),
            None => Ok(addresses),
        }
    }

    fn blocked_reason(&self, address: IpAddr) -> Option<&'static str> {
        if self.policy == TargetPolicy::Any || self.allowed.iter().any(|net| net.contains(&address))
        {
            return None;
        }
        blocked_reason(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> EndpointUrl {
        EndpointUrl::parse(text).unwrap()
    }

    #[test]
    fn the_first_and_last_address_of_each_refused_range_are_refused() {
        for (net, rule) in RANGES.iter() {
            assert_eq!(blocked_reason(net.addr()), Some(*rule), "{net}");
            assert_eq!(blocked_reason(net.broadcast()), Some(*rule), "{net}");
        }
    }

    #[test]
    fn what_clouds_and_lambda_itself_listen_on_is_refused() {
        for address in [
            "127.0.0.1",       // Lambda's runtime API, by name `localhost`
            "169.254.100.1",   // Lambda's runtime API
            "169.254.169.254", // instance metadata: EC2, Azure, GCP and others
            "fd00:ec2::254",   // the same of EC2 over IPv6
            "169.254.170.2",   // ECS: credentials of the task
            "169.254.170.23",  // EKS: credentials of the pod
            "fd00:ec2::23",    // the same over IPv6
            "169.254.169.253", // the VPC's resolver
            "168.63.129.16",   // Azure's host agent
            "100.100.100.200", // Alibaba's metadata
            "192.0.0.192",     // Oracle's metadata
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe", // the same through NAT64
            "2002:a9fe:a9fe::1",  // the same through 6to4
        ] {
            assert!(
                blocked_reason(address.parse().unwrap()).is_some(),
                "{address}"
            );
        }
    }

    #[test]
    fn addresses_beside_the_refused_ranges_are_public() {
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
            assert_eq!(blocked_reason(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn of_ipv6_everything_outside_global_unicast_is_refused() {
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
            assert!(
                blocked_reason(address.parse().unwrap()).is_some(),
                "{address}"
            );
        }
    }

    #[tokio::test]
    async fn literals_are_refused_in_every_form_that_the_url_standard_normalises() {
        let guard = TargetGuard::new(TargetPolicy::Public, vec![]);
        for literal in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0x7f.0.0.0x1",
            "１２７.0.0.1",
            "127.0.0.1.",
            "169.254.169.254",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
            "0",
            "localhost",
        ] {
            let target = url(&format!("https://{literal}/hook"));
            assert!(
                matches!(guard.resolve(&target).await, Err(Failure::Blocked(_))),
                "{literal}"
            );
            assert!(
                guard
                    .check(&target)
                    .await
                    .unwrap_err()
                    .starts_with("expected a public https address"),
                "{literal}"
            );
        }
    }

    #[tokio::test]
    async fn public_means_https_and_an_allowed_range_is_let_through() {
        let guard = TargetGuard::new(TargetPolicy::Public, vec!["10.1.0.0/16".parse().unwrap()]);
        assert_eq!(
            guard.resolve(&url("http://1.1.1.1/")).await,
            Err(Failure::Blocked("not https"))
        );
        assert!(guard.resolve(&url("https://1.1.1.1/")).await.is_ok());
        assert!(guard.resolve(&url("https://10.1.2.3/")).await.is_ok());
        assert_eq!(
            guard.resolve(&url("https://10.2.2.3/")).await,
            Err(Failure::Blocked("private address"))
        );
        assert_eq!(
            guard.resolve(&url("http://10.1.2.3/")).await,
            Err(Failure::Blocked("not https")),
            "an allowed range does not allow plain HTTP"
        );
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_accepted_at_creation_and_is_a_dns_failure_later() {
        let guard = TargetGuard::new(TargetPolicy::Public, vec![]);
        let target = url("https://no-such-host.invalid/");
        assert_eq!(guard.check(&target).await, Ok(()));
        assert_eq!(guard.resolve(&target).await, Err(Failure::Dns));
    }

    #[tokio::test]
    async fn one_address_that_is_refused_among_several_refuses_the_name() {
        let name = url("https://mixed.example/");
        for (answer, refused) in [
            (&["93.184.215.14", "2606:4700::1111"][..], None),
            (&["93.184.215.14", "127.0.0.1"], Some("loopback address")),
            (
                &["169.254.169.254", "93.184.215.14"],
                Some("link-local address"),
            ),
            (
                &["93.184.215.14", "::1"],
                Some("not a global unicast address"),
            ),
            (
                &["2606:4700::1111", "::ffff:10.0.0.1"],
                Some("not a global unicast address"),
            ),
        ] {
            let found: Vec<SocketAddr> = answer
                .iter()
                .map(|ip| (ip.parse::<IpAddr>().unwrap(), 0).into())
                .collect();
            let resolver = Resolver::new(std::sync::Arc::new(move |_| {
                let found = found.clone();
                Box::pin(async { Ok(found) })
            }));
            let guard = TargetGuard::new(TargetPolicy::Public, vec![]).with_resolver(resolver);
            let resolved = guard.resolve(&name).await.map(|_| ());
            assert_eq!(
                resolved,
                refused.map_or(Ok(()), |rule| Err(Failure::Blocked(rule))),
                "{answer:?}"
            );
            assert_eq!(
                guard.check(&name).await.is_err(),
                refused.is_some(),
                "{answer:?}"
            );
        }
    }

    #[tokio::test]
    async fn any_lets_private_addresses_and_plain_http_through() {
        let guard = TargetGuard::new(TargetPolicy::Any, vec![]);
        assert_eq!(
            guard.resolve(&url("http://127.0.0.1:9000/")).await,
            Ok(vec!["127.0.0.1:9000".parse().unwrap()])
        );
    }
}
