// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many descriptors this process may have. A guest decides how many streams it has open, and
//! must not take the descriptors that the API, consoles and viewers need.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors that are not for a guest's streams.
const KEPT: u64 = 192;
/// Streams that a guest has in any case.
const LEAST: u64 = 16;

/// Raises the limit to what the host allows. The usual one, 1024, is low for the sake of programs
/// that call select(2), and this is none of them.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Fails for no process that may have the limit that it asks for.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// How many of at most `wanted` streams a guest may have.
pub fn for_streams(wanted: usize) -> usize {
    share(getrlimit(Resource::Nofile).current, wanted)
}

/// The same where the limit is `limit`, or none.
fn share(limit: Option<u64>, wanted: usize) -> usize {
    let free = limit.map_or(u64::MAX, |limit| limit.saturating_sub(KEPT).max(LEAST));
    wanted.min(usize::try_from(free).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_leave_descriptors_for_others() {
        assert_eq!(share(None, 1023), 1023);
        assert_eq!(share(Some(2048), 1023), 1023);
        assert_eq!(share(Some(1024), 1023), 832);
        assert_eq!(share(Some(10), 1023), 16);
        raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
