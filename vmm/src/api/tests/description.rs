// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The OpenAPI document matches the served routes, and the copy in the tree is current.

use super::*;

/// Every path of the description is served with its methods, and with no others.
#[test]
fn the_description_and_the_routes_agree() {
    let text: Value = serde_json::from_str(&openapi::json()).unwrap();
    let paths = text["paths"].as_object().unwrap();
    assert!(paths.len() >= 16);
    for (path, item) in paths {
        for method in ["GET", "PUT", "PATCH", "DELETE"] {
            // As in Firecracker, PUT /balloon ignores what follows.
            if method == "PUT" && path.starts_with("/balloon/") {
                continue;
            }
            let (_, reply, _) = send(method, path, if method == "GET" { "" } else { "{}" });
            let message = reply["fault_message"].as_str().unwrap_or_default();
            let served = !message.starts_with("Invalid request method and/or path");
            let described = item.get(method.to_lowercase()).is_some();
            assert_eq!(served, described, "{method} {path}");
        }
    }
}

/// An integer that cannot be negative has an unsigned format: a client made from the description
/// can then hold every value.
#[test]
fn unsigned_fields_have_unsigned_formats() {
    fn visit(value: &Value, path: &str, seen: &mut usize) {
        let types =
            value["type"].as_array().cloned().unwrap_or_else(|| vec![value["type"].clone()]);
        if types.contains(&"integer".into()) && value["minimum"].as_f64() >= Some(0.0) {
            let format = value["format"].as_str().unwrap_or_default();
            assert!(format.is_empty() || format.starts_with("uint"), "{path}: {format}");
            *seen += 1;
        }
        let fields = value.as_object().into_iter().flatten();
        fields.for_each(|(name, value)| visit(value, &format!("{path}/{name}"), seen));
        let elements = value.as_array().into_iter().flatten();
        elements.for_each(|value| visit(value, path, seen));
    }
    let description: Value = serde_json::from_str(&openapi::json()).unwrap();
    let mut seen = 0;
    visit(&description, "", &mut seen);
    assert!(seen >= 50, "{seen}");
    let field = &description["components"]["schemas"]["MachineConfig"]["properties"];
    assert_eq!(field["mem_size_mib"]["format"], "uint64");
    let field = &description["components"]["schemas"]["BalloonConfig"]["properties"];
    assert_eq!(field["amount_mib"]["format"], "uint32");
}

/// `resources/openapi.json` matches the handlers. To regenerate it:
/// `cargo run -p ballast-vmm -- openapi > resources/openapi.json`.
#[test]
fn the_description_in_the_tree_is_true() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/openapi.json");
    let written = std::fs::read_to_string(file).unwrap();
    assert!(written == openapi::json(), "renew resources/openapi.json");
}
