//! Explains errors of the tables to the person who ran a command.

use nano_webhooks::store::{self, TableNames};

/// Where the tables are.
pub enum TablesLocation {
    /// In the DynamoDB engine at this URL.
    Engine(String),
    /// In AWS.
    Aws,
}

/// Says where the tables are, what to check, and the last cause of an error of the store. Other
/// errors stay as they are.
pub fn explain_store_error(
    error: anyhow::Error,
    location: &TablesLocation,
    tables: &TableNames,
) -> anyhow::Error {
    let explanation = match error.downcast_ref() {
        Some(store::Error::Unavailable(_)) => explain_unavailable(location),
        Some(store::Error::Internal(_)) => explain_internal(location, tables),
        Some(store::Error::KeyUnavailable(_) | store::Error::Unreadable(_)) | None => return error,
    };
    // The causes between the store and the last one name layers of the SDK.
    anyhow::Error::msg(error.root_cause().to_string()).context(explanation)
}

fn explain_unavailable(location: &TablesLocation) -> String {
    match location {
        TablesLocation::Engine(endpoint) => {
            format!("cannot reach DynamoDB at {endpoint} (is `nano-webhooks serve` running?)")
        }
        TablesLocation::Aws => "cannot reach DynamoDB, or requests are throttled \
             (are AWS credentials and a Region set?)"
            .to_owned(),
    }
}

fn explain_internal(location: &TablesLocation, tables: &TableNames) -> String {
    let place = match location {
        TablesLocation::Engine(endpoint) => format!("at {endpoint}"),
        TablesLocation::Aws => "in the account of the AWS credentials".to_owned(),
    };
    let TableNames {
        webhooks,
        deliveries,
    } = tables;
    format!(
        "cannot use the tables `{webhooks}` and `{deliveries}` {place} (check WEBHOOKS_TABLE and \
         DELIVERIES_TABLE)"
    )
}
