//! Settings: the one reader of the environment. A missing or malformed setting stops the start with a line that names it.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use ipnet::IpNet;

use crate::{
    client::{
        attempt::{CaFileError, Timeouts, WebhookClient},
        guard::{TargetGuard, TargetPolicy},
    },
    store::{TableNames, rate_limit},
};
use nano_webhooks_core::delivery::schedule::RetrySchedule;

/// After how long of nothing but failures a webhook is disabled, unless it is set: five days.
const DEFAULT_DISABLE_AFTER: Duration = Duration::from_hours(120);

/// The settings that deployed functions and local mode share.
#[derive(Clone, Debug)]
pub struct Config {
    /// `WEBHOOKS_TABLE` and `DELIVERIES_TABLE`.
    pub tables: TableNames,
    /// `TARGETS`: `public` or `any`.
    pub targets: TargetPolicy,
    /// `ALLOW_CIDRS`: ranges permitted beside the public ones, separated by commas.
    pub allow_cidrs: Vec<IpNet>,
    /// `RETRY_SCHEDULE`: the waits between attempts, separated by commas.
    pub retry_schedule: RetrySchedule,
    /// `RETENTION_DAYS`: how long settled deliveries are kept.
    pub retention: Duration,
    /// `DEFAULT_DISABLE_AFTER`: after how long of nothing but failures a webhook is disabled.
    pub disable_after: Duration,
    /// `WEBHOOKS_PER_ACCOUNT`.
    pub webhooks_per_account: u32,
    /// `RATE_LIMIT_PER_MINUTE` and `RATE_LIMIT_PER_DAY`.
    pub rate_limits: rate_limit::RateLimits,
    /// `ACCOUNT_CLAIM`: the claim of API Gateway's authorizer that names the account, for platforms that authenticate in front;
    /// API keys are not looked at then. Deployed functions only.
    pub account_claim: Option<String>,
    /// `SECRETS_KMS_KEY_ID`: the KMS key that wraps the data keys under which secrets are stored. Deployed functions only: local
    /// mode has a key in its data directory.
    pub secrets_kms_key_id: Option<String>,
    /// `EXTRA_CA_FILE`: a PEM file with certificates that are trusted beside the public ones.
    pub extra_ca_file: Option<PathBuf>,
}

/// What differs between a deployed function and local mode.
#[derive(Clone, Copy, Debug)]
pub struct ConfigDefaults {
    /// The names of the tables, if there are any to assume.
    pub tables: Option<(&'static str, &'static str)>,
    /// The target policy.
    pub targets: TargetPolicy,
    /// The rate limits.
    pub rate_limits: rate_limit::RateLimits,
}

impl ConfigDefaults {
    /// A deployed function: the template names the tables, only public targets are called, and requests are limited.
    pub const DEPLOYED: Self = Self {
        tables: None,
        targets: TargetPolicy::Public,
        rate_limits: rate_limit::RateLimits {
            per_minute: Some(60),
            per_day: Some(10_000),
        },
    };
    /// A developer's machine.
    pub const LOCAL: Self = Self {
        tables: Some(("nano-webhooks", "nano-webhooks-deliveries")),
        targets: TargetPolicy::Any,
        rate_limits: rate_limit::RateLimits {
            per_minute: None,
            per_day: None,
        },
    };
    /// The name of the platform's jobs table in local mode.
    pub const LOCAL_JOBS_TABLE: &'static str = "jobs";
}

/// A setting is missing or malformed.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct ConfigError {
    name: String,
    reason: String,
}

impl ConfigError {
    /// The setting `name` is not as expected.
    pub fn new(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            reason: reason.into(),
        }
    }
}

impl fmt::Debug for ConfigError {
    /// As it is shown: a function that does not start prints this form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<CaFileError> for ConfigError {
    fn from(error: CaFileError) -> Self {
        Self::new("EXTRA_CA_FILE", error.to_string())
    }
}

/// Reads the URL of the SQS retry queue from `RETRY_QUEUE_URL`.
pub fn retry_queue_url(
    get: impl Fn(&str) -> Result<Option<String>, ConfigError>,
) -> Result<String, ConfigError> {
    match get("RETRY_QUEUE_URL")? {
        Some(url) => Ok(url),
        None => Err(ConfigError::new(
            "RETRY_QUEUE_URL",
            "missing, expected the URL of an SQS queue",
        )),
    }
}

/// Reads the name of the stack from `STACK_NAME`. The default is `nano-webhooks`.
pub fn stack_name(
    get: impl Fn(&str) -> Result<Option<String>, ConfigError>,
) -> Result<String, ConfigError> {
    Ok(get("STACK_NAME")?.unwrap_or_else(|| "nano-webhooks".to_owned()))
}

/// A variable of the environment, if it is set and not empty.
///
/// # Errors
/// If it is not text.
pub fn env_var(name: &str) -> Result<Option<String>, ConfigError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one reader of the environment"
    )]
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(ConfigError::new(name, "expected text in UTF-8"))
        }
    }
}

