// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vsock`: streams between programs in the guest and programs on the host.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::rules::{Check, Faults, socket_path};

/// Smallest address of a guest: 0 to 2 mean any, this host and the host (vsock(7)).
const MIN_CID: u64 = 3;
/// Largest address: 32 bits are used, and all ones mean any.
const MAX_CID: u64 = u32::MAX as u64 - 1;
/// `_` and the digits of a port, which are put behind the path for connections from the guest.
const PORT_SUFFIX: usize = 11;

/// A virtio socket device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's address, 3 or above.
    pub guest_cid: u64,
    /// The socket that host programs connect to; connections from the guest go to this path with
    /// `_PORT` appended.
    #[schema(value_type = String)]
    pub uds_path: PathBuf,
    /// A name without effect; deprecated, as in Firecracker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
}

/// The rules of this section.
pub(super) fn rules(check: &Check<'_, Option<VsockConfig>>, faults: &mut Faults) {
    let Some(vsock) = check.section else { return };
    if !(MIN_CID..=MAX_CID).contains(&vsock.guest_cid) {
        let problem = format!("{}: give {MIN_CID} to {MAX_CID}", vsock.guest_cid);
        faults.add("vsock.guest_cid", problem);
    }
    socket_path("vsock.uds_path", &vsock.uds_path, faults);
    let len = vsock.uds_path.as_os_str().len();
    let longest = super::rules::MAX_SOCKET_PATH - PORT_SUFFIX;
    if len > longest && len <= super::rules::MAX_SOCKET_PATH {
        tracing::warn!(len, longest, "vsock.uds_path is too long to append a port number");
    }
}
