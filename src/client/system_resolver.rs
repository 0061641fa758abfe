//! Looks names up as the system does: in `/etc/hosts`, then at the name servers of
//! `/etc/resolv.conf`, with its search domains and options.

use std::{
    fs,
    future::Future,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::future::{Either, select};
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RecordType},
    },
    system_conf::read_system_conf,
};
use nano_webhooks_core::delivery::failure::Failure;
use tokio::time::timeout;

use super::local_failure::{ExchangeError, LocalFailure};

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long the addresses of one family are waited for after those of the other one have arrived
/// (RFC 8305, section 3: 50 ms).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// The most questions on a TCP connection to a name server: more than all lookups ask.
const MAX_QUESTIONS_PER_CONNECTION: usize = 1024;

/// The addresses of a name. There is at least one.
pub type LookupResult = Result<Vec<IpAddr>, ExchangeError>;

/// The system's resolver. It reads its files again when they have changed.
pub(super) struct SystemResolver {
    current: Mutex<Option<(FileVersions, Arc<Configuration>)>>,
}

/// What changes when one of the files is written or replaced.
type FileVersions = [Option<(SystemTime, u64)>; 2];

impl SystemResolver {
    pub(super) const fn new() -> Self {
        Self {
            current: Mutex::new(None),
        }
    }

    /// Looks up the addresses of a name.
    pub(super) async fn lookup(&self, name: &str) -> LookupResult {
        let configuration = self.configuration();
        configuration.lookup(name).await
    }

    fn configuration(&self) -> Arc<Configuration> {
        let versions = [HOSTS, RESOLV_CONF].map(|file| file_version(Path::new(file)));
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some((read, configuration)) if *read == versions => configuration.clone(),
            _ => {
                let configuration = Arc::new(Configuration::read());
                *current = Some((versions, configuration.clone()));
                configuration
            }
        }
    }
}

/// Reads the hosts file. A comment may have bytes that are not UTF-8.
fn read_hosts() -> Hosts {
    let Ok(bytes) = fs::read(HOSTS) else {
        return Hosts::from_system().unwrap_or_default();
    };
    parse_hosts(&bytes)
}

fn parse_hosts(bytes: &[u8]) -> Hosts {
    let text = String::from_utf8_lossy(bytes);
    let mut hosts = Hosts::default();
    let parsed = hosts.read_hosts_conf(text.as_bytes());
    parsed.expect("a text in memory is readable");
    hosts
}

