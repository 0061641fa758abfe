//! The right of a stream batch to hold its environment after the response.

use tokio::sync::OnceCell;

use crate::{clock::Clock, error_chain::error_chain, store::Store};

/// Asks the deployment's budget at most once for a batch, when its first attempt is late.
pub(super) struct HoldBudget<'a> {
    store: &'a Store,
    clock: &'a Clock,
    is_granted: OnceCell<bool>,
}

impl<'a> HoldBudget<'a> {
    pub(super) const fn new(store: &'a Store, clock: &'a Clock) -> Self {
        Self {
            store,
            clock,
            is_granted: OnceCell::const_new(),
        }
    }

    /// Whether the batch may leave attempts open. If the budget cannot be read, it may not.
    pub(super) async fn try_hold(&self) -> bool {
        // Boxed, because every attempt of the batch would carry the space for the request.
        *self
            .is_granted
            .get_or_init(|| Box::pin(self.request()))
            .await
    }

    async fn request(&self) -> bool {
        match self.store.holds().try_begin(self.clock.now()).await {
            Ok(outcome) => outcome.is_applied(),
            Err(error) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "Could not count a held environment; its late attempts are cut"
                );
                false
            }
        }
    }
}
