//! `secrets`: webhooks' secrets as they are stored.

use std::{io::Write, path::Path};

use super::{dynamodb_client, explain, load_config, progress::progress};
use crate::{
    args::{CliError, TablesArgs},
    serve::load_secrets_key,
};
use nano_webhooks::{
    aws,
    clock::Clock,
    config::ConfigError,
    store::{
        self, Store,
        secrets::{DataKeyCache, KeyProvider, ReencryptStats},
    },
};

/// Seals every stored secret under the newest data key, or under a new one.
pub(crate) async fn reseal(
    new_key: bool,
    data_dir: &Path,
    tables: &TablesArgs,
) -> Result<(), CliError> {
    let config = load_config()?;
    let vault = if tables.aws {
        let missing = || {
            ConfigError::new(
                "SECRETS_KMS_KEY_ID",
                "missing, expected the KMS key that the functions have",
            )
        };
        DataKeyCache::for_kms_key(
            &aws::load_sdk_config().await,
            Some(config.secrets_kms_key_id.ok_or_else(missing)?),
        )
    } else {
        DataKeyCache::new(KeyProvider::Local(load_secrets_key(data_dir)?))
    };
    let store = Store::new(dynamodb_client(tables).await, config.tables, vault);
    let clock = Clock::system();
    let explain = |error: store::Error| explain(&error, tables);
    if new_key {
        let version = store
            .secrets()
            .rotate_data_key(clock.now())
            .await
            .map_err(explain)?;
        writeln!(std::io::stderr(), "Started data key {version}.")?;
    }
    let bar = progress("Sealing secrets of webhooks:", None);
    let (mut all, mut from) = (ReencryptStats::default(), None);
    loop {
        let (part, next) = store
            .secrets()
            .reencrypt_page(from, clock.now())
            .await
            .map_err(explain)?;
        all.sealed += part.sealed;
        all.kept += part.kept;
        all.changed += part.changed;
        bar.inc(part.sealed + part.kept + part.changed);
        from = next;
        if from.is_none() {
            break;
        }
    }
    drop(bar);
    if all.changed > 0 {
        return Err(CliError(format!(
            "{} webhooks were changed by others at the same time ({} sealed anew): run it again",
            all.changed, all.sealed
        )));
    }
    Ok(writeln!(
        std::io::stdout(),
        "Secrets of {} webhooks sealed anew, {} were so already.",
        all.sealed,
        all.kept
    )?)
}