fn file_version(file: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The contents of the files.
struct Configuration {
    hosts: Hosts,
    search: Vec<Name>,
    ndots: usize,
    name_servers: TokioResolver,
}

impl Configuration {
    fn read() -> Self {
        let hosts = read_hosts();
        if let Ok((config, options)) = read_system_conf() {
            return Self::new(hosts, &config, options);
        }
        // Without a list of name servers, there is one on this machine (resolv.conf(5)).
        let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
        let config = ResolverConfig::from_parts(None, vec![], vec![local]);
        Self::new(hosts, &config, ResolverOpts::default())
    }

    fn new(hosts: Hosts, system: &ResolverConfig, mut options: ResolverOpts) -> Self {
        let mut name_servers = system.name_servers().to_vec();
        // Two servers are asked at the same time. One that does not know the name decides nothing
        // while another one may know it.
        let is_only = name_servers.len() == 1;
        for server in &mut name_servers {
            server.trust_negative_responses = is_only;
        }
        options.cache_size = 0;
        options.positive_max_ttl = Some(Duration::ZERO);
        options.negative_max_ttl = Some(Duration::ZERO);
        options.use_hosts_file = ResolveHosts::Never;
        options.max_active_requests = MAX_QUESTIONS_PER_CONNECTION;
        let ndots = options.ndots;
        let config = ResolverConfig::from_parts(None, vec![], name_servers);
        let provider = TokioRuntimeProvider::default();
        let builder = TokioResolver::builder_with_config(config, provider).with_options(options);
        Self {
            hosts,
            search: search_domains(system),
            ndots,
            name_servers: builder.build().expect("the resolver uses no TLS"),
        }
    }

    async fn lookup(&self, name: &str) -> LookupResult {
        let Ok(name) = Name::from_str_relaxed(name) else {
            return Err(Failure::Dns.into());
        };
        let from_hosts = self.find_in_hosts(&name);
        if !from_hosts.is_empty() {
            return Ok(from_hosts);
        }
        let mut error = ExchangeError::Endpoint(Failure::Dns);
        for candidate in candidates(&name, &self.search, self.ndots) {
            match self.lookup_both_families(candidate).await {
                Ok(addresses) => return Ok(addresses),
                // A name server that does not answer may know the name.
                Err(failed) if error == ExchangeError::Endpoint(Failure::Dns) => error = failed,
                Err(_) => {}
            }
        }
        Err(error)
    }

    fn find_in_hosts(&self, name: &Name) -> Vec<IpAddr> {
        let find = |record_type| {
            let query = Query::query(name.clone(), record_type);
            self.hosts.lookup_static_host(&query)
        };
        let [v6, v4] = [RecordType::AAAA, RecordType::A].map(find);
        interleave(
            v6.iter().flat_map(addresses).collect(),
            v4.iter().flat_map(addresses).collect(),
        )
    }

    /// Asks for both families at the same time. A name server that never answers for one of them
    /// does not hold the other one up.
    async fn lookup_both_families(&self, name: Name) -> LookupResult {
        let v6 = pin!(self.name_servers.ipv6_lookup(name.clone()));
        let v4 = pin!(self.name_servers.ipv4_lookup(name));
        let families = match select(v6, v4).await {
            Either::Left((v6, v4)) => {
                let v4 = await_other_family(&v6, v4).await;
                [Some(v6), v4]
            }
            Either::Right((v4, v6)) => {
                let v6 = await_other_family(&v4, v6).await;
                [v6, Some(v4)]
            }
        };
        let mut error = ExchangeError::Endpoint(Failure::Dns);
        let [v6, v4] = families.map(|family| match family {
            Some(Ok(lookup)) => addresses(&lookup).collect(),
            Some(Err(failed)) => {
                error = most_telling(&error, &failed);
                Vec::new()
            }
            None => Vec::new(),
        });
        let addresses = interleave(v6, v4);
        if addresses.is_empty() {
            return Err(error);
        }
        Ok(addresses)
    }
}

/// Waits for the addresses of the other family, but only briefly if the first one has some.
async fn await_other_family(
    first: &Result<Lookup, NetError>,
    other: impl Future<Output = Result<Lookup, NetError>>,
) -> Option<Result<Lookup, NetError>> {
    match first {
        Ok(lookup) if addresses(lookup).next().is_some() => {
            timeout(RESOLUTION_DELAY, other).await.ok()
        }
        _ => Some(other.await),
    }
}

fn addresses(lookup: &Lookup) -> impl Iterator<Item = IpAddr> + '_ {
    let records = lookup.answers().iter();
    records.filter_map(|record| record.data.ip_addr())
}

/// Addresses in the order in which they are tried: one of each family in turn, IPv6 first (RFC
/// 8305, section 4).
fn interleave(v6: Vec<IpAddr>, v4: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut families = [v6.into_iter(), v4.into_iter()];
    let mut addresses = Vec::new();
    loop {
        let count = addresses.len();
        addresses.extend(families.iter_mut().filter_map(Iterator::next));
        if addresses.len() == count {
            return addresses;
        }
    }
}

/// The error that says most. A failure of this process comes first, because then nothing is known
/// of the name; that a family does not exist comes last.
fn most_telling(previous: &ExchangeError, error: &NetError) -> ExchangeError {
    match (previous, classify(error)) {
        (ExchangeError::Local(_), _) | (_, ExchangeError::Endpoint(Failure::Dns)) => {
            previous.clone()
        }
        (_, error) => error,
    }
}

fn classify(error: &NetError) -> ExchangeError {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none))
            if matches!(
                none.response_code,
                ResponseCode::NoError | ResponseCode::NXDomain
            ) =>
        {
            Failure::Dns.into()
        }
        NetError::Io(error) => match LocalFailure::from_io(error) {
            Some(failure) => failure.into(),
            // The operating system has an error number for what happened on the network.
            None if error.raw_os_error().is_none() => LocalFailure::NoSocket.into(),
            None => Failure::NameServer.into(),
        },
        NetError::NoConnections | NetError::Busy => LocalFailure::NoSocket.into(),
        _ => Failure::NameServer.into(),
    }
}

/// The domains in which a name is searched: the configured ones, or else the domain of this
/// machine.
fn search_domains(config: &ResolverConfig) -> Vec<Name> {
    match config.search() {
        [] => config.domain().cloned().into_iter().collect(),
        search => search.to_vec(),
    }
}

