//! The phases of an attempt, named as in HAR: dns, connect, tls (`ssl`), wait, receive.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A phase of an exchange, in the order in which they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Resolving the host name.
    Dns,
    /// Connecting.
    Connect,
    /// The TLS handshake.
    Tls,
    /// Sending the request and waiting for the response headers.
    Wait,
    /// Reading the response body.
    Receive,
}

/// The time that each phase took, in microseconds; `None` for a phase that did not happen.
///
/// A reused connection has neither connect nor tls, and an address instead of a name has no dns.
/// The phases are stored as one short text, because every delivery has them:
/// `dns,connect,tls,wait,receive`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct PhaseTimings {
    /// See [`Phase::Dns`].
    pub dns: Option<u64>,
    /// See [`Phase::Connect`].
    pub connect: Option<u64>,
    /// See [`Phase::Tls`].
    pub tls: Option<u64>,
    /// See [`Phase::Wait`].
    pub wait: Option<u64>,
    /// See [`Phase::Receive`].
    pub receive: Option<u64>,
}

impl From<PhaseTimings> for String {
    fn from(timings: PhaseTimings) -> Self {
        let phases = [
            timings.dns,
            timings.connect,
            timings.tls,
            timings.wait,
            timings.receive,
        ];
        let texts = phases.map(|micros| match micros {
            Some(micros) => micros.to_string(),
            None => String::new(),
        });
        texts.join(",")
    }
}

impl From<String> for PhaseTimings {
    /// Malformed parts become `None`.
    fn from(text: String) -> Self {
        let mut phases = [None; 5];
        for (phase, part) in phases.iter_mut().zip(text.split(',')) {
            *phase = part.parse().ok();
        }
        let [dns, connect, tls, wait, receive] = phases;
        Self {
            dns,
            connect,
            tls,
            wait,
            receive,
        }
    }
}

impl PhaseTimings {
    /// Computes the timings from the time at which each phase started and the time at which the
    /// attempt ended, both measured from the start of the attempt.
    ///
    /// A phase lasts until the next one starts. Phases that are out of order are left out.
    pub fn new(starts: &[(Phase, Duration)], end: Duration) -> Self {
        let mut timings = Self::default();
        let mut current: Option<(Phase, Duration)> = None;
        for &(phase, start) in starts {
            match current {
                Some((previous, _)) if phase <= previous => {}
                Some((previous, previous_start)) => {
                    timings.set(previous, start.saturating_sub(previous_start));
                    current = Some((phase, start));
                }
                None => current = Some((phase, start)),
            }
        }
        if let Some((last, start)) = current {
            timings.set(last, end.saturating_sub(start));
        }
        timings
    }

    fn set(&mut self, phase: Phase, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let slot = match phase {
            Phase::Dns => &mut self.dns,
            Phase::Connect => &mut self.connect,
            Phase::Tls => &mut self.tls,
            Phase::Wait => &mut self.wait,
            Phase::Receive => &mut self.receive,
        };
        *slot = Some(micros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timings_are_stored_as_text() {
        let timings = PhaseTimings {
            connect: Some(310),
            wait: Some(1_900),
            receive: Some(0),
            ..PhaseTimings::default()
        };
        assert_eq!(String::from(timings), ",310,,1900,0");
        assert_eq!(
            PhaseTimings::from("nonsense".to_owned()),
            PhaseTimings::default()
        );
    }

    const fn at(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// A phase lasts until the next one starts, and the last one until the end.
    #[test]
    fn phase_ends_with_next_start() {
        use Phase::{Connect, Dns, Receive, Tls, Wait};
        for (starts, end, stored) in [
            (
                &[
                    (Dns, at(10)),
                    (Connect, at(30)),
                    (Tls, at(60)),
                    (Wait, at(100)),
                    (Receive, at(150)),
                ][..],
                210,
                "20,30,40,50,60",
            ),
            (&[(Wait, at(5)), (Receive, at(15))], 15, ",,,10,0"),
            (&[(Dns, at(0))], 500, "500,,,,"),
            (
                &[(Dns, at(0)), (Connect, at(10)), (Wait, at(20))],
                30,
                "10,10,,10,",
            ),
            (&[], 10, ",,,,"),
            // The attempt may use a connection that becomes free while a new one is still opening.
            (
                &[
                    (Dns, at(0)),
                    (Wait, at(5)),
                    (Connect, at(7)),
                    (Receive, at(9)),
                ],
                10,
                "5,,,4,1",
            ),
        ] {
            let timings = PhaseTimings::new(starts, at(end));
            assert_eq!(String::from(timings), stored, "{starts:?}");
            assert_eq!(PhaseTimings::from(stored.to_owned()), timings);
        }
    }
}
