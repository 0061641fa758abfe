//! The whole service in one process: API, dispatcher, embedded DynamoDB, stream poller and retry
//! timer.

mod background;
mod data_dir;
mod descriptor_shares;
mod engine;
mod lambda_record;
mod preparation;
mod retry_timer;
mod services;
mod shard_reader;
mod stream_poller;

use std::{net::SocketAddr, time::Duration};

use nano_webhooks::{
    clock::Clock,
    config::{Config, ConfigDefaults, env_var},
    store::TableNames,
};
use nano_webhooks_core::api_key::ApiKey;
use tokio::time::timeout;

use background::{BackgroundTasks, TaskInputs};
use data_dir::DataDir;
use descriptor_shares::DescriptorShares;
use engine::Engine;
use preparation::{Preparation, PreparedTables};
use services::Services;

use crate::{args::ServeArgs, http_server::bind, settings::read_setting};

pub use data_dir::load_secrets_key;
pub use preparation::DEMO_ACCOUNT;
pub use retry_timer::SCHEDULE_INTERVAL;
pub use shard_reader::{BATCH_SIZE, BATCH_TIMEOUT};

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
    tasks: BackgroundTasks,
    engine: Engine,
    /// Locked until the service has stopped.
    _data_dir: Option<DataDir>,
}

impl DevServer {
    /// Starts the service. Returns when it is ready for requests.
    pub async fn start(args: ServeArgs) -> anyhow::Result<Self> {
        let clock = Clock::system();
        let shares = DescriptorShares::raise_limit();
        let config = read_config(&args)?;
        let jobs_table = read_jobs_table()?;
        let data_dir = open_data_dir(&args)?;
        // Bound before the engine starts, so that an occupied port leaves no trace.
        let listener = bind(args.listen, "--listen").await?;
        let api = listener.local_addr()?;
        let engine = Engine::start(&args, data_dir.as_ref()).await?;
        let client = engine.client(shares);
        let preparation = Preparation {
            client: client.clone(),
            tables: &config.tables,
            jobs_table: &jobs_table,
            data_dir: data_dir.as_ref(),
            now: clock.now(),
        };
        let PreparedTables { store, api_key } = preparation
            .run(args.api_key)
            .await
            .map_err(|error| engine.explain(error, &config.tables))?;
        let (services, scheduled_retries) = Services::new(store, &config, clock, shares);
        let tasks = BackgroundTasks::start(TaskInputs {
            listener,
            router: services.build_router()?,
            dispatcher: services.build_dispatcher()?,
            scheduled_retries,
            concurrent_retries: shares.concurrent_retries(),
            engine: &engine,
            client,
            jobs_table: jobs_table.clone(),
        });
        Ok(Self {
            api,
            dynamodb_endpoint: engine.endpoint.clone(),
            api_key,
            tables: config.tables,
            jobs_table,
            tasks,
            engine,
            _data_dir: data_dir,
        })
    }

    /// Waits until a background task ends before shutdown, which is always an error.
    pub async fn wait_for_failure(&mut self) -> anyhow::Error {
        self.tasks.wait_for_failure().await
    }

    /// Stops the service. Running work may take up to [`SHUTDOWN_TIMEOUT`].
    pub async fn stop(self) {
        if timeout(SHUTDOWN_TIMEOUT, self.finish()).await.is_err() {
            tracing::warn!(
                timeout_seconds = SHUTDOWN_TIMEOUT.as_secs(),
                "Stopped before all running work was finished; the next start continues it"
            );
        }
    }

    /// Stops the engine last, because the tasks use it.
    async fn finish(self) {
        self.tasks.stop().await;
        self.engine.stop().await;
    }
}

fn read_config(args: &ServeArgs) -> anyhow::Result<Config> {
    let mut config = Config::from_env(read_setting, ConfigDefaults::LOCAL)?;
    config.targets = args.targets;
    config.allow_cidrs.clone_from(&args.allow_cidrs);
    config.deny_cidrs.clone_from(&args.deny_cidrs);
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
