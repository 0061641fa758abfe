//! The phases of an attempt: where its time went.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One phase of an exchange, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The host name is looked up.
    Dns,
    /// A connection is made.
    Connect,
    /// The TLS handshake.
    Tls,
    /// The request is sent, and the answer waited for.
    Wait,
    /// The answer's body is read.
    Receive,
}

/// How long each phase lasted, in microseconds; one that did not happen is absent. Over a connection that was kept alive
/// there is no connecting and no handshake, and to an address there is no look-up. It is stored as one short text, since each
/// delivery has it: `dns,connect,tls,wait,receive`.
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
    fn from(
        PhaseTimings {
            dns,
            connect,
            tls,
            wait,
            receive,
        }: PhaseTimings,
    ) -> Self {
        [dns, connect, tls, wait, receive]
            .map(|lasted| lasted.map_or_else(String::new, |n| n.to_string()))
            .join(",")
    }
}

impl From<String> for PhaseTimings {
    /// What cannot be read is as good as not known.
    fn from(text: String) -> Self {
        let mut lasted = text.split(',').map(|part| part.parse().ok());
        let mut next = || lasted.next().flatten();
        Self {
            dns: next(),
            connect: next(),
            tls: next(),
            wait: next(),
            receive: next(),
        }
    }
}

impl PhaseTimings {
    /// From when each phase began and when the last one ended, as times since the attempt began. A phase lasts until the next
    /// one begins; what is marked out of order is left out.
    pub fn new(began: &[(Phase, Duration)], ended: Duration) -> Self {
        let mut in_order: Vec<(Phase, Duration)> = Vec::with_capacity(began.len());
        for &(phase, at) in began {
            if in_order.last().is_none_or(|(last, _)| *last < phase) {
                in_order.push((phase, at));
            }
        }
        let mut phases = Self::default();
        let ends = in_order.iter().skip(1).map(|(_, at)| *at).chain([ended]);
        for ((phase, at), end) in in_order.iter().zip(ends) {
            let lasted = u64::try_from(end.saturating_sub(*at).as_micros()).unwrap_or(u64::MAX);
            let slot = match phase {
                Phase::Dns => &mut phases.dns,
                Phase::Connect => &mut phases.connect,
                Phase::Tls => &mut phases.tls,
                Phase::Wait => &mut phases.wait,
                Phase::Receive => &mut phases.receive,
            };
            *slot = Some(lasted);
        }
        phases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_stored_as_a_short_text() {
        let phases = PhaseTimings {
            connect: Some(310),
            wait: Some(1_900),
            receive: Some(0),
            ..PhaseTimings::default()
        };
        assert_eq!(String::from(phases), ",310,,1900,0");
        assert_eq!(
            PhaseTimings::from("nonsense".to_owned()),
            PhaseTimings::default()
        );
    }

    const fn at(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn a_phase_lasts_until_the_next_one_begins_and_the_last_until_the_end() {
        use Phase::{Connect, Dns, Receive, Tls, Wait};
        for (began, ended, phases) in [
            (
                &[
                    (Dns, at(10)),
                    (Connect, at(30)),
                    (Tls, at(60)),
                    (Wait, at(100)),
                    (Receive, at(150)),
                ][..],
                210,
                PhaseTimings {
                    dns: Some(20),
                    connect: Some(30),
                    tls: Some(40),
                    wait: Some(50),
                    receive: Some(60),
                },
            ),
            (
                &[(Wait, at(5)), (Receive, at(15))],
                15,
                PhaseTimings {
                    wait: Some(10),
                    receive: Some(0),
                    ..PhaseTimings::default()
                },
            ),
            (
                &[(Dns, at(0))],
                500,
                PhaseTimings {
                    dns: Some(500),
                    ..PhaseTimings::default()
                },
            ),
            (
                &[(Dns, at(0)), (Connect, at(10)), (Wait, at(20))],
                30,
                PhaseTimings {
                    dns: Some(10),
                    connect: Some(10),
                    wait: Some(10),
                    ..PhaseTimings::default()
                },
            ),
            (&[], 10, PhaseTimings::default()),
            // A connection that was begun for this attempt may go on beside the one that became free first.
            (
                &[
                    (Dns, at(0)),
                    (Wait, at(5)),
                    (Connect, at(7)),
                    (Receive, at(9)),
                ],
                10,
                PhaseTimings {
                    dns: Some(5),
                    wait: Some(4),
                    receive: Some(1),
                    ..PhaseTimings::default()
                },
            ),
        ] {
            assert_eq!(PhaseTimings::new(began, at(ended)), phases, "{began:?}");
            assert_eq!(
                PhaseTimings::from(String::from(phases)),
                phases,
                "as it is stored"
            );
        }
    }
}
