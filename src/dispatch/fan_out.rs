//! The fan-out: which webhooks subscribe to the events of a batch, and which deliveries are
//! recorded already.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
};

use super::{poison_reason::PoisonReason, stream_record::FanOutEvent};
use crate::{
    clock::{Clock, Deadline},
    concurrency,
    error_chain::error_chain,
    store::{
        Error, Result, Store,
        secrets::Credentials,
        webhooks::{UnreadableWebhook, WebhookRecord},
    },
};
use nano_webhooks_core::{account_id::AccountId, delivery::DeliveryKey, webhook::WebhookId};

/// How many accounts' webhooks are loaded at the same time.
const CONCURRENT_LOADS: usize = 16;

/// The events of a batch that one endpoint receives.
pub(super) struct EndpointBatch<'a> {
    pub account: &'a AccountId,
    pub record: &'a WebhookRecord,
    pub credentials: EndpointCredentials,
    pub events: Vec<&'a FanOutEvent>,
}

impl EndpointBatch<'_> {
    fn delivery_keys(&self) -> impl Iterator<Item = DeliveryKey> {
        let webhook = &self.record.webhook;
        self.events
            .iter()
            .map(move |event| event.delivery_key(webhook.id))
    }

    fn records(&self) -> impl Iterator<Item = usize> {
        self.events.iter().map(|event| event.record)
    }
}

/// What the requests to an endpoint need.
pub(super) enum EndpointCredentials {
    Available(Credentials),
    /// They cannot be decrypted now, so nothing is sent. The deliveries wait.
    Unavailable,
}

/// The webhooks of an account.
pub(super) struct AccountWebhooks {
    records: Vec<WebhookRecord>,
    unreadable: Vec<UnreadableWebhook>,
}

/// The events of a batch that wait for a webhook, because its item or its secret is invalid.
pub(super) struct UnreadableBatch<'a> {
    pub account: &'a AccountId,
    pub webhook: WebhookId,
    /// Empty if the item is invalid.
    pub url: &'a str,
    pub reason: PoisonReason,
    pub events: Vec<&'a FanOutEvent>,
}

/// What has to be sent.
#[derive(Default)]
pub(super) struct FanOutPlan<'a> {
    pub endpoints: Vec<EndpointBatch<'a>>,
    /// Indexes of records that must be read again.
    pub unfinished: Vec<usize>,
    pub unreadable: Vec<UnreadableBatch<'a>>,
}

/// Plans the deliveries of a batch.
#[derive(Clone, Copy)]
pub(super) struct FanOut<'a> {
    pub store: &'a Store,
    pub clock: &'a Clock,
}

