//! `secrets`: the encryption of stored webhook secrets.

use std::io::Write;

use anyhow::bail;
use nano_webhooks::{
    aws,
    clock::Clock,
    config::{Config, ConfigError},
    store::{
        Store,
        data_keys::{DataKeyCache, KeyProvider},
        reencryption::ReencryptStats,
    },
};

use serde_json::json;

use super::{
    progress::start_unbounded_progress,
    tables::{dynamodb_client, load_config},
};
use crate::{
    args::ReEncryptArgs,
    dev_server::load_secrets_key,
    json_line::print_json,
    terminal::{pluralize, print_remark},
};

/// Encrypts every stored secret with the newest data key.
pub async fn re_encrypt(args: ReEncryptArgs) -> anyhow::Result<()> {
    let config = load_config(&args.tables)?;
    let cache = open_data_key_cache(&args, &config).await?;
    let client = dynamodb_client(&args.tables).await;
    let store = Store::new(client, config.tables, cache);
    let clock = Clock::system();
    if args.new_key {
        let version = store.secrets().rotate_data_key(clock.now()).await?;
        print_remark(format_args!("Created data key {version}."));
    }
    let total = re_encrypt_all(&store, &clock).await?;
    let re_encrypted = pluralize_webhooks(total.reencrypted);
    if total.conflicted > 0 {
        bail!(
            "{} changed while the command ran, and {re_encrypted} were re-encrypted; run the \
             command again",
            pluralize_webhooks(total.conflicted)
        );
    }
    if args.json {
        let counts = json!({
            "re_encrypted": total.reencrypted,
            "unchanged": total.unchanged,
        });
        print_json(&counts)?;
    } else {
        writeln!(
            std::io::stdout(),
            "Re-encrypted the secrets of {re_encrypted}; {} needed no change.",
            total.unchanged
        )?;
    }
    Ok(())
}

async fn open_data_key_cache(
    args: &ReEncryptArgs,
    config: &Config,
) -> anyhow::Result<DataKeyCache> {
    if !args.tables.aws {
        let key = load_secrets_key(&args.data_dir)?;
        return Ok(DataKeyCache::new(KeyProvider::Local(key)));
    }
    let Some(kms_key_id) = config.secrets_kms_key_id.clone() else {
        let reason = "missing, expected the KMS key of the functions";
        return Err(ConfigError::new("SECRETS_KMS_KEY_ID", reason).into());
    };
    Ok(DataKeyCache::for_kms_key(
        &aws::load_sdk_config().await,
        Some(kms_key_id),
    ))
}

async fn re_encrypt_all(store: &Store, clock: &Clock) -> anyhow::Result<ReencryptStats> {
    let progress = start_unbounded_progress("Re-encrypting the secrets of webhooks:");
    let mut total = ReencryptStats::default();
    let mut cursor = None;
    loop {
        let (page, next) = store.secrets().reencrypt_page(cursor, clock.now()).await?;
        total.reencrypted += page.reencrypted;
        total.unchanged += page.unchanged;
        total.conflicted += page.conflicted;
        progress.inc(page.reencrypted + page.unchanged + page.conflicted);
        if next.is_none() {
            return Ok(total);
        }
        cursor = next;
    }
}

fn pluralize_webhooks(count: u64) -> String {
    pluralize(
        usize::try_from(count).unwrap_or(usize::MAX),
        "webhook",
        "webhooks",
    )
}
