// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Groups of metrics put together.

use serde_json::{Value, json};

/// Puts `new` in the place of `old`; of objects, field by field.
pub(super) fn merge(old: &mut Value, new: Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, value) in new {
                merge(old.entry(name).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new,
    }
}

/// Adds the numbers of `more` to those of `sum`; of latencies the shortest and the longest stay.
pub(super) fn add(sum: &mut Value, more: &Value) {
    match (sum, more) {
        (Value::Object(sum), Value::Object(more)) => {
            for (name, value) in more {
                let old = sum.entry(name).or_insert(json!(0));
                match (name.as_str(), old.as_u64(), value.as_u64()) {
                    ("min_us", Some(old_us), Some(us)) => {
                        // 0 is none.
                        let both = [old_us, us].into_iter().filter(|us| *us > 0);
                        *old = both.min().unwrap_or(0).into();
                    }
                    ("max_us", Some(old_us), Some(us)) => *old = old_us.max(us).into(),
                    _ => add(old, value),
                }
            }
        }
        (sum, more) => {
            if let Some(more) = more.as_u64() {
                *sum = sum.as_u64().unwrap_or(0).saturating_add(more).into();
            }
        }
    }
}
