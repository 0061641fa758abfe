//! Settings. This module is the only one that reads the environment.
//!
//! A missing or malformed setting stops the start with one line that names it.

use std::{fmt, num::NonZeroU32, path::PathBuf, str::FromStr, time::Duration};

use ipnet::IpNet;
use nano_webhooks_core::{delivery::schedule::RetrySchedule, target_policy::TargetPolicy};

use crate::{
    client::{
        target_guard::TargetGuard,
        tls::CaFileError,
        webhook_client::{Timeouts, WebhookClient},
    },
    store::{TableNames, notifications::OperatorNotices, rate_limits::RateLimits},
    telemetry::LogFilter,
};

/// The default of `DISABLE_AFTER`: five days.
const DEFAULT_DISABLE_AFTER: Duration = Duration::from_hours(120);
/// The default of `RETENTION_DAYS`.
const DEFAULT_RETENTION_DAYS: u32 = 30;
/// The default of `API_CONCURRENCY`: the usual quota of an AWS account.
const DEFAULT_API_CONCURRENCY: u32 = 1_000;
/// Test events may use one in this many of the API's concurrent requests.
const TEST_EVENT_SHARE: u32 = 10;
/// The default of `WEBHOOKS_PER_ACCOUNT`.
const DEFAULT_WEBHOOKS_PER_ACCOUNT: u32 = 50;

/// The settings that the functions and local mode share.
#[derive(Clone, Debug)]
pub struct Config {
    /// `WEBHOOKS_TABLE` and `DELIVERIES_TABLE`.
    pub tables: TableNames,
    /// `TARGETS`: `public` or `any`.
    pub targets: TargetPolicy,
    /// `ALLOW_CIDRS`: ranges that are allowed in addition to public addresses.
    pub allow_cidrs: Vec<IpNet>,
    /// `DENY_CIDRS`: ranges that are not allowed, whatever else is.
    pub deny_cidrs: Vec<IpNet>,
    /// `RETRY_SCHEDULE`: the delays between attempts.
    pub retry_schedule: RetrySchedule,
    /// `RETENTION_DAYS`: how long settled deliveries are kept.
    pub retention: Duration,
    /// `DISABLE_AFTER`: a webhook is disabled when every attempt has failed for this time, and
    /// at least ten were made.
    pub disable_after: Duration,
    /// `WEBHOOKS_PER_ACCOUNT`.
    pub webhooks_per_account: u32,
    /// `RATE_LIMIT_PER_MINUTE` and `RATE_LIMIT_PER_DAY`.
    pub rate_limits: RateLimits,
    /// `API_CONCURRENCY`: how many requests the API can handle at the same time in the whole
    /// deployment.
    pub api_concurrency: u32,
    /// `ACCOUNT_CLAIM`: the claim of API Gateway's authorizer that has the account's name. API keys
    /// are not used then. For the functions only.
    pub account_claim: Option<String>,
    /// `SECRETS_KMS_KEY_ID`: the KMS key that wraps the data keys. For the functions only; local
    /// mode has a key in its data directory.
    pub secrets_kms_key_id: Option<String>,
    /// `NOTIFY_TOPIC_ARN`: the SNS topic where operational events are published. For the functions
    /// only.
    pub notify_topic_arn: Option<String>,
    /// `EXTRA_CA_FILE`: a PEM file with certificates that are trusted in addition to Mozilla's.
    pub extra_ca_file: Option<PathBuf>,
}

/// The defaults that differ between the functions and local mode.
#[derive(Clone, Copy, Debug)]
pub struct ConfigDefaults {
    /// The names of the webhooks and the deliveries table; `None` if the settings are required.
    pub tables: Option<(&'static str, &'static str)>,
    /// The target policy.
    pub targets: TargetPolicy,
    /// The rate limits.
    pub rate_limits: RateLimits,
}

