//! `serve`: the API, the engine, the pump and the dispatcher in one process.

use std::{
    fs::{self, File},
    io::Write,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{Router, extract::State, response::IntoResponse, routing::get};
use http::header::CONTENT_TYPE;
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{
    args::{Failed, ServeArgs},
    dynamodb,
    embedded_dynamodb::Engine,
    retry_timer,
    stream_poller::{Pump, stopped},
    streams,
};
use nano_webhooks::random;
use nano_webhooks::{
    api::{self, Api},
    client::attempt::Timeouts,
    clock::Clock,
    config::{Config, Defaults, variable},
    dispatch::{Dispatcher, Gates},
    metrics::{Metrics, prometheus},
    queue::Queue,
    store::{
        self, Store, Tables,
        secrets::{Vault, Wrapping},
        tables,
    },
};
use nano_webhooks_core::{api_key::ApiKey, data_key::KeyBytes, webhook::Account};
use zeroize::Zeroizing;

/// The account that local mode begins with.
pub(super) const ACCOUNT: &str = "demo";
/// How long what is in flight may take to end once the process is told to stop.
const STOP_TIME: Duration = Duration::from_secs(8);

/// The service, running.
pub(super) struct Service {
    /// Where the API listens.
    pub api: SocketAddr,
    /// The DynamoDB engine's URL.
    pub dynamodb: String,
    /// A key of account [`ACCOUNT`].
    pub api_key: ApiKey,
    /// The tables' names.
    pub tables: Tables,
    /// The platform's table.
    pub jobs: String,
    stop: watch::Sender<bool>,
    server: JoinHandle<std::io::Result<()>>,
    pump: JoinHandle<Result<(), Failed>>,
    retries: JoinHandle<()>,
    engine: Option<Arc<Engine>>,
    _lock: Option<File>,
}

/// Runs the service until it is told to stop.
pub(super) async fn run(args: ServeArgs) -> Result<(), Failed> {
    let json = args.json;
    let home = (!args.in_memory).then(|| args.data_dir.display().to_string());
    let mut service = Service::start(args).await?;
    if json {
        service.print_json()?;
    } else {
        service.print_welcome(home.as_deref())?;
    }
    let ended = tokio::select! {
        signal = terminated() => signal,
        pump = &mut service.pump => pump?.and(Err(Failed("the stream reader ended".to_owned()))),
        retries = &mut service.retries => retries.map_err(Failed::from).and(Err(Failed("the retry timer ended".to_owned()))),
    };
    service.stop().await;
    ended
}

impl Service {
    /// Starts everything, and returns when it is ready.
    pub(super) async fn start(args: ServeArgs) -> Result<Self, Failed> {
        let clock = Clock::system();
        let mut config = Config::read(variable, Defaults::LOCAL)?;
        config.targets = args.targets;
        config.allow_cidrs = args.allow_cidrs;
        config.retry_schedule = args.retry_schedule;
        config.extra_ca_file = args.ca_file;
        let jobs = variable("JOBS_TABLE")?.unwrap_or_else(|| Defaults::LOCAL_JOBS_TABLE.to_owned());
        let home = (!args.in_memory).then_some(args.data_dir.as_path());
        let lock = home.map(lock).transpose()?;

        let listener = listen(args.listen).await?;
        let (engine, endpoint) = if let Some(endpoint) = args.dynamodb_endpoint {
            (None, endpoint)
        } else {
            let listener = listen(args.dynamodb_listen).await?;
            let endpoint = format!("http://{}", listener.local_addr()?);
            (Some(Arc::new(Engine::start(listener, home)?)), endpoint)
        };
        let client = dynamodb(&endpoint);
        let new = tables::create_missing(&client, &config.tables, &jobs)
            .await
            .map_err(|error| out_of_reach(&error, &endpoint))?;
        let (key, made_key) = secrets_key(home)?;
        let store = Store::new(client.clone(), config.tables.clone(), Vault::new(Wrapping::Local(key)));
        // Now, rather than when the first secret comes: the tables may have been begun with another data directory.
        if let Err(error) = store.sealing_key(clock.now()).await {
            let path = home.filter(|_| made_key).map(|home| home.join(SECRETS_KEY));
            return Err(match (error, path) {
                (store::Error::Locked(_), Some(path)) => {
                    fs::remove_file(&path)?;
                    Failed(format!(
                        "{} is missing, and the secrets in these tables open with theirs alone: put it back, or use other tables",
                        path.display()
                    ))
                }
                (error, _) => out_of_reach(&error, &endpoint),
            });
        }
        let (api_key, made) = match args.api_key {
            Some(key) => (ApiKey::parse(&key).map_err(|error| Failed(format!("--api-key: {error}")))?, true),
            None => kept_key(home)?,
        };
        let account = Account::parse(ACCOUNT).map_err(|error| Failed(error.to_owned()))?;
        if new || made {
            store.add_key(&account, &api_key, clock.now()).await?;
        } else if store.account_of(&api_key, clock.now()).await?.is_none() {
            // It stays so.
            tracing::warn!("the API key in the data directory was revoked: `nano-webhooks keys create` makes another");
        }

        let (stop, stopping) = watch::channel(false);
        let (timers, timer) = mpsc::channel(retry_timer::CHANNEL);
        let queue = Queue::Local(timers);
        let metrics = Metrics::prometheus();
        let beside = Router::new().route("/metrics", get(text_of_metrics)).with_state(metrics.clone());
        let api = Api {
            store: store.clone(),
            queue: queue.clone(),
            retention: config.retention,
            account_claim: None,
            guard: config.guard(),
            client: config.client(Timeouts::QUEUED)?,
            clock: clock.clone(),
            webhooks_per_account: config.webhooks_per_account,
            rate_limits: config.rate_limits,
        };
        let router = api::router_with(api, beside);
        let api = listener.local_addr()?;
        let server = axum::serve(listener, router).with_graceful_shutdown(stopped(stopping.clone()));
        let dispatcher = Dispatcher {
            store,
            direct: config.client(Timeouts::DIRECT)?,
            queued: config.client(Timeouts::QUEUED)?,
            queue,
            gates: Gates::default(),
            clock: clock.clone(),
            schedule: config.retry_schedule,
            retention: config.retention,
            disable_after: config.disable_after,
            metrics: metrics.clone(),
        };
        let retries = tokio::spawn(retry_timer::run(dispatcher.clone(), timer, stopping.clone()));
        let pump = Pump { dispatcher, dynamodb: client, streams: streams(&endpoint), engine: engine.clone(), clock };
        Ok(Self {
            api,
            dynamodb: endpoint,
            api_key,
            tables: config.tables,
            jobs: jobs.clone(),
            stop,
            server: tokio::spawn(server.into_future()),
            pump: tokio::spawn(pump.run(jobs, stopping)),
            retries,
            engine,
            _lock: lock,
        })
    }

    /// Ends what is in flight, in bounded time.
    pub(super) async fn stop(self) {
        let _ = self.stop.send(true);
        let ended = timeout(STOP_TIME, async {
            let _ = self.server.await;
            if !self.retries.is_finished() {
                let _ = self.retries.await;
            }
            if !self.pump.is_finished() {
                let _ = self.pump.await;
            }
            if let Some(engine) = self.engine.and_then(Arc::into_inner) {
                engine.stop().await;
            }
        });
        if ended.await.is_err() {
            tracing::warn!("not everything in flight ended in time; it goes on after the next start");
        }
    }

    fn print_json(&self) -> Result<(), Failed> {
        let ready = json!({
            "api": format!("http://{}", self.api),
            "dynamodb": self.dynamodb,
            "account": ACCOUNT,
            "api_key": self.api_key.expose(),
            "tables": { "jobs": self.jobs, "webhooks": self.tables.webhooks, "deliveries": self.tables.deliveries },
        });
        Ok(writeln!(std::io::stdout(), "{ready}")?)
    }

    fn print_welcome(&self, home: Option<&str>) -> Result<(), Failed> {
        let (api, dynamodb, key) = (self.api, &self.dynamodb, self.api_key.expose());
        let kept = home.map_or_else(|| "nowhere, all is gone when it stops".to_owned(), |home| format!("in {home}"));
        Ok(writeln!(
            anstream::stdout(),
            "\
nano-webhooks is ready.

  API        http://{api}/api/v1
  Portal     http://{api}/portal
  Metrics    http://{api}/metrics   (for Prometheus)
  DynamoDB   {dynamodb}   (any AWS SDK or CLI, any credentials; jobs go into table `{jobs}`)
  Account    {ACCOUNT}
  API key    {key}
  Data       kept {kept}

Register a webhook:
  curl http://{api}/api/v1/webhooks -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
    -d '{{\"url\":\"http://127.0.0.1:9000/\",\"events\":[\"job.completed\",\"job.failed\"],\"secret_key\":\"my-secret-key\"}}'
Receive it, in another terminal:
  nano-webhooks listen --port 9000 --secret my-secret-key
End a job, in a third:
  nano-webhooks job complete --dynamodb-endpoint {dynamodb} --data '{{\"url\":\"https://cdn.example.com/image.png\"}}'
",
            jobs = self.jobs,
        )?)
    }
}

/// The numbers of this process, for Prometheus.
async fn text_of_metrics(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(CONTENT_TYPE, prometheus::CONTENT_TYPE)], metrics.text())
}

