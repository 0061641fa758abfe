//! The DynamoDB engine that the tests use.

/// The endpoint of another engine than the embedded one, if the environment names one.
pub fn other_engine() -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the variable selects the engine of the tests"
    )]
    std::env::var("TEST_DYNAMODB_ENDPOINT").ok()
}
