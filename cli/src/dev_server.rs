//! The whole service in one process: API, dispatcher, embedded DynamoDB, stream poller and retry
//! timer.

mod data_dir;
mod lambda_record;
mod retry_timer;
mod shard_reader;
mod stream_poller;

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use axum::{Router, extract::State, response::IntoResponse, routing::get};
use http::header::CONTENT_TYPE;
use nano_webhooks::{
    api::{self, AppState},
    aws,
    client::webhook_client::Timeouts,
    clock::Clock,
    config::{Config, ConfigDefaults, env_var},
    dispatch::{Dispatcher, InFlightLimiter},
    metrics::{Metrics, prometheus},
    queue::RetryQueue,
    random,
    store::{
        self, Store, TableNames,
        secrets::{DataKeyCache, KeyProvider},
        tables,
    },
};
use nano_webhooks_core::{account_id::AccountId, api_key::ApiKey, data_key::KeyMaterial};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::{JoinError, JoinHandle},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use data_dir::load_secrets_key;
use data_dir::{DataDir, StoredKey};
pub use retry_timer::SWEEP_INTERVAL;
use shard_reader::StreamSource;
pub use shard_reader::{BATCH_SIZE, BATCH_TIMEOUT};
use stream_poller::StreamPoller;

use crate::{
    args::ServeArgs,
    embedded_dynamodb::EmbeddedDynamoDb,
    http_server::bind,
    local_client::{local_client, local_streams_client},
    store_error::{TablesLocation, explain_store_error},
};

/// The account that exists from the start.
pub const DEMO_ACCOUNT: &str = "demo";
/// How long running work may take after shutdown was requested.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);

/// A running service.
pub struct DevServer {
    /// The address of the API.
    pub api: SocketAddr,
    /// The URL of the DynamoDB engine.
    pub dynamodb_endpoint: String,
    /// A key of [`DEMO_ACCOUNT`].
    pub api_key: ApiKey,
    pub tables: TableNames,
    pub jobs_table: String,
    shutdown: CancellationToken,
    /// All background tasks.
    tasks: TaskTracker,
    stream_poller: JoinHandle<anyhow::Result<()>>,
    retry_timer: JoinHandle<()>,
    engine: Engine,
    _data_dir: Option<DataDir>,
}

impl DevServer {
    /// Starts the service. Returns when it is ready for requests.
    pub async fn start(args: ServeArgs) -> anyhow::Result<Self> {
        let clock = Clock::system();
        let config = read_config(&args)?;
        let jobs_table = read_jobs_table()?;
        let data_dir = open_data_dir(&args)?;
        // Bound before the engine starts, so that an occupied port leaves no trace.
        let listener = bind(args.listen).await?;
        let api = listener.local_addr()?;

        let engine = Engine::start(&args, data_dir.as_ref()).await?;
        let preparation = Preparation {
            engine: &engine,
            config: &config,
            jobs_table: &jobs_table,
            data_dir: data_dir.as_ref(),
            clock: &clock,
        };
        let (store, api_key) = preparation
            .prepare(args.api_key.as_deref())
            .await
            .map_err(|error| engine.explain(error, &config.tables))?;

        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (retry_sender, retry_receiver) = mpsc::channel(retry_timer::CHANNEL_CAPACITY);
        let metrics = Metrics::prometheus();
        let queue = RetryQueue::Local(retry_sender);
        let router = build_router(&store, &queue, &metrics, &config, &clock)?;
        let dispatcher = build_dispatcher(store, queue, metrics, &config, &clock)?;

        tasks.spawn(serve_api(listener, router, shutdown.clone()));
        let retry_timer = tasks.spawn(retry_timer::run(
            dispatcher.clone(),
            retry_receiver,
            shutdown.clone(),
        ));
        let poller = StreamPoller {
            dynamodb: engine.client(),
            source: StreamSource {
                dispatcher,
                streams: local_streams_client(&engine.endpoint, aws::timeouts()),
                engine: engine.embedded.clone(),
                clock,
                shutdown: shutdown.clone(),
            },
        };
        let stream_poller = tasks.spawn(poller.run(jobs_table.clone()));
        Ok(Self {
            api,
            dynamodb_endpoint: engine.endpoint.clone(),
            api_key,
            tables: config.tables,
            jobs_table,
            shutdown,
            tasks,
            stream_poller,
            retry_timer,
            engine,
            _data_dir: data_dir,
        })
    }

