//! Bounded concurrency.

use std::sync::{Mutex, PoisonError};

use futures_util::{StreamExt, stream, stream::FuturesUnordered};

/// Runs futures, at most `limit` at a time. The results are in the order of completion.
pub async fn join_bounded<F: Future>(futures: Vec<F>, limit: usize) -> Vec<F::Output> {
    stream::iter(futures)
        .buffer_unordered(limit)
        .collect()
        .await
}

/// Calls `f` with each item, at most `limit` at a time. The results are in the order of completion.
///
/// At most `limit` futures are allocated, and each worker reuses its memory for the next item.
/// `buffer_unordered` allocates each future on its own, which costs more with many items and
/// large futures, such as attempts.
pub async fn map_concurrent<T, F: Future>(
    items: Vec<T>,
    limit: usize,
    f: impl Fn(T) -> F,
) -> Vec<F::Output> {
    let worker_count = items.len().min(limit);
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let queue = Mutex::new(items.into_iter());
    let mut workers = FuturesUnordered::new();
    for _ in 0..worker_count {
        workers.push(async {
            while let Some(item) = next_item(&queue) {
                let result = f(item).await;
                push_result(&results, result);
            }
        });
    }
    while workers.next().await.is_some() {}
    drop(workers);
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn next_item<T>(queue: &Mutex<std::vec::IntoIter<T>>) -> Option<T> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    queue.next()
}

fn push_result<T>(results: &Mutex<Vec<T>>, result: T) {
    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
    results.push(result);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Yields more often for the first items, so that the last items complete first.
    async fn track_peak(item: usize, running: &AtomicUsize, peak: &AtomicUsize) -> usize {
        peak.fetch_max(
            running.fetch_add(1, Ordering::Relaxed) + 1,
            Ordering::Relaxed,
        );
        for _ in 0..100 - item {
            tokio::task::yield_now().await;
        }
        running.fetch_sub(1, Ordering::Relaxed);
        item
    }

    #[tokio::test]
    async fn every_item_runs_within_limit() {
        for (items, limit, expected_peak) in
            [(0, 3, 0), (2, 3, 2), (3, 3, 3), (100, 3, 3), (5, 1, 1)]
        {
            let (running, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let track = |item| track_peak(item, &running, &peak);
            let mut mapped = map_concurrent((0..items).collect(), limit, track).await;
            let mut joined = join_bounded((0..items).map(track).collect(), limit).await;
            mapped.sort_unstable();
            joined.sort_unstable();
            assert_eq!(mapped, (0..items).collect::<Vec<_>>());
            assert_eq!(joined, mapped);
            assert_eq!(peak.into_inner(), expected_peak);
        }
    }
}
