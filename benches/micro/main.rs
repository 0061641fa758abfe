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
    if let [_, flag, name, times] = &arguments[..]
        && flag == "--run"
    {
        run_case(name, times.parse().expect("a number"));
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    for mut case in cases::create_cases() {
        criterion.bench_function(case.name, |bencher| bencher.iter(&mut case.step));
    }
    criterion.final_summary();
    print_instructions();
}

fn run_case(name: &str, times: u64) {
    let mut case = cases::create_cases()
        .into_iter()
        .find(|case| case.name == name)
        .expect("a case");
    for _ in 0..times {
        (case.step)();
    }
}

/// Prints the instructions of each case.
fn print_instructions() {
    println!("\n| step | instructions |\n|---|---|");
    for case in cases::create_cases() {
        let Some(once) = count_instructions(case.name, RUNS) else {
            println!("(none: valgrind is not installed)");
            return;
        };
        let twice = count_instructions(case.name, 2 * RUNS).expect("valgrind is installed");
        println!("| {} | {} |", case.name, (twice - once) / RUNS);
    }
}

/// The instructions of a process that runs a case `times` times; `None` without valgrind.
fn count_instructions(name: &str, times: u64) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().ok()?)
        .args(["--run", name, &times.to_string()])
        .output()
        .ok()?;
    let log = String::from_utf8_lossy(&output.stderr);
    let (_, count) = log
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .expect("callgrind prints the count");
    Some(count.trim().parse().expect("a number"))
}
