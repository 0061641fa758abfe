//! The commands, one file for each.

mod completions;
mod deliveries;
mod demo;
mod job;
mod keys;
mod listen;
mod poison;
mod progress;
mod secrets;
mod serve;
mod stats;
mod tables;

use nano_webhooks_core::event::JobOutcome;

use crate::args::{
    Command, DeliveriesCommand, JobCommand, KeysCommand, PoisonCommand, SecretsCommand,
};

pub async fn run(command: Command) -> anyhow::Result<()> {
    let tables = command.tables().cloned();
    let result = run_subcommand(command).await;
    match tables {
        Some(tables) => result.map_err(|error| tables::explain_error(error, &tables)),
        None => result,
    }
}

async fn run_subcommand(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Demo => demo::run().await,
        Command::Listen(args) => listen::run(args).await,
        Command::Keys(KeysCommand::Create(args)) => keys::create(args).await,
        Command::Keys(KeysCommand::List(args)) => keys::list(args).await,
        Command::Keys(KeysCommand::Revoke(args)) => keys::revoke(args).await,
        Command::Job(JobCommand::Complete(args)) => job::put(args, JobOutcome::Completed).await,
        Command::Job(JobCommand::Fail(args)) => job::put(args, JobOutcome::Failed).await,
        Command::Secrets(SecretsCommand::ReEncrypt(args)) => secrets::re_encrypt(args).await,
        Command::Poison(PoisonCommand::List(args)) => poison::list(args).await,
        Command::Poison(PoisonCommand::Redrive(args)) => poison::redrive(args).await,
        Command::Deliveries(DeliveriesCommand::List(args)) => deliveries::list(args).await,
        Command::Deliveries(DeliveriesCommand::Show(args)) => deliveries::show(args).await,
        Command::Deliveries(DeliveriesCommand::Retry(args)) => deliveries::retry(args).await,
        Command::Stats(args) => stats::run(args).await,
        Command::Completions(args) => completions::print(&args),
    }
}
