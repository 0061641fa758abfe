//! `Retry-After`: it lengthens a wait or leaves it as it is, and asks for at most a day.
//!
//! The input is a line with the time of the answer, in milliseconds, and then the header's value.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nano_webhooks_core::{delivery::{retry_after::parse, schedule::RetrySchedule}, timestamp::Timestamp};

fuzz_target!(|input: &str| {
    let Some((now, value)) = input.split_once('\n') else { return };
    let Ok(now) = now.parse().map(Timestamp::from_millis) else { return };

    let asked = parse(value, now);
    assert_eq!(parse(value, now), asked);
    assert_eq!(parse(&format!(" {value}\t"), now), asked);
    assert!(asked.is_none() || !value.trim().is_empty());

    if !value.trim().is_empty() && value.trim().bytes().all(|b| b.is_ascii_digit()) {
        let seconds = value.trim().parse().unwrap_or(u64::MAX);
        assert_eq!(asked, Some(Duration::from_secs(seconds)));
    } else if let Some(asked) = asked {
        // A date: it comes closer as time passes, and asks for nothing once it is there.
        let hour = Duration::from_hours(1);
        let later = now + hour;
        if later.saturating_duration_since(now) == hour {
            assert_eq!(parse(value, later), Some(asked.saturating_sub(hour)));
        }
    }

    let schedule = RetrySchedule::default();
    for number in 1..=10 {
        for jitter in [0.0, 0.5, 1.0] {
            let plain = schedule.delay_after(number, jitter, None);
            let wait = schedule.delay_after(number, jitter, asked);
            assert_eq!(wait.is_some(), plain.is_some());
            let Some((wait, plain)) = wait.zip(plain) else { continue };
            let asked = asked.unwrap_or_default();
            assert!(plain <= wait);
            assert!(wait == plain || wait <= RetrySchedule::MAX_WAIT);
            assert!(wait >= asked || wait >= RetrySchedule::MAX_WAIT);
            assert!(now + wait >= now);
        }
    }
});
