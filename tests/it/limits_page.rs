//! `docs/LIMITS.md` has the values of the code and names existing tests.

use std::{collections::HashMap, fs, path::Path, time::Duration};

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
    static_headers::{StaticHeaderName, StaticHeaders},
};

/// `ParallelizationFactor` of the template, with which `ci/template_test.py` compares the page.
const BATCHES_PER_SHARD: usize = 10;
/// The default of the template's parameter `RetryConcurrency`.
const RETRY_CONCURRENCY: usize = 100;

/// A row of a table: its cells by the names of their columns.
type Row<'a> = HashMap<&'a str, &'a str>;

/// The rows of the tables with limits.
fn rows(page: &str) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    let mut columns = Vec::new();
    for line in page.lines() {
        if line.starts_with("| limit |") {
            columns = cells(line);
        } else if !line.starts_with('|') {
            columns.clear();
        } else if !columns.is_empty() && !line.starts_with("|---") {
            let cells = cells(line);
            assert_eq!(cells.len(), columns.len(), "{line}");
            rows.push(columns.iter().copied().zip(cells).collect());
        }
    }
    rows
}

fn cells(line: &str) -> Vec<&str> {
    let line = line.strip_prefix('|').unwrap().strip_suffix('|').unwrap();
    line.split('|').map(str::trim).collect()
}

fn find_row<'a>(page: &'a str, limit: &str) -> Row<'a> {
    let row = rows(page).into_iter().find(|row| row["limit"] == limit);
    row.unwrap_or_else(|| panic!("docs/LIMITS.md has no row `{limit}`"))
}

/// The number at the start of a cell: 10,240 of `10,240 per shard`.
fn leading_number(cell: &str) -> Option<usize> {
    let number = cell.split([' ', ';', ':']).next()?;
    number.trim_end_matches(',').replace(',', "").parse().ok()
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

/// Each limit of one thing whose constant is public has its value at the start of its column.
#[test]
fn page_has_values_of_code() {
    let (shortest, longest) = Secret::LENGTH_RANGE.into_inner();
    let expected = [
        ("`url`", format!("{} characters", grouped(EndpointUrl::MAX))),
        (
            "`secret_key`",
            format!("{shortest} to {longest} characters"),
        ),
        ("`headers`", StaticHeaders::MAX.to_string()),
        (
            "names and values of `headers`",
            format!("{} bytes", grouped(StaticHeaders::MAX_BYTES)),
        ),
        (
            "a name in `headers`",
            format!("{} bytes", StaticHeaderName::MAX),
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
        ("queued attempt", timeouts(Timeouts::QUEUED)),
        (
            "reserve of an invocation for recording",
            seconds(RECORDING_RESERVE),
        ),
    ];
    let page = read_page();
    for (limit, expected) in expected {
        let value = find_row(&page, limit)["value"];
        assert!(value.starts_with(&expected), "{limit}: {value}");
    }
}

/// The limits of late attempts, per process and in all environments that are held at once.
#[test]
fn page_has_limits_of_late_attempts() {
    let held_environments = 2 * usize::try_from(holds::MAX_HOLDS_PER_WINDOW).unwrap();
    let page = read_page();
    for (limit, per_process) in [
        (
            "late attempts, and concurrent writes of their deliveries",
            MAX_LATE,
        ),
        ("late attempts of an account", MAX_LATE_PER_ACCOUNT),
        ("late attempts to an endpoint", MAX_LATE_PER_ENDPOINT),
    ] {
        let row = find_row(&page, limit);
        assert_eq!(row["per process"], per_process.to_string(), "{limit}");
        let all = grouped(held_environments * per_process);
        let per_deployment = format!("{all} in {held_environments} held environments");
        assert_eq!(row["per deployment"], per_deployment, "{limit}");
    }
    let started = find_row(&page, "environments that begin to be held by late attempts");
    let budget = format!(
        "{} in {}, counted in the table",
        holds::MAX_HOLDS_PER_WINDOW,
        seconds(holds::WINDOW)
    );
    assert_eq!(started["per deployment"], budget);
}

/// Every limit names its scope: what it holds for, or both a process and the deployment.
#[test]
fn every_limit_has_scope() {
    for row in rows(&read_page()) {
        let scopes: &[&str] = if row.contains_key("holds for") {
            &["value", "holds for"]
        } else {
            &["per process", "per deployment"]
        };
        for scope in scopes {
            assert!(!row[scope].is_empty(), "{}: {scope}", row["limit"]);
        }
    }
}

/// A limit per deployment is the limit per process, multiplied by the environments that the
/// template allows.
#[test]
fn limits_of_deployment_are_products() {
    let mut products = 0;
    for row in rows(&read_page()) {
        let Some(cell) = row.get("per deployment") else {
            continue;
        };
        let Some(per_process) = leading_number(row["per process"]) else {
            continue;
        };
        for (suffix, environments) in [
            (" per shard", BATCHES_PER_SHARD),
            (" × `RetryConcurrency`", RETRY_CONCURRENCY),
        ] {
            if let Some((before, _)) = cell.split_once(suffix) {
                let expected = grouped(per_process * environments);
                assert!(before.starts_with(&expected), "{}: {cell}", row["limit"]);
                products += 1;
            }
        }
    }
    assert!(products > 20, "only {products} rows have a product");
}

/// Every test that the last column names is a file of the repository.
#[test]
fn page_names_existing_tests() {
    let page = read_page();
    let mut tests = 0;
    for row in rows(&page) {
        let Some(test) = row["tested by"].split('`').nth(1) else {
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
