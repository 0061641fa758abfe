//! Benchmarks of the steps without I/O: in seconds and, where valgrind is installed, in
//! instructions, which do not vary with the load of the machine. `cargo bench --bench micro`.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

mod cases;

use std::{env, process::Command};

use criterion::Criterion;

/// How often a case runs under valgrind. It runs twice as often the second time, and the difference
/// excludes the start of the process.
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
    print_instructions();
}

/// Prints the instructions of each case.
fn print_instructions() {
    println!("\n| step | instructions |\n|---|---|");
    for (name, _) in cases::cases() {
        let Some((once, twice)) =
            count_instructions(name, RUNS).zip(count_instructions(name, 2 * RUNS))
        else {
            println!("(none: valgrind is not installed)");
            return;
        };
        println!("| {name} | {} |", (twice - once) / RUNS);
    }
}

/// The instructions of a process that runs a case `times` times; `None` without valgrind.
fn count_instructions(name: &str, times: u64) -> Option<u64> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().ok()?);
    let output = command
        .args(["--run", name, &times.to_string()])
        .output()
        .ok()?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let collected = log.lines().find_map(|line| line.split_once("Collected : "));
    Some(
        collected
            .expect("callgrind prints the count")
            .1
            .trim()
            .parse()
            .expect("a number"),
    )
}
