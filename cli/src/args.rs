//! The command line.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, builder::FalseyValueParser};
use ipnet::IpNet;

use super::{commands, demo, listen, serve};
use nano_webhooks::{
    client::guard::TargetPolicy,
    store::{delivery_log::DeliveryStatus, key_schema, poison::PoisonId},
    telemetry::{self, LogFormat},
};
use nano_webhooks_core::{
    account_id::AccountId, delivery::schedule::RetrySchedule, event::EventId,
    event_type::EventType, webhook::WebhookId,
};

/// Why a command failed, in a line for the person who gave it.
#[derive(Debug)]
pub struct CliError(pub String);

impl<E: std::error::Error> From<E> for CliError {
    fn from(error: E) -> Self {
        Self(telemetry::error_chain(&error))
    }
}

/// Outgoing webhooks on one machine: the API, an embedded DynamoDB, and the dispatcher.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the whole service on this machine; also if no command is given
    Serve(ServeArgs),
    /// Shows a job become a signed webhook, in seconds, and verifies it
    Demo,
    /// Runs a receiver to develop against, which verifies what it receives
    Listen(ListenArgs),
    /// Creates, lists and revokes API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Writes a job that ended, as a worker would
    #[command(subcommand)]
    Job(JobCommand),
    /// Looks after the secrets as they are stored
    #[command(subcommand)]
    Secrets(SecretsCommand),
    /// Lists the stream records that could not be understood, and has them read again
    #[command(subcommand)]
    Poison(PoisonCommand),
    /// Lists deliveries, shows one, makes one again
    #[command(subcommand)]
    Deliveries(DeliveriesCommand),
    /// Counts what is pending, what is poison, and what goes on
    ///
    /// Of all accounts: pending deliveries by the entries of the index `due`, 100,000 at most, beyond which the counts are
    /// printed as "at least"; poison records by day, 10,000 of each at most; and the webhooks whose deliveries are being
    /// replayed or made due again. What is parked, what failed and which endpoints do badly stands with the webhooks: see
    /// --account.
    ///
    /// Of one account: each of its webhooks, its endpoint's health, and how many of its deliveries are pending, parked and
    /// failed, by the entries of the index `by_state`, 10,000 of each at most.
    Stats(StatsArgs),
}

/// Options of `serve`.
#[derive(Args, Clone)]
pub struct ServeArgs {
    /// Address of the HTTP API; port 0 picks a free one
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Address of the embedded DynamoDB; port 0 picks a free one
    #[arg(long, env = "DYNAMODB_LISTEN", default_value = "127.0.0.1:8000")]
    pub dynamodb_listen: SocketAddr,
    /// Where the data is kept
    #[arg(long, env = "DATA_DIR", default_value = ".nano-webhooks")]
    pub data_dir: PathBuf,
    /// Keep nothing on disk beyond the end of the process
    #[arg(long, env = "IN_MEMORY", value_parser = FalseyValueParser::new())]
    pub in_memory: bool,
    /// Use the DynamoDB engine at this URL instead of the embedded one
    #[arg(long, env = "DYNAMODB_ENDPOINT", value_name = "URL", value_parser = endpoint)]
    pub dynamodb_endpoint: Option<String>,
    /// Which targets may be called: any or public
    #[arg(long, env = "TARGETS", default_value_t = TargetPolicy::Any)]
    pub targets: TargetPolicy,
    /// A range that may be called beside the public ones; may be repeated
    #[arg(long = "allow-cidr", env = "ALLOW_CIDRS", value_delimiter = ',')]
    pub allow_cidrs: Vec<IpNet>,
    /// The waits between attempts, separated by commas
    #[arg(long, env = "RETRY_SCHEDULE", default_value_t = RetrySchedule::default())]
    pub retry_schedule: RetrySchedule,
    /// Trust the certificates of this PEM file too
    #[arg(long, env = "EXTRA_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// The API key of account `demo`; without it one is made, and kept in the data directory
    #[arg(long, env = "API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// When ready, print one line of JSON on stdout
    #[arg(long, env = "JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
}

/// Options of `listen`.
#[derive(Args, Clone)]
pub struct ListenArgs {
    /// Port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 9000)]
    pub port: u16,
    /// The webhook's secret, to verify signatures with
    #[arg(long)]
    pub secret: Option<String>,
    /// The status to answer with
    #[arg(long, value_name = "STATUS", default_value_t = 200, value_parser = clap::value_parser!(u16).range(200..=599))]
    pub respond: u16,
    /// How many seconds to wait before answering
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = seconds)]
    pub delay: f64,
}

/// Which tables a command works on.
#[derive(Args, Clone)]
pub struct TablesArgs {
    /// The DynamoDB engine; by default that of a local `serve`
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000", conflicts_with = "aws", value_parser = endpoint)]
    pub dynamodb_endpoint: String,
    /// The tables of the AWS account that the ordinary credentials belong to
    #[arg(long)]
    pub aws: bool,
}

