// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams to the host, by vsock and by TCP: a pattern goes there and comes back.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::reason;
use crate::console::Answer;
use crate::region::{PAGE, page_bytes};

/// `vsock-echo PORT`: from now on, what comes to that port goes back, one stream after the other.
pub(crate) fn echo_vsock(port: usize) -> Answer {
    let listener = listen_vsock(port)?;
    std::thread::spawn(move || {
        while let Some(stream) = accept(&listener) {
            std::thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
    Ok(vec![])
}

/// A socket to which the host can connect.
pub(super) fn listen_vsock(port: usize) -> Result<OwnedFd, String> {
    let listener = vsock().map_err(|e| reason("socket")(&e))?;
    let address = address(libc::VMADDR_CID_ANY, port)?;
    // SAFETY: the address lives during the call and has the length given.
    let bound =
        unsafe { libc::bind(listener.as_raw_fd(), (&raw const address).cast(), length(&address)) };
    check(bound).map_err(|e| reason("bind")(&e))?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::listen(listener.as_raw_fd(), 64) }).map_err(|e| reason("listen")(&e))?;
    Ok(listener)
}

/// The next stream that the host opens; none if the socket fails.
pub(super) fn accept(listener: &OwnedFd) -> Option<File> {
    let socket = listener.as_raw_fd();
    // SAFETY: accept(2) takes null where the peer's address is not wanted.
    let fd = unsafe { libc::accept(socket, std::ptr::null_mut(), std::ptr::null_mut()) };
    // SAFETY: a new descriptor that nothing else owns.
    (fd >= 0).then(|| File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// `vsock-send PORT SIZE SEED`: sends a pattern to the host and expects it back.
pub(crate) fn send_vsock(port: usize, bytes: usize, seed: usize) -> Answer {
    let stream = connect_vsock(port)?;
    exchange(&stream, &stream, bytes, seed)
}

/// A stream to a port of the host.
pub(super) fn connect_vsock(port: usize) -> Result<File, String> {
    let socket = vsock().map_err(|e| reason("socket")(&e))?;
    let address = address(libc::VMADDR_CID_HOST, port)?;
    // SAFETY: the address lives during the call and has the length given.
    let connected =
        unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length(&address)) };
    check(connected).map_err(|e| reason("connect")(&e))?;
    Ok(File::from(socket))
}

/// `tcp-send ADDRESS SIZE SEED`: the same by TCP.
pub(crate) fn send_tcp(address: &str, bytes: usize, seed: usize) -> Answer {
    let stream = TcpStream::connect(address).map_err(|e| reason("connect")(&e))?;
    exchange(&stream, &stream, bytes, seed)
}

/// Sends pages, and compares what comes back; `pages=`, `damaged=`.
fn exchange(mut to: impl Write + Send, mut from: impl Read, bytes: usize, seed: usize) -> Answer {
    let pages = bytes / PAGE;
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> io::Result<()> {
            for index in 0..pages {
                to.write_all(&page_bytes(seed as u64, index))?;
            }
            to.flush()
        });
        let mut damaged = 0;
        let mut page = vec![0; PAGE];
        for index in 0..pages {
            from.read_exact(&mut page).map_err(|e| reason("reading")(&e))?;
            damaged += usize::from(page != page_bytes(seed as u64, index));
        }
        let sent = sender.join().map_err(|_| "the sender panicked".to_owned())?;
        sent.map_err(|e| reason("sending")(&e))?;
        Ok(vec![format!("pages={pages}"), format!("damaged={damaged}")])
    })
}

fn vsock() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: usize) -> Result<libc::sockaddr_vm, String> {
    // SAFETY: a C structure, for which zeroes are a valid value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).map_err(|e| e.to_string())?;
    address.svm_cid = cid;
    address.svm_port = u32::try_from(port).map_err(|e| e.to_string())?;
    Ok(address)
}

fn length(address: &libc::sockaddr_vm) -> libc::socklen_t {
    libc::socklen_t::try_from(size_of_val(address)).unwrap_or(0)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
