// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The metadata: a JSON document of limited size.

use serde_json::{Map, Value};

/// Why the document was not changed, or a part of it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// It was never set.
    #[error("The metadata is not set yet: send PUT /mmds before PATCH /mmds.")]
    NotInitialized,
    /// It would be larger than allowed.
    #[error("The metadata would have {size} bytes; the limit is {limit}.")]
    TooLarge {
        /// Bytes as JSON.
        size: usize,
        /// Most bytes allowed.
        limit: usize,
    },
    /// The path names no value.
    #[error("There is no metadata at {0}.")]
    NotFound(String),
    /// A value that has no form as plain text.
    #[error("This value can only be read as JSON: send `Accept: application/json`.")]
    UnsupportedType,
}

/// The document.
#[derive(Debug)]
pub struct MetadataStore {
    document: Option<Value>,
    limit: usize,
}

impl MetadataStore {
    /// An empty document that may have `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { document: None, limit }
    }

    /// The whole document; an empty object if it was never set.
    pub fn get(&self) -> Value {
        self.document.clone().unwrap_or_else(|| Value::Object(Map::new()))
    }

    /// Sets the document.
    ///
    /// # Errors
    ///
    /// It is too large.
    pub fn put(&mut self, document: Value) -> Result<(), MetadataError> {
        let size = document.to_string().len();
        if size > self.limit {
            return Err(MetadataError::TooLarge { size, limit: self.limit });
        }
        self.document = Some(document);
        Ok(())
    }

    /// Changes the document by a JSON merge patch (RFC 7396).
    ///
    /// # Errors
    ///
    /// It is not set, or would be too large; it is unchanged.
    pub fn patch(&mut self, patch: &Value) -> Result<(), MetadataError> {
        let mut document = self.document.clone().ok_or(MetadataError::NotInitialized)?;
        merge(&mut document, patch);
        self.put(document)
    }

    /// The part at `path`, a JSON pointer (RFC 6901) in which empty parts are skipped.
    ///
    /// # Errors
    ///
    /// It names no value.
    pub fn at(&self, path: &str) -> Result<&Value, MetadataError> {
        let parts = path.split('/').filter(|part| !part.is_empty());
        let pointer: String = parts.flat_map(|part| ["/", part]).collect();
        let value = self.document.as_ref().and_then(|document| document.pointer(&pointer));
        value.ok_or_else(|| MetadataError::NotFound(path.to_owned()))
    }
}

/// A part as plain text: a string unchanged, an object as its keys, one per line, with a slash
/// after keys of objects.
///
/// # Errors
///
/// The value is of another type.
pub(super) fn as_text(value: &Value) -> Result<String, MetadataError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Object(fields) => {
            let line = |(key, value): (&String, &Value)| match value {
                Value::Object(_) => format!("{key}/"),
                _ => key.clone(),
            };
            Ok(fields.iter().map(line).collect::<Vec<_>>().join("\n"))
        }
        _ => Err(MetadataError::UnsupportedType),
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (key, change) in changes {
        if change.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(Value::Null), change);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_examples_of_the_merge_patch_standard() {
        // RFC 7396, appendix A.
        for (mut target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"a": "foo"}), json!("bar"), json!("bar")),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            merge(&mut target, &patch);
            assert_eq!(target, result);
        }
    }

    #[test]
    fn a_refused_change_leaves_the_document_as_it_was() {
        let mut store = MetadataStore::new(20);
        assert_eq!(store.patch(&json!({"a": 1})), Err(MetadataError::NotInitialized));
        assert_eq!(store.get(), json!({}));
        store.put(json!({"a": 1})).unwrap();
        let long = json!({"b": "x".repeat(100)});
        let too_large = MetadataError::TooLarge { size: 114, limit: 20 };
        assert_eq!(store.patch(&long), Err(too_large));
        assert!(matches!(store.put(long.clone()), Err(MetadataError::TooLarge { .. })));
        assert_eq!(store.get(), json!({"a": 1}));
        assert_eq!(store.patch(&json!({"b": 2})), Ok(()));
        assert_eq!(store.get(), json!({"a": 1, "b": 2}));
    }

    #[test]
    fn parts_are_found_by_their_path() {
        let mut store = MetadataStore::new(1000);
        assert_eq!(store.at("/"), Err(MetadataError::NotFound("/".into())));
        let document = json!({"a": {"b": "text", "c": {"d": 1}}, "l": ["x"], "s/t": "slash"});
        store.put(document.clone()).unwrap();
        assert_eq!(as_text(store.at("/a/b").unwrap()).unwrap(), "text");
        assert_eq!(as_text(store.at("//a///b/").unwrap()).unwrap(), "text");
        assert_eq!(as_text(store.at("/a/").unwrap()).unwrap(), "b\nc/");
        assert_eq!(as_text(store.at("/").unwrap()).unwrap(), "a/\nl\ns/t");
        assert_eq!(store.at("").unwrap(), &document);
        assert_eq!(as_text(store.at("/l/0").unwrap()).unwrap(), "x");
        assert_eq!(as_text(store.at("/s~1t").unwrap()).unwrap(), "slash");
        assert_eq!(as_text(store.at("/a/c/d").unwrap()), Err(MetadataError::UnsupportedType));
        for missing in ["/a/x", "/a/b/c", "/l/1", "/l/-1"] {
            assert_eq!(store.at(missing), Err(MetadataError::NotFound(missing.into())));
        }
    }
}
