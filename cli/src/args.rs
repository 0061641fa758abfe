//! The commands and their options.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, builder::FalseyValueParser};
use clap_complete::Shell;
use ipnet::IpNet;
use nano_webhooks::store::poison::PoisonId;
use nano_webhooks_core::{
    account_id::AccountId,
    api_key::ApiKey,
    delivery::{schedule::RetrySchedule, status::DeliveryStatus},
    event::EventId,
    event_type::EventType,
    secret::Secret,
    target_policy::TargetPolicy,
    webhook::WebhookId,
};

use crate::{
    examples,
    job_data::JobData,
    value_parsers::{
        HiddenValue, parse_day, parse_delay, parse_endpoint, parse_event_id, parse_event_type,
        parse_limit, parse_secret, parse_status, parse_webhook_id,
    },
};

/// The embedded engine of a `serve` with default options.
pub const DEFAULT_DYNAMODB_ENDPOINT: &str = "http://127.0.0.1:8000";

/// The help is wrapped at this width, or at the width of a narrower terminal.
const HELP_WIDTH: usize = 100;

/// Webhooks for finished jobs: local service and operator commands
///
/// Without a command, `serve` runs. Its options may follow directly, as in
/// `nano-webhooks --in-memory`.
#[derive(Parser)]
#[command(
    version,
    max_term_width = HELP_WIDTH,
    after_help = examples::PROGRAM,
    override_usage = "nano-webhooks [COMMAND]\n       nano-webhooks [OPTIONS OF serve]"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the service on this machine (the default command)
    #[command(after_help = examples::SERVE)]
    Serve(ServeArgs),
    /// Complete a job and show the signed webhook that its subscriber receives
    Demo,
    /// Run a receiver for development: print each request and verify its signatures
    #[command(after_help = examples::LISTEN)]
    Listen(ListenArgs),
    /// Create, list and revoke API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Write a finished job to the jobs table, as a worker does
    #[command(subcommand)]
    Job(JobCommand),
    /// Manage the encryption of stored webhook secrets
    #[command(subcommand)]
    Secrets(SecretsCommand),
    /// List and redrive stream records that could not be understood
    #[command(subcommand)]
    Poison(PoisonCommand),
    /// List, show and retry deliveries
    #[command(subcommand)]
    Deliveries(DeliveriesCommand),
    /// Count pending deliveries, poison records, replays and resumes
    ///
    /// Without --account: the pending deliveries of all accounts, counted in the index `due` (at
    /// most 100,000; larger counts are printed as "at least"), the poison records of each day (at
    /// most 10,000 per day), the webhooks with an active replay or resume, and the endpoints that
    /// do not respond with their pending deliveries. Other paused deliveries, failed deliveries and
    /// the health of other endpoints are shown only with --account.
    ///
    /// Overdue: pending deliveries whose next attempt is due. Waiting: pending deliveries whose
    /// next attempt is due later. Poison: stream records that could not be understood, by the day
    /// on which they were stored. Top webhooks: those with the most pending deliveries.
    ///
    /// With --account: each webhook of the account, the health of its endpoint, and its pending,
    /// paused and failed deliveries, counted in the index `by_state` (at most 10,000 of each).
    #[command(after_help = examples::STATS)]
    Stats(StatsArgs),
    /// Print the completion script of a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions(CompletionsArgs),
}

impl Command {
    /// The tables that an operator command works on. `None` for commands that run their own service
    /// or none.
    pub fn tables(&self) -> Option<&TablesArgs> {
        match self {
            Self::Serve(_) | Self::Demo | Self::Listen(_) | Self::Completions(_) => None,
            Self::Keys(command) => Some(command.tables()),
            Self::Job(JobCommand::Complete(args) | JobCommand::Fail(args)) => Some(&args.tables),
            Self::Secrets(SecretsCommand::ReEncrypt(args)) => Some(&args.tables),
            Self::Poison(command) => Some(command.tables()),
            Self::Deliveries(command) => Some(command.tables()),
            Self::Stats(args) => Some(&args.tables),
        }
    }
}

