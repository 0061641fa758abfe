//! Records when the phases of an attempt start.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nano_webhooks_core::delivery::timings::{Phase, PhaseTimings};

use crate::clock::Stopwatch;

/// Records when the phases of one attempt start. Clones share the record.
#[derive(Clone)]
pub(super) struct PhaseRecorder {
    stopwatch: Stopwatch,
    starts: Arc<Mutex<PhaseStarts>>,
}

#[derive(Default)]
struct PhaseStarts {
    phases: Vec<(Phase, Duration)>,
    /// When the target was resolved. Connecting or sending the request follows.
    resolved: Option<Duration>,
    /// The time that a reused connection took that had been closed. It belongs to no phase.
    lost: Duration,
}

impl PhaseRecorder {
    /// Starts an attempt.
    pub(super) fn start() -> Self {
        Self {
            stopwatch: Stopwatch::start(),
            starts: Arc::default(),
        }
    }

    /// The time since the attempt started, without what a closed connection took.
    pub(super) fn elapsed(&self) -> Duration {
        self.stopwatch.elapsed().saturating_sub(self.lock().lost)
    }

    /// Records that a phase starts now.
    pub(super) fn mark(&self, phase: Phase) {
        let mut starts = self.lock();
        if phase == Phase::Receive {
            starts.mark_request_on_reused_connection();
        }
        let elapsed = self.stopwatch.elapsed().saturating_sub(starts.lost);
        starts.phases.push((phase, elapsed));
    }

    /// Records that the request is sent again from the start, over a new connection.
    pub(super) fn mark_resend(&self) {
        let mut starts = self.lock();
        let resolved = starts.resolved.unwrap_or_default();
        starts.lost = self.stopwatch.elapsed().saturating_sub(resolved);
    }

    /// Records that the target is resolved.
    pub(super) fn mark_resolved(&self) {
        self.lock().resolved = Some(self.stopwatch.elapsed());
    }

    /// Ends the attempt and returns its duration with its phases.
    pub(super) fn finish(&self) -> (Duration, PhaseTimings) {
        let duration = self.stopwatch.elapsed();
        let mut starts = self.lock();
        starts.mark_request_on_reused_connection();
        let end = duration.saturating_sub(starts.lost);
        (duration, PhaseTimings::new(&starts.phases, end))
    }

    fn lock(&self) -> MutexGuard<'_, PhaseStarts> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PhaseStarts {
    /// If no connection was made, the request was sent as soon as the target was resolved.
    fn mark_request_on_reused_connection(&mut self) {
        let has_connected = self.phases.iter().any(|(phase, _)| *phase != Phase::Dns);
        if has_connected {
            return;
        }
        if let Some(resolved) = self.resolved {
            self.phases.push((Phase::Wait, resolved));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time on a connection that the endpoint had closed belongs to no phase and shortens no
    /// deadline.
    #[test]
    fn time_on_closed_connection_is_left_out() {
        let lost = Duration::from_millis(50);
        let recorder = PhaseRecorder::start();
        recorder.mark(Phase::Dns);
        recorder.mark_resolved();
        let closed = Stopwatch::start();
        while closed.elapsed() < lost * 2 {
            std::thread::yield_now();
        }
        recorder.mark_resend();
        assert!(recorder.elapsed() + lost < recorder.stopwatch.elapsed());
        recorder.mark(Phase::Connect);
        recorder.mark(Phase::Wait);
        recorder.mark(Phase::Receive);
        let (duration, timings) = recorder.finish();
        let phases = [timings.dns, timings.connect, timings.wait, timings.receive];
        let sum = phases.map(|micros| Duration::from_micros(micros.unwrap()));
        assert!(
            sum.iter().sum::<Duration>() + lost < duration,
            "{timings:?}"
        );
    }
}
