//! Endpoint URLs and the addresses in them.
//!
//! The HTTP client reads an accepted URL as the validation read it, and the target guard blocks
//! every address that is not public.
#![no_main]

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use libfuzzer_sys::fuzz_target;
use nano_webhooks::client::target_guard::TargetGuard;
use nano_webhooks_core::target_policy::{NOT_ALLOWED, NOT_HTTPS, TargetPolicy, blocked_reason};
use nano_webhooks_core::{
    account_id::AccountId, delivery::failure::Failure, endpoint_url::EndpointUrl,
};
use nano_webhooks_fuzz::poll_ready;
use url::Host;

fuzz_target!(|input: &str| {
    check(input);

    // Mutated text is rarely an IP address, so some addresses are derived from each input.
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let hash = hasher.finish();
    let v4 = Ipv4Addr::from_bits((hash & u64::from(u32::MAX)) as u32);
    let v6 = Ipv6Addr::from_bits(u128::from(hash) << 64 | u128::from(hash));
    for host in [
        format!("{v4}"),
        format!("[{v6}]"),
        format!("[::{v4}]"),
        format!("[::ffff:{v4}]"),
        format!("[64:ff9b::{v4}]"),
    ] {
        check(&format!("https://{host}/"));
    }
});

fn check(input: &str) {
    let Ok(endpoint) = EndpointUrl::parse(input) else {
        return;
    };
    let url = endpoint.url();

    assert_eq!(endpoint.as_str(), input);
    assert!(!input.chars().any(is_forbidden));
    assert!(["http", "https"].contains(&url.scheme()));
    let (_, rest) = input.split_once("://").expect("a scheme");
    assert!(!rest.starts_with(['/', '?', '#', ':', '@']));
    assert!(url.username().is_empty() && url.password().is_none() && url.fragment().is_none());

    // The HTTP client parses the normalized URL with another library.
    let uri: http::Uri = url.as_str().parse().expect("a URI");
    assert_eq!(uri.host(), url.host_str());
    assert_eq!(uri.port_u16(), url.port());
    assert_eq!(uri.path(), url.path());
    assert_eq!(uri.query(), url.query());

    // Percent-encoding can make the normalized URL longer than the limit of the input.
    if url.as_str().chars().count() <= EndpointUrl::MAX {
        let reparsed = EndpointUrl::parse(url.as_str()).expect("a normalized URL is valid");
        assert_eq!(reparsed.url(), url);
    }

    let ip = match url.host().expect("a host") {
        Host::Ipv4(ip) => IpAddr::V4(ip),
        Host::Ipv6(ip) => IpAddr::V6(ip),
        Host::Domain(_) => return,
    };
    let account = AccountId::parse("acme").expect("an account id");
    let guard = |policy| poll_ready(TargetGuard::new(policy, vec![]).resolve(&account, &endpoint));
    let address = SocketAddr::new(ip, url.port_or_known_default().expect("a port"));
    assert_eq!(guard(TargetPolicy::Any), Ok(vec![address]));
    let expected = match blocked_reason(ip) {
        _ if url.scheme() == "http" => Err(Failure::Blocked(NOT_HTTPS).into()),
        Some(_) => Err(Failure::Blocked(NOT_ALLOWED).into()),
        None => Ok(vec![address]),
    };
    assert_eq!(guard(TargetPolicy::Public), expected);
    if expected.is_ok() {
        assert!(is_public(ip), "{ip}");
    }
}

fn is_forbidden(character: char) -> bool {
    character.is_control() || character.is_whitespace() || character == '\\'
}

/// Whether an address is public according to the standard library, which has no table in common
/// with the guard.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast()
        || ip.is_documentation()
        || ip.octets()[0] == 0)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [.., high, low] = ip.segments();
    let last = Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    let nat64 = ip.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
    !(ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_multicast()
        || ip.is_unique_local()
        || ip.is_unicast_link_local()
        || ip.to_ipv4().is_some_and(|ip| !is_public_v4(ip))
        || nat64 && !is_public_v4(last))
}
