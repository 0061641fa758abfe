//! `poison redrive`: reads poison records again and creates the events of those that are valid now.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    time::Duration,
};

use anyhow::bail;
use indicatif::ProgressBar;
use nano_webhooks::{
    clock::Clock,
    concurrency,
    dispatch::redrive::{self, RedriveOutcome},
    store::{
        Store,
        poison::{PoisonId, PoisonRecord},
    },
};
use nano_webhooks_core::{delivery::lease::PACING_INTERVAL, timestamp::Timestamp};
use serde_json::{Value, json};

use super::paging::{PAGE_SIZE, days_to_list};
use crate::{
    args::RedrivePoisonArgs,
    commands::{
        progress::{start_progress, start_unbounded_progress},
        tables::{find_jobs_table, load_config, open_store},
    },
    json_line::print_json,
    terminal::{escape_for_terminal, pluralize, print_remark},
};

/// How many records are redriven at the same time.
const CONCURRENT_REDRIVES: usize = 8;
const PROGRESS_MESSAGE: &str = "Redriving poison records:";

pub async fn redrive(args: RedrivePoisonArgs) -> anyhow::Result<()> {
    let mut run = RedriveRun {
        store: open_store(&args.tables).await?,
        jobs_table: find_jobs_table(&args.tables)?,
        clock: Clock::system(),
        retention: load_config(&args.tables)?.retention,
        counts: RedriveCounts::default(),
        as_json: args.json,
    };
    let missing = if args.ids.is_empty() {
        run.redrive_days(args.day).await?;
        Vec::new()
    } else {
        run.redrive_ids(args.ids).await?
    };
    if run.counts.records > 0 || missing.is_empty() {
        run.print_counts()?;
    }
    if !missing.is_empty() {
        bail!(
            "there is no poison record {}; list the records with `poison list`",
            missing.join(", ")
        );
    }
    if run.counts.still_poison > 0 {
        bail!(
            "still poison: {}; correct the jobs and run the command again",
            pluralize_records(run.counts.still_poison)
        );
    }
    Ok(())
}

/// A run of the command.
struct RedriveRun {
    store: Store,
    jobs_table: Option<String>,
    clock: Clock,
    retention: Duration,
    counts: RedriveCounts,
    as_json: bool,
}

