//! `docs/LIMITS.md` has the values of the code and names existing tests.

use std::{fs, path::Path, time::Duration};

use nano_webhooks::{
    client::webhook_client::Timeouts,
    config::ConfigDefaults,
    dispatch::{
        RECORDING_RESERVE,
        first_attempt::BATCH_WAIT,
        late_attempts::{MAX_LATE, MAX_LATE_PER_ACCOUNT, MAX_LATE_PER_ENDPOINT},
    },
    store::{holds, poison, replays, rotation},
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{lease::LEASE_DURATION, schedule::RetrySchedule},
    endpoint_url::EndpointUrl,
    event::MAX_PAYLOAD_LEN,
    event_type::EventType,
    secret::Secret,
};

/// The page's rows, each as its columns.
fn rows(page: &str) -> Vec<Vec<&str>> {
    page.lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| limit |"))
        .map(|line| line.trim_matches(['|', ' ']).split(" | ").collect())
        .collect()
}

/// A number with a comma between groups of three digits: `10,000`.
fn grouped(number: usize) -> String {
    match number / 1_000 {
        0 => number.to_string(),
        thousands => format!("{},{:03}", grouped(thousands), number % 1_000),
    }
}

fn kibibytes(bytes: usize) -> String {
    format!("{} KiB", bytes / 1024)
}

fn seconds(time: Duration) -> String {
    match time.subsec_millis() {
        0 => format!("{} s", time.as_secs()),
        _ => format!("{} ms", time.as_millis()),
    }
}

fn hours(time: Duration) -> String {
    format!("{} h", time.as_secs() / 3_600)
}

fn timeouts(timeouts: Timeouts) -> String {
    let connect = seconds(timeouts.connect);
    let total = seconds(timeouts.total);
    format!("{connect} to connect, {total} in all")
}

fn requests_of_account() -> String {
    let limits = ConfigDefaults::DEPLOYED.rate_limits;
    let per_minute = limits.per_minute.unwrap();
    let per_day = grouped(usize::try_from(limits.per_day.unwrap()).unwrap());
    format!("{per_minute} per minute and {per_day} per day")
}

fn late_attempts() -> String {
    format!(
        "{MAX_LATE}, of an account {MAX_LATE_PER_ACCOUNT}, to an endpoint {MAX_LATE_PER_ENDPOINT}"
    )
}

/// Each limit whose constant is public has its value at the start of the second column.
#[test]
fn page_has_values_of_code() {
    let (shortest, longest) = Secret::LENGTH_RANGE.into_inner();
    let expected = [
        ("`url`", format!("{} characters", grouped(EndpointUrl::MAX))),
        (
            "`secret_key`",
            format!("{shortest} to {longest} characters"),
        ),
        ("`events`", format!("{}, each once", EventType::ALL.len())),
        ("account id", format!("{} bytes", AccountId::MAX)),
        ("requests of an account", requests_of_account()),
        (
            "active secrets of a webhook",
            rotation::MAX_ACTIVE_SECRETS.to_string(),
        ),
        (
            "pace of a replay",
            format!("{} per minute", replays::READS_PER_MINUTE),
        ),
        ("payload", kibibytes(MAX_PAYLOAD_LEN)),
        (
            "stored image of a poison record",
            kibibytes(poison::MAX_IMAGE),
        ),
        (
            "stored attempts of a delivery",
            RetrySchedule::MAX_ATTEMPTS.to_string(),
        ),
        ("wait between attempts", hours(RetrySchedule::MAX_WAIT)),
        ("lease", seconds(LEASE_DURATION)),
        ("direct attempt", timeouts(Timeouts::DIRECT)),
        ("wait of a batch for a direct attempt", seconds(BATCH_WAIT)),
        ("late attempts of a process", late_attempts()),
        (
            "environments of the deployment that begin to be held by late attempts",
            format!(
                "{} in {}",
                holds::MAX_HOLDS_PER_WINDOW,
                seconds(holds::WINDOW)
            ),
        ),
        ("queued attempt", timeouts(Timeouts::QUEUED)),
        (
            "reserve of an invocation for recording",
            seconds(RECORDING_RESERVE),
        ),
    ];
    let page = read_page();
    for (limit, value) in expected {
        let row = rows(&page).into_iter().find(|row| row[0] == limit);
        let row = row.unwrap_or_else(|| panic!("docs/LIMITS.md has no row `{limit}`"));
        assert!(
            row[1].starts_with(&value),
            "{limit}: {} is not {value}",
            row[1]
        );
    }
}

/// Every test that the last column names is a file of the repository.
#[test]
fn page_names_existing_tests() {
    let page = read_page();
    let mut tests = 0;
    for row in rows(&page) {
        let Some(test) = row.last().unwrap().split('`').nth(1) else {
            continue;
        };
        assert!(root().join(test).exists(), "docs/LIMITS.md names {test}");
        tests += 1;
    }
    assert!(tests > 30, "only {tests} rows name a test");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read_page() -> String {
    fs::read_to_string(root().join("docs/LIMITS.md")).unwrap()
}
