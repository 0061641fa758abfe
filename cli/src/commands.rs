//! What operators and workers do, against local or real tables: one noun, one file.

pub(super) mod deliveries;
pub(super) mod jobs;
pub(super) mod keys;
pub(super) mod poison;
mod progress;
pub(super) mod secrets;
pub(super) mod stats;

use aws_sdk_dynamodb::Client;

use super::{
    args::{CliError, TablesArgs, escape_for_terminal},
    dynamodb,
    serve::explain_store_error,
};
use nano_webhooks::{
    aws,
    config::{Config, ConfigDefaults, env_var},
    store::{
        self, Store, TableNames,
        secrets::{DataKeyCache, KeyProvider},
    },
};
use nano_webhooks_core::{account_id::AccountId, timestamp::Timestamp};

fn explain(error: &store::Error, tables: &TablesArgs) -> CliError {
    match error {
        store::Error::Unavailable(cause) if tables.aws => CliError(format!(
            "DynamoDB does not answer, or throttles: are AWS credentials and a region set? ({cause})"
        )),
        store::Error::Internal(_) => {
            let place = if tables.aws {
                "the account of your AWS credentials"
            } else {
                &tables.dynamodb_endpoint
            };
            let CliError(refused) = explain_store_error(error, place);
            let named = load_config().map(|settings| settings.tables).map(|TableNames { webhooks, deliveries }| {
                format!("; its tables are `{webhooks}` and `{deliveries}` (WEBHOOKS_TABLE, DELIVERIES_TABLE)")
            });
            CliError(refused + &named.unwrap_or_default())
        }
        _ => explain_store_error(error, &tables.dynamodb_endpoint),
    }
}

fn parse_account(name: &str) -> Result<AccountId, CliError> {
    AccountId::parse(name).map_err(|error| CliError(format!("--account: {error}")))
}

async fn dynamodb_client(args: &TablesArgs) -> Client {
    if args.aws {
        Client::new(&aws::load_sdk_config().await)
    } else {
        dynamodb(&args.dynamodb_endpoint)
    }
}

fn load_config() -> Result<Config, CliError> {
    Ok(Config::read(env_var, ConfigDefaults::LOCAL)?)
}

/// The tables, for commands that have nothing to do with secrets.
async fn open_store(args: &TablesArgs) -> Result<Store, CliError> {
    Ok(Store::new(
        dynamodb_client(args).await,
        load_config()?.tables,
        DataKeyCache::new(KeyProvider::None),
    ))
}

/// The platform's jobs table; with `--aws` only one that is named, for there is none to assume.
fn jobs_table(args: &TablesArgs) -> Result<Option<String>, CliError> {
    let local = || (!args.aws).then(|| ConfigDefaults::LOCAL_JOBS_TABLE.to_owned());
    Ok(env_var("JOBS_TABLE")?.or_else(local))
}

/// A time, and how far from now that is.
fn format_relative(at: Timestamp, now: Timestamp) -> String {
    let (ahead, behind) = (
        at.saturating_duration_since(now),
        now.saturating_duration_since(at),
    );
    let seconds = ahead.max(behind).as_secs();
    let far = match seconds {
        0 => return format!("{} (now)", at.to_rfc3339()),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    };
    if ahead > behind {
        format!("{} (in {far})", at.to_rfc3339())
    } else {
        format!("{} ({far} ago)", at.to_rfc3339())
    }
}

/// `1 record`, `2 records`.
fn pluralize(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_with_how_far_it_is_from_now() {
        let now = Timestamp::from_millis(1_734_948_000_000);
        for (seconds, shown) in [
            (0, "2024-12-23T10:00:00Z (now)"),
            (59, "2024-12-23T10:00:59Z (in 59 s)"),
            (-1, "2024-12-23T09:59:59Z (1 s ago)"),
            (240, "2024-12-23T10:04:00Z (in 4 min)"),
            (-7_199, "2024-12-23T08:00:01Z (1 h ago)"),
            (172_800, "2024-12-25T10:00:00Z (in 2 days)"),
        ] {
            assert_eq!(
                format_relative(
                    Timestamp::from_millis(now.as_unix_millis() + seconds * 1000),
                    now
                ),
                shown
            );
        }
    }
}