/// Options of `serve`.
#[derive(Args, Clone)]
pub struct ServeArgs {
    /// Address of the HTTP API; port 0 picks a free port
    #[arg(long, env = "NANO_WEBHOOKS_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Address of the embedded DynamoDB; port 0 picks a free port
    #[arg(
        long,
        env = "NANO_WEBHOOKS_DYNAMODB_LISTEN",
        default_value = "127.0.0.1:8000"
    )]
    pub dynamodb_listen: SocketAddr,
    /// Directory for the data
    #[arg(long, env = "NANO_WEBHOOKS_DATA_DIR", default_value = ".nano-webhooks")]
    pub data_dir: PathBuf,
    /// Delete all data when the process ends
    #[arg(long, env = "NANO_WEBHOOKS_IN_MEMORY", value_parser = FalseyValueParser::new())]
    pub in_memory: bool,
    /// Use the DynamoDB engine at this URL instead of the embedded one
    #[arg(
        long,
        env = "NANO_WEBHOOKS_DYNAMODB_ENDPOINT",
        value_name = "URL",
        value_parser = parse_endpoint,
    )]
    pub dynamodb_endpoint: Option<String>,
    /// Targets that may be called: any or public
    #[arg(long, env = "NANO_WEBHOOKS_TARGETS", default_value_t = TargetPolicy::Any)]
    pub targets: TargetPolicy,
    /// Address range that may be called in addition to the public ones; may be repeated
    #[arg(
        long = "allow-cidr",
        env = "NANO_WEBHOOKS_ALLOW_CIDRS",
        value_delimiter = ','
    )]
    pub allow_cidrs: Vec<IpNet>,
    /// Address range that may not be called, whatever else is allowed; may be repeated
    #[arg(
        long = "deny-cidr",
        env = "NANO_WEBHOOKS_DENY_CIDRS",
        value_delimiter = ','
    )]
    pub deny_cidrs: Vec<IpNet>,
    /// Delays between attempts, separated by commas
    #[arg(long, env = "NANO_WEBHOOKS_RETRY_SCHEDULE", default_value_t = RetrySchedule::default())]
    pub retry_schedule: RetrySchedule,
    /// PEM file with certificates to trust in addition to the public ones
    #[arg(long, env = "NANO_WEBHOOKS_EXTRA_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// API key of the account `demo`; by default a key is created and stored in the data directory
    #[arg(
        long,
        env = "NANO_WEBHOOKS_API_KEY",
        hide_env_values = true,
        value_parser = HiddenValue(ApiKey::parse),
    )]
    pub api_key: Option<ApiKey>,
    /// Print one line of JSON on stdout when the service is ready
    #[arg(long, env = "NANO_WEBHOOKS_JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
}

/// Options of `listen`.
#[derive(Args, Clone)]
pub struct ListenArgs {
    /// Port to listen on; 0 picks a free port
    #[arg(long, default_value_t = 9000)]
    pub port: u16,
    /// Secret of the webhook; without it signatures are not checked
    #[arg(long, value_parser = HiddenValue(parse_secret))]
    pub secret: Option<Secret>,
    /// Status code of the responses
    #[arg(
        long,
        value_name = "STATUS",
        default_value_t = 200,
        value_parser = clap::value_parser!(u16).range(200..=599),
    )]
    pub respond: u16,
    /// Seconds to wait before each response
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = parse_delay)]
    pub delay: f64,
    /// Print one JSON object per line: the URL first, then each request
    #[arg(long)]
    pub json: bool,
}

/// The tables that an operator command works on.
#[derive(Args, Clone)]
pub struct TablesArgs {
    /// URL of the DynamoDB engine; the default is the engine of a local `serve`
    #[arg(
        long,
        value_name = "URL",
        default_value = DEFAULT_DYNAMODB_ENDPOINT,
        conflicts_with = "aws",
        value_parser = parse_endpoint,
    )]
    pub dynamodb_endpoint: String,
    /// Use the tables in AWS that `WEBHOOKS_TABLE`, `DELIVERIES_TABLE` and `JOBS_TABLE` name, with
    /// the standard AWS credentials and Region
    #[arg(long)]
    pub aws: bool,
}

