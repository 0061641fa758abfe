//! The DynamoDB engine of the service.

use std::sync::Arc;

use nano_webhooks::{aws, store::TableNames};

use super::data_dir::DataDir;
use crate::{
    args::ServeArgs,
    embedded_dynamodb::EmbeddedDynamoDb,
    http_server::bind,
    local_client::{local_client, local_streams_client},
    store_error::{TablesLocation, explain_store_error},
};

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
        let listener = bind(args.dynamodb_listen).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let embedded = EmbeddedDynamoDb::start(listener, data_dir.map(DataDir::path))?;
        Ok(Self {
            endpoint,
            embedded: Some(Arc::new(embedded)),
        })
    }

    pub fn client(&self) -> aws_sdk_dynamodb::Client {
        local_client(&self.endpoint, aws::timeouts())
    }

    pub fn streams_client(&self) -> aws_sdk_dynamodbstreams::Client {
        local_streams_client(&self.endpoint, aws::timeouts())
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
