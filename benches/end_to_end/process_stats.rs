//! Time, and the CPU time and memory of a process.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
pub fn unix_millis() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is after 1970");
    u64::try_from(since_epoch.as_millis()).expect("the clock is before the year 584,556,019")
}

/// A child process that is killed when dropped.
pub struct Process(pub Child);

impl Process {
    /// Starts this program in another role. Returns the first line that it prints.
    pub fn spawn_role(arguments: &[&str]) -> (Self, String) {
        let program = env::current_exe().expect("this program has a path");
        let mut command = Command::new(program);
        command.arg("--role").args(arguments);
        Self::spawn_and_read_line(&mut command)
    }

    /// Starts a process. Returns the first line that it prints.
    pub fn spawn_and_read_line(command: &mut Command) -> (Self, String) {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the process starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("the process prints a line");
        (Self(child), line.trim().to_owned())
    }

    /// The CPU time of its running threads, in nanoseconds (`/proc/<pid>/task/*/schedstat`).
    pub fn cpu(&self) -> Duration {
        let threads =
            fs::read_dir(format!("/proc/{}/task", self.0.id())).expect("the process runs");
        let nanoseconds = threads
            .flatten()
            .filter_map(|thread| read_thread_cpu(&thread));
        Duration::from_nanos(nanoseconds.sum())
    }

    /// The CPU time since an earlier value of [`Self::cpu`].
    pub fn cpu_since(&self, earlier: Duration) -> Duration {
        self.cpu()
            .checked_sub(earlier)
            .expect("CPU time only grows")
    }

    /// The peak of resident memory, in MiB.
    pub fn peak_memory(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("the process runs");
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .expect("Linux reports VmHWM");
        let kibibytes: u64 = peak
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("VmHWM is a number");
        kibibytes / 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The CPU time of a thread in nanoseconds; `None` if the thread has ended.
fn read_thread_cpu(thread: &fs::DirEntry) -> Option<u64> {
    let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
    stat.split(' ').next()?.parse().ok()
}
