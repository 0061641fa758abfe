//! Resolves the targets of requests and applies the target policy to every address.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::failure::Failure,
    endpoint_url::EndpointUrl,
    target_policy::{TargetPolicy, TargetRules},
};
use url::Host;

use super::{
    local_failure::ExchangeError,
    lookup_slots::MAX_LOOKUPS,
    resolver::{Resolver, RunningLookup},
};

/// How long a name may take to resolve when a webhook is registered. A name that takes longer is
/// accepted, like a name that does not resolve yet.
const REGISTRATION_LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Decides which targets may be called, and resolves their names.
#[derive(Clone, Debug)]
pub struct TargetGuard {
    rules: TargetRules,
    resolver: Resolver,
}

/// This rule of the target policy blocks the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a public https address; this target is not allowed ({0})")]
pub struct TargetBlockedError(&'static str);

impl TargetGuard {
    /// Makes a guard that uses the system's resolver. The operator allows `allowed` in addition to
    /// public addresses.
    pub fn new(policy: TargetPolicy, allowed: Vec<IpNet>) -> Self {
        Self {
            rules: TargetRules::new(policy, allowed),
            resolver: Resolver::system(MAX_LOOKUPS),
        }
    }

    /// Denies ranges, whatever the policy is and whichever ranges are allowed.
    #[must_use]
    pub fn with_denied(self, denied: Vec<IpNet>) -> Self {
        let rules = self.rules.with_denied(denied);
        Self { rules, ..self }
    }

    /// Replaces the resolver.
    #[must_use]
    pub fn with_resolver(self, resolver: Resolver) -> Self {
        Self { resolver, ..self }
    }

    /// Checks a URL when an account creates or changes a webhook.
    ///
    /// A name that does not resolve is accepted. Its attempts will fail with `dns`.
    pub async fn check_registration(
        &self,
        account: &AccountId,
        url: &EndpointUrl,
    ) -> Result<(), TargetBlockedError> {
        let resolve = self.resolve(account, url);
        match tokio::time::timeout(REGISTRATION_LOOKUP_TIMEOUT, resolve).await {
            Ok(Err(ExchangeError::Endpoint(Failure::Blocked(rule)))) => {
                Err(TargetBlockedError(rule))
            }
            _ => Ok(()),
        }
    }

    /// Resolves the host of an account's URL and checks every address.
    ///
    /// # Errors
    /// See [`Self::start`] and [`Resolution::finish`].
    pub async fn resolve(
        &self,
        account: &AccountId,
        url: &EndpointUrl,
    ) -> Result<Vec<SocketAddr>, ExchangeError> {
        self.start(account, url).await?.finish().await
    }

    /// Starts to resolve the host of an account's URL. It waits only for a slot for the lookup.
    ///
    /// # Errors
    /// [`Failure::Blocked`] if the policy refuses the scheme or the name; [`ExchangeError::Local`]
    /// if no slot becomes free.
    pub async fn start(
        &self,
        account: &AccountId,
        url: &EndpointUrl,
    ) -> Result<Resolution<'_>, ExchangeError> {
        let url = url.url();
        if let Some(rule) = self.rules.blocked_scheme(url) {
            return Err(Failure::Blocked(rule).into());
        }
        let host = match url.host().ok_or(Failure::Dns)? {
            Host::Ipv4(address) => ResolvingHost::Address(address.into()),
            Host::Ipv6(address) => ResolvingHost::Address(address.into()),
            Host::Domain(name) => {
                if let Some(rule) = self.rules.blocked_name(name) {
                    return Err(Failure::Blocked(rule).into());
                }
                ResolvingHost::Name(self.resolver.start(account, name).await?)
            }
        };
        Ok(Resolution {
            rules: &self.rules,
            host,
            port: url.port_or_known_default().ok_or(Failure::Dns)?,
        })
    }
}

/// A target that is being resolved.
pub struct Resolution<'a> {
    rules: &'a TargetRules,
    host: ResolvingHost,
    port: u16,
}

enum ResolvingHost {
    Address(IpAddr),
    Name(RunningLookup),
}

