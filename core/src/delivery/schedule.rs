//! The retry schedule: the delays between attempts.

use std::{fmt, str::FromStr, time::Duration};

/// The delays between attempts. The first one follows the first attempt; a failure after the last
/// one is final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrySchedule(Vec<Duration>);

impl RetrySchedule {
    /// The most attempts that a schedule can have, which is also what a delivery keeps.
    pub const MAX_ATTEMPTS: usize = 20;
    /// The longest delay, and the longest that `Retry-After` can request.
    pub const MAX_WAIT: Duration = Duration::from_hours(24);
    /// The share by which a delay varies, so that deliveries that failed together are spread.
    const JITTER: f64 = 0.2;

    /// The delay after attempt `number`, 1 for the first; `None` after the last attempt.
    ///
    /// `jitter` is from 0 to 1. `retry_after` can only lengthen the delay, up to
    /// [`RetrySchedule::MAX_WAIT`] and up to 20 % of jitter more.
    pub fn delay_after(
        &self,
        number: u32,
        jitter: f64,
        retry_after: Option<Duration>,
    ) -> Option<Duration> {
        let index = usize::try_from(number.saturating_sub(1)).ok()?;
        let factor = 1.0 + Self::JITTER * (2.0 * jitter - 1.0);
        let delay = self.0.get(index)?.mul_f64(factor);
        let requested = retry_after.unwrap_or_default().min(Self::MAX_WAIT);
        // Only upward, because the endpoint is not to be called before.
        let requested = requested.mul_f64(1.0 + Self::JITTER * jitter);
        Some(delay.max(requested))
    }
}

impl Default for RetrySchedule {
    /// The example of Standard Webhooks 1.0.0, "Deliverability and reliability".
    fn default() -> Self {
        Self(vec![
            Duration::from_secs(5),
            Duration::from_mins(5),
            Duration::from_mins(30),
            Duration::from_hours(2),
            Duration::from_hours(5),
            Duration::from_hours(10),
            Duration::from_hours(14),
            Duration::from_hours(20),
            Duration::from_hours(24),
        ])
    }
}

/// The text is not a retry schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected 1 to 19 delays of 1ms to 24h, separated by commas, such as `5s,5m,30m,2h`; \
     `{0}` is not valid"
)]
pub struct RetryScheduleError(String);

impl FromStr for RetrySchedule {
    type Err = RetryScheduleError;

    fn from_str(text: &str) -> Result<Self, RetryScheduleError> {
        let delays = text
            .split(',')
            .map(parse_delay)
            .collect::<Result<Vec<_>, _>>()?;
        if delays.len() >= Self::MAX_ATTEMPTS {
            return Err(RetryScheduleError(text.to_owned()));
        }
        Ok(Self(delays))
    }
}

fn parse_delay(text: &str) -> Result<Duration, RetryScheduleError> {
    let text = text.trim();
    match humantime::parse_duration(text) {
        Ok(delay) if (Duration::from_millis(1)..=RetrySchedule::MAX_WAIT).contains(&delay) => {
            Ok(delay)
        }
        _ => Err(RetryScheduleError(text.to_owned())),
    }
}

impl fmt::Display for RetrySchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, delay) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let delay = humantime::format_duration(*delay).to_string();
            f.write_str(&delay.replace(' ', ""))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_standard_webhooks_example() {
        assert_eq!(
            RetrySchedule::default().to_string(),
            "5s,5m,30m,2h,5h,10h,14h,20h,1day"
        );
    }

    /// Each delay has 20 % of jitter, and after the last attempt there is none.
    #[test]
    fn delay_has_jitter() {
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
    fn retry_after_only_lengthens_delay() {
        let schedule: RetrySchedule = "10s".parse().unwrap();
        let day = 24 * 60 * 60;
        for (requested, jitter, expected) in [
            (1, 0.5, 10),
            (60, 0.0, 60),
            (60, 0.5, 66),
            (60, 1.0, 72),
            (1_000_000, 0.0, day),
            (1_000_000, 1.0, day + day / 5),
        ] {
            let requested = Some(Duration::from_secs(requested));
            let delay = schedule.delay_after(1, jitter, requested);
            assert_eq!(delay, Some(Duration::from_secs(expected)));
        }
        assert_eq!(
            schedule.delay_after(2, 0.5, Some(Duration::from_mins(1))),
            None
        );
    }

    #[test]
    fn malformed_schedule_is_refused() {
        for malformed in [
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
            assert!(malformed.parse::<RetrySchedule>().is_err(), "{malformed}");
        }
        assert!(["1s"; 19].join(",").parse::<RetrySchedule>().is_ok());
    }
}
