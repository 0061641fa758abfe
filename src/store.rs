//! The tables: every read and write of DynamoDB.
//!
//! [`Store`] gives one facade per noun, such as [`Store::webhooks`]. The facades share
//! `table_client`, and a file uses only files below it:
//!
//! ```text
//! replays, resumes, probes
//! leases, health                  paused
//! webhooks                        due_index, delivery_log
//! creation, rotation, update      deliveries       replay_record
//! webhook_row                     delivery_row     poison, api_keys, rate_limits, checkpoints,
//! reencryption                                     test_event_slots, holds
//! stored_headers
//! secrets                         item_writer
//! data_keys
//! table_client, tables
//! item, key_schema, error
//! ```

pub mod api_keys;
pub mod checkpoints;
mod creation;
pub mod data_keys;
pub mod deliveries;
pub mod delivery_log;
mod delivery_row;
pub mod due_index;
mod error;
pub mod exhausted;
pub mod health;
pub mod holds;
mod item;
mod item_writer;
pub mod key_schema;
pub mod leases;
mod markers;
pub mod notifications;
pub mod pace;
mod paused;
pub mod poison;
pub mod probes;
pub mod rate_limits;
pub mod reencryption;
mod replay_record;
mod replay_step;
pub mod replays;
pub mod resumes;
pub mod rotation;
pub mod secrets;
pub mod stored_headers;
mod table_client;
pub mod tables;
pub mod test_event_slots;
pub mod update;
mod webhook_row;
pub mod webhooks;

use aws_sdk_dynamodb::Client;

use api_keys::ApiKeys;
use checkpoints::Checkpoints;
use data_keys::{DataKeyCache, DataKeys};
use deliveries::Deliveries;
use delivery_log::DeliveryLog;
use due_index::DueIndex;
use exhausted::ExhaustedDeliveries;
use health::HealthItems;
use holds::Holds;
use leases::Leases;
use notifications::{Notices, OperatorNotices};
use pace::PaceCounters;
use paused::PausedDeliveries;
use poison::Poison;
use probes::Probes;
use rate_limits::RateLimiter;
use replays::Replays;
use resumes::Resumes;
use secrets::Secrets;
use table_client::TableClient;
use test_event_slots::TestEventSlots;
use webhooks::Webhooks;

pub use error::{Error, Result};
pub use item::Item;
pub use table_client::{WriteOutcome, backoff_until, check_deadline};
pub use tables::TableNames;

/// The tables, and the client that reaches them. Clones share the client and the data keys.
#[derive(Clone, Debug)]
pub struct Store {
    webhooks_table: TableClient,
    deliveries_table: TableClient,
    data_keys: DataKeyCache,
    operator_notices: OperatorNotices,
}

impl Store {
    /// A store over these tables. `data_keys` encrypt the secrets of webhooks.
    pub fn new(client: Client, tables: TableNames, data_keys: DataKeyCache) -> Self {
        Self {
            webhooks_table: TableClient::new(client.clone(), tables.webhooks),
            deliveries_table: TableClient::new(client, tables.deliveries),
            data_keys,
            operator_notices: OperatorNotices::Off,
        }
    }

    /// The same store, which records a notice for the operator with each operational event.
    #[must_use]
    pub const fn with_operator_notices(mut self, notices: OperatorNotices) -> Self {
        self.operator_notices = notices;
        self
    }

    /// API keys of accounts.
    pub const fn api_keys(&self) -> ApiKeys<'_> {
        ApiKeys::new(&self.webhooks_table)
    }

    /// Counters of API requests.
    pub const fn rate_limits(&self) -> RateLimiter<'_> {
        RateLimiter::new(&self.webhooks_table)
    }

    /// Slots of test events.
    pub const fn test_event_slots(&self) -> TestEventSlots<'_> {
        TestEventSlots::new(&self.webhooks_table)
    }

    /// Secrets of webhooks.
    pub const fn secrets(&self) -> Secrets<'_> {
        let data_keys = DataKeys::new(&self.webhooks_table, &self.data_keys);
        Secrets::new(&self.webhooks_table, data_keys)
    }

    /// Webhooks, and the health of their endpoints.
    pub const fn webhooks(&self) -> Webhooks<'_> {
        Webhooks::new(
            &self.webhooks_table,
            self.deliveries(),
            self.secrets(),
            self.operator_notices,
        )
    }

    /// Writes of endpoint health. It is read with its webhook.
    pub const fn health(&self) -> HealthItems<'_> {
        HealthItems::new(&self.webhooks_table, self.deliveries())
    }

    /// Deliveries whose last attempt failed.
    pub const fn exhausted(&self) -> ExhaustedDeliveries<'_> {
        ExhaustedDeliveries::new(
            &self.webhooks_table,
            &self.deliveries_table,
            self.deliveries(),
        )
    }

    /// Notices for the operator's topic.
    pub const fn notices(&self) -> Notices<'_> {
        Notices::new(&self.webhooks_table)
    }

    /// The slots of webhooks whose deliveries are spaced in time.
    pub const fn pace(&self) -> PaceCounters<'_> {
        PaceCounters::new(&self.webhooks_table)
    }

    /// Deliveries by key.
    pub const fn deliveries(&self) -> Deliveries<'_> {
        Deliveries::new(&self.deliveries_table)
    }

    /// Deliveries of one webhook, the newest first.
    pub const fn delivery_log(&self) -> DeliveryLog<'_> {
        DeliveryLog::new(&self.deliveries_table)
    }

    /// Pending deliveries by the time when the sweep looks at them.
    pub const fn due_index(&self) -> DueIndex<'_> {
        DueIndex::new(&self.deliveries_table)
    }

    /// Changes of pending deliveries.
    pub const fn leases(&self) -> Leases<'_> {
        Leases::new(
            &self.deliveries_table,
            &self.webhooks_table,
            self.deliveries(),
            self.delivery_log(),
        )
    }

    /// Replays of a webhook's deliveries.
    pub const fn replays(&self) -> Replays<'_> {
        Replays::new(
            &self.webhooks_table,
            &self.deliveries_table,
            self.webhooks(),
        )
    }

    const fn paused_deliveries(&self) -> PausedDeliveries<'_> {
        PausedDeliveries::new(&self.deliveries_table, self.delivery_log())
    }

    /// Webhooks whose paused deliveries are resumed.
    pub const fn resumes(&self) -> Resumes<'_> {
        Resumes::new(
            &self.webhooks_table,
            self.webhooks(),
            self.paused_deliveries(),
        )
    }

    /// Probes of endpoints whose circuit breaker is open.
    pub const fn probes(&self) -> Probes<'_> {
        Probes::new(
            &self.webhooks_table,
            self.webhooks(),
            self.paused_deliveries(),
        )
    }

    /// Counters of environments that late attempts hold.
    pub const fn holds(&self) -> Holds<'_> {
        Holds::new(&self.webhooks_table)
    }

    /// Stream records that cannot be understood.
    pub const fn poison(&self) -> Poison<'_> {
        Poison::new(&self.webhooks_table)
    }

    /// Checkpoints of a stream reader other than Lambda.
    pub const fn checkpoints(&self) -> Checkpoints<'_> {
        Checkpoints::new(&self.webhooks_table)
    }
}