impl RedriveRun {
    /// Redrives all records of a day, or of every day.
    async fn redrive_days(&mut self, day: Option<String>) -> anyhow::Result<()> {
        let progress = start_unbounded_progress(PROGRESS_MESSAGE);
        for day in days_to_list(day, self.clock.now(), self.retention) {
            let mut cursor = None;
            loop {
                let page = self
                    .store
                    .poison()
                    .list_page(&day, cursor, PAGE_SIZE)
                    .await?;
                self.redrive_records(&page.records, &progress).await?;
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Redrives the records with these ids, each once. Returns the ids without a record.
    async fn redrive_ids(&mut self, ids: Vec<PoisonId>) -> anyhow::Result<Vec<String>> {
        let ids: BTreeSet<_> = ids.into_iter().collect();
        let progress = start_progress(PROGRESS_MESSAGE, ids.len());
        let mut missing = Vec::new();
        for id in ids {
            let records = self.store.poison().find(&id).await?;
            if records.is_empty() {
                missing.push(id.to_string());
            }
            self.redrive_records(&records, &progress).await?;
        }
        Ok(missing)
    }

    /// Redrives records and prints the outcome of each. Returns the last error after that.
    async fn redrive_records(
        &mut self,
        records: &[PoisonRecord],
        progress: &ProgressBar,
    ) -> anyhow::Result<()> {
        let now = self.clock.now();
        let redrives = records.iter().enumerate().map(|(index, record)| {
            let due_at = spaced_due_time(now, self.counts.records + index);
            self.redrive_record(index, record, due_at, progress)
        });
        let mut results = concurrency::join_bounded(redrives.collect(), CONCURRENT_REDRIVES).await;
        results.sort_by_key(|(index, _)| *index);
        let mut last_error = None;
        for (index, result) in results {
            match result {
                Ok(outcome) => {
                    self.counts.add(&outcome);
                    let id = records[index].id();
                    progress.suspend(|| self.print_outcome(&id, &outcome))?;
                }
                Err(error) => last_error = Some(error),
            }
        }
        match last_error {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    fn print_outcome(&self, id: &PoisonId, outcome: &RedriveOutcome) -> io::Result<()> {
        if self.as_json {
            return print_json(&outcome_to_json(id, outcome));
        }
        let line = format!("{id}: {}", describe_outcome(outcome));
        writeln!(io::stdout(), "{}", escape_for_terminal(&line))
    }

    /// Prints the sums, which the lines of JSON already contain.
    fn print_counts(&self) -> io::Result<()> {
        if self.counts.records == 0 {
            print_remark("No poison records.");
        } else if !self.as_json {
            self.counts.print()?;
        }
        Ok(())
    }

    async fn redrive_record(
        &self,
        index: usize,
        record: &PoisonRecord,
        due_at: Timestamp,
        progress: &ProgressBar,
    ) -> (usize, nano_webhooks::store::Result<RedriveOutcome>) {
        let result = redrive::redrive(
            &self.store,
            self.jobs_table.as_deref(),
            record,
            due_at,
            self.clock.now(),
            self.retention,
        )
        .await;
        progress.inc(1);
        (index, result)
    }
}

/// When the deliveries of the event with this index are due. Redriven events are spaced so that
/// they flood no endpoint.
fn spaced_due_time(now: Timestamp, index: usize) -> Timestamp {
    now + PACING_INTERVAL * u32::try_from(index).unwrap_or(u32::MAX)
}

/// How many records were redriven, and with which outcome.
#[derive(Default)]
struct RedriveCounts {
    records: usize,
    events: usize,
    due_deliveries: usize,
    resumed_webhooks: usize,
    still_poison: usize,
}

impl RedriveCounts {
    fn add(&mut self, outcome: &RedriveOutcome) {
        self.records += 1;
        match outcome {
            RedriveOutcome::Redriven { recorded, .. } => {
                self.events += 1;
                self.due_deliveries += recorded;
            }
            RedriveOutcome::NotAnEvent => {}
            RedriveOutcome::WebhookResumed(_) => self.resumed_webhooks += 1,
            RedriveOutcome::StillPoison { recorded, .. } => {
                self.still_poison += 1;
                self.due_deliveries += recorded;
            }
        }
    }

    fn print(&self) -> io::Result<()> {
        let hint = if self.due_deliveries > 0 {
            " The sweep sends them, usually within a minute, five events per second."
        } else {
            ""
        };
        writeln!(
            std::io::stdout(),
            "Redrove {}: {}, {} due.{hint}",
            pluralize_records(self.records),
            pluralize(self.events, "event", "events"),
            pluralize_deliveries(self.due_deliveries),
        )?;
        if self.resumed_webhooks > 0 {
            let webhooks = pluralize(self.resumed_webhooks, "webhook", "webhooks");
            writeln!(
                std::io::stdout(),
                "Resumed {webhooks}. Their paused deliveries are sent from the next minute on, \
                 300 per minute."
            )?;
        }
        Ok(())
    }
}

fn describe_outcome(outcome: &RedriveOutcome) -> String {
    match outcome {
        RedriveOutcome::Redriven {
            event,
            recorded,
            already_recorded,
        } => {
            let deliveries = match (recorded, already_recorded) {
                (0, 0) => "no webhook subscribes to it".to_owned(),
                (new, 0) => format!("{} due", pluralize_deliveries(*new)),
                (0, old) => format!("{} recorded before", pluralize_deliveries(*old)),
                (new, old) => {
                    format!("{} due, {old} recorded before", pluralize_deliveries(*new))
                }
            };
            let event_type = event.outcome.event_type().as_str();
            format!(
                "{event_type} of job {}, account {}, {}: {deliveries}",
                event.task_id, event.account, event.id
            )
        }
        RedriveOutcome::NotAnEvent => "no event: the job was not finished".to_owned(),
        RedriveOutcome::WebhookResumed(webhook) => format!(
            "webhook {} of account {}: paused deliveries resumed",
            webhook.id, webhook.account
        ),
        RedriveOutcome::StillPoison { reason, .. } => format!("still poison: {reason}"),
    }
}

fn outcome_to_json(id: &PoisonId, outcome: &RedriveOutcome) -> Value {
    let id = id.to_string();
    match outcome {
        RedriveOutcome::Redriven {
            event,
            recorded,
            already_recorded,
        } => json!({
            "id": id,
            "outcome": "redriven",
            "event_id": event.id.as_str(),
            "event": event.outcome.event_type().as_str(),
            "account": event.account.as_str(),
            "task_id": event.task_id,
            "recorded": recorded,
            "already_recorded": already_recorded,
        }),
        RedriveOutcome::NotAnEvent => json!({ "id": id, "outcome": "not_an_event" }),
        RedriveOutcome::WebhookResumed(webhook) => json!({
            "id": id,
            "outcome": "webhook_resumed",
            "account": webhook.account.as_str(),
            "webhook_id": webhook.id.get(),
        }),
        RedriveOutcome::StillPoison { reason, recorded } => json!({
            "id": id,
            "outcome": "still_poison",
            "reason": reason.to_string(),
            "recorded": recorded,
        }),
    }
}

fn pluralize_records(count: usize) -> String {
    pluralize(count, "record", "records")
}

fn pluralize_deliveries(count: usize) -> String {
    pluralize(count, "delivery", "deliveries")
}
