//! Concurrency with a bound.

use futures_util::{StreamExt, stream};

/// Runs futures, at most `limit` at the same time, and gives their results as they come.
///
/// It takes a list, not a lazy iterator: a future that holds the closure which makes its parts cannot be shown to be `Send`.
pub(crate) async fn join<F: Future>(futures: Vec<F>, limit: usize) -> Vec<F::Output> {
    stream::iter(futures).buffer_unordered(limit).collect().await
}
