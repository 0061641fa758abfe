//! The DynamoDB engine that the tests use.

/// The engine that tests are to use instead of the embedded one.
pub fn other_engine() -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests are told here which engine to use"
    )]
    std::env::var("TEST_DYNAMODB_ENDPOINT").ok()
}
