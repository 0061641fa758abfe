//! End-to-end benchmarks: the deployed binaries with a Runtime API, an engine in another process
//! and an endpoint that responds at once. Each run also measures a baseline to compare with.
//!
//! `cargo bench --bench end_to_end` runs all parts; `-- dispatch`, `cold_start`, `list`, `growth`,
//! `serve` or `noisy_neighbor` runs one. `--built .aws-sam/build` measures the functions that
//! `sam build` made. `docs/PERFORMANCE.md` explains the figures.

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

/// What a run measures.
struct Options {
    built: Built,
    /// Empty for all parts.
    parts: Vec<String>,
}

impl Options {
    fn parse(arguments: &[String]) -> Self {
        let mut options = Self {
            built: Built {
                api: env!("CARGO_BIN_EXE_api").to_owned(),
                dispatch: env!("CARGO_BIN_EXE_dispatch").to_owned(),
            },
            parts: Vec::new(),
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // Cargo passes this flag.
                "--bench" => {}
                "--built" => {
                    let folder = arguments.next().expect("a folder");
                    options.built = Built {
                        api: format!("{folder}/ApiFunction/bootstrap"),
                        dispatch: format!("{folder}/DispatchFunction/bootstrap"),
                    };
                }
                part if PARTS.contains(&part) => options.parts.push(part.to_owned()),
                other => panic!("`{other}`: expected --built <folder> or one of {PARTS:?}"),
            }
        }
        options
    }

    fn includes(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|chosen| chosen == part)
    }
}

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let [flag, role, rest @ ..] = &arguments[..]
        && flag == "--role"
    {
        run_role(role, rest);
    } else {
        let options = Options::parse(&arguments);
        block_on(Builder::new_multi_thread(), run_parts(options));
    }
}

/// Runs a process that the benchmark starts for itself.
fn run_role(role: &str, arguments: &[String]) {
    match (role, arguments) {
        ("engine", []) => block_on(Builder::new_multi_thread(), platform::run_engine()),
        ("baseline", [url, requests]) => {
            let requests = requests.parse().expect("a number of requests");
            block_on(
                Builder::new_current_thread(),
                baseline::run(url.clone(), requests),
            );
        }
        _ => panic!("no such role: {role} {arguments:?}"),
    }
}

fn block_on(mut runtime: Builder, future: impl Future<Output = ()>) {
    runtime
        .enable_all()
        .build()
        .expect("a runtime starts")
        .block_on(future);
}

async fn run_parts(options: Options) {
    let built = &options.built;
    if options.includes("dispatch") {
        deployed::dispatch(built).await;
    }
    if options.includes("cold_start") {
        deployed::cold_start(built).await;
    }
    if options.includes("list") {
        deployed::list(built).await;
    }
    if options.includes("growth") {
        deployed::growth(built).await;
    }
    if options.includes("serve") {
        local::serve().await;
    }
    if options.includes("noisy_neighbor") {
        local::noisy_neighbor().await;
    }
}

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

/// CPU seconds per 1,000 operations.
fn per_thousand(cpu: Duration, operations: usize) -> f64 {
    cpu.as_secs_f64() * 1000.0 / to_f64(operations)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "every count here is far below 2^52"
)]
const fn to_f64(count: usize) -> f64 {
    count as f64
}

/// A percentile in milliseconds, by nearest rank. Sorts the values.
fn percentile(values: &mut [Duration], percent: usize) -> f64 {
    values.sort();
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values[rank - 1].as_secs_f64() * 1000.0
}