/// Returns when the process is told to stop, by Ctrl-C or SIGTERM.
pub(super) async fn terminated() -> Result<(), Failed> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await?;
    Ok(())
}

/// A listener on `address`.
pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, Failed> {
    TcpListener::bind(address).await.map_err(|error| Failed(format!("cannot listen on {address}: {error}")))
}

/// Takes the data directory for this process alone, and makes it first if there is none.
fn lock(home: &Path) -> Result<File, Failed> {
    let unusable = |error: std::io::Error| Failed(format!("{} cannot be used: {error}", home.display()));
    let mut directory = fs::DirBuilder::new();
    // Webhooks' secrets are in there.
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut directory, 0o700);
    directory.recursive(true).create(home).map_err(unusable)?;
    let lock = File::create(home.join("lock")).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(Failed(format!("{} is in use by another process", home.display()))),
        Err(fs::TryLockError::Error(error)) => Err(unusable(error)),
    }
}

/// The API key that is kept in the data directory, and whether it was made just now because there was none.
fn kept_key(home: Option<&Path>) -> Result<(ApiKey, bool), Failed> {
    let Some(home) = home else { return Ok((ApiKey::from_random(&random::bytes()), true)) };
    kept(
        &home.join("api-key"),
        |text| ApiKey::parse(text).map_err(|error| error.to_string()),
        || {
            let key = ApiKey::from_random(&random::bytes());
            let text = key.expose().to_owned();
            (key, text.into())
        },
    )
}

