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
}

impl PhaseRecorder {
    /// Starts an attempt.
    pub(super) fn start() -> Self {
        Self {
            stopwatch: Stopwatch::start(),
            starts: Arc::default(),
        }
    }

    /// The time since the attempt started.
    pub(super) fn elapsed(&self) -> Duration {
        self.stopwatch.elapsed()
    }

    /// Records that a phase starts now.
    pub(super) fn mark(&self, phase: Phase) {
        let mut starts = self.lock();
        if phase == Phase::Receive {
            starts.mark_request_on_reused_connection();
        }
        starts.phases.push((phase, self.stopwatch.elapsed()));
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
        (duration, PhaseTimings::new(&starts.phases, duration))
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
