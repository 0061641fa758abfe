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
    args::{CliError, ServeArgs},
    dynamodb,
    embedded_dynamodb::EmbeddedDynamoDb,
    retry_timer,
    stream_poller::{StreamPoller, stopped},
    streams,
};
use nano_webhooks::random;
use nano_webhooks::{
    api::{self, AppState},
    client::attempt::Timeouts,
    clock::Clock,
    config::{Config, ConfigDefaults, env_var},
    dispatch::{Dispatcher, InFlightLimiter},
    metrics::{Metrics, prometheus},
    queue::RetryQueue,
    store::{
        self, Store, TableNames,
        secrets::{DataKeyCache, KeyProvider},
        tables,
    },
};
use nano_webhooks_core::{account_id::AccountId, api_key::ApiKey, data_key::KeyMaterial};
use zeroize::Zeroizing;

/// The account that local mode begins with.
pub(super) const DEMO_ACCOUNT: &str = "demo";
/// How long what is in flight may take to end once the process is told to stop.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);

/// The service, running.
pub(super) struct Service {
    /// Where the API listens.
    pub api: SocketAddr,
    /// The DynamoDB engine's URL.
    pub dynamodb: String,
    /// A key of account [`DEMO_ACCOUNT`].
    pub api_key: ApiKey,
    /// The tables' names.
    pub tables: TableNames,
    /// The platform's table.
    pub jobs: String,
    stop: watch::Sender<bool>,
    server: JoinHandle<std::io::Result<()>>,
    pump: JoinHandle<Result<(), CliError>>,
    retries: JoinHandle<()>,
    engine: Option<Arc<EmbeddedDynamoDb>>,
    _lock: Option<File>,
}

/// Runs the service until it is told to stop.
pub(super) async fn run(args: ServeArgs) -> Result<(), CliError> {
    let json = args.json;
    let home = (!args.in_memory).then(|| args.data_dir.display().to_string());
    let mut service = Service::start(args).await?;
    if json {
        service.print_json()?;
    } else {
        service.print_welcome(home.as_deref())?;
    }
    let ended = tokio::select! {
        signal = shutdown_signal() => signal,
        pump = &mut service.pump => pump?.and(Err(CliError("the stream reader ended".to_owned()))),
        retries = &mut service.retries => retries.map_err(CliError::from).and(Err(CliError("the retry timer ended".to_owned()))),
    };
    service.stop().await;
    ended
}