impl ConfigDefaults {
    /// For the functions: the template names the tables, only public targets are called, and
    /// requests are limited.
    pub const DEPLOYED: Self = Self {
        tables: None,
        targets: TargetPolicy::Public,
        rate_limits: RateLimits {
            per_minute: Some(60),
            per_day: Some(10_000),
        },
    };
    /// For local mode.
    pub const LOCAL: Self = Self {
        tables: Some(("nano-webhooks", "nano-webhooks-deliveries")),
        targets: TargetPolicy::Any,
        rate_limits: RateLimits {
            per_minute: None,
            per_day: None,
        },
    };
    /// The name of the jobs table in local mode.
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
    /// Makes an error for the setting `name`.
    pub fn new(name: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self {
            name: name.into(),
            reason: reason.to_string(),
        }
    }
}

impl fmt::Debug for ConfigError {
    /// Writes the message, because the Lambda runtime prints this form when a function cannot
    /// start.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<CaFileError> for ConfigError {
    fn from(error: CaFileError) -> Self {
        Self::new("EXTRA_CA_FILE", error)
    }
}

/// The value of a setting, if it is set.
type Setting<T> = Result<Option<T>, ConfigError>;

/// Reads an environment variable. An empty one counts as not set.
pub fn env_var(name: &str) -> Setting<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this module is the one that reads the environment"
    )]
    let value = std::env::var(name);
    match value {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(ConfigError::new(name, "expected UTF-8 text"))
        }
    }
}

/// Reads the URL of the SQS retry queue from `RETRY_QUEUE_URL`.
pub fn retry_queue_url(lookup: impl Fn(&str) -> Setting<String>) -> Result<String, ConfigError> {
    match lookup("RETRY_QUEUE_URL")? {
        Some(url) => Ok(url),
        None => Err(ConfigError::new(
            "RETRY_QUEUE_URL",
            "missing, expected the URL of an SQS queue",
        )),
    }
}

/// Reads the name of the stack from `STACK_NAME`. The default is `nano-webhooks`.
pub fn stack_name(lookup: impl Fn(&str) -> Setting<String>) -> Result<String, ConfigError> {
    let name = lookup("STACK_NAME")?;
    Ok(name.unwrap_or_else(|| "nano-webhooks".to_owned()))
}

/// Reads from `LATE_ATTEMPTS` whether a direct attempt may end after its batch: `on`, the default,
/// or `off`.
pub fn late_attempts_enabled(
    lookup: impl Fn(&str) -> Setting<String>,
) -> Result<bool, ConfigError> {
    match lookup("LATE_ATTEMPTS")?.as_deref() {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(text) => Err(ConfigError::new(
            "LATE_ATTEMPTS",
            format!("expected `on` or `off`; `{text}` is not valid"),
        )),
    }
}

/// Reads the log filter from `RUST_LOG`.
pub fn log_filter(
    lookup: impl Fn(&str) -> Setting<String>,
    default: &str,
) -> Result<LogFilter, ConfigError> {
    let text = lookup("RUST_LOG")?;
    let filter = text.as_deref().unwrap_or(default).parse();
    filter.map_err(|error| ConfigError::new("RUST_LOG", error))
}

impl Config {
    /// Reads the settings. `lookup` is [`env_var`], except in tests.
    ///
    /// Fails with the first setting that is missing or malformed.
    pub fn from_env(
        lookup: impl Fn(&str) -> Setting<String>,
        defaults: ConfigDefaults,
    ) -> Result<Self, ConfigError> {
        let settings = Settings(lookup);
        let (webhooks, deliveries) = defaults.tables.unzip();
        let retention_days = settings
            .positive(
                "RETENTION_DAYS",
                "expected a whole number of days, 1 or more",
            )?
            .unwrap_or(DEFAULT_RETENTION_DAYS);
        Ok(Self {
            tables: TableNames {
                webhooks: settings.table("WEBHOOKS_TABLE", webhooks)?,
                deliveries: settings.table("DELIVERIES_TABLE", deliveries)?,
            },
            targets: settings.parse("TARGETS")?.unwrap_or(defaults.targets),
            allow_cidrs: settings.cidrs("ALLOW_CIDRS")?,
            deny_cidrs: settings.cidrs("DENY_CIDRS")?,
            retry_schedule: settings.parse("RETRY_SCHEDULE")?.unwrap_or_default(),
            retention: Duration::from_hours(24 * u64::from(retention_days)),
            disable_after: settings
                .duration("DISABLE_AFTER")?
                .unwrap_or(DEFAULT_DISABLE_AFTER),
            webhooks_per_account: settings
                .limit("WEBHOOKS_PER_ACCOUNT")?
                .unwrap_or(DEFAULT_WEBHOOKS_PER_ACCOUNT),
            rate_limits: RateLimits {
                per_minute: settings
                    .limit("RATE_LIMIT_PER_MINUTE")?
                    .or(defaults.rate_limits.per_minute),
                per_day: settings
                    .limit("RATE_LIMIT_PER_DAY")?
                    .or(defaults.rate_limits.per_day),
            },
            api_concurrency: settings
                .limit("API_CONCURRENCY")?
                .unwrap_or(DEFAULT_API_CONCURRENCY),
            account_claim: settings.text("ACCOUNT_CLAIM")?,
            secrets_kms_key_id: settings.text("SECRETS_KMS_KEY_ID")?,
            notify_topic_arn: settings.text("NOTIFY_TOPIC_ARN")?,
            extra_ca_file: settings.text("EXTRA_CA_FILE")?.map(PathBuf::from),
        })
    }

