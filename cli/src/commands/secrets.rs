//! `secrets`: webhooks' secrets as they are stored.

use std::{io::Write, path::Path};

use super::{client, explain, progress::progress, settings};
use crate::{
    args::{Failed, TablesArgs},
    serve::kept_secrets_key,
};
use nano_webhooks::{
    aws,
    clock::Clock,
    config::ConfigError,
    store::{
        self, Store,
        secrets::{Resealed, Vault, Wrapping},
    },
};

/// Seals every stored secret under the newest data key, or under a new one.
pub(crate) async fn reseal(new_key: bool, data_dir: &Path, tables: &TablesArgs) -> Result<(), Failed> {
    let config = settings()?;
    let vault = if tables.aws {
        let missing =
            || ConfigError::new("SECRETS_KMS_KEY_ID", "missing, expected the KMS key that the functions have");
        aws::vault(&aws::config().await, Some(config.secrets_kms_key_id.ok_or_else(missing)?))
    } else {
        Vault::new(Wrapping::Local(kept_secrets_key(data_dir)?))
    };
    let store = Store::new(client(tables).await, config.tables, vault);
    let clock = Clock::system();
    let explain = |error: store::Error| explain(&error, tables);
    if new_key {
        let version = store.start_data_key(clock.now()).await.map_err(explain)?;
        writeln!(std::io::stderr(), "Started data key {version}.")?;
    }
    let bar = progress("Sealing secrets of webhooks:", None);
    let (mut all, mut from) = (Resealed::default(), None);
    loop {
        let (part, next) = store.reseal(from, clock.now()).await.map_err(explain)?;
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
        return Err(Failed(format!(
            "{} webhooks were changed by others at the same time ({} sealed anew): run it again",
            all.changed, all.sealed
        )));
    }
    Ok(writeln!(std::io::stdout(), "Secrets of {} webhooks sealed anew, {} were so already.", all.sealed, all.kept)?)
}