    /// Waits until a background task ends before shutdown, which is always an error.
    pub async fn wait_for_failure(&mut self) -> anyhow::Error {
        tokio::select! {
            result = &mut self.stream_poller => describe_stream_poller_end(result),
            result = &mut self.retry_timer => describe_retry_timer_end(result),
        }
    }

    /// Stops the service. Running work may take up to [`SHUTDOWN_TIMEOUT`].
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        if timeout(SHUTDOWN_TIMEOUT, finish(self.tasks, self.engine))
            .await
            .is_err()
        {
            tracing::warn!(
                timeout_seconds = SHUTDOWN_TIMEOUT.as_secs(),
                "Stopped before all running work was finished; the next start continues it"
            );
        }
    }
}

async fn finish(tasks: TaskTracker, engine: Engine) {
    tasks.wait().await;
    // The tasks were the other owners.
    if let Some(embedded) = engine.embedded.and_then(Arc::into_inner) {
        embedded.stop().await;
    }
}

fn describe_stream_poller_end(result: Result<anyhow::Result<()>, JoinError>) -> anyhow::Error {
    match result {
        Ok(Ok(())) => anyhow!("the stream poller stopped unexpectedly"),
        Ok(Err(error)) => error.context("the stream poller failed"),
        Err(error) => anyhow::Error::new(error).context("the stream poller failed"),
    }
}

fn describe_retry_timer_end(result: Result<(), JoinError>) -> anyhow::Error {
    match result {
        Ok(()) => anyhow!("the retry timer stopped unexpectedly"),
        Err(error) => anyhow::Error::new(error).context("the retry timer failed"),
    }
}

fn read_config(args: &ServeArgs) -> anyhow::Result<Config> {
    let mut config = Config::from_env(env_var, ConfigDefaults::LOCAL)?;
    config.targets = args.targets;
    config.allow_cidrs.clone_from(&args.allow_cidrs);
    config.retry_schedule = args.retry_schedule.clone();
    config.extra_ca_file.clone_from(&args.ca_file);
    Ok(config)
}

fn read_jobs_table() -> anyhow::Result<String> {
    Ok(env_var("JOBS_TABLE")?.unwrap_or_else(|| ConfigDefaults::LOCAL_JOBS_TABLE.to_owned()))
}

fn open_data_dir(args: &ServeArgs) -> anyhow::Result<Option<DataDir>> {
    if args.in_memory {
        return Ok(None);
    }
    Ok(Some(DataDir::open(&args.data_dir)?))
}

/// The DynamoDB engine of the service.
struct Engine {
    endpoint: String,
    /// `None` if the engine is another process.
    embedded: Option<Arc<EmbeddedDynamoDb>>,
}

impl Engine {
    /// Starts the embedded engine, unless the arguments name another one.
    async fn start(args: &ServeArgs, data_dir: Option<&DataDir>) -> anyhow::Result<Self> {
        if let Some(endpoint) = &args.dynamodb_endpoint {
            return Ok(Self {
                endpoint: endpoint.clone(),
                embedded: None,
            });
        }
        let listener = bind(args.dynamodb_listen).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let embedded = EmbeddedDynamoDb::start(listener, data_dir.map(DataDir::path))?;
        Ok(Self {
            endpoint,
            embedded: Some(Arc::new(embedded)),
        })
    }

    fn client(&self) -> aws_sdk_dynamodb::Client {
        local_client(&self.endpoint, aws::timeouts())
    }

    fn explain(&self, error: anyhow::Error, tables: &TableNames) -> anyhow::Error {
        explain_store_error(
            error,
            &TablesLocation::Engine(self.endpoint.clone()),
            tables,
        )
    }
}

/// What is needed to prepare the tables and their keys.
struct Preparation<'a> {
    engine: &'a Engine,
    config: &'a Config,
    jobs_table: &'a str,
    data_dir: Option<&'a DataDir>,
    clock: &'a Clock,
}

