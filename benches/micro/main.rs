//! What is pure, measured: first in seconds, then, where valgrind is installed, in instructions, which are the same on a noisy
//! machine. `cargo bench --bench micro`.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

mod cases;

use std::{env, process::Command};

use criterion::Criterion;

/// How often a case runs under valgrind, and how much more often the second time: the difference is the case alone.
const RUNS: u64 = 200;

fn main() {
    let arguments: Vec<_> = env::args().collect();
    if let [_, role, name, times] = &arguments[..]
        && role == "--run"
    {
        let (_, mut case) = cases::cases()
            .into_iter()
            .find(|(known, _)| known == name)
            .expect("a case");
        for _ in 0..times.parse::<u64>().expect("a number") {
            case();
        }
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    for (name, mut case) in cases::cases() {
        criterion.bench_function(name, |bencher| bencher.iter(&mut case));
    }
    criterion.final_summary();
    count();
}

/// Prints the instructions of each case.
fn count() {
    println!("\n| step | instructions |\n|---|---|");
    for (name, _) in cases::cases() {
        let Some((once, twice)) = instructions(name, RUNS).zip(instructions(name, 2 * RUNS)) else {
            println!("(none: valgrind is not installed)");
            return;
        };
        println!("| {name} | {} |", (twice - once) / RUNS);
    }
}

/// How many instructions a process takes that runs a case so often; `None` without valgrind.
fn instructions(name: &str, times: u64) -> Option<u64> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().ok()?);
    let said = command
        .args(["--run", name, &times.to_string()])
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    Some(
        collected
            .expect("callgrind says what it collected")
            .1
            .trim()
            .parse()
            .expect("a number"),
    )
}
