//! `poison`: stream records that could not be understood.

use std::{collections::BTreeSet, io::Write, time::Duration};

use indicatif::ProgressBar;
use serde_json::{Map, Value, json};

use super::{
    escape_for_terminal, explain, format_relative, jobs_table, load_config, open_store, pluralize,
    progress::progress,
};
use crate::args::{CliError, PoisonCommand, TablesArgs};
use nano_webhooks::{
    clock::Clock,
    concurrency,
    dispatch::redrive::{RedriveOutcome, redrive},
    store::{
        Store, key_schema,
        poison::{PoisonId, PoisonRecord},
    },
};
use nano_webhooks_core::{delivery::lease::PACING_INTERVAL, timestamp::Timestamp};

/// How many records are read at a time: fewer where their images fill a page of 1 MB before.
const PAGE: i32 = 100;
/// How many are read again at the same time.
const CONCURRENT: usize = 8;
const DAY: Duration = Duration::from_hours(24);

/// Does a command on poison records.
pub(crate) async fn run(command: PoisonCommand) -> Result<(), CliError> {
    match command {
        PoisonCommand::List { day, json, tables } => list(day, json, &tables).await,
        PoisonCommand::Redrive {
            ids, day, tables, ..
        } => RedriveRun::begin(&tables).await?.run(ids, day).await,
    }
}

async fn list(day: Option<String>, json: bool, tables: &TablesArgs) -> Result<(), CliError> {
    let (store, now) = (open_store(tables).await?, Clock::system().now());
    let (mut out, mut any) = (std::io::stdout(), false);
    for day in days_to_list(day, now)? {
        let mut from = None;
        loop {
            let page = store
                .poison()
                .list_page(&day, from, PAGE)
                .await
                .map_err(|error| explain(&error, tables))?;
            any |= !page.kept.is_empty();
            for kept in &page.kept {
                if json {
                    writeln!(out, "{}", as_json(kept))?;
                } else {
                    write!(out, "{}", format_poison(kept, now))?;
                }
            }
            from = page.next;
            if from.is_none() {
                break;
            }
        }
    }
    if !any {
        writeln!(std::io::stderr(), "No poison records.")?;
    }
    Ok(())
}

/// The day that is asked for, or all on which what is still kept can have been kept, the newest first.
pub(super) fn days_to_list(day: Option<String>, now: Timestamp) -> Result<Vec<String>, CliError> {
    if let Some(day) = day {
        return Ok(vec![day]);
    }
    let days = load_config()?.retention.as_secs() / DAY.as_secs();
    let back = |days| u32::try_from(days).map_or(Duration::MAX, |days| DAY * days);
    Ok((0..=days)
        .map(|days| key_schema::utc_day(now - back(days)))
        .collect())
}

fn as_json(kept: &PoisonRecord) -> Value {
    // What is no JSON is shown as the text that it is.
    let json = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    let poison = &kept.poison;
    json!({
        "id": kept.id().to_string(),
        "kept_at": kept.kept_at.to_rfc3339(),
        "created_at": poison.created_at.map(Timestamp::to_rfc3339),
        "reason": poison.reason,
        "keys": (!poison.keys.is_empty()).then(|| json(&poison.keys)),
        "stream": poison.stream,
        "sequence_number": poison.sequence_number,
        "image": poison.image.as_deref().map(json),
    })
}

fn format_poison(kept: &PoisonRecord, now: Timestamp) -> String {
    let PoisonRecord {
        poison, kept_at, ..
    } = kept;
    let none = |text: String| {
        if text.is_empty() {
            "(not known)".to_owned()
        } else {
            text
        }
    };
    let image = if poison.image.is_some() {
        ""
    } else {
        "\n  image   too large, not kept: `redrive` reads the job"
    };
    format!(
        "{}\n  kept    {}\n  reason  {}\n  job     {}\n  stream  {}{image}\n",
        escape_for_terminal(&kept.id().to_string()),
        format_relative(*kept_at, now),
        escape_for_terminal(&poison.reason),
        none(escape_for_terminal(&format_job_key(&poison.keys))),
        none(escape_for_terminal(&poison.stream)),
    )
}

