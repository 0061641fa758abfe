//! The progress of long work, on stderr. It appears only on a terminal and disappears when the work
//! is done.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

/// How often the spinner moves.
const TICK_INTERVAL: Duration = Duration::from_millis(120);

/// Shows the progress of work with a known number of steps.
pub fn start_progress(message: &'static str, steps: usize) -> ProgressBar {
    let template = "{spinner} {msg} {bar:30} {pos} of {len}, {elapsed}";
    start(ProgressBar::new(steps as u64), message, template)
}

/// Shows the progress of work with an unknown number of steps.
pub fn start_unbounded_progress(message: &'static str) -> ProgressBar {
    let template = "{spinner} {msg} {pos}, {elapsed}";
    start(ProgressBar::no_length(), message, template)
}

fn start(bar: ProgressBar, message: &'static str, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    let bar = bar
        .with_style(style)
        .with_message(message)
        .with_finish(ProgressFinish::AndClear);
    bar.tick();
    bar.enable_steady_tick(TICK_INTERVAL);
    bar
}