impl Resolution<'_> {
    /// Whether the host is a name.
    pub(super) const fn is_lookup(&self) -> bool {
        matches!(self.host, ResolvingHost::Name(_))
    }

    /// Waits for the addresses and checks each of them.
    ///
    /// # Errors
    /// [`Failure::Blocked`] if the policy refuses one of the addresses; else as the lookup failed.
    pub async fn finish(self) -> Result<Vec<SocketAddr>, ExchangeError> {
        let addresses = match self.host {
            ResolvingHost::Address(address) => vec![address],
            ResolvingHost::Name(lookup) => lookup.await?,
        };
        let mut targets = Vec::with_capacity(addresses.len());
        for address in addresses {
            if let Some(rule) = self.rules.blocked_address(address) {
                return Err(Failure::Blocked(rule).into());
            }
            targets.push(SocketAddr::new(address, self.port));
        }
        if targets.is_empty() {
            return Err(Failure::Dns.into());
        }
        Ok(targets)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Arc};

    use nano_webhooks_core::target_policy::{NOT_ALLOWED, NOT_HTTPS};

    use super::*;

    fn account() -> AccountId {
        AccountId::parse("acme").unwrap()
    }

    async fn resolve(guard: &TargetGuard, url: &EndpointUrl) -> Result<Vec<SocketAddr>, Failure> {
        match guard.resolve(&account(), url).await {
            Ok(targets) => Ok(targets),
            Err(ExchangeError::Endpoint(failure)) => Err(failure),
            Err(ExchangeError::Local(failure)) => panic!("{failure}"),
        }
    }

    fn url(text: &str) -> EndpointUrl {
        EndpointUrl::parse(text).unwrap()
    }

    /// Literal addresses are refused in every form that the URL standard normalizes.
    #[tokio::test]
    async fn private_literals_are_refused() {
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
                matches!(resolve(&guard, &target).await, Err(Failure::Blocked(_))),
                "{literal}"
            );
            assert!(
                guard
                    .check_registration(&account(), &target)
                    .await
                    .unwrap_err()
                    .to_string()
                    .starts_with("expected a public https address"),
                "{literal}"
            );
        }
    }

    #[tokio::test]
    async fn public_policy_needs_https() {
        let guard = TargetGuard::new(TargetPolicy::Public, vec!["10.1.0.0/16".parse().unwrap()]);
        assert_eq!(
            resolve(&guard, &url("http://1.1.1.1/")).await,
            Err(Failure::Blocked(NOT_HTTPS))
        );
        assert!(resolve(&guard, &url("https://1.1.1.1/")).await.is_ok());
        assert!(resolve(&guard, &url("https://10.1.2.3/")).await.is_ok());
        assert_eq!(
            resolve(&guard, &url("https://10.2.2.3/")).await,
            Err(Failure::Blocked(NOT_ALLOWED))
        );
        assert_eq!(
            resolve(&guard, &url("http://10.1.2.3/")).await,
            Err(Failure::Blocked(NOT_HTTPS)),
            "an allowed range does not allow plain HTTP"
        );
    }

    #[tokio::test]
    async fn unresolved_name_is_accepted_at_registration() {
        let guard = TargetGuard::new(TargetPolicy::Public, vec![]);
        let target = url("https://no-such-host.invalid/");
        assert_eq!(guard.check_registration(&account(), &target).await, Ok(()));
        assert_eq!(resolve(&guard, &target).await, Err(Failure::Dns));
    }

    #[tokio::test]
    async fn one_blocked_address_refuses_name() {
        let name = url("https://mixed.example/");
        for (addresses, blocked) in [
            (&["93.184.215.14", "2606:4700::1111"][..], None),
            (&["93.184.215.14", "127.0.0.1"], Some(NOT_ALLOWED)),
            (&["169.254.169.254", "93.184.215.14"], Some(NOT_ALLOWED)),
            (&["93.184.215.14", "::1"], Some(NOT_ALLOWED)),
            (&["2606:4700::1111", "::ffff:10.0.0.1"], Some(NOT_ALLOWED)),
        ] {
            let found: Vec<IpAddr> = addresses
                .iter()
                .map(|address| address.parse().unwrap())
                .collect();
            let resolver = Resolver::new(Arc::new(move |_| {
                let found = found.clone();
                Box::pin(async { Ok(found) })
            }));
            let guard = TargetGuard::new(TargetPolicy::Public, vec![]).with_resolver(resolver);
            let resolved = resolve(&guard, &name).await.map(|_| ());
            assert_eq!(
                resolved,
                blocked.map_or(Ok(()), |rule| Err(Failure::Blocked(rule))),
                "{addresses:?}"
            );
            assert_eq!(
                guard.check_registration(&account(), &name).await.is_err(),
                blocked.is_some(),
                "{addresses:?}"
            );
        }
    }

    /// A denied range refuses names that resolve to it and literals, whatever the policy is.
    #[tokio::test]
    async fn denied_range_refuses_names_and_literals() {
        let resolver = Resolver::new(Arc::new(|_| {
            Box::pin(async { Ok(vec!["93.184.215.14".parse().unwrap()]) })
        }));
        for policy in [TargetPolicy::Public, TargetPolicy::Any] {
            let guard = TargetGuard::new(policy, vec!["93.184.0.0/16".parse().unwrap()])
                .with_denied(vec!["93.184.215.0/24".parse().unwrap()])
                .with_resolver(resolver.clone());
            for host in ["name.example", "93.184.215.14", "[::ffff:93.184.215.14]"] {
                let target = url(&format!("https://{host}/"));
                assert_eq!(
                    resolve(&guard, &target).await,
                    Err(Failure::Blocked(NOT_ALLOWED)),
                    "{policy}: {host}"
                );
                assert!(
                    guard.check_registration(&account(), &target).await.is_err(),
                    "{policy}: {host}"
                );
            }
            assert!(
                resolve(&guard, &url("https://93.184.216.14/"))
                    .await
                    .is_ok()
            );
        }
    }

    #[tokio::test]
    async fn any_policy_allows_private_http() {
        let guard = TargetGuard::new(TargetPolicy::Any, vec![]);
        assert_eq!(
            resolve(&guard, &url("http://127.0.0.1:9000/")).await,
            Ok(vec!["127.0.0.1:9000".parse().unwrap()])
        );
    }
}