/// A job's key as people write it, `task_id=t1`.
fn format_job_key(keys: &str) -> String {
    let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
    let value = |typed: &Value| match typed.as_object().and_then(|typed| typed.values().next()) {
        Some(Value::String(text)) => text.clone(),
        other => other.unwrap_or(typed).to_string(),
    };
    keys.iter()
        .map(|(name, typed)| format!("{name}={}", value(typed)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The reading again of records, and what has come of it so far.
struct RedriveRun<'a> {
    store: Store,
    jobs: Option<String>,
    tables: &'a TablesArgs,
    clock: Clock,
    retention: Duration,
    records: usize,
    events: usize,
    due: usize,
    staying: usize,
}

impl<'a> RedriveRun<'a> {
    async fn begin(tables: &'a TablesArgs) -> Result<Self, CliError> {
        Ok(Self {
            store: open_store(tables).await?,
            jobs: jobs_table(tables)?,
            tables,
            clock: Clock::system(),
            retention: load_config()?.retention,
            records: 0,
            events: 0,
            due: 0,
            staying: 0,
        })
    }

    /// Reads the records again that are named, or all of a day or of every day if none are.
    async fn run(mut self, ids: Vec<PoisonId>, day: Option<String>) -> Result<(), CliError> {
        let mut missing = Vec::new();
        if ids.is_empty() {
            let bar = progress("Redriving poison records:", None);
            for day in days_to_list(day, self.clock.now())? {
                let mut from = None;
                loop {
                    let page = self.store.poison().list_page(&day, from, PAGE).await;
                    let page = page.map_err(|error| explain(&error, self.tables))?;
                    self.redrive(&page.kept, &bar).await?;
                    from = page.next;
                    if from.is_none() {
                        break;
                    }
                }
            }
        } else {
            // Each once, however often it is named.
            let ids: BTreeSet<_> = ids.into_iter().collect();
            let bar = progress("Redriving poison records:", Some(ids.len()));
            for id in ids {
                let kept = self
                    .store
                    .poison()
                    .find(&id)
                    .await
                    .map_err(|error| explain(&error, self.tables))?;
                if kept.is_empty() {
                    missing.push(id.to_string());
                }
                self.redrive(&kept, &bar).await?;
            }
        }
        self.end(&missing)
    }

    async fn redrive(&mut self, kept: &[PoisonRecord], bar: &ProgressBar) -> Result<(), CliError> {
        let now = self.clock.now();
        let (store, jobs, retention) = (&self.store, self.jobs.as_deref(), self.retention);
        let done = self.records;
        let redrives = kept.iter().enumerate().map(|(place, kept)| async move {
            let due = now + PACING_INTERVAL * u32::try_from(done + place).unwrap_or(u32::MAX);
            let redriven = redrive(store, jobs, kept, due, now, retention).await;
            bar.inc(1);
            (place, redriven)
        });
        let mut redriven = concurrency::join_bounded(redrives.collect(), CONCURRENT).await;
        redriven.sort_by_key(|(place, _)| *place);
        let mut failed = None;
        for (place, redriven) in redriven {
            // What was done is told, whatever became of the others.
            match redriven {
                Ok(redriven) => {
                    let line = format!("{}: {}", kept[place].id(), self.count(&redriven));
                    bar.suspend(|| writeln!(std::io::stdout(), "{}", escape_for_terminal(&line)))?;
                }
                Err(error) => failed = Some(explain(&error, self.tables)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Counts what became of a record, and says it.
    fn count(&mut self, redriven: &RedriveOutcome) -> String {
        self.records += 1;
        match redriven {
            RedriveOutcome::Event {
                event,
                recorded,
                existing,
            } => {
                self.events += 1;
                self.due += recorded;
                let deliveries = match (recorded, existing) {
                    (0, 0) => "nobody subscribes to it".to_owned(),
                    (new, 0) => format!("{} due", delivery_count(*new)),
                    (0, old) => format!("{} recorded before", delivery_count(*old)),
                    (new, old) => format!("{} due, {old} recorded before", delivery_count(*new)),
                };
                let name = event.outcome.event_type().as_str();
                format!(
                    "{name} of job {}, account {}, {}: {deliveries}",
                    event.task_id, event.account, event.id
                )
            }
            RedriveOutcome::Nothing => "no event: its job had not ended".to_owned(),
            RedriveOutcome::Stays { reason, recorded } => {
                self.staying += 1;
                self.due += recorded;
                format!("stays: {reason}")
            }
        }
    }

    fn end(self, missing: &[String]) -> Result<(), CliError> {
        let Self {
            records,
            events,
            due,
            staying,
            ..
        } = self;
        if records == 0 && missing.is_empty() {
            writeln!(std::io::stderr(), "No poison records.")?;
        }
        if records > 0 {
            let sent = if due > 0 {
                "; the sweeps send them, from within a minute on, five events a second"
            } else {
                ""
            };
            let (records, events) = (record_count(records), pluralize(events, "event", "events"));
            writeln!(
                std::io::stdout(),
                "{records} read again: {events}, {} due{sent}.",
                delivery_count(due)
            )?;
        }
        if !missing.is_empty() {
            let missing = escape_for_terminal(&missing.join(", "));
            return Err(CliError(format!(
                "no poison record {missing}: `poison list` shows those that there are"
            )));
        }
        if staying > 0 {
            return Err(CliError(format!(
                "{} still not understood, and kept",
                record_count(staying)
            )));
        }
        Ok(())
    }
}

fn record_count(n: usize) -> String {
    pluralize(n, "record", "records")
}

fn delivery_count(n: usize) -> String {
    pluralize(n, "delivery", "deliveries")
}