/// Subcommands of `keys`.
#[derive(Subcommand, Clone)]
pub enum KeysCommand {
    /// Create an API key and print it once
    #[command(after_help = examples::CREATE_KEY)]
    Create(CreateKeyArgs),
    /// List the API keys of an account, newest first
    #[command(after_help = examples::LIST_KEYS)]
    List(ListKeysArgs),
    /// Revoke an API key at once
    #[command(after_help = examples::REVOKE_KEY)]
    Revoke(RevokeKeyArgs),
}

impl KeysCommand {
    fn tables(&self) -> &TablesArgs {
        match self {
            Self::Create(args) => &args.tables,
            Self::List(args) => &args.tables,
            Self::Revoke(args) => &args.tables,
        }
    }
}

/// Options of `keys create`.
#[derive(Args, Clone)]
pub struct CreateKeyArgs {
    /// Account that the key belongs to
    #[arg(long, value_parser = AccountId::parse)]
    pub account: AccountId,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// Options of `keys list`.
#[derive(Args, Clone)]
pub struct ListKeysArgs {
    /// Account whose keys to list
    #[arg(long, value_parser = AccountId::parse)]
    pub account: AccountId,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// Options of `keys revoke`.
#[derive(Args, Clone)]
pub struct RevokeKeyArgs {
    /// Account that the key belongs to
    #[arg(long, value_parser = AccountId::parse)]
    pub account: AccountId,
    /// The key, or its prefix as `keys list` prints it
    pub key: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// Subcommands of `secrets`.
#[derive(Subcommand, Clone)]
pub enum SecretsCommand {
    /// Encrypt every stored secret with the newest data key
    ///
    /// Run it after secrets were stored without a data key, and after a new data key was created.
    /// Secrets that are already encrypted with the newest data key do not change.
    #[command(after_help = examples::RE_ENCRYPT)]
    ReEncrypt(ReEncryptArgs),
}

/// Options of `secrets re-encrypt`.
#[derive(Args, Clone)]
pub struct ReEncryptArgs {
    /// Create a new data key first
    #[arg(long)]
    pub new_key: bool,
    /// Data directory of the local `serve`, which has the key that wraps data keys; with --aws
    /// `SECRETS_KMS_KEY_ID` names the KMS key instead
    #[arg(long, env = "NANO_WEBHOOKS_DATA_DIR", default_value = ".nano-webhooks")]
    pub data_dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// Subcommands of `job`.
#[derive(Subcommand, Clone)]
pub enum JobCommand {
    /// Write a completed job
    #[command(after_help = examples::JOB)]
    Complete(JobArgs),
    /// Write a failed job
    #[command(after_help = examples::JOB)]
    Fail(JobArgs),
}

/// Options of `job complete` and `job fail`.
#[derive(Args, Clone)]
pub struct JobArgs {
    /// Account that owns the job
    #[arg(long, default_value = "demo", value_parser = AccountId::parse)]
    pub account: AccountId,
    /// Id of the job; by default a random id
    #[arg(long)]
    pub task_id: Option<String>,
    /// Type of the job: image, video, or any other
    #[arg(long = "type", default_value = "image")]
    pub task_type: String,
    /// Data of the job, a JSON object: the result of a completed job, the error of a failed one
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub data: JobData,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// Subcommands of `poison`.
#[derive(Subcommand, Clone)]
pub enum PoisonCommand {
    /// List poison records, newest day first
    #[command(after_help = examples::LIST_POISON)]
    List(ListPoisonArgs),
    /// Read poison records again and create the events of those that are valid now
    ///
    /// The command reads the current job from the jobs table (`JOBS_TABLE`; with --aws only if it
    /// is set), so correct the job first. If the job is gone or has another status, the command
    /// uses the image that was stored with the record. It records a delivery for each subscribed
    /// webhook that has none for the event. The sweep sends these deliveries, usually within a
    /// minute. Records that are still invalid stay, and the exit status is 1.
    #[command(after_help = examples::REDRIVE_POISON)]
    Redrive(RedrivePoisonArgs),
}

impl PoisonCommand {
    fn tables(&self) -> &TablesArgs {
        match self {
            Self::List(args) => &args.tables,
            Self::Redrive(args) => &args.tables,
        }
    }
}

/// Options of `poison list`.
#[derive(Args, Clone)]
pub struct ListPoisonArgs {
    /// Only records that were stored on this day (UTC); by default all days within `RETENTION_DAYS`
    /// (30)
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = parse_day)]
    pub day: Option<String>,
    /// Print one JSON object per line, with the stored image
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// Options of `poison redrive`.
#[derive(Args, Clone)]
pub struct RedrivePoisonArgs {
    /// Ids of the records, as `poison list` prints them
    #[arg(
        value_name = "ID",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    pub ids: Vec<PoisonId>,
    /// Redrive all records
    #[arg(long)]
    pub all: bool,
    /// With --all: only records that were stored on this day (UTC)
    #[arg(
        long,
        value_name = "YYYY-MM-DD",
        requires = "all",
        conflicts_with = "ids",
        value_parser = parse_day,
    )]
    pub day: Option<String>,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// Subcommands of `deliveries`.
#[derive(Subcommand, Clone)]
pub enum DeliveriesCommand {
    /// List the deliveries of an account, newest first
    #[command(after_help = examples::LIST_DELIVERIES)]
    List(ListDeliveriesArgs),
    /// Show one delivery: payload, attempts and next step
    #[command(after_help = examples::SHOW_DELIVERY)]
    Show(ShowDeliveryArgs),
    /// Make the next attempt of a delivery due now; the next sweep sends it, usually within a
    /// minute
    #[command(after_help = examples::RETRY_DELIVERY)]
    Retry(RetryDeliveryArgs),
}

impl DeliveriesCommand {
    fn tables(&self) -> &TablesArgs {
        match self {
            Self::List(args) => &args.tables,
            Self::Show(args) => &args.tables,
            Self::Retry(args) => &args.tables,
        }
    }
}

/// Options of `deliveries list`.
#[derive(Args, Clone)]
pub struct ListDeliveriesArgs {
    /// Account whose deliveries to list
    #[arg(long, value_parser = AccountId::parse)]
    pub account: AccountId,
    /// Only deliveries to this webhook, which may be deleted; by default to all webhooks that exist
    #[arg(long, value_name = "NUMBER", value_parser = parse_webhook_id)]
    pub webhook: Option<WebhookId>,
    /// Only deliveries with this status: pending, delivered, failed or cancelled
    #[arg(long, value_parser = parse_status)]
    pub status: Option<DeliveryStatus>,
    /// Only events of this type, such as job.completed or webhook.failing
    #[arg(long, value_name = "TYPE", value_parser = parse_event_type)]
    pub event: Option<EventType>,
    /// How many deliveries to list, at most 1000
    #[arg(long, default_value_t = 50, value_parser = parse_limit)]
    pub limit: usize,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// Options of `deliveries show`.
#[derive(Args, Clone)]
pub struct ShowDeliveryArgs {
    #[command(flatten)]
    pub delivery: DeliveryArgs,
    /// Print JSON in the format of the API
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// Options of `deliveries retry`.
#[derive(Args, Clone)]
pub struct RetryDeliveryArgs {
    #[command(flatten)]
    pub delivery: DeliveryArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// The options that name a delivery.
#[derive(Args, Clone)]
pub struct DeliveryArgs {
    /// Account that owns the webhook
    #[arg(long, value_parser = AccountId::parse)]
    pub account: AccountId,
    /// Id of the webhook
    #[arg(long, value_name = "NUMBER", value_parser = parse_webhook_id)]
    pub webhook: WebhookId,
    /// Id of the event
    #[arg(value_name = "EVENT_ID", value_parser = parse_event_id)]
    pub event: EventId,
}

/// Options of `stats`.
#[derive(Args, Clone)]
pub struct StatsArgs {
    /// Only this account, webhook by webhook
    #[arg(long, value_parser = AccountId::parse)]
    pub account: Option<AccountId>,
    /// Print JSON; with --account one object per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// Options of `completions`.
#[derive(Args, Clone)]
pub struct CompletionsArgs {
    /// Shell that the script is for
    pub shell: Shell,
}
