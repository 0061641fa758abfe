//! Compares how a deployment treats an endpoint that does not respond, before and after ADR 42.
//!
//! ```text
//! cargo run --release -p nano-webhooks-core --example simulation
//! ```
//!
//! The simulation has a virtual clock and a seeded generator, so every run prints the same tables.
//! Health, breakers, probes, retries and sweep times are decided by this crate. Under the policy
//! "before", an open breaker limits the attempts of each process and nothing else.
//!
//! # Simplifications
//!
//! - Each account has one webhook and an event every 10 s. The stream has 40 lanes (four shards),
//!   each with one batch at a time.
//! - Every process knows an endpoint's health as soon as it changes. Each change is written, no
//!   write conflicts, and no two workers ask for the same probe.
//! - The partition of a webhook's deliveries accepts 1,000 writes per second and delays further
//!   ones. It throttles nothing. Index partitions, reads and the queue have no limits.
//! - A sweep moves the deliveries of each webhook for 21 s, with eight writes in flight. The limit
//!   of 64 for all webhooks is left out, because only one webhook has a backlog.
//! - The queue returns messages of a webhook with more than a tenth of all messages in flight last.
//!   Amazon SQS does not document how it decides.
//! - A message is received once and never becomes a dead letter. An environment starts at once, and
//!   Lambda adds five per second.

#![expect(clippy::print_stdout, reason = "the example prints its tables")]

mod deployment;
mod jobs;
mod queue;
mod report;
mod scenario;
mod stream;
mod workers;

use std::time::Duration;

use deployment::Deployment;
use report::{Report, Waits, Writes};
use scenario::{Policy, QueueOrder, Scenario};

const HOUR: Duration = Duration::from_hours(1);
const HALF_HOUR: Duration = Duration::from_mins(30);

/// Three hours of 1,000 accounts, one with a million deliveries due.
const OUTAGE: Scenario = Scenario {
    policy: Policy::Before,
    accounts: 1_000,
    backlog: 1_000_000,
    queue_order: QueueOrder::Fair,
    report_interval: HOUR,
    reports: 3,
    recovers_after: None,
};
/// An hour, in the middle of which the endpoint responds again. All of its backlog is paused by
/// then.
const RECOVERY: Scenario = Scenario {
    backlog: 100_000,
    report_interval: HALF_HOUR,
    reports: 2,
    recovers_after: Some(HALF_HOUR),
    ..OUTAGE
};