impl Preparation<'_> {
    /// Creates the tables and the keys that are missing.
    async fn prepare(&self, api_key: Option<&str>) -> anyhow::Result<(Store, ApiKey)> {
        let client = self.engine.client();
        let tables = &self.config.tables;
        let is_new = tables::create_if_missing(&client, tables, self.jobs_table).await?;
        let store = self.open_store(client).await?;
        let api_key = self.prepare_api_key(&store, api_key, is_new).await?;
        Ok((store, api_key))
    }

    /// Opens the tables with the key that wraps data keys.
    async fn open_store(&self, client: aws_sdk_dynamodb::Client) -> anyhow::Result<Store> {
        let stored_key = match self.data_dir {
            Some(data_dir) => data_dir.load_or_create_secrets_key()?,
            None => StoredKey::Created(KeyMaterial::from_random(random::bytes())),
        };
        let (key, created_file) = match stored_key {
            StoredKey::Existing(key) => (key, None),
            StoredKey::Created(key) => (key, self.data_dir.map(DataDir::secrets_key_path)),
        };
        let cache = DataKeyCache::new(KeyProvider::Local(key));
        let store = Store::new(client, self.config.tables.clone(), cache);
        // Checked at the start and not with the first secret, because the tables may belong to
        // another data directory.
        match (
            store.secrets().active_data_key(self.clock.now()).await,
            created_file,
        ) {
            (Ok(_), _) => Ok(store),
            (Err(error @ store::Error::KeyUnavailable(_)), Some(path)) => {
                Err(explain_missing_secrets_key(error, &path)?)
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// Finds or creates the key of the demo account, and adds it to the tables if it is new there.
    async fn prepare_api_key(
        &self,
        store: &Store,
        given: Option<&str>,
        tables_are_new: bool,
    ) -> anyhow::Result<ApiKey> {
        let account = AccountId::parse(DEMO_ACCOUNT).map_err(anyhow::Error::msg)?;
        let now = self.clock.now();
        let stored_key = match (given, self.data_dir) {
            (Some(text), _) => StoredKey::Created(ApiKey::parse(text).context("--api-key")?),
            (None, Some(data_dir)) => data_dir.load_or_create_api_key()?,
            (None, None) => StoredKey::Created(ApiKey::from_random(&random::bytes())),
        };
        match stored_key {
            StoredKey::Existing(key) if !tables_are_new => {
                if store.api_keys().authenticate(&key, now).await?.is_none() {
                    tracing::warn!(
                        "The API key in the data directory is revoked; create a key with \
                         `nano-webhooks keys create`"
                    );
                }
                Ok(key)
            }
            StoredKey::Existing(key) | StoredKey::Created(key) => {
                store.api_keys().insert(&account, &key, now).await?;
                Ok(key)
            }
        }
    }
}

/// The tables have data keys that another key wraps. Removes the key that was just created, since
/// it is useless.
fn explain_missing_secrets_key(error: store::Error, path: &Path) -> anyhow::Result<anyhow::Error> {
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    let explanation = format!(
        "{} is missing, and only it decrypts the secrets in these tables: restore it, or use \
         other tables",
        path.display()
    );
    Ok(anyhow::Error::new(error).context(explanation))
}

fn build_router(
    store: &Store,
    queue: &RetryQueue,
    metrics: &Metrics,
    config: &Config,
    clock: &Clock,
) -> anyhow::Result<Router> {
    let state = AppState {
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
    let metrics_routes = Router::new()
        .route("/metrics", get(metrics_handler))
        .with_state(metrics.clone());
    Ok(api::router_with_extra_routes(state, metrics_routes))
}

fn build_dispatcher(
    store: Store,
    queue: RetryQueue,
    metrics: Metrics,
    config: &Config,
    clock: &Clock,
) -> anyhow::Result<Dispatcher> {
    Ok(Dispatcher {
        store,
        direct_client: config.client(Timeouts::DIRECT)?,
        retry_client: config.client(Timeouts::QUEUED)?,
        queue,
        limiter: InFlightLimiter::default(),
        clock: clock.clone(),
        schedule: config.retry_schedule.clone(),
        retention: config.retention,
        disable_after: config.disable_after,
        metrics,
    })
}

async fn serve_api(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let server = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
    if let Err(error) = server.await {
        tracing::error!(%error, "The HTTP API stopped");
    }
}

/// The metrics of this process for Prometheus.
async fn metrics_handler(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(CONTENT_TYPE, prometheus::CONTENT_TYPE)], metrics.render())
}
