//! An internal extension of a Lambda function (Lambda developer guide, "Extensions API").
//!
//! Lambda freezes the environment when the function and the extension have asked for the next
//! event.
//! The content of an event is not parsed, so an unexpected event cannot end the function.

use http::{HeaderValue, Method, Request, Response, StatusCode, header::InvalidHeaderValue};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};

/// The header with the extension's name.
const NAME: &str = "Lambda-Extension-Name";
/// The header with the identifier that the registration returns.
const IDENTIFIER: &str = "Lambda-Extension-Identifier";
/// The body of the registration. Internal extensions receive no event of the shutdown.
const REGISTRATION: &str = r#"{"events":["INVOKE"]}"#;

/// A registered extension.
#[derive(Debug)]
pub struct Extension {
    client: legacy::Client<HttpConnector, Full<Bytes>>,
    /// Host and port of the Extensions API.
    api: String,
    identifier: HeaderValue,
}

/// A request to the Extensions API failed.
#[derive(Debug, thiserror::Error)]
pub enum ExtensionError {
    /// The address of the API or the name of the extension is invalid.
    #[error("the request to the Extensions API is invalid")]
    Request(#[source] http::Error),
    /// The API cannot be reached.
    #[error("the Extensions API did not respond")]
    NoResponse(#[source] legacy::Error),
    /// The response ended early.
    #[error("the response of the Extensions API ended early")]
    EndedEarly(#[source] hyper::Error),
    /// The API rejected the request.
    #[error("the Extensions API responded with {0}")]
    Rejected(StatusCode),
    /// The registration returned no identifier.
    #[error("the Extensions API returned no identifier")]
    NoIdentifier,
}

impl From<InvalidHeaderValue> for ExtensionError {
    fn from(error: InvalidHeaderValue) -> Self {
        Self::Request(error.into())
    }
}

impl Extension {
    /// Registers an extension for invocations. `api` is the value of `AWS_LAMBDA_RUNTIME_API`.
    pub async fn register(api: &str, name: &str) -> Result<Self, ExtensionError> {
        let client = legacy::Client::builder(TokioExecutor::new()).build_http();
        let mut extension = Self {
            client,
            api: api.to_owned(),
            identifier: HeaderValue::from_static(""),
        };
        let name = HeaderValue::from_str(name)?;
        let response = extension
            .send(Method::POST, "register", (NAME, name), REGISTRATION)
            .await?;
        let identifier = response.headers().get(IDENTIFIER);
        extension.identifier = identifier.ok_or(ExtensionError::NoIdentifier)?.clone();
        Ok(extension)
    }

    /// Waits for the next invocation.
    ///
    /// # Errors
    /// If the API rejects the request or does not respond. The process must end then, because
    /// Lambda waits for the extension in every later invocation.
    pub async fn next_invocation(&self) -> Result<(), ExtensionError> {
        let identifier = (IDENTIFIER, self.identifier.clone());
        let response = self.send(Method::GET, "event/next", identifier, "").await?;
        // Read to its end, so that the connection is used again.
        let body = response.into_body().collect().await;
        body.map_err(ExtensionError::EndedEarly)?;
        Ok(())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        (header, value): (&str, HeaderValue),
        body: &'static str,
    ) -> Result<Response<Incoming>, ExtensionError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}/2020-01-01/extension/{path}", self.api))
            .header(header, value)
            .body(Full::from(body))
            .map_err(ExtensionError::Request)?;
        let response = self.client.request(request).await;
        let response = response.map_err(ExtensionError::NoResponse)?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => Err(ExtensionError::Rejected(status)),
        }
    }
}