/// The name of a row, and its value.
type Row<T> = (&'static str, fn(&Report) -> T);

fn main() {
    let [before, after] = compare(OUTAGE);
    let unfair = Scenario {
        queue_order: QueueOrder::Oldest,
        ..OUTAGE
    };
    let [unfair_before, unfair_after] = compare(unfair);
    let columns = [&before[0], &before[2], &after[0], &after[2]];
    println!("| | before: first hour | third hour | after: first hour | third hour |");
    println!("|---|---:|---:|---:|---:|");
    print_counts(columns);
    print_waits(columns);
    let columns = [
        &unfair_before[0],
        &unfair_before[2],
        &unfair_after[0],
        &unfair_after[2],
    ];
    print_row(
        "healthy endpoints' retries, if the queue were not fair",
        columns,
        |report| report.healthy_retries.to_string(),
    );
    println!();
    print_recovery();
}

/// The reports of both policies.
fn compare(scenario: Scenario) -> [Vec<Report>; 2] {
    [Policy::Before, Policy::After]
        .map(|policy| Deployment::new(Scenario { policy, ..scenario }).run())
}

fn print_counts(columns: [&Report; 4]) {
    let counts: [Row<u64>; 8] = [
        ("attempts to the endpoint with the backlog", |report| {
            report.backlog_attempts
        }),
        ("attempts to the other 49 dead endpoints", |report| {
            report.dead_attempts
        }),
        ("deliveries moved by sweeps", |report| report.swept),
        ("deliveries deferred, because no slot was free", |report| {
            report.deferred
        }),
        ("deliveries paused when they came up", |report| {
            report.paused
        }),
        (
            "deliveries of the backlog not attempted or paused yet",
            |report| report.untouched,
        ),
        ("messages sent to the retry queue", |report| report.messages),
        ("busy environments of the retry function", |report| {
            report.busy.as_secs() / HOUR.as_secs()
        }),
    ];
    for (name, value) in counts {
        print_row(name, columns, |report| grouped(value(report)));
    }
    let writes: [Row<Writes>; 4] = [
        ("writes for the backlog", |report| report.backlog_writes),
        ("writes for the account with the backlog", |report| {
            report.backlog_account_writes
        }),
        ("writes for the other 49 dead endpoints", |report| {
            report.dead_writes
        }),
        ("writes for the endpoints that respond", |report| {
            report.other_writes
        }),
    ];
    for (name, value) in writes {
        print_row(name, columns, |report| {
            let Writes { items, units } = value(report);
            format!("{} ({})", grouped(items), grouped(units))
        });
    }
}

fn print_waits(columns: [&Report; 4]) {
    let waits: [Row<Waits>; 3] = [
        ("wait of healthy endpoints' first attempts", |report| {
            report.healthy_first_attempts.clone()
        }),
        ("wait of slow endpoints' first attempts", |report| {
            report.slow_attempts.clone()
        }),
        ("wait of healthy endpoints' retries", |report| {
            report.healthy_retries.clone()
        }),
    ];
    for (name, value) in waits {
        print_row(name, columns, |report| value(report).to_string());
    }
}

fn print_recovery() {
    let [before, after] = compare(RECOVERY);
    println!("| | before | after |\n|---|---:|---:|");
    print_row(
        "attempts in the half hour before the recovery",
        [&before[0], &after[0]],
        |report| grouped(report.backlog_attempts),
    );
    let columns = [&before[1], &after[1]];
    print_row(
        "until the first delivery of the backlog",
        columns,
        |report| match report.delivered_after.first() {
            Some(first) => format!("{} s", first.saturating_sub(HALF_HOUR).as_secs()),
            None => "none".to_owned(),
        },
    );
    print_row("delivered in the first 10 minutes", columns, |report| {
        grouped(count_delivered(report, HALF_HOUR, Duration::from_mins(10)))
    });
    print_row("delivered in 30 minutes", columns, |report| {
        grouped(count_delivered(report, HALF_HOUR, HALF_HOUR))
    });
    print_row("the most in one second", columns, |report| {
        grouped(busiest_second(report))
    });
}

/// The deliveries of the backlog that were delivered in a period.
fn count_delivered(report: &Report, start: Duration, period: Duration) -> u64 {
    let delivered = &report.delivered_after;
    let first = delivered.partition_point(|time| *time < start);
    let end = delivered.partition_point(|time| *time < start + period);
    u64::try_from(end - first).expect("64 bits")
}

/// The most deliveries of the backlog that were delivered in a second after the recovery.
fn busiest_second(report: &Report) -> u64 {
    let second = Duration::from_secs(1);
    let mut most = 0;
    let mut start = HALF_HOUR;
    while start < HOUR {
        most = most.max(count_delivered(report, start, second));
        start += second;
    }
    most
}

fn print_row<const N: usize>(name: &str, columns: [&Report; N], value: impl Fn(&Report) -> String) {
    println!("| {name} | {} |", columns.map(value).join(" | "));
}

/// A number with a comma before each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 20 accounts: one endpoint is dead and one is slow.
    const SMALL_OUTAGE: Scenario = Scenario {
        accounts: 20,
        backlog: 2_000,
        reports: 2,
        ..OUTAGE
    };

    /// An hour has at most one probe per minute, and a paused backlog is not written again.
    #[test]
    fn paused_backlog_costs_nothing() {
        let [before, after] = compare(SMALL_OUTAGE);
        for hour in &after {
            assert!((50..=60).contains(&hour.backlog_attempts), "{hour:?}");
        }
        // All but the first probe are paused when they come up.
        assert_eq!(after[0].paused, 1_999);
        assert_eq!(after[0].backlog_writes.items, 2 * 2_000 + 1);
        assert_eq!(after[1].backlog_writes, Writes::default());
        assert!(before[0].backlog_attempts > 2_000);
        assert!(before[1].backlog_writes.items > 0);
    }

    /// Ten times the backlog makes no further attempt.
    #[test]
    fn attempts_do_not_grow_with_backlog() {
        let [_, small] = compare(SMALL_OUTAGE);
        let [_, large] = compare(Scenario {
            backlog: 20_000,
            ..SMALL_OUTAGE
        });
        let attempts = |reports: &[Report]| -> Vec<u64> {
            reports
                .iter()
                .map(|report| report.backlog_attempts)
                .collect()
        };
        assert_eq!(attempts(&small), attempts(&large));
    }

    /// After the recovery the whole backlog is delivered, at most five in a second.
    #[test]
    fn recovered_endpoint_receives_backlog_at_pace() {
        let scenario = Scenario {
            policy: Policy::After,
            accounts: 20,
            backlog: 2_000,
            ..RECOVERY
        };
        let reports = Deployment::new(scenario).run();
        assert!(reports[0].delivered_after.is_empty());
        assert_eq!(reports[1].delivered_after.len(), 2_000);
        assert_eq!(busiest_second(&reports[1]), 5);
    }
}