impl FanOut<'_> {
    /// Loads the webhooks of each event's account with one query. An account whose query fails is
    /// missing from the result.
    pub(super) async fn load_webhooks(
        self,
        events: &[FanOutEvent],
    ) -> HashMap<AccountId, AccountWebhooks> {
        let accounts: HashSet<_> = events.iter().map(|event| &event.event.account).collect();
        let loads = accounts
            .into_iter()
            .map(|account| self.load_account(account))
            .collect();
        let mut webhooks = HashMap::new();
        for (account, loaded) in concurrency::join_bounded(loads, CONCURRENT_LOADS).await {
            match loaded {
                Ok(loaded) => {
                    webhooks.insert(account.clone(), loaded);
                }
                Err(error) => tracing::error!(
                    account = account.as_str(),
                    error = error_chain(&error),
                    "Could not load webhooks; the account's records will be read again"
                ),
            }
        }
        webhooks
    }

    async fn load_account(self, account: &AccountId) -> (&AccountId, Result<AccountWebhooks>) {
        let listed = self.store.webhooks().list_records(account).await;
        (account, listed.map(AccountWebhooks::new))
    }

    /// Plans what has to be sent of a batch.
    pub(super) async fn plan<'a>(
        self,
        events: &'a [FanOutEvent],
        webhooks: &'a HashMap<AccountId, AccountWebhooks>,
        deadline: Deadline,
    ) -> FanOutPlan<'a> {
        let mut plan = group_by_endpoint(events, webhooks);
        if let Err(error) = self.remove_recorded(&mut plan.endpoints, deadline).await {
            tracing::error!(
                error = error_chain(&error),
                "Could not read which deliveries exist; the batch will be read again"
            );
            for endpoint in plan.endpoints.drain(..) {
                plan.unfinished.extend(endpoint.records());
            }
            return plan;
        }
        plan
    }

    /// Removes events whose deliveries were recorded when the same records were read before.
    async fn remove_recorded(
        self,
        endpoints: &mut [EndpointBatch<'_>],
        deadline: Deadline,
    ) -> Result<()> {
        let keys: Vec<_> = endpoints
            .iter()
            .flat_map(EndpointBatch::delivery_keys)
            .collect();
        let existing = self
            .store
            .deliveries()
            .find_existing(&keys, deadline)
            .await?;
        if existing.is_empty() {
            return Ok(());
        }
        for endpoint in endpoints {
            let webhook = &endpoint.record.webhook;
            endpoint
                .events
                .retain(|event| !existing.contains(&event.delivery_key(webhook.id)));
        }
        Ok(())
    }

    /// Decrypts what the requests to an endpoint need. If that is not possible now, its deliveries
    /// wait. If a secret or a header is invalid, its events wait until it is repaired.
    pub(super) async fn decrypt_credentials<'a>(
        self,
        endpoint: &mut EndpointBatch<'a>,
    ) -> Option<UnreadableBatch<'a>> {
        if endpoint.events.is_empty() {
            return None;
        }
        let webhook = endpoint.record.webhook.id;
        let decrypted = self
            .store
            .webhooks()
            .decrypt_credentials(endpoint.account, endpoint.record, self.clock.now())
            .await;
        match decrypted {
            Ok(credentials) => {
                endpoint.credentials = EndpointCredentials::Available(credentials);
                None
            }
            Err(error @ Error::Unreadable(_)) => {
                let source = Arc::new(error);
                Some(UnreadableBatch {
                    account: endpoint.account,
                    webhook,
                    url: endpoint.record.webhook.url.as_str(),
                    reason: PoisonReason::UnreadableSecret { webhook, source },
                    events: mem::take(&mut endpoint.events),
                })
            }
            // The store logs an unavailable key.
            Err(Error::KeyUnavailable(_)) => {
                endpoint.credentials = EndpointCredentials::Unavailable;
                None
            }
            Err(error @ (Error::Unavailable(_) | Error::Internal(_))) => {
                tracing::error!(
                    account = endpoint.account.as_str(), %webhook, error = error_chain(&error),
                    "Could not decrypt secrets; the deliveries wait"
                );
                endpoint.credentials = EndpointCredentials::Unavailable;
                None
            }
        }
    }
}

impl AccountWebhooks {
    fn new(listed: Vec<std::result::Result<WebhookRecord, UnreadableWebhook>>) -> Self {
        let mut records = Vec::with_capacity(listed.len());
        let mut unreadable = Vec::new();
        for record in listed {
            match record {
                Ok(record) => records.push(record),
                Err(webhook) => unreadable.push(webhook),
            }
        }
        Self {
            records,
            unreadable,
        }
    }
}

/// Assigns each event to the endpoints that subscribe to it, and to the webhooks that cannot be
/// read and may subscribe to it.
fn group_by_endpoint<'a>(
    events: &'a [FanOutEvent],
    webhooks: &'a HashMap<AccountId, AccountWebhooks>,
) -> FanOutPlan<'a> {
    let mut plan = FanOutPlan::default();
    let mut endpoints: HashMap<(&AccountId, WebhookId), EndpointBatch<'_>> = HashMap::new();
    let mut unreadable: HashMap<(&AccountId, WebhookId), UnreadableBatch<'_>> = HashMap::new();
    let mut seen = HashSet::new();
    for event in events {
        // A batch can have the same record twice.
        if !seen.insert(&event.event.id) {
            continue;
        }
        let Some((account, loaded)) = webhooks.get_key_value(&event.event.account) else {
            plan.unfinished.push(event.record);
            continue;
        };
        for webhook in &loaded.unreadable {
            let batch =
                unreadable
                    .entry((account, webhook.id))
                    .or_insert_with(|| UnreadableBatch {
                        account,
                        webhook: webhook.id,
                        url: "",
                        reason: PoisonReason::unreadable_webhook(webhook.clone()),
                        events: Vec::new(),
                    });
            batch.events.push(event);
        }
        for record in &loaded.records {
            if record.webhook.accepts(event.event_type()) {
                let endpoint = endpoints
                    .entry((account, record.webhook.id))
                    .or_insert_with(|| EndpointBatch {
                        account,
                        record,
                        credentials: EndpointCredentials::Available(Credentials::default()),
                        events: Vec::new(),
                    });
                endpoint.events.push(event);
            }
        }
    }
    plan.endpoints = endpoints.into_values().collect();
    plan.unreadable = unreadable.into_values().collect();
    plan
}