impl Service {
    /// Starts everything, and returns when it is ready.
    pub(super) async fn start(args: ServeArgs) -> Result<Self, CliError> {
        let clock = Clock::system();
        let mut config = Config::read(env_var, ConfigDefaults::LOCAL)?;
        config.targets = args.targets;
        config.allow_cidrs = args.allow_cidrs;
        config.retry_schedule = args.retry_schedule;
        config.extra_ca_file = args.ca_file;
        let jobs =
            env_var("JOBS_TABLE")?.unwrap_or_else(|| ConfigDefaults::LOCAL_JOBS_TABLE.to_owned());
        let home = (!args.in_memory).then_some(args.data_dir.as_path());
        let lock_data_dir = home.map(lock_data_dir).transpose()?;

        let listener = bind(args.listen).await?;
        let (engine, endpoint) = if let Some(endpoint) = args.dynamodb_endpoint {
            (None, endpoint)
        } else {
            let listener = bind(args.dynamodb_listen).await?;
            let endpoint = format!("http://{}", listener.local_addr()?);
            (
                Some(Arc::new(EmbeddedDynamoDb::start(listener, home)?)),
                endpoint,
            )
        };
        let client = dynamodb(&endpoint);
        let new = tables::create_if_missing(&client, &config.tables, &jobs)
            .await
            .map_err(|error| explain_store_error(&error, &endpoint))?;
        let (key, made_key) = secrets_key(home)?;
        let store = Store::new(
            client.clone(),
            config.tables.clone(),
            DataKeyCache::new(KeyProvider::Local(key)),
        );
        // Now, rather than when the first secret comes: the tables may have been begun with another data directory.
        if let Err(error) = store.secrets().active_data_key(clock.now()).await {
            let path = home.filter(|_| made_key).map(|home| home.join(SECRETS_KEY));
            return Err(match (error, path) {
                (store::Error::KeyUnavailable(_), Some(path)) => {
                    fs::remove_file(&path)?;
                    CliError(format!(
                        "{} is missing, and the secrets in these tables open with theirs alone: put it back, or use other tables",
                        path.display()
                    ))
                }
                (error, _) => explain_store_error(&error, &endpoint),
            });
        }
        let (api_key, made) = match args.api_key {
            Some(key) => (
                ApiKey::parse(&key).map_err(|error| CliError(format!("--api-key: {error}")))?,
                true,
            ),
            None => load_or_create_api_key(home)?,
        };
        let account =
            AccountId::parse(DEMO_ACCOUNT).map_err(|error| CliError(error.to_string()))?;
        if new || made {
            store
                .api_keys()
                .insert(&account, &api_key, clock.now())
                .await?;
        } else if store
            .api_keys()
            .authenticate(&api_key, clock.now())
            .await?
            .is_none()
        {
            // It stays so.
            tracing::warn!(
                "the API key in the data directory was revoked: `nano-webhooks keys create` makes another"
            );
        }

        let (stop, stopping) = watch::channel(false);
        let (timers, timer) = mpsc::channel(retry_timer::CHANNEL_CAPACITY);
        let queue = RetryQueue::Local(timers);
        let metrics = Metrics::prometheus();
        let beside = Router::new()
            .route("/metrics", get(metrics_handler))
            .with_state(metrics.clone());
        let api = AppState {
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
        let router = api::router_with_extra_routes(api, beside);
        let api = listener.local_addr()?;
        let server =
            axum::serve(listener, router).with_graceful_shutdown(stopped(stopping.clone()));
        let dispatcher = Dispatcher {
            store,
            direct: config.client(Timeouts::DIRECT)?,
            queued: config.client(Timeouts::QUEUED)?,
            queue,
            gates: InFlightLimiter::default(),
            clock: clock.clone(),
            schedule: config.retry_schedule,
            retention: config.retention,
            disable_after: config.disable_after,
            metrics: metrics.clone(),
        };
        let retries = tokio::spawn(retry_timer::run(
            dispatcher.clone(),
            timer,
            stopping.clone(),
        ));
        let pump = StreamPoller {
            dispatcher,
            dynamodb: client,
            streams: streams(&endpoint),
            engine: engine.clone(),
            clock,
        };
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
            _lock: lock_data_dir,
        })
    }

    /// Ends what is in flight, in bounded time.
    pub(super) async fn stop(self) {
        let _ = self.stop.send(true);
        let ended = timeout(SHUTDOWN_TIMEOUT, async {
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
            tracing::warn!(
                "not everything in flight ended in time; it goes on after the next start"
            );
        }
    }

    fn print_json(&self) -> Result<(), CliError> {
        let ready = json!({
            "api": format!("http://{}", self.api),
            "dynamodb": self.dynamodb,
            "account": DEMO_ACCOUNT,
            "api_key": self.api_key.expose(),
            "tables": { "jobs": self.jobs, "webhooks": self.tables.webhooks, "deliveries": self.tables.deliveries },
        });
        Ok(writeln!(std::io::stdout(), "{ready}")?)
    }

    fn print_welcome(&self, home: Option<&str>) -> Result<(), CliError> {
        let (api, dynamodb, key) = (self.api, &self.dynamodb, self.api_key.expose());
        let kept = home.map_or_else(
            || "nowhere, all is gone when it stops".to_owned(),
            |home| format!("in {home}"),
        );
        Ok(writeln!(
            anstream::stdout(),
            "\
nano-webhooks is ready.

  API        http://{api}/api/v1
  Portal     http://{api}/portal
  Metrics    http://{api}/metrics   (for Prometheus)
  DynamoDB   {dynamodb}   (any AWS SDK or CLI, any credentials; jobs go into table `{jobs}`)
  Account    {DEMO_ACCOUNT}
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
async fn metrics_handler(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(CONTENT_TYPE, prometheus::CONTENT_TYPE)], metrics.text())
}

/// Returns when the process is told to stop, by Ctrl-C or SIGTERM.
pub(super) async fn shutdown_signal() -> Result<(), CliError> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
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
pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener, CliError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| CliError(format!("cannot listen on {address}: {error}")))
}

