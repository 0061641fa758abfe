//! `poison`: stream records that could not be understood.

use std::{collections::BTreeSet, io::Write, time::Duration};

use indicatif::ProgressBar;
use serde_json::{Map, Value, json};

use super::{counted, explain, jobs_table, open, printable, progress::progress, settings, time};
use crate::args::{Failed, PoisonCommand, TablesArgs};
use nano_webhooks::{
    clock::Clock,
    concurrency,
    dispatch::redrive::{Redriven, redrive},
    store::{
        Store, key_schema,
        poison::{Kept, PoisonId},
    },
};
use nano_webhooks_core::{delivery::lease::SPACING, timestamp::Timestamp};

/// How many records are read at a time: fewer where their images fill a page of 1 MB before.
const PAGE: i32 = 100;
/// How many are read again at the same time.
const CONCURRENT: usize = 8;
const DAY: Duration = Duration::from_hours(24);

/// Does a command on poison records.
pub(crate) async fn run(command: PoisonCommand) -> Result<(), Failed> {
    match command {
        PoisonCommand::List { day, json, tables } => list(day, json, &tables).await,
        PoisonCommand::Redrive { ids, day, tables, .. } => Redrive::begin(&tables).await?.run(ids, day).await,
    }
}

async fn list(day: Option<String>, json: bool, tables: &TablesArgs) -> Result<(), Failed> {
    let (store, now) = (open(tables).await?, Clock::system().now());
    let (mut out, mut any) = (std::io::stdout(), false);
    for day in days(day, now)? {
        let mut from = None;
        loop {
            let page = store.poison_page(&day, from, PAGE).await.map_err(|error| explain(&error, tables))?;
            any |= !page.kept.is_empty();
            for kept in &page.kept {
                if json {
                    writeln!(out, "{}", as_json(kept))?;
                } else {
                    write!(out, "{}", described(kept, now))?;
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
pub(super) fn days(day: Option<String>, now: Timestamp) -> Result<Vec<String>, Failed> {
    if let Some(day) = day {
        return Ok(vec![day]);
    }
    let days = settings()?.retention.as_secs() / DAY.as_secs();
    let back = |days| u32::try_from(days).map_or(Duration::MAX, |days| DAY * days);
    Ok((0..=days).map(|days| key_schema::day(now - back(days))).collect())
}

fn as_json(kept: &Kept) -> Value {
    // What is no JSON is shown as the text that it is.
    let json = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    let poison = &kept.poison;
    json!({
        "id": kept.id().to_string(),
        "kept_at": kept.kept_at.rfc3339(),
        "created_at": poison.created_at.map(Timestamp::rfc3339),
        "reason": poison.reason,
        "keys": (!poison.keys.is_empty()).then(|| json(&poison.keys)),
        "stream": poison.stream,
        "sequence_number": poison.sequence_number,
        "image": poison.image.as_deref().map(json),
    })
}

fn described(kept: &Kept, now: Timestamp) -> String {
    let Kept { poison, kept_at, .. } = kept;
    let none = |text: String| if text.is_empty() { "(not known)".to_owned() } else { text };
    let image = if poison.image.is_some() { "" } else { "\n  image   too large, not kept: `redrive` reads the job" };
    format!(
        "{}\n  kept    {}\n  reason  {}\n  job     {}\n  stream  {}{image}\n",
        printable(&kept.id().to_string()),
        time(*kept_at, now),
        printable(&poison.reason),
        none(printable(&key_of_job(&poison.keys))),
        none(printable(&poison.stream)),
    )
}

/// A job's key as people write it, `task_id=t1`.
fn key_of_job(keys: &str) -> String {
    let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
    let value = |typed: &Value| match typed.as_object().and_then(|typed| typed.values().next()) {
        Some(Value::String(text)) => text.clone(),
        other => other.unwrap_or(typed).to_string(),
    };
    keys.iter().map(|(name, typed)| format!("{name}={}", value(typed))).collect::<Vec<_>>().join(", ")
}

/// The reading again of records, and what has come of it so far.
struct Redrive<'a> {
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

impl<'a> Redrive<'a> {
    async fn begin(tables: &'a TablesArgs) -> Result<Self, Failed> {
        Ok(Self {
            store: open(tables).await?,
            jobs: jobs_table(tables)?,
            tables,
            clock: Clock::system(),
            retention: settings()?.retention,
            records: 0,
            events: 0,
            due: 0,
            staying: 0,
        })
    }

    /// Reads the records again that are named, or all of a day or of every day if none are.
    async fn run(mut self, ids: Vec<PoisonId>, day: Option<String>) -> Result<(), Failed> {
        let mut missing = Vec::new();
        if ids.is_empty() {
            let bar = progress("Redriving poison records:", None);
            for day in days(day, self.clock.now())? {
                let mut from = None;
                loop {
                    let page = self.store.poison_page(&day, from, PAGE).await;
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
                let kept = self.store.poison_named(&id).await.map_err(|error| explain(&error, self.tables))?;
                if kept.is_empty() {
                    missing.push(id.to_string());
                }
                self.redrive(&kept, &bar).await?;
            }
        }
        self.end(&missing)
    }

    async fn redrive(&mut self, kept: &[Kept], bar: &ProgressBar) -> Result<(), Failed> {
        let now = self.clock.now();
        let (store, jobs, retention) = (&self.store, self.jobs.as_deref(), self.retention);
        let done = self.records;
        let redrives = kept.iter().enumerate().map(|(place, kept)| async move {
            let due = now + SPACING * u32::try_from(done + place).unwrap_or(u32::MAX);
            let redriven = redrive(store, jobs, kept, due, now, retention).await;
            bar.inc(1);
            (place, redriven)
        });
        let mut redriven = concurrency::join(redrives.collect(), CONCURRENT).await;
        redriven.sort_by_key(|(place, _)| *place);
        let mut failed = None;
        for (place, redriven) in redriven {
            // What was done is told, whatever became of the others.
            match redriven {
                Ok(redriven) => {
                    let line = format!("{}: {}", kept[place].id(), self.count(&redriven));
                    bar.suspend(|| writeln!(std::io::stdout(), "{}", printable(&line)))?;
                }
                Err(error) => failed = Some(explain(&error, self.tables)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Counts what became of a record, and says it.
    fn count(&mut self, redriven: &Redriven) -> String {
        self.records += 1;
        match redriven {
            Redriven::Event { event, recorded, existing } => {
                self.events += 1;
                self.due += recorded;
                let deliveries = match (recorded, existing) {
                    (0, 0) => "nobody subscribes to it".to_owned(),
                    (new, 0) => format!("{} due", delivery_count(*new)),
                    (0, old) => format!("{} recorded before", delivery_count(*old)),
                    (new, old) => format!("{} due, {old} recorded before", delivery_count(*new)),
                };
                let name = event.outcome.event_type().name();
                format!("{name} of job {}, account {}, {}: {deliveries}", event.task_id, event.account, event.id)
            }
            Redriven::Nothing => "no event: its job had not ended".to_owned(),
            Redriven::Stays { reason, recorded } => {
                self.staying += 1;
                self.due += recorded;
                format!("stays: {reason}")
            }
        }
    }

    fn end(self, missing: &[String]) -> Result<(), Failed> {
        let Self { records, events, due, staying, .. } = self;
        if records == 0 && missing.is_empty() {
            writeln!(std::io::stderr(), "No poison records.")?;
        }
        if records > 0 {
            let sent =
                if due > 0 { "; the sweeps send them, from within a minute on, five events a second" } else { "" };
            let (records, events) = (record_count(records), counted(events, "event", "events"));
            writeln!(std::io::stdout(), "{records} read again: {events}, {} due{sent}.", delivery_count(due))?;
        }
        if !missing.is_empty() {
            let missing = printable(&missing.join(", "));
            return Err(Failed(format!("no poison record {missing}: `poison list` shows those that there are")));
        }
        if staying > 0 {
            return Err(Failed(format!("{} still not understood, and kept", record_count(staying))));
        }
        Ok(())
    }
}

fn record_count(n: usize) -> String {
    counted(n, "record", "records")
}

fn delivery_count(n: usize) -> String {
    counted(n, "delivery", "deliveries")
}
