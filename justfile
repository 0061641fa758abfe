# Common tasks. Every recipe calls Cargo or a script that also works without just.

binary := env("CARGO_TARGET_DIR", justfile_directory() / "target") / "debug/nano-webhooks"

# List the recipes.
[private]
default:
    @just --list --unsorted

# Build all crates, tests and benchmarks included.
build:
    cargo build --workspace --all-targets

# Run the demonstration: a job completes and a receiver verifies its webhook.
demo:
    cargo run -- demo

# Run the unit and integration tests: just test [FILTER] [CARGO_OPTION...]
test *arguments:
    cargo test --workspace {{ arguments }}

# Run the integration tests over DynamoDB Local.
test-dynamodb-local *arguments:
    ci/dynamodb-local cargo test --test it {{ arguments }}

# Run the black-box tests: just e2e [PYTEST_OPTION...]
e2e *options: build-binary
    e2e/run {{ binary }} {{ options }}

# Format Rust code and this file.
format:
    cargo fmt --all
    cargo fmt --manifest-path fuzz/Cargo.toml
    just --fmt

# Check formatting, spelling, scripts, workflows, dependencies and clippy's lints.
lint:
    ci/run lint dependencies clippy

# Fuzz the parsers of external input: just fuzz [SECONDS] [TARGET...]
fuzz seconds="15" *targets:
    ci/fuzz {{ seconds }} {{ targets }}

# Run the benchmarks. docs/PERFORMANCE.md describes their options.
bench *arguments:
    cargo build --profile bench --bin nano-webhooks
    cargo bench {{ arguments }}

# Simulate an outage with a large backlog, for the tables of docs/SCALE.md.
simulate:
    cargo run --release -p nano-webhooks-core --example simulation

# Build the crates' documentation and open it.
docs:
    cargo doc --workspace --no-deps --open

# Write docs/openapi.json from the code.
openapi:
    UPDATE_OPENAPI=1 cargo test --test it openapi

# Write ci/template-values.json from the code.
template-values:
    UPDATE_TEMPLATE_VALUES=1 cargo test --test it template_values

# Check the template, build the functions with SAM, and test them in an emulated account.
deploy-check *options: build-binary
    ci/template
    ci/test-deployment {{ binary }} {{ options }}

# Write the requirements.txt files from the requirements.in files.
lock-requirements *options:
    ci/lock-requirements {{ options }}

# Run everything that must pass before a change lands: just ci [STEP...]
ci *steps:
    ci/run {{ steps }}

[private]
build-binary:
    cargo build --bin nano-webhooks
