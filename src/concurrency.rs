//! Concurrency with a bound.

use std::{
    convert::identity,
    sync::{Mutex, PoisonError},
};

use futures_util::{StreamExt, stream::FuturesUnordered};

/// Runs futures, at most `limit` at the same time, and gives their results as they come.
pub async fn join_bounded<F: Future>(futures: Vec<F>, limit: usize) -> Vec<F::Output> {
    map_concurrent(futures, limit, identity).await
}

/// Works on items, at most `limit` at the same time, and gives the results as they come. A future's place is taken by the next,
/// so that there are never more than `limit` of them; it pays where there are many items and the futures are large.
pub async fn map_concurrent<T, F: Future>(
    items: Vec<T>,
    limit: usize,
    work: impl Fn(T) -> F,
) -> Vec<F::Output> {
    let places = items.len().min(limit);
    let shared = Mutex::new((Vec::with_capacity(items.len()), items.into_iter()));
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let next = || lock().1.next();
    let place = |_| async {
        while let Some(item) = next() {
            let done = work(item).await;
            lock().0.push(done);
        }
    };
    let mut places: FuturesUnordered<_> = (0..places).map(place).collect();
    while places.next().await.is_some() {}
    drop(places);
    shared
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .0
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn every_item_is_worked_on_and_never_more_than_so_many_at_once() {
        for (items, limit, together) in [(0, 3, 0), (2, 3, 2), (3, 3, 3), (100, 3, 3), (5, 1, 1)] {
            let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let work = async |item: usize| {
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                // The later ones are done first.
                for _ in 0..100 - item {
                    tokio::task::yield_now().await;
                }
                now.fetch_sub(1, Ordering::Relaxed);
                item
            };
            let mut done = map_concurrent((0..items).collect(), limit, work).await;
            done.sort_unstable();
            assert_eq!((done, most.into_inner()), ((0..items).collect(), together));
        }
    }
}
