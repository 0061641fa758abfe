//! Time, and the CPU time and memory of a process.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "what is measured is time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "what is measured is time")]
pub fn unix_millis() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is after 1970");
    u64::try_from(since.as_millis()).expect("it is before the year 584,556,019")
}

/// A child process that is killed when dropped.
pub struct Process(pub Child);

impl Process {
    /// Starts this program in another role. Returns the first line that it prints.
    pub fn spawn_role(arguments: &[&str]) -> (Self, String) {
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(program);
        command.arg("--role").args(arguments);
        Process::spawn_and_read_line(&mut command)
    }

    /// Starts a process. Returns the first line that it prints.
    pub fn spawn_and_read_line(command: &mut Command) -> (Self, String) {
        use std::io::BufRead;
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the process starts");
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().expect("it is piped"))
            .read_line(&mut line)
            .expect("it says a line");
        (Self(child), line.trim().to_owned())
    }

    /// The CPU time of its running threads, in nanoseconds (`/proc/<pid>/task/*/schedstat`).
    pub fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).expect("the process runs");
        let of_task = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
            stat.split(' ').next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(tasks.flatten().filter_map(of_task).sum())
    }

    /// The peak of resident memory, in MiB.
    pub fn peak_memory(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("the process runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .expect("Linux says so");
        line.trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .expect("it is a number")
            / 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
