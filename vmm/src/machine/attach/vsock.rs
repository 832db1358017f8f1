// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vsock device, on its own thread.

use std::sync::Arc;

use devices::virtio::{DeviceLock, SourceRunner};
use devices::vsock::{MAX_CONNECTIONS, Vsock, VsockConfig, VsockHandle};

use crate::host::open_files;
use crate::host::sockets::{Listener, SocketFile};
use crate::machine::assembly::{Assembly, Home};
use crate::machine::error::BuildError;

/// The socket device, as requests reach it, and its socket's file.
#[derive(Debug)]
pub struct AttachedVsock {
    /// The device.
    pub handle: VsockHandle,
    /// The name of its socket, which is removed with the device unless kept.
    pub file: SocketFile,
}

/// Adds the socket device to `machine`, if one is configured.
pub(super) fn attach(machine: &mut Assembly<'_>) -> Result<Option<AttachedVsock>, BuildError> {
    let Some(wanted) = &machine.config.vsock else { return Ok(None) };
    let Listener { socket, file } =
        Listener::bind(&wanted.uds_path).map_err(BuildError::device("vsock"))?;
    let config = VsockConfig {
        guest_cid: wanted.guest_cid,
        listener: socket,
        max_connections: open_files::for_streams(MAX_CONNECTIONS),
        path: wanted.uds_path.clone(),
    };
    let device = Vsock::new(config).map_err(BuildError::device("vsock"))?;
    let handle = device.handle();
    let sources = device.sources().map_err(BuildError::device("vsock"))?;
    let home = Home::Thread("vsock".to_owned());
    let transport = machine.add_virtio(Arc::new(DeviceLock::new(device)), &home)?;
    machine.subscribe(Box::new(SourceRunner::new(transport, sources)), &home);
    Ok(Some(AttachedVsock { handle, file }))
}
