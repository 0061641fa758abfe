//! Changes of a webhook: any of its parts, at once or not at all.

use aws_sdk_dynamodb::types::{AttributeValue, Delete, Put, TransactWriteItem, Update};

use super::{
    Result, key_schema,
    secrets::{SECRETS, encrypt_secret},
    serialize_error,
    webhooks::Webhooks,
};
use nano_webhooks_core::{
    account_id::AccountId,
    endpoint_url::EndpointUrl,
    event_type::EventTypes,
    secret::Secret,
    timestamp::Timestamp,
    webhook::{WebhookId, WebhookStatus},
};

/// What is to be changed; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct WebhookUpdate {
    /// Where callbacks go. Nothing is known of the health of another endpoint.
    pub url: Option<EndpointUrl>,
    /// What it subscribes to.
    pub events: Option<EventTypes>,
    /// Whether it receives events. Enabling forgets what is known of the endpoint's health, and makes parked deliveries due.
    pub status: Option<WebhookStatus>,
    /// What signs from now on; `Some(None)`: nothing.
    pub secret: Option<Option<Secret>>,
    /// Its owner's note; `Some(None)`: none.
    pub description: Option<Option<String>>,
}

/// Why a webhook is disabled that its owner has disabled.
const DISABLED_BY_OWNER: &str = "Disabled through the API.";

impl Webhooks<'_> {
    /// Changes a webhook; `false` if the account has none with this id.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn update(
        self,
        account: &AccountId,
        id: WebhookId,
        change: &WebhookUpdate,
        now: Timestamp,
    ) -> Result<bool> {
        let secrets = match &change.secret {
            None => None,
            Some(None) => Some(Vec::new()),
            Some(Some(secret)) => {
                let key = self.store.secrets().active_data_key(now).await?;
                Some(vec![encrypt_secret(key.as_deref(), account, id, secret)])
            }
        };
        let secrets = secrets
            .map(|secrets| serde_dynamo::to_attribute_value(secrets).map_err(serialize_error))
            .transpose()?;
        let update = self.build_update(account, id, change, secrets, now);
        let mut parts = vec![TransactWriteItem::builder().update(update).build()];
        if change.status == Some(WebhookStatus::Active) || change.url.is_some() {
            let health = Delete::builder().table_name(&self.store.tables.webhooks);
            let health = health
                .set_key(Some(key_schema::health(account, id).into_item()))
                .build();
            parts.push(
                TransactWriteItem::builder()
                    .delete(health.expect("every required part is set"))
                    .build(),
            );
        }
        if change.status == Some(WebhookStatus::Active) {
            let parked = Put::builder().table_name(&self.store.tables.webhooks);
            let parked = parked.set_item(Some(key_schema::pending_resume(account, id).into_item()));
            let parked = parked
                .item(
                    "created_at",
                    AttributeValue::N(now.as_unix_millis().to_string()),
                )
                .build();
            parts.push(
                TransactWriteItem::builder()
                    .put(parked.expect("every required part is set"))
                    .build(),
            );
        }
        self.store.transact(parts).await
    }

    fn build_update(
        self,
        account: &AccountId,
        id: WebhookId,
        change: &WebhookUpdate,
        secrets: Option<AttributeValue>,
        now: Timestamp,
    ) -> Update {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let list = |texts: Vec<&str>| AttributeValue::L(texts.into_iter().map(text).collect());
        let mut set = vec![(
            "updated_at",
            AttributeValue::N(now.as_unix_millis().to_string()),
        )];
        let mut remove = Vec::new();
        set.extend(change.url.as_ref().map(|url| ("url", text(url.as_str()))));
        set.extend(
            change
                .events
                .as_ref()
                .map(|events| ("events", list(events.names().collect()))),
        );
        set.extend(
            change
                .status
                .map(|status| ("status", text(status.as_str()))),
        );
        match change.status {
            Some(WebhookStatus::Active) => remove.push("disabled_reason"),
            Some(WebhookStatus::Disabled) => set.push(("disabled_reason", text(DISABLED_BY_OWNER))),
            None => {}
        }
        set.extend(secrets.map(|secrets| (SECRETS, secrets)));
        match &change.description {
            Some(Some(description)) => set.push(("description", text(description))),
            Some(None) => remove.push("description"),
            None => {}
        }
        let sets: Vec<_> = set
            .iter()
            .map(|(name, _)| format!("#{name} = :{name}"))
            .collect();
        let removes: Vec<_> = remove.iter().map(|name| format!("#{name}")).collect();
        let removes = if removes.is_empty() {
            String::new()
        } else {
            format!(" REMOVE {}", removes.join(", "))
        };
        let expression = format!("SET {}{removes}", sets.join(", "));
        let mut update = Update::builder()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(key_schema::webhook(account, id).into_item()))
            .update_expression(expression)
            .condition_expression("attribute_exists(PK)");
        for name in set.iter().map(|(name, _)| *name).chain(remove) {
            update = update.expression_attribute_names(format!("#{name}"), name);
        }
        for (name, value) in set {
            update = update.expression_attribute_values(format!(":{name}"), value);
        }
        update.build().expect("every required part is set")
    }
}