/// The file with the key that wraps data keys: in the data directory beside the tables, not in them.
const SECRETS_KEY: &str = "secrets-key";

fn parse_secrets_key(text: &str) -> Result<KeyBytes, String> {
    KeyBytes::from_hex(text).ok_or_else(|| "expected 64 hexadecimal digits".to_owned())
}

/// The key that wraps data keys, and whether it was made just now because there was none.
fn secrets_key(home: Option<&Path>) -> Result<(KeyBytes, bool), Failed> {
    let Some(home) = home else { return Ok((KeyBytes::from_random(random::bytes()), true)) };
    let make = || {
        let key = KeyBytes::from_random(random::bytes());
        let text = key.to_hex();
        (key, text)
    };
    kept(&home.join(SECRETS_KEY), parse_secrets_key, make)
}

/// The key that wraps data keys of a data directory in use.
pub(super) fn kept_secrets_key(home: &Path) -> Result<KeyBytes, Failed> {
    let path = home.join(SECRETS_KEY);
    let text = fs::read_to_string(&path).map(Zeroizing::new).map_err(|error| error.to_string());
    text.and_then(|text| parse_secrets_key(text.trim())).map_err(|error| Failed(format!("{}: {error}", path.display())))
}

/// What a file in the data directory holds, and whether it was made just now because there was none.
fn kept<T>(
    path: &Path,
    parse: impl FnOnce(&str) -> Result<T, String>,
    make: impl FnOnce() -> (T, Zeroizing<String>),
) -> Result<(T, bool), Failed> {
    let unusable = |error: String| Failed(format!("{}: {error}", path.display()));
    match fs::read_to_string(path).map(Zeroizing::new) {
        Ok(text) => Ok((parse(text.trim()).map_err(unusable)?, false)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let (made, text) = make();
            // Written aside and moved, so that it is there whole or not at all; such files are their owner's alone.
            let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
            writeln!(file, "{}", *text)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| unusable(error.to_string()))?;
            Ok((made, true))
        }
        Err(error) => Err(unusable(error.to_string())),
    }
}

/// What to tell a person whose DynamoDB engine did not do as it was asked.
pub fn out_of_reach(error: &store::Error, endpoint: &str) -> Failed {
    tracing::debug!(%error, "DynamoDB");
    match error {
        store::Error::Unavailable(_) => {
            Failed(format!("no DynamoDB engine answers at {endpoint}: does `nano-webhooks serve` run?"))
        }
        store::Error::Internal(cause) => Failed(format!("DynamoDB at {endpoint} refused a request: {cause}")),
        store::Error::Locked(_) => Failed(error.to_string()),
    }
}
