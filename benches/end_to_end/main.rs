//! End-to-end benchmarks: the deployed binaries with a Runtime API, an engine in another process
//! and an endpoint that responds at once. Each run also measures a baseline to compare with.
//!
//! `cargo bench --bench end_to_end` runs all parts; `-- dispatch`, `cold_start`, `list`, `growth`,
//! `serve` or `noisy_neighbor` runs one. `--built .aws-sam/build` measures the functions that
//! `sam build` made. docs/PERFORMANCE.md explains the figures.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

mod baseline;
mod deployed;
mod fake_dynamodb;
mod http;
mod lambda;
mod local;
mod platform;
mod process_stats;
mod receiver;

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::runtime::Builder;

/// The path of the command line's binary, which another package builds.
///
/// # Panics
/// If it was not built with this profile.
fn local_binary() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_api")).with_file_name("nano-webhooks");
    assert!(
        path.exists(),
        "missing: run `cargo build --profile bench --bin nano-webhooks` first"
    );
    path
}

/// The parts of the benchmark.
const PARTS: [&str; 6] = [
    "dispatch",
    "cold_start",
    "list",
    "growth",
    "serve",
    "noisy_neighbor",
];

/// The paths of the deployed binaries.
struct Built {
    api: String,
    dispatch: String,
}

fn main() {
    let mut arguments = env::args();
    arguments.next();
    let mut chosen = Vec::new();
    let mut built = Built {
        api: env!("CARGO_BIN_EXE_api").to_owned(),
        dispatch: env!("CARGO_BIN_EXE_dispatch").to_owned(),
    };
    while let Some(argument) = arguments.next() {
        if argument == "--role" {
            return match arguments.next().as_deref() {
                Some("engine") => on(Builder::new_multi_thread(), platform::run(arguments)),
                Some("baseline") => on(Builder::new_current_thread(), baseline::run(arguments)),
                other => panic!("no such role: {other:?}"),
            };
        }
        if argument == "--built" {
            let folder = arguments.next().expect("a folder");
            built = Built {
                api: format!("{folder}/ApiFunction/bootstrap"),
                dispatch: format!("{folder}/DispatchFunction/bootstrap"),
            };
        } else if PARTS.contains(&argument.as_str()) {
            chosen.push(argument);
        } else {
            // Cargo passes `--bench`.
            assert!(
                argument == "--bench",
                "`{argument}`: expected --built <folder> or one of {PARTS:?}"
            );
        }
    }
    on(Builder::new_multi_thread(), run(built, chosen));
}

fn on(mut runtime: Builder, future: impl Future<Output = ()>) {
    runtime
        .enable_all()
        .build()
        .expect("a runtime starts")
        .block_on(future);
}

async fn run(built: Built, chosen: Vec<String>) {
    let is_chosen = |part: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == part);
    if is_chosen("dispatch") {
        deployed::dispatch(&built).await;
    }
    if is_chosen("cold_start") {
        deployed::cold_start(&built).await;
    }
    if is_chosen("list") {
        deployed::list(&built).await;
    }
    if is_chosen("growth") {
        deployed::growth(&built).await;
    }
    if is_chosen("serve") {
        local::serve().await;
    }
    if is_chosen("noisy_neighbor") {
        local::noisy_neighbor().await;
    }
}

/// CPU seconds per 1,000 operations.
fn per_thousand(cpu: Duration, many: usize) -> f64 {
    cpu.as_secs_f64() * 1000.0 / float(many)
}

#[expect(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]
const fn float(count: usize) -> f64 {
    count as f64
}

/// A percentile in milliseconds, by nearest rank.
fn percentile(values: &mut [Duration], percent: usize) -> f64 {
    values.sort();
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values[rank - 1].as_secs_f64() * 1000.0
}