/// Commands on API keys.
#[derive(Subcommand, Clone)]
pub enum KeysCommand {
    /// Creates a key and shows it this once
    Create {
        /// Whose key it is
        #[arg(long)]
        account: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Which tables.
        #[command(flatten)]
        tables: TablesArgs,
    },
    /// Lists an account's keys by the part that may be shown
    List {
        /// Whose keys
        #[arg(long)]
        account: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Which tables.
        #[command(flatten)]
        tables: TablesArgs,
    },
    /// Revokes a key at once
    Revoke {
        /// Whose key it is
        #[arg(long)]
        account: String,
        /// The key, or the part of it that `keys list` shows
        key: String,
        /// Which tables.
        #[command(flatten)]
        tables: TablesArgs,
    },
}

/// Commands on stored secrets.
#[derive(Subcommand, Clone)]
pub enum SecretsCommand {
    /// Seals every secret that the newest data key has not sealed: those stored before there was one, and after a new one was
    /// started
    Reseal {
        /// Start a new data key first
        #[arg(long)]
        new_key: bool,
        /// Where a local `serve` keeps its data, the key that wraps data keys among it; with --aws `SECRETS_KMS_KEY_ID` names
        /// that key
        #[arg(long, env = "DATA_DIR", default_value = ".nano-webhooks")]
        data_dir: PathBuf,
        /// Which tables.
        #[command(flatten)]
        tables: TablesArgs,
    },
}

/// Commands on jobs.
#[derive(Subcommand, Clone)]
pub enum JobCommand {
    /// The job completed
    Complete(JobArgs),
    /// The job failed
    Fail(JobArgs),
}

/// The job that ended.
#[derive(Args, Clone)]
pub struct JobArgs {
    /// Who owns the job
    #[arg(long, default_value = "demo")]
    pub account: String,
    /// The job; without it one is made up
    #[arg(long)]
    pub task_id: Option<String>,
    /// image, video, or any other
    #[arg(long = "type", default_value = "image")]
    pub task_type: String,
    /// The result: a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub data: String,
    /// Which tables to write to.
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// Commands on poison records.
#[derive(Subcommand, Clone)]
pub enum PoisonCommand {
    /// Lists the records that could not be understood, the newest day first
    List {
        /// Those kept on this day (UTC) alone; without it those of all days within `RETENTION_DAYS` (30)
        #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
        day: Option<String>,
        /// Print JSON, one object a line, with the image where it was kept
        #[arg(long)]
        json: bool,
        /// Which tables.
        #[command(flatten)]
        tables: TablesArgs,
    },
    /// Reads records again, and makes events of those that can be understood now
    ///
    /// A job is read as it is now in the jobs table (`JOBS_TABLE`; with --aws only if that is set), so mend it there first. If it is
    /// gone, or has another status by now, the image that was kept with the record counts. Of an event a delivery is recorded for each
    /// subscribing webhook that has none yet, and the sweeps, from within a minute on, send them. Records that still cannot be understood
    /// stay, and the exit status is 1.
    Redrive {
        /// The records, as `poison list` names them
        #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all", value_parser = poison_id)]
        ids: Vec<PoisonId>,
        /// All records
        #[arg(long)]
        all: bool,
        /// Of all records those kept on this day (UTC)
        #[arg(long, value_name = "YYYY-MM-DD", requires = "all", conflicts_with = "ids", value_parser = day)]
        day: Option<String>,
        /// Which tables.
        #[command(flatten)]
        tables: TablesArgs,
    },
}

/// Commands on deliveries.
#[derive(Subcommand, Clone)]
pub enum DeliveriesCommand {
    /// Lists an account's deliveries, the newest first
    List {
        /// Whose deliveries
        #[arg(long, value_parser = AccountId::parse)]
        account: AccountId,
        /// Those to this webhook alone, which may be a deleted one; without it to all that the account has
        #[arg(long, value_name = "NUMBER", value_parser = webhook)]
        webhook: Option<WebhookId>,
        /// Those with this status alone: pending, delivered, failed or cancelled
        #[arg(long, value_parser = status)]
        status: Option<DeliveryStatus>,
        /// Those of this type alone: job.completed, job.failed or webhook.disabled
        #[arg(long, value_name = "TYPE", value_parser = event_type)]
        event: Option<EventType>,
        /// How many, at most 1000
        #[arg(long, default_value_t = 50, value_parser = limit)]
        limit: usize,
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
        /// Which tables.
        #[command(flatten)]
        tables: TablesArgs,
    },
    /// Shows a delivery: its payload, each attempt, and what happens next
    Show {
        /// Which one.
        #[command(flatten)]
        delivery: DeliveryArgs,
        /// Print JSON, as the API has it
        #[arg(long)]
        json: bool,
        /// Which tables.
        #[command(flatten)]
        tables: TablesArgs,
    },
    /// Makes the next attempt of a delivery due now, whatever its status; the next sweep, within a minute, sends it
    Retry {
        /// Which one.
        #[command(flatten)]
        delivery: DeliveryArgs,
        /// Which tables.
        #[command(flatten)]
        tables: TablesArgs,
    },
}

/// Names a delivery.
#[derive(Args, Clone)]
pub struct DeliveryArgs {
    /// Whose delivery it is
    #[arg(long, value_parser = AccountId::parse)]
    pub account: AccountId,
    /// The webhook
    #[arg(long, value_name = "NUMBER", value_parser = webhook)]
    pub webhook: WebhookId,
    /// The event
    #[arg(value_name = "EVENT_ID", value_parser = event_id)]
    pub event: EventId,
}

/// Options of `stats`.
#[derive(Args, Clone)]
pub struct StatsArgs {
    /// Of this account's webhooks, one by one
    #[arg(long, value_parser = AccountId::parse)]
    pub account: Option<AccountId>,
    /// Print JSON; of an account's webhooks one object a line
    #[arg(long)]
    pub json: bool,
    /// Which tables.
    #[command(flatten)]
    pub tables: TablesArgs,
}

/// The most deliveries that are listed at a time.
const MAX_LISTED: usize = 1_000;

fn limit(text: &str) -> Result<usize, &'static str> {
    text.parse()
        .ok()
        .filter(|limit| (1..=MAX_LISTED).contains(limit))
        .ok_or("expected a whole number from 1 to 1000")
}

