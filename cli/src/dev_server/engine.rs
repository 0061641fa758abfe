//! The DynamoDB engine of the service.

use std::{sync::Arc, time::Duration};

use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use nano_webhooks::{aws, store::TableNames};

use super::{data_dir::DataDir, descriptor_shares::DescriptorShares};
use crate::{
    args::ServeArgs,
    embedded_dynamodb::EmbeddedDynamoDb,
    http_server::bind,
    local_client::{limited_local_client, local_streams_client},
    store_error::{TablesLocation, explain_store_error},
};

/// The time-out of a request to the embedded engine. A busy machine is slow, but loses no request.
const EMBEDDED_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Engine {
    pub endpoint: String,
    /// `None` if the engine is another process.
    pub embedded: Option<Arc<EmbeddedDynamoDb>>,
}

impl Engine {
    /// Starts the embedded engine, unless the arguments name another one.
    pub async fn start(args: &ServeArgs, data_dir: Option<&DataDir>) -> anyhow::Result<Self> {
        if let Some(endpoint) = &args.dynamodb_endpoint {
            return Ok(Self {
                endpoint: endpoint.clone(),
                embedded: None,
            });
        }
        let listener = bind(args.dynamodb_listen, "--dynamodb-listen").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let embedded = EmbeddedDynamoDb::start(listener, data_dir.map(DataDir::path))?;
        Ok(Self {
            endpoint,
            embedded: Some(Arc::new(embedded)),
        })
    }

    pub fn client(&self, shares: DescriptorShares) -> aws_sdk_dynamodb::Client {
        let max_requests = shares.engine_requests();
        limited_local_client(&self.endpoint, self.timeouts(), max_requests)
    }

    pub fn streams_client(&self) -> aws_sdk_dynamodbstreams::Client {
        local_streams_client(&self.endpoint, self.timeouts())
    }

    fn timeouts(&self) -> TimeoutConfig {
        match self.embedded {
            Some(_) => TimeoutConfig::builder()
                .operation_timeout(EMBEDDED_TIMEOUT)
                .build(),
            None => aws::timeouts(),
        }
    }

    /// Adds to an error of the tables where they are and what to check.
    pub fn explain(&self, error: anyhow::Error, tables: &TableNames) -> anyhow::Error {
        let location = TablesLocation::Engine(self.endpoint.clone());
        explain_store_error(error, &location, tables)
    }

    /// Stops the embedded engine, unless a task still uses it.
    pub async fn stop(self) {
        if let Some(embedded) = self.embedded.and_then(Arc::into_inner) {
            embedded.stop().await;
        }
    }
}
