// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sections of Firecracker's configuration for devices that Ballast does not have.
//!
//! Its `GET /vm/config` lists them as `null` or `[]`, and users pass that back as a configuration
//! file, so the empty forms are accepted; anything else is rejected.

use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Nothing, written as `[]` if `LIST`, else as `null`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Absent<const LIST: bool>;

impl<const LIST: bool> Serialize for Absent<LIST> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        if LIST { out.collect_seq(std::iter::empty::<()>()) } else { out.serialize_none() }
    }
}

impl<'de, const LIST: bool> Deserialize<'de> for Absent<LIST> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Empty<const LIST: bool>;

        impl<'de, const LIST: bool> Visitor<'de> for Empty<LIST> {
            type Value = Absent<LIST>;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("must be empty: Ballast does not offer this device")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Absent)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(Absent),
                    Some(_) => Err(A::Error::custom("Ballast does not offer this device")),
                }
            }
        }

        from.deserialize_any(Empty::<LIST>)
    }
}