fn day(text: &str) -> Result<String, &'static str> {
    key_schema::parse_utc_day(text).ok_or("expected a day such as 2024-12-23")
}

fn poison_id(text: &str) -> Result<PoisonId, &'static str> {
    PoisonId::parse(text)
        .ok_or("expected a day and a number as `poison list` shows them, such as 2024-12-23/100")
}

fn webhook(text: &str) -> Result<WebhookId, &'static str> {
    WebhookId::parse(text).ok_or("expected the number of a webhook, such as 1")
}

fn status(text: &str) -> Result<DeliveryStatus, &'static str> {
    let known = DeliveryStatus::ALL
        .into_iter()
        .find(|status| status.as_str() == text);
    known.ok_or("expected pending, delivered, failed or cancelled")
}

fn event_type(text: &str) -> Result<EventType, &'static str> {
    EventType::parse(text).ok_or("expected job.completed, job.failed or webhook.disabled")
}

fn event_id(text: &str) -> Result<EventId, &'static str> {
    EventId::parse(text)
        .ok_or("expected an event's id as `deliveries list` shows it: evt_ and 26 characters")
}

fn endpoint(text: &str) -> Result<String, &'static str> {
    let url = url::Url::parse(text)
        .ok()
        .filter(|url| url.scheme() == "http" && url.has_host());
    url.map(|_| text.to_owned())
        .ok_or("expected a URL such as http://127.0.0.1:8000")
}

fn seconds(text: &str) -> Result<f64, &'static str> {
    text.parse()
        .ok()
        .filter(|seconds| (0.0..=3600.0).contains(seconds))
        .ok_or("expected 0 to 3600 seconds")
}

/// Puts in `serve` where no command is given.
fn default_to_serve(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<_> = args.collect();
    let asks = ["--help", "-h", "--version", "-V"];
    let given = args.get(1).is_some_and(|first| {
        asks.iter().any(|ask| first == ask) || !first.as_encoded_bytes().starts_with(b"-")
    });
    if !given {
        args.insert(args.len().min(1), "serve".into());
    }
    args
}

/// Reads the command line and does what it says.
///
/// # Errors
/// In a line for the person who gave the command.
pub async fn run() -> Result<(), CliError> {
    let Cli { command } = Cli::parse_from(default_to_serve(std::env::args_os()));
    let quiet = !matches!(command, Command::Serve(_));
    // The engine warns of each request that it refuses, which a condition that does not hold is enough for.
    telemetry::init_tracing(
        LogFormat::Text,
        if quiet {
            "error"
        } else {
            "info,dynoxide=error"
        },
    )?;
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Demo => demo::run().await,
        Command::Listen(args) => listen::run(args).await,
        Command::Keys(command) => commands::keys::run(command).await,
        Command::Secrets(SecretsCommand::Reseal {
            new_key,
            data_dir,
            tables,
        }) => commands::secrets::reseal(new_key, &data_dir, &tables).await,
        Command::Poison(command) => commands::poison::run(command).await,
        Command::Deliveries(command) => commands::deliveries::run(command).await,
        Command::Stats(args) => commands::stats::run(args).await,
        Command::Job(JobCommand::Complete(args)) => {
            commands::jobs::run(args, nano_webhooks_core::event::JobOutcome::Completed).await
        }
        Command::Job(JobCommand::Fail(args)) => {
            commands::jobs::run(args, nano_webhooks_core::event::JobOutcome::Failed).await
        }
    }
}

/// A text that others wrote, for a terminal: what would steer it is escaped.
pub fn escape_for_terminal(text: &str) -> String {
    // Beside control characters those that hide, or turn the direction of what follows.
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let escaped = |c: char| {
        if steers(c) {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_steer_a_terminal_is_escaped() {
        assert_eq!(
            escape_for_terminal("\u{1b}[2Jé\n\u{9b}\u{202e}"),
            r"\u{1b}[2Jé\n\u{9b}\u{202e}"
        );
    }
}
