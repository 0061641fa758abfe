//! The direction in which modules use each other.

use std::{collections::BTreeSet, sync::LazyLock};

use crate::support::module_graph::ModuleGraph;

/// The top-level modules of `src/`, from the binaries downwards.
/// A module uses only modules of the layers below its own.
const LAYERS: [&[&str]; 7] = [
    &["bin"],
    &["lambda"],
    &["api", "config", "dispatch"],
    &["metrics", "queue", "telemetry"],
    &["client", "store"],
    &["aws", "clock", "concurrency", "extension", "random"],
    &["error_chain", "lib"],
];

/// The steps of a stream record, in their order.
const STREAM_RECORD_STEPS: [&str; 8] = [
    "src/dispatch/lambda_event.rs",
    "src/dispatch/stream_record.rs",
    "src/dispatch/fan_out.rs",
    "src/dispatch/first_attempt.rs",
    "src/dispatch/attempt.rs",
    "src/dispatch/record.rs",
    "src/dispatch/endpoint_health.rs",
    "src/dispatch/poison.rs",
];

/// `core` gets time, randomness and configuration as parameters, and performs no I/O.
const FORBIDDEN_IN_CORE: [&str; 11] = [
    "aws_config",
    "aws_sdk",
    "axum",
    "getrandom",
    "hyper",
    "reqwest",
    "std::env",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "nano_webhooks::",
];

static GRAPH: LazyLock<ModuleGraph> = LazyLock::new(ModuleGraph::read);

#[test]
fn files_form_no_circle() {
    if let Some(circle) = GRAPH.find_circle() {
        panic!("files use each other in a circle: {}", circle.join(" -> "));
    }
}

#[test]
fn layers_list_every_module() {
    let modules: BTreeSet<&str> = GRAPH.uses.keys().filter_map(|f| top_level(f)).collect();
    let listed: BTreeSet<&str> = LAYERS.concat().into_iter().collect();
    assert_eq!(modules, listed, "the modules of src/ and those in LAYERS");
}

#[test]
fn uses_point_to_lower_layers() {
    for (file, uses) in &GRAPH.uses {
        for (used, items) in uses {
            let (Some(module), Some(used_module)) = (top_level(file), top_level(used)) else {
                continue;
            };
            assert!(
                module == used_module || layer(module) < layer(used_module),
                "{file} uses {items:?} of {used}, which is not in a lower layer"
            );
        }
    }
}

#[test]
fn core_performs_no_io() {
    for (file, paths) in &GRAPH.external_paths {
        for path in paths.iter().filter(|_| file.starts_with("core/")) {
            for forbidden in FORBIDDEN_IN_CORE {
                assert!(!path.starts_with(forbidden), "{file} uses {path}");
            }
        }
    }
}

/// A step may use the types that earlier steps return, but calls none of their functions.
#[test]
fn stream_record_steps_call_no_earlier_step() {
    for (index, step) in STREAM_RECORD_STEPS.iter().enumerate() {
        let uses = &GRAPH.uses[*step];
        for earlier in &STREAM_RECORD_STEPS[..index] {
            for item in uses.get(*earlier).into_iter().flatten() {
                assert!(is_type_or_value(item), "{step} uses {item} of {earlier}");
            }
        }
    }
}

/// The top-level module of a file in `src/`.
fn top_level(file: &str) -> Option<&str> {
    let name = file.strip_prefix("src/")?.strip_suffix(".rs")?;
    name.split('/').next()
}

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|modules| modules.contains(&module))
        .unwrap_or_else(|| panic!("{module} is not in LAYERS"))
}

/// Whether the path names a type, a variant of an enum or a constant.
fn is_type_or_value(path: &str) -> bool {
    path.split("::")
        .all(|name| name.starts_with(|first: char| first.is_ascii_uppercase()))
}
