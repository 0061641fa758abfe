//! How far long work is: on stderr, only where that is a terminal, and gone when the work is done.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

/// How often it moves while nothing else happens, so that it is seen to live.
const TICK: Duration = Duration::from_millis(120);

/// Shows that `what` goes on, and how many of `of` are done, if it is known how many there are.
pub(super) fn progress(what: &'static str, of: Option<usize>) -> ProgressBar {
    let (bar, template) = match of {
        Some(all) => (
            ProgressBar::new(all as u64),
            "{spinner} {msg} {bar:30} {pos} of {len}, {elapsed}",
        ),
        None => (ProgressBar::no_length(), "{spinner} {msg} {pos}, {elapsed}"),
    };
    let style = ProgressStyle::with_template(template).expect("the template is well-formed");
    let bar = bar
        .with_style(style)
        .with_message(what)
        .with_finish(ProgressFinish::AndClear);
    bar.tick();
    bar.enable_steady_tick(TICK);
    bar
}
