//! The direction of uses, held by the `use` lines themselves.

use std::{fs, path::Path};

/// What talks to the outside, and what it may not know: who uses it.
const OUTSIDE: [&str; 4] = ["store", "store/", "client", "client/"];
const UNKNOWN_TO_OUTSIDE: [&str; 4] = ["lambda_", "axum", "crate::api::", "crate::dispatch"];
fn sources(under: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path
                .strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
                .unwrap();
            found.push((
                name.to_str().unwrap().to_owned(),
                fs::read_to_string(&path).unwrap(),
            ));
        }
    }
}

/// The code without its tests, comments, strings and documentation.
fn code(source: &str) -> impl Iterator<Item = &str> {
    let end = source.find("#[cfg(test)]").unwrap_or(source.len());
    source[..end]
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//"))
}

#[test]
fn uses_point_downwards_only() {
    let mut found = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    let mut checked = 0;
    for (layer, unknown) in [(&OUTSIDE[..], &UNKNOWN_TO_OUTSIDE[..])] {
        for (name, source) in &found {
            let inside = |part: &&str| {
                if part.ends_with('/') {
                    name.starts_with(*part)
                } else {
                    *name == format!("{part}.rs")
                }
            };
            if !layer.iter().any(inside) {
                continue;
            }
            checked += 1;
            // Uses may be written over several lines: `use crate::{ store, … }`.
            let uses: String = code(source).collect::<Vec<_>>().join(" ");
            for word in unknown {
                assert!(!uses.contains(word), "src/{name} knows `{word}`");
                if let Some(module) = word.strip_prefix("crate::") {
                    let module = module.trim_end_matches(':');
                    for group in uses
                        .match_indices("use crate::{")
                        .map(|(at, _)| &uses[at..])
                    {
                        let group = &group[..group.find(';').unwrap()];
                        let names = |part: &str| {
                            part.trim() == module || part.trim().starts_with(&format!("{module}::"))
                        };
                        assert!(
                            !group["use crate::{".len()..]
                                .split([',', '{', '}'])
                                .any(names),
                            "src/{name} knows `{word}`"
                        );
                    }
                }
            }
        }
    }
    assert!(checked >= 15, "only {checked} files were looked at");
}