impl Config {
    /// Reads the settings with `get`, which is [`env_var`] but in tests.
    ///
    /// # Errors
    /// Names the first setting that is missing or malformed.
    pub fn read(
        get: impl Fn(&str) -> Result<Option<String>, ConfigError>,
        defaults: ConfigDefaults,
    ) -> Result<Self, ConfigError> {
        let table = |name: &str, default: Option<&str>| {
            let value = get(name)?.or_else(|| default.map(str::to_owned));
            value.ok_or_else(|| ConfigError::new(name, "missing, expected the name of a table"))
        };
        let limit = |name: &str, default| {
            parse_env(name, get(name)?, "expected a whole number, 1 or more").map(|n| n.or(default))
        };
        let cidrs = get("ALLOW_CIDRS")?.unwrap_or_default();
        let cidrs = cidrs.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| {
            part.parse().map_err(|_| {
                ConfigError::new(
                    "ALLOW_CIDRS",
                    format!("expected CIDR ranges such as 10.1.0.0/16, separated by commas; `{part}` is not one"),
                )
            })
        });
        Ok(Self {
            tables: TableNames {
                webhooks: table(
                    "WEBHOOKS_TABLE",
                    defaults.tables.map(|(webhooks, _)| webhooks),
                )?,
                deliveries: table(
                    "DELIVERIES_TABLE",
                    defaults.tables.map(|(_, deliveries)| deliveries),
                )?,
            },
            targets: match get("TARGETS")? {
                None => defaults.targets,
                Some(text) => text
                    .parse()
                    .map_err(|reason| ConfigError::new("TARGETS", reason))?,
            },
            allow_cidrs: cidrs.collect::<Result<_, _>>()?,
            retry_schedule: match get("RETRY_SCHEDULE")? {
                None => RetrySchedule::default(),
                Some(text) => RetrySchedule::from_str(&text)
                    .map_err(|error| ConfigError::new("RETRY_SCHEDULE", error.to_string()))?,
            },
            retention: Duration::from_secs(
                parse_env::<Positive>(
                    "RETENTION_DAYS",
                    get("RETENTION_DAYS")?,
                    "expected a whole number of days, 1 or more",
                )?
                .map_or(30, |days| u64::from(days.0))
                    * 24
                    * 60
                    * 60,
            ),
            disable_after: match get("DISABLE_AFTER")? {
                None => DEFAULT_DISABLE_AFTER,
                Some(text) => humantime::parse_duration(&text)
                    .ok()
                    .filter(|time| !time.is_zero())
                    .ok_or_else(|| {
                        ConfigError::new(
                            "DISABLE_AFTER",
                            format!("expected a time such as `120h`; `{text}` is not one"),
                        )
                    })?,
            },
            webhooks_per_account: limit("WEBHOOKS_PER_ACCOUNT", Some(Positive(50)))?
                .map_or(50, |n| n.0),
            rate_limits: rate_limit::RateLimits {
                per_minute: limit(
                    "RATE_LIMIT_PER_MINUTE",
                    defaults.rate_limits.per_minute.map(Positive),
                )?
                .map(|n| n.0),
                per_day: limit(
                    "RATE_LIMIT_PER_DAY",
                    defaults.rate_limits.per_day.map(Positive),
                )?
                .map(|n| n.0),
            },
            account_claim: get("ACCOUNT_CLAIM")?,
            secrets_kms_key_id: get("SECRETS_KMS_KEY_ID")?,
            extra_ca_file: get("EXTRA_CA_FILE")?.map(PathBuf::from),
        })
    }

    /// The target guard that these settings ask for.
    pub fn guard(&self) -> TargetGuard {
        TargetGuard::new(self.targets, self.allow_cidrs.clone())
    }

    /// An HTTP client behind that guard.
    ///
    /// # Errors
    /// If `EXTRA_CA_FILE` cannot be read.
    pub fn client(&self, limits: Timeouts) -> Result<WebhookClient, ConfigError> {
        Ok(WebhookClient::new(
            self.guard(),
            limits,
            self.extra_ca_file.as_deref(),
        )?)
    }
}

/// A number from 1.
struct Positive(u32);

impl FromStr for Positive {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().ok().filter(|n| *n > 0).map(Self).ok_or(())
    }
}

fn parse_env<T: FromStr>(
    name: &str,
    value: Option<String>,
    expected: &str,
) -> Result<Option<T>, ConfigError> {
    value
        .map(|text| {
            text.trim()
                .parse()
                .map_err(|_| ConfigError::new(name, format!("{expected}; `{text}` is not one")))
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(settings: &[(&str, &str)]) -> Result<Config, String> {
        let all = [
            settings,
            &[("WEBHOOKS_TABLE", "w"), ("DELIVERIES_TABLE", "d")],
        ]
        .concat();
        let get = |name: &str| {
            Ok(all
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned()))
        };
        Config::read(get, ConfigDefaults::DEPLOYED).map_err(|error| error.to_string())
    }

    #[test]
    fn a_deployed_function_calls_public_targets_and_limits_requests_unless_told_otherwise() {
        let config = read(&[]).unwrap();
        assert_eq!(config.targets, TargetPolicy::Public);
        assert_eq!(
            config.rate_limits,
            rate_limit::RateLimits {
                per_minute: Some(60),
                per_day: Some(10_000)
            }
        );
        assert_eq!(config.webhooks_per_account, 50);
        assert_eq!(config.retention, Duration::from_hours(720));
        assert_eq!(config.retry_schedule, RetrySchedule::default());
    }

    #[test]
    fn a_malformed_setting_is_named() {
        for (name, value) in [
            ("TARGETS", "private"),
            ("ALLOW_CIDRS", "10.0.0.0/8, office"),
            ("RETRY_SCHEDULE", "soon"),
            ("RETENTION_DAYS", "0"),
            ("DISABLE_AFTER", "0s"),
            ("WEBHOOKS_PER_ACCOUNT", "many"),
            ("RATE_LIMIT_PER_MINUTE", "-1"),
            ("RATE_LIMIT_PER_DAY", "1.5"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")), "{error}");
        }
    }

    #[test]
    fn a_missing_table_is_named() {
        let error = Config::read(|_| Ok(None), ConfigDefaults::DEPLOYED)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "WEBHOOKS_TABLE: missing, expected the name of a table"
        );
        assert_eq!(
            Config::read(|_| Ok(None), ConfigDefaults::LOCAL)
                .unwrap()
                .tables
                .webhooks,
            "nano-webhooks"
        );
    }
}
