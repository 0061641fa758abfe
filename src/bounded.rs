//! Concurrency with a bound.

use std::sync::{Mutex, PoisonError};

use futures_util::{
    StreamExt,
    stream::{self, FuturesUnordered},
};

/// Runs futures, at most `limit` at the same time, and gives their results as they come.
///
/// It takes a list, not a lazy iterator: a future that holds the closure which makes its parts cannot be shown to be `Send`.
pub(crate) async fn join<F: Future>(futures: Vec<F>, limit: usize) -> Vec<F::Output> {
    stream::iter(futures).buffer_unordered(limit).collect().await
}

/// Works on items, at most `limit` at the same time, and gives the results as they come. A future's place is taken by the next,
/// so that many items need no more memory than `limit` of them; it pays where there are many and their futures are large.
pub(crate) async fn each<T, F: Future>(items: Vec<T>, limit: usize, work: impl Fn(T) -> F) -> Vec<F::Output> {
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
    shared.into_inner().unwrap_or_else(PoisonError::into_inner).0
}
