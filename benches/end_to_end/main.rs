//! The whole service, measured: the deployed binaries under a Runtime API, against an engine in another process and an endpoint
//! that answers at once. Everything is started here, and all figures of a run stand side by side with the baseline of the same run.
//!
//! `cargo bench --bench end_to_end` runs all parts, `cargo bench --bench end_to_end -- dispatch` one: dispatch, cold_start, list, growth, serve,
//! noisy_neighbor. With `--built .aws-sam/build` the functions are those that `sam build` made. docs/PERFORMANCE.md says what the figures mean.

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

/// What there is to measure.
const PARTS: [&str; 6] = [
    "dispatch",
    "cold_start",
    "list",
    "growth",
    "serve",
    "noisy_neighbor",
];

/// The deployed binaries.
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
            // What cargo itself passes on.
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
    let wanted = |part: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == part);
    if wanted("dispatch") {
        deployed::dispatch(&built).await;
    }
    if wanted("cold_start") {
        deployed::cold_start(&built).await;
    }
    if wanted("list") {
        deployed::list(&built).await;
    }
    if wanted("growth") {
        deployed::growth(&built).await;
    }
    if wanted("serve") {
        local::serve().await;
    }
    if wanted("noisy_neighbor") {
        local::noisy_neighbor().await;
    }
}

/// CPU seconds for a thousand, if `cpu` was for so many.
fn per_thousand(cpu: Duration, many: usize) -> f64 {
    cpu.as_secs_f64() * 1000.0 / float(many)
}

#[expect(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]
const fn float(count: usize) -> f64 {
    count as f64
}

/// The value that so many of a hundred are not above; nearest rank.
fn percentile(values: &mut [Duration], percent: usize) -> f64 {
    values.sort();
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values[rank - 1].as_secs_f64() * 1000.0
}
