//! Changes of a webhook, as one update.

use aws_sdk_dynamodb::types::{AttributeValue, Update, builders::UpdateBuilder};

use super::{
    error::Result,
    item::{attr_n, attr_s, to_attribute},
    secrets::{SECRETS, StoredSecret},
    stored_headers::{HEADERS, StoredHeaders},
};
use nano_webhooks_core::{
    delivery::pace::MaxPerSecond, endpoint_url::EndpointUrl, event_type::EventTypes,
    secret::Secret, static_headers::StaticHeaders, timestamp::Timestamp, webhook::WebhookStatus,
};

/// The changes of a webhook. Fields that are `None` stay.
#[derive(Clone, Debug, Default)]
pub struct WebhookUpdate {
    /// The endpoint. The health of the previous endpoint is deleted, and paused deliveries are
    /// resumed.
    pub url: Option<EndpointUrl>,
    /// The event types that it subscribes to.
    pub events: Option<EventTypes>,
    /// Enabling deletes the endpoint's health and resumes paused deliveries.
    pub status: Option<WebhookStatus>,
    /// The only secret that signs from now on; `Some(None)` ends signing.
    pub secret: Option<Option<Secret>>,
    /// All static headers from now on; an empty set deletes them.
    pub headers: Option<StaticHeaders>,
    /// Its owner's note; `Some(None)` deletes it.
    pub description: Option<Option<String>>,
    /// The most attempts that start in a second; `Some(None)` deletes the limit. A new pace starts,
    /// even if the limit is the same.
    pub max_per_second: Option<Option<MaxPerSecond>>,
}

/// The reason that is shown of a webhook that its owner disabled.
const DISABLED_BY_OWNER: &str = "Disabled through the API.";

impl WebhookUpdate {
    /// Whether nothing is known of the endpoint's health after the update.
    pub const fn resets_health(&self) -> bool {
        self.enables() || self.url.is_some()
    }

    /// Whether the webhook is active after the update.
    const fn enables(&self) -> bool {
        matches!(self.status, Some(WebhookStatus::Active))
    }

    /// The update of the webhook's item. `secrets` and `headers` replace those that are stored.
    pub(super) fn build_update(
        &self,
        secrets: Option<Vec<StoredSecret>>,
        headers: Option<Option<StoredHeaders>>,
        now: Timestamp,
    ) -> Result<UpdateBuilder> {
        let mut expression = UpdateExpression::default();
        expression.set("updated_at", attr_n(now.as_unix_millis()));
        if let Some(url) = &self.url {
            expression.set("url", attr_s(url.as_str()));
        }
        if let Some(events) = &self.events {
            expression.set(
                "events",
                AttributeValue::L(events.names().map(attr_s).collect()),
            );
        }
        match self.status {
            Some(status @ WebhookStatus::Active) => {
                expression.set("status", attr_s(status.as_str()));
                expression.remove("disabled_reason");
            }
            Some(status @ WebhookStatus::Disabled) => {
                expression.set("status", attr_s(status.as_str()));
                expression.set("disabled_reason", attr_s(DISABLED_BY_OWNER));
            }
            None => {}
        }
        if let Some(secrets) = secrets {
            expression.set(SECRETS, to_attribute(&secrets)?);
        }
        match headers {
            Some(Some(headers)) => expression.set(HEADERS, to_attribute(&headers)?),
            Some(None) => expression.remove(HEADERS),
            None => {}
        }
        match &self.description {
            Some(Some(description)) => expression.set("description", attr_s(description)),
            Some(None) => expression.remove("description"),
            None => {}
        }
        match self.max_per_second {
            Some(Some(limit)) => {
                expression.set("max_per_second", attr_n(limit.get().into()));
                expression.set("paced_since", attr_n(now.as_unix_millis()));
            }
            Some(None) => {
                expression.remove("max_per_second");
                expression.remove("paced_since");
            }
            None => {}
        }
        Ok(expression
            .into_update()
            .condition_expression("attribute_exists(PK)"))
    }
}

/// An update expression under construction. Every attribute is named by a placeholder, since some
/// are reserved words.
#[derive(Default)]
struct UpdateExpression {
    set: Vec<(&'static str, AttributeValue)>,
    remove: Vec<&'static str>,
}

impl UpdateExpression {
    fn set(&mut self, name: &'static str, value: AttributeValue) {
        self.set.push((name, value));
    }

    fn remove(&mut self, name: &'static str) {
        self.remove.push(name);
    }

    fn into_update(self) -> UpdateBuilder {
        let mut update = Update::builder();
        let mut assignments = Vec::with_capacity(self.set.len());
        for (name, value) in self.set {
            assignments.push(format!("#{name} = :{name}"));
            update = update
                .expression_attribute_names(format!("#{name}"), name)
                .expression_attribute_values(format!(":{name}"), value);
        }
        let mut expression = format!("SET {}", assignments.join(", "));
        let mut separator = " REMOVE ";
        for name in self.remove {
            expression.push_str(separator);
            expression.push('#');
            expression.push_str(name);
            separator = ", ";
            update = update.expression_attribute_names(format!("#{name}"), name);
        }
        update.update_expression(expression)
    }
}
