//! When the next attempt is due.

use std::{fmt, str::FromStr, time::Duration};

/// The waits between attempts: the first follows the first attempt, and when they are used up the delivery has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrySchedule(Vec<Duration>);

impl RetrySchedule {
    /// The most attempts that a schedule can ask for: as many as a delivery keeps.
    pub const MAX_ATTEMPTS: usize = 20;
    /// The longest wait, and the most that a `Retry-After` can ask for.
    pub const MAX_WAIT: Duration = Duration::from_hours(24);
    /// Each wait is between 80 % and 120 % of what the schedule says, so that what failed together does not return together.
    const JITTER: f64 = 0.2;

    /// How long to wait after attempt `number` (1 for the first) has failed; `None` if it was the last.
    ///
    /// `jitter` is from 0 to 1. `retry_after` is what the receiver asked for: it can only make the wait longer,
    /// to at most [`RetrySchedule::MAX_WAIT`].
    pub fn delay_after(
        &self,
        number: u32,
        jitter: f64,
        retry_after: Option<Duration>,
    ) -> Option<Duration> {
        let place = usize::try_from(number.saturating_sub(1)).ok()?;
        let wait = self
            .0
            .get(place)?
            .mul_f64(1.0 + Self::JITTER * (2.0 * jitter - 1.0));
        Some(wait.max(retry_after.unwrap_or_default().min(Self::MAX_WAIT)))
    }
}

impl Default for RetrySchedule {
    /// The example of Standard Webhooks 1.0.0, "Deliverability and reliability": 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h.
    fn default() -> Self {
        let hour = 60 * 60;
        let seconds = [
            5,
            5 * 60,
            30 * 60,
            2 * hour,
            5 * hour,
            10 * hour,
            14 * hour,
            20 * hour,
            24 * hour,
        ];
        Self(seconds.map(Duration::from_secs).to_vec())
    }
}

/// Why a schedule could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected 1 to 19 waits of 1ms to 24h separated by commas, such as `5s,5m,30m,2h`; `{0}` is not one"
)]
pub struct RetryScheduleError(String);

impl FromStr for RetrySchedule {
    type Err = RetryScheduleError;

    fn from_str(text: &str) -> Result<Self, RetryScheduleError> {
        let waits = text
            .split(',')
            .map(|part| {
                let wait = humantime::parse_duration(part.trim()).ok();
                let known =
                    wait.filter(|wait| (Duration::from_millis(1)..=Self::MAX_WAIT).contains(wait));
                known.ok_or_else(|| RetryScheduleError(part.trim().to_owned()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if waits.len() >= Self::MAX_ATTEMPTS {
            return Err(RetryScheduleError(text.to_owned()));
        }
        Ok(Self(waits))
    }
}

impl fmt::Display for RetrySchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waits: Vec<_> = self
            .0
            .iter()
            .map(|wait| {
                humantime::format_duration(*wait)
                    .to_string()
                    .replace(' ', "")
            })
            .collect();
        f.write_str(&waits.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_example_of_standard_webhooks() {
        assert_eq!(
            RetrySchedule::default().to_string(),
            "5s,5m,30m,2h,5h,10h,14h,20h,1day"
        );
    }

    #[test]
    fn each_wait_has_20_percent_jitter_and_after_the_last_there_is_none() {
        let schedule: RetrySchedule = "250ms, 10s,2h".parse().unwrap();
        for (number, jitter, millis) in [
            (1, 0.5, Some(250)),
            (1, 0.0, Some(200)),
            (1, 1.0, Some(300)),
            (2, 0.0, Some(8_000)),
            (3, 1.0, Some(8_640_000)),
            (4, 0.5, None),
            (100, 0.5, None),
        ] {
            assert_eq!(
                schedule.delay_after(number, jitter, None),
                millis.map(Duration::from_millis),
                "{number} {jitter}"
            );
        }
    }

    #[test]
    fn retry_after_only_ever_lengthens_a_wait_and_is_capped() {
        let schedule: RetrySchedule = "10s".parse().unwrap();
        let wait = |asked| {
            schedule
                .delay_after(1, 0.5, Some(Duration::from_secs(asked)))
                .unwrap()
                .as_secs()
        };
        assert_eq!(wait(1), 10);
        assert_eq!(wait(60), 60);
        assert_eq!(wait(1_000_000), 24 * 60 * 60);
        assert_eq!(
            schedule.delay_after(2, 0.5, Some(Duration::from_mins(1))),
            None
        );
    }

    #[test]
    fn a_schedule_that_makes_no_sense_is_refused() {
        for wrong in [
            "",
            ",",
            "5s,",
            "5",
            "0s",
            "-5s",
            "25h",
            "5 parsecs",
            &["1s"; 20].join(","),
        ] {
            assert!(wrong.parse::<RetrySchedule>().is_err(), "{wrong}");
        }
        assert!(["1s"; 19].join(",").parse::<RetrySchedule>().is_ok());
    }
}