/// Takes the data directory for this process alone, and makes it first if there is none.
fn lock_data_dir(home: &Path) -> Result<File, CliError> {
    let unusable =
        |error: std::io::Error| CliError(format!("{} cannot be used: {error}", home.display()));
    let mut directory = fs::DirBuilder::new();
    // Webhooks' secrets are in there.
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut directory, 0o700);
    directory.recursive(true).create(home).map_err(unusable)?;
    let lock = File::create(home.join("lock")).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(CliError(format!(
            "{} is in use by another process",
            home.display()
        ))),
        Err(fs::TryLockError::Error(error)) => Err(unusable(error)),
    }
}

/// The API key that is kept in the data directory, and whether it was made just now because there was none.
fn load_or_create_api_key(home: Option<&Path>) -> Result<(ApiKey, bool), CliError> {
    let Some(home) = home else {
        return Ok((ApiKey::from_random(&random::bytes()), true));
    };
    load_or_create(
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

fn parse_secrets_key(text: &str) -> Result<KeyMaterial, String> {
    KeyMaterial::from_hex(text).ok_or_else(|| "expected 64 hexadecimal digits".to_owned())
}

/// The key that wraps data keys, and whether it was made just now because there was none.
fn secrets_key(home: Option<&Path>) -> Result<(KeyMaterial, bool), CliError> {
    let Some(home) = home else {
        return Ok((KeyMaterial::from_random(random::bytes()), true));
    };
    let make = || {
        let key = KeyMaterial::from_random(random::bytes());
        let text = key.to_hex();
        (key, text)
    };
    load_or_create(&home.join(SECRETS_KEY), parse_secrets_key, make)
}

/// The key that wraps data keys of a data directory in use.
pub(super) fn load_secrets_key(home: &Path) -> Result<KeyMaterial, CliError> {
    let path = home.join(SECRETS_KEY);
    let text = fs::read_to_string(&path)
        .map(Zeroizing::new)
        .map_err(|error| error.to_string());
    text.and_then(|text| parse_secrets_key(text.trim()))
        .map_err(|error| CliError(format!("{}: {error}", path.display())))
}

/// What a file in the data directory holds, and whether it was made just now because there was none.
fn load_or_create<T>(
    path: &Path,
    parse: impl FnOnce(&str) -> Result<T, String>,
    make: impl FnOnce() -> (T, Zeroizing<String>),
) -> Result<(T, bool), CliError> {
    let unusable = |error: String| CliError(format!("{}: {error}", path.display()));
    match fs::read_to_string(path).map(Zeroizing::new) {
        Ok(text) => Ok((parse(text.trim()).map_err(unusable)?, false)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let (made, text) = make();
            // Written aside and moved, so that it is there whole or not at all; such files are their owner's alone.
            let mut file =
                tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
            writeln!(file, "{}", *text)?;
            file.as_file().sync_all()?;
            file.persist(path)
                .map_err(|error| unusable(error.to_string()))?;
            Ok((made, true))
        }
        Err(error) => Err(unusable(error.to_string())),
    }
}

/// What to tell a person whose DynamoDB engine did not do as it was asked.
pub fn explain_store_error(error: &store::Error, endpoint: &str) -> CliError {
    tracing::debug!(%error, "DynamoDB");
    match error {
        store::Error::Unavailable(_) => CliError(format!(
            "no DynamoDB engine answers at {endpoint}: does `nano-webhooks serve` run?"
        )),
        store::Error::Internal(cause) => {
            CliError(format!("DynamoDB at {endpoint} refused a request: {cause}"))
        }
        store::Error::KeyUnavailable(_) => CliError(error.to_string()),
    }
}
