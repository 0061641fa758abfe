//! The query of the delivery list, and its cursor.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer, de::Error as _};
use utoipa::IntoParams;

use crate::{
    api::{
        error::ApiError,
        fields::{deserialize_event_type, deserialize_string},
        schemas::{DeliveryStatusSchema, EventTypeSchema},
    },
    store::delivery_log::DeliveryFilter,
};
use nano_webhooks_core::{
    delivery::status::DeliveryStatus, event::EventId, event_type::EventType, webhook::WebhookId,
};

const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 100;

/// Selects deliveries.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListDeliveriesQuery {
    /// Only deliveries with this status.
    #[serde(default, deserialize_with = "deserialize_status")]
    #[param(value_type = Option<DeliveryStatusSchema>)]
    status: Option<DeliveryStatus>,
    /// Only deliveries of events of this type.
    #[serde(default, deserialize_with = "deserialize_event_type")]
    #[param(value_type = Option<EventTypeSchema>)]
    event: Option<EventType>,
    /// The maximum number of deliveries.
    #[serde(default = "default_limit", deserialize_with = "deserialize_limit")]
    #[param(value_type = Option<usize>, minimum = 1, maximum = 100, default = 50)]
    limit: usize,
    /// The `next_cursor` of the previous page.
    #[serde(default, deserialize_with = "deserialize_cursor")]
    #[param(value_type = Option<String>, min_length = 1)]
    cursor: Option<String>,
}

impl ListDeliveriesQuery {
    /// Resolves the cursor, which is only valid for the deliveries of the same webhook.
    pub fn into_filter(self, webhook: WebhookId) -> Result<DeliveryFilter, ApiError> {
        let after = match self.cursor {
            Some(cursor) => Some(parse_cursor(webhook, &cursor).ok_or_else(|| {
                ApiError::field(
                    "cursor",
                    "expected the `next_cursor` of a page of this webhook's deliveries",
                )
            })?),
            None => None,
        };
        Ok(DeliveryFilter {
            status: self.status,
            event: self.event,
            after,
            limit: self.limit,
        })
    }
}

/// The cursor of the page after `event`.
pub(crate) fn format_cursor(webhook: WebhookId, event: &EventId) -> String {
    URL_SAFE_NO_PAD.encode(format!("{webhook}.{event}"))
}

fn parse_cursor(webhook: WebhookId, cursor: &str) -> Option<EventId> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    EventId::parse(text.strip_prefix(&format!("{webhook}."))?)
}

const fn default_limit() -> usize {
    DEFAULT_LIMIT
}

fn deserialize_status<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<DeliveryStatus>, D::Error> {
    deserialize_string(from)?
        .parse()
        .map(Some)
        .map_err(D::Error::custom)
}

fn deserialize_cursor<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    deserialize_string(from).map(Some)
}

fn deserialize_limit<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    match deserialize_string(from)?.parse() {
        Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        _ => Err(D::Error::custom("expected a whole number from 1 to 100")),
    }
}
