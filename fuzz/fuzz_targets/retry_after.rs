//! `Retry-After` may lengthen a wait, up to a day and its jitter, and never shortens it.
//!
//! The first line of the input is the time of the response in milliseconds. The rest is the value
//! of the header.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nano_webhooks_core::{
    delivery::{retry_after::parse, schedule::RetrySchedule},
    timestamp::Timestamp,
};

fuzz_target!(|input: &str| {
    let Some((now, value)) = input.split_once('\n') else {
        return;
    };
    let Ok(now) = now.parse().map(Timestamp::from_millis) else {
        return;
    };

    let requested = parse(value, now);
    assert_eq!(parse(value, now), requested);
    assert_eq!(parse(&format!(" {value}\t"), now), requested);
    assert!(requested.is_none() || !value.trim().is_empty());

    if !value.trim().is_empty() && value.trim().bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = value.trim().parse().unwrap_or(u64::MAX);
        assert_eq!(requested, Some(Duration::from_secs(seconds)));
    } else if let Some(requested) = requested {
        // A date. The wait until then gets shorter as time passes, and is zero afterwards.
        let hour = Duration::from_hours(1);
        let later = now + hour;
        if later.saturating_duration_since(now) == hour {
            assert_eq!(parse(value, later), Some(requested.saturating_sub(hour)));
        }
    }

    let schedule = RetrySchedule::default();
    for number in 1..=10 {
        for jitter in [0.0, 0.5, 1.0] {
            let plain = schedule.delay_after(number, jitter, None);
            let wait = schedule.delay_after(number, jitter, requested);
            assert_eq!(wait.is_some(), plain.is_some());
            let Some((wait, plain)) = wait.zip(plain) else {
                continue;
            };
            let requested = requested.unwrap_or_default();
            assert!(plain <= wait);
            let granted = requested.min(RetrySchedule::MAX_WAIT);
            assert!(wait >= granted);
            assert!(wait == plain || wait <= granted.mul_f64(1.2));
            assert!(now + wait >= now);
        }
    }
});