    /// The most test events in progress in the deployment: a tenth of the API's concurrency, and at
    /// least one.
    pub fn max_test_events(&self) -> u32 {
        (self.api_concurrency / TEST_EVENT_SHARE).max(1)
    }

    /// Whether operational events are recorded for the operator's topic.
    pub const fn operator_notices(&self) -> OperatorNotices {
        match self.notify_topic_arn {
            Some(_) => OperatorNotices::Recorded,
            None => OperatorNotices::Off,
        }
    }

    /// Makes the target guard of these settings.
    pub fn guard(&self) -> TargetGuard {
        TargetGuard::new(self.targets, self.allow_cidrs.clone())
            .with_denied(self.deny_cidrs.clone())
    }

    /// Makes an HTTP client with that guard.
    pub fn client(&self, timeouts: Timeouts) -> Result<WebhookClient, ConfigError> {
        let client = WebhookClient::new(self.guard(), timeouts, self.extra_ca_file.as_deref());
        Ok(client?)
    }
}

/// Parses settings that a function looks up by name.
struct Settings<F>(F);

impl<F: Fn(&str) -> Setting<String>> Settings<F> {
    fn text(&self, name: &str) -> Setting<String> {
        (self.0)(name)
    }

    fn table(&self, name: &str, default: Option<&str>) -> Result<String, ConfigError> {
        match (self.text(name)?, default) {
            (Some(table), _) => Ok(table),
            (None, Some(default)) => Ok(default.to_owned()),
            (None, None) => Err(ConfigError::new(
                name,
                "missing, expected the name of a table",
            )),
        }
    }