/// The full names to look up, in order (resolv.conf(5), `search` and `ndots`).
fn candidates(name: &Name, search: &[Name], ndots: usize) -> Vec<Name> {
    if name.is_fqdn() {
        return vec![name.clone()];
    }
    let mut candidates = Vec::with_capacity(search.len() + 1);
    for domain in search {
        // A name that would be too long does not exist.
        if let Ok(mut candidate) = name.clone().append_domain(domain) {
            candidate.set_fqdn(true);
            candidates.push(candidate);
        }
    }
    let mut absolute = name.clone();
    absolute.set_fqdn(true);
    let dots = usize::from(name.num_labels()).saturating_sub(1);
    // A name of this machine needs no domain.
    if dots >= ndots || name.is_localhost() {
        candidates.insert(0, absolute);
    } else {
        candidates.push(absolute);
    }
    candidates
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, str::FromStr};

    use hickory_resolver::proto::{
        op::Message,
        rr::{RData, Record},
    };
    use tokio::net::UdpSocket;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    /// What a name server answers to a question for one record type.
    #[derive(Clone, Copy)]
    enum Answer {
        Address(&'static str),
        Code(ResponseCode),
        Nothing,
    }

    use Answer::{Address, Code, Nothing};

    const EMPTY: Answer = Code(ResponseCode::NoError);

    type Answers = Arc<Mutex<HashMap<(Name, RecordType), Answer>>>;

    /// A name server. Names without an answer do not exist.
    struct NameServer {
        config: NameServerConfig,
        answers: Answers,
        _task: AbortOnDropHandle<()>,
    }

    impl NameServer {
        /// Starts a name server with these answers for A and AAAA.
        async fn start(names: &[(&'static str, Answer, Answer)]) -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let mut config = NameServerConfig::udp(Ipv4Addr::LOCALHOST.into());
            config.connections[0].port = socket.local_addr().unwrap().port();
            let answers = Answers::default();
            let task = AbortOnDropHandle::new(tokio::spawn(serve(socket, answers.clone())));
            let server = Self {
                config,
                answers,
                _task: task,
            };
            for (name, v4, v6) in names {
                server.set(name, *v4, *v6);
            }
            server
        }

        fn set(&self, name: &str, v4: Answer, v6: Answer) {
            let name = Name::from_str(name).unwrap();
            let mut answers = self.answers.lock().unwrap();
            answers.insert((name.clone(), RecordType::A), v4);
            answers.insert((name, RecordType::AAAA), v6);
        }
    }

    async fn serve(socket: UdpSocket, answers: Answers) {
        let mut buffer = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let message = Message::from_vec(&buffer[..length]).unwrap();
            let query = message.queries[0].clone();
            let key = (query.name().clone(), query.query_type());
            let answer = answers.lock().unwrap().get(&key).copied();
            let mut response = message.into_response();
            match answer.unwrap_or(Code(ResponseCode::NXDomain)) {
                Address(address) => {
                    let data = RData::from(address.parse::<IpAddr>().unwrap());
                    let record = Record::from_rdata(query.name().clone(), 300, data);
                    response.insert_answers(vec![record]);
                }
                Code(code) => response.metadata.response_code = code,
                Nothing => continue,
            }
            let bytes = response.to_vec().unwrap();
            socket.send_to(&bytes, client).await.unwrap();
        }
    }

    fn configuration(hosts: &[u8], search: &[&str], servers: &[&NameServer]) -> Configuration {
        let search = search.iter().map(|name| Name::from_str(name).unwrap());
        let servers = servers.iter().map(|server| server.config.clone());
        let config = ResolverConfig::from_parts(None, search.collect(), servers.collect());
        Configuration::new(parse_hosts(hosts), &config, ResolverOpts::default())
    }

    fn found(addresses: &[&str]) -> LookupResult {
        let parsed = addresses.iter().map(|address| address.parse());
        parsed.collect::<Result<_, _>>().map_err(|_| unreachable!())
    }

    #[tokio::test]
    async fn answers_decide_result() {
        let server = NameServer::start(&[
            (
                "both.example.",
                Address("192.0.2.1"),
                Address("2001:db8::1"),
            ),
            ("v4.example.", Address("192.0.2.2"), EMPTY),
            ("v6.example.", EMPTY, Address("2001:db8::2")),
            ("empty.example.", EMPTY, EMPTY),
            (
                "broken.example.",
                Code(ResponseCode::ServFail),
                Code(ResponseCode::ServFail),
            ),
            (
                "half-broken.example.",
                Address("192.0.2.3"),
                Code(ResponseCode::ServFail),
            ),
        ])
        .await;
        let resolver = configuration(b"", &[], &[&server]);
        for (name, expected) in [
            ("both.example", found(&["2001:db8::1", "192.0.2.1"])),
            ("v4.example", found(&["192.0.2.2"])),
            ("V4.Example", found(&["192.0.2.2"])),
            ("v4.example.", found(&["192.0.2.2"])),
            ("v6.example", found(&["2001:db8::2"])),
            ("half-broken.example", found(&["192.0.2.3"])),
            ("empty.example", Err(Failure::Dns.into())),
            ("no-such.example", Err(Failure::Dns.into())),
            ("broken.example", Err(Failure::NameServer.into())),
        ] {
            assert_eq!(resolver.lookup(name).await, expected, "{name}");
        }
    }

    /// A name server that never answers for one family does not hold the other family up.
    #[tokio::test]
    async fn family_without_answer_is_not_awaited() {
        let server = NameServer::start(&[
            ("no-v6.example.", Address("192.0.2.1"), Nothing),
            ("no-v4.example.", Nothing, Address("2001:db8::1")),
        ])
        .await;
        let resolver = configuration(b"", &[], &[&server]);
        assert_eq!(
            resolver.lookup("no-v6.example").await,
            found(&["192.0.2.1"])
        );
        assert_eq!(
            resolver.lookup("no-v4.example").await,
            found(&["2001:db8::1"])
        );
    }

    #[tokio::test]
    async fn changed_answer_takes_effect() {
        let server = NameServer::start(&[]).await;
        let resolver = configuration(b"", &[], &[&server]);
        let missing = resolver.lookup("a.example").await;
        assert_eq!(missing, Err(Failure::Dns.into()));
        for address in ["192.0.2.1", "192.0.2.2"] {
            server.set("a.example.", Address(address), EMPTY);
            assert_eq!(resolver.lookup("a.example").await, found(&[address]));
        }
    }

    /// A name server that does not answer, and one that does not know a name, do not hide what the
    /// other one knows.
    #[tokio::test]
    async fn second_name_server_answers() {
        let known = [("a.example.", Address("192.0.2.1"), EMPTY)];
        let silent = NameServer::start(&[("a.example.", Nothing, Nothing)]).await;
        let ignorant = NameServer::start(&[]).await;
        let knowing = NameServer::start(&known).await;
        for other in [&silent, &ignorant] {
            let resolver = configuration(b"", &[], &[other, &knowing]);
            assert_eq!(resolver.lookup("a.example").await, found(&["192.0.2.1"]));
        }
    }

    /// A name in the hosts file is not asked for, whichever families it has there.
    #[tokio::test]
    async fn hosts_file_comes_first() {
        let server = NameServer::start(&[
            ("here.example.", Address("192.0.2.1"), Nothing),
            ("there.example.", Address("192.0.2.2"), EMPTY),
        ])
        .await;
        let hosts = b"# \xe9\n127.0.0.2 here.example here\n::1 Six\n127.0.0.3 here.example\n";
        let resolver = configuration(hosts, &[], &[&server]);
        for (name, expected) in [
            ("here.example", found(&["127.0.0.2", "127.0.0.3"])),
            ("HERE", found(&["127.0.0.2"])),
            ("six", found(&["::1"])),
            ("there.example", found(&["192.0.2.2"])),
        ] {
            assert_eq!(resolver.lookup(name).await, expected, "{name}");
        }
    }

    #[tokio::test]
    async fn search_domains_complete_names() {
        let server = NameServer::start(&[
            ("hooks.lan.example.", Address("192.0.2.1"), EMPTY),
            ("hooks.corp.example.", Address("192.0.2.2"), EMPTY),
            ("a.b.corp.example.", Address("192.0.2.3"), EMPTY),
        ])
        .await;
        let resolver = configuration(b"", &["corp.example", "lan.example"], &[&server]);
        for (name, expected) in [
            ("hooks", found(&["192.0.2.2"])),
            ("a.b", found(&["192.0.2.3"])),
            ("hooks.", Err(Failure::Dns.into())),
            ("localhost", found(&["::1", "127.0.0.1"])),
        ] {
            assert_eq!(resolver.lookup(name).await, expected, "{name}");
        }
    }

    #[test]
    fn dots_decide_order_of_candidates() {
        let search = ["one.example.", "two.example."].map(|name| Name::from_str(name).unwrap());
        for (name, ndots, expected) in [
            ("a", 1, &["a.one.example.", "a.two.example.", "a."][..]),
            ("a.b", 1, &["a.b.", "a.b.one.example.", "a.b.two.example."]),
            ("a.b", 2, &["a.b.one.example.", "a.b.two.example.", "a.b."]),
            ("a", 0, &["a.", "a.one.example.", "a.two.example."]),
            ("a.b.", 5, &["a.b."]),
        ] {
            let name = Name::from_str(name).unwrap();
            let names = candidates(&name, &search, ndots);
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            assert_eq!(names, expected, "{name} {ndots}");
        }
    }
}
