//! An HTTP client of the AWS SDK with a limit on its requests.

use std::{fmt, sync::Arc};

use aws_smithy_runtime_api::client::{
    http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
        SharedHttpConnector,
    },
    orchestrator::HttpRequest,
    runtime_components::RuntimeComponents,
};
use tokio::sync::Semaphore;

/// Sends a bounded number of requests at the same time, and so opens a bounded number of
/// connections. The other requests wait, within their time-outs.
#[derive(Debug)]
pub struct LimitedHttpClient {
    client: SharedHttpClient,
    slots: Arc<Semaphore>,
}

impl LimitedHttpClient {
    pub fn new(client: SharedHttpClient, max_requests: usize) -> Self {
        Self {
            client,
            slots: Arc::new(Semaphore::new(max_requests)),
        }
    }
}

impl HttpClient for LimitedHttpClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(LimitedConnector {
            connector: self.client.http_connector(settings, components),
            slots: self.slots.clone(),
        })
    }
}

struct LimitedConnector {
    connector: SharedHttpConnector,
    slots: Arc<Semaphore>,
}

impl HttpConnector for LimitedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let connector = self.connector.clone();
        let slots = self.slots.clone();
        HttpConnectorFuture::new(async move {
            let _slot = slots.acquire().await;
            connector.call(request).await
        })
    }
}

impl fmt::Debug for LimitedConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LimitedConnector")
    }
}