    fn parse<T: FromStr<Err: fmt::Display>>(&self, name: &str) -> Setting<T> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(ConfigError::new(name, error)),
        }
    }

    fn limit(&self, name: &str) -> Setting<u32> {
        self.positive(name, "expected a whole number, 1 or more")
    }

    fn positive(&self, name: &str, expected: &str) -> Setting<u32> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match text.trim().parse::<NonZeroU32>() {
            Ok(number) => Ok(Some(number.get())),
            Err(_) => Err(ConfigError::new(
                name,
                format!("{expected}; `{text}` is not valid"),
            )),
        }
    }

    fn duration(&self, name: &str) -> Setting<Duration> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match humantime::parse_duration(&text) {
            Ok(duration) if !duration.is_zero() => Ok(Some(duration)),
            _ => Err(ConfigError::new(
                name,
                format!("expected a time such as `120h`; `{text}` is not valid"),
            )),
        }
    }

    fn cidrs(&self, name: &str) -> Result<Vec<IpNet>, ConfigError> {
        let text = self.text(name)?.unwrap_or_default();
        let mut ranges = Vec::new();
        for part in text.split(',').map(str::trim) {
            if part.is_empty() {
                continue;
            }
            let Ok(range) = part.parse() else {
                let expected = "expected CIDR ranges such as 10.1.0.0/16, separated by commas";
                return Err(ConfigError::new(
                    name,
                    format!("{expected}; `{part}` is not valid"),
                ));
            };
            ranges.push(range);
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(settings: &[(&str, &str)]) -> Result<Config, String> {
        let mut settings = settings.to_vec();
        settings.extend([("WEBHOOKS_TABLE", "w"), ("DELIVERIES_TABLE", "d")]);
        let lookup = |name: &str| {
            let setting = settings.iter().find(|(known, _)| *known == name);
            Ok(setting.map(|(_, value)| (*value).to_owned()))
        };
        Config::from_env(lookup, ConfigDefaults::DEPLOYED).map_err(|error| error.to_string())
    }

    /// By default a deployed function calls public targets only and limits requests.
    #[test]
    fn deployed_defaults_are_safe() {
        let config = read(&[]).unwrap();
        assert_eq!(config.targets, TargetPolicy::Public);
        assert_eq!(config.rate_limits, ConfigDefaults::DEPLOYED.rate_limits);
        assert_eq!(config.webhooks_per_account, 50);
        assert_eq!(config.retention, Duration::from_hours(720));
        assert_eq!(config.disable_after, Duration::from_hours(120));
        assert_eq!(config.retry_schedule, RetrySchedule::default());
    }

    #[test]
    fn settings_override_defaults() {
        let config = read(&[
            ("TARGETS", "any"),
            ("ALLOW_CIDRS", "10.0.0.0/8, fd00::/8"),
            ("DENY_CIDRS", "10.1.0.0/16"),
            ("RETRY_SCHEDULE", "1s,2s"),
            ("RETENTION_DAYS", "7"),
            ("DISABLE_AFTER", "36h"),
            ("WEBHOOKS_PER_ACCOUNT", "5"),
            ("RATE_LIMIT_PER_MINUTE", "6"),
            ("RATE_LIMIT_PER_DAY", "70"),
            ("EXTRA_CA_FILE", "/opt/ca.pem"),
        ])
        .unwrap();
        assert_eq!(config.targets, TargetPolicy::Any);
        assert_eq!(config.allow_cidrs.len(), 2);
        assert_eq!(config.deny_cidrs.len(), 1);
        assert_eq!(config.retry_schedule.to_string(), "1s,2s");
        assert_eq!(config.retention, Duration::from_hours(168));
        assert_eq!(config.disable_after, Duration::from_hours(36));
        assert_eq!(config.webhooks_per_account, 5);
        assert_eq!(config.rate_limits.per_minute, Some(6));
        assert_eq!(config.rate_limits.per_day, Some(70));
        assert_eq!(config.extra_ca_file, Some(PathBuf::from("/opt/ca.pem")));
    }

    /// A new AWS account has ten concurrent executions.
    #[test]
    fn test_events_use_tenth_of_concurrency() {
        for (concurrency, expected) in [("1", 1), ("9", 1), ("10", 1), ("29", 2), ("1000", 100)] {
            let config = read(&[("API_CONCURRENCY", concurrency)]).unwrap();
            assert_eq!(config.max_test_events(), expected, "{concurrency}");
        }
        assert_eq!(read(&[]).unwrap().max_test_events(), 100);
    }

    #[test]
    fn malformed_setting_is_named() {
        for (name, value) in [
            ("TARGETS", "private"),
            ("ALLOW_CIDRS", "10.0.0.0/8, office"),
            ("DENY_CIDRS", "10.1.0.0"),
            ("RETRY_SCHEDULE", "soon"),
            ("RETENTION_DAYS", "0"),
            ("DISABLE_AFTER", "0s"),
            ("WEBHOOKS_PER_ACCOUNT", "many"),
            ("RATE_LIMIT_PER_MINUTE", "-1"),
            ("API_CONCURRENCY", "0"),
            ("RATE_LIMIT_PER_DAY", "1.5"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")), "{error}");
        }
    }

    #[test]
    fn missing_table_is_named() {
        let nothing_is_set = |_: &str| Ok(None);
        let error = Config::from_env(nothing_is_set, ConfigDefaults::DEPLOYED).unwrap_err();
        assert_eq!(
            error.to_string(),
            "WEBHOOKS_TABLE: missing, expected the name of a table"
        );
        let config = Config::from_env(nothing_is_set, ConfigDefaults::LOCAL).unwrap();
        assert_eq!(config.tables.webhooks, "nano-webhooks");
    }
}
