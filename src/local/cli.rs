//! The command line.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, builder::FalseyValueParser};
use ipnet::IpNet;

use super::{demo, listen, operate, serve};
use crate::{
    delivery::schedule::Schedule,
    telemetry::{self, Format},
    transport::guard::Policy,
};

/// Why a command failed, in a line for the person who gave it.
#[derive(Debug)]
pub struct Failed(pub String);

impl<E: std::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        Self(text)
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
    #[arg(long, env = "TARGETS", default_value_t = Policy::Any)]
    pub targets: Policy,
    /// A range that may be called beside the public ones; may be repeated
    #[arg(long = "allow-cidr", env = "ALLOW_CIDRS", value_delimiter = ',')]
    pub allow_cidrs: Vec<IpNet>,
    /// The waits between attempts, separated by commas
    #[arg(long, env = "RETRY_SCHEDULE", default_value_t = Schedule::default())]
    pub retry_schedule: Schedule,
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

fn endpoint(text: &str) -> Result<String, &'static str> {
    let url = url::Url::parse(text).ok().filter(|url| url.scheme() == "http" && url.has_host());
    url.map(|_| text.to_owned()).ok_or("expected a URL such as http://127.0.0.1:8000")
}

fn seconds(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|seconds| (0.0..=3600.0).contains(seconds)).ok_or("expected 0 to 3600 seconds")
}

/// Puts in `serve` where no command is given.
fn with_command(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<_> = args.collect();
    let asks = ["--help", "-h", "--version", "-V"];
    let given = args
        .get(1)
        .is_some_and(|first| asks.iter().any(|ask| first == ask) || !first.as_encoded_bytes().starts_with(b"-"));
    if !given {
        args.insert(args.len().min(1), "serve".into());
    }
    args
}

/// Reads the command line and does what it says.
///
/// # Errors
/// In a line for the person who gave the command.
pub async fn run() -> Result<(), Failed> {
    let Cli { command } = Cli::parse_from(with_command(std::env::args_os()));
    let quiet = !matches!(command, Command::Serve(_));
    // The engine warns of each request that it refuses, which a condition that does not hold is enough for.
    telemetry::init(Format::Text, if quiet { "error" } else { "info,dynoxide=error" })?;
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Demo => demo::run().await,
        Command::Listen(args) => listen::run(args).await,
        Command::Keys(command) => operate::keys::run(command).await,
        Command::Secrets(SecretsCommand::Reseal { new_key, data_dir, tables }) => {
            operate::secrets::reseal(new_key, &data_dir, &tables).await
        }
        Command::Job(JobCommand::Complete(args)) => operate::jobs::run(args, crate::event::Outcome::Completed).await,
        Command::Job(JobCommand::Fail(args)) => operate::jobs::run(args, crate::event::Outcome::Failed).await,
    }
}
