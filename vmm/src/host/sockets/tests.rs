// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sockets and their names.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;

use super::*;

#[test]
fn only_the_owner_may_connect() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = Listener::bind(&path).unwrap();
    let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "the standard library leaves the file");
    let listener = Listener::bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    let error = Listener::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::InUse(_)), "{error}");
    UnixStream::connect(&path).unwrap();
    drop(listener);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_listener_with_a_full_backlog_is_alive_and_delays_no_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _deaf = UnixListener::bind(&path).unwrap();
    let mut waiting = 0;
    while call(&path).is_ok() {
        waiting += 1;
        assert!(waiting < 100_000, "a backlog without a limit");
    }
    let error = Listener::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::InUse(_)), "{error}");
}

#[test]
fn many_that_want_the_place_of_a_dead_socket_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for _ in 0..20 {
        drop(UnixListener::bind(&path).unwrap());
        let bound: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| Listener::bind(&path))).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap().ok()).collect()
        });
        let [listener] = &bound[..] else { panic!("{} have it", bound.len()) };
        assert_eq!(identity(&path).unwrap(), listener.file.name.identity);
        drop(bound);
        let _ = std::fs::remove_file(&path);
    }
}

/// Clients wait for the file, and connect.
#[test]
fn a_socket_with_its_name_listens() {
    const SOCKETS: usize = 200;
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..SOCKETS).map(|n| dir.path().join(n.to_string())).collect();
        let next = AtomicUsize::new(0);
        let (refused, listeners) = std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut refused = 0;
                while let Some(path) = paths.get(next.load(Ordering::Relaxed)) {
                    let answer = call(path).map_err(|error| error.kind());
                    refused += u32::from(answer == Err(io::ErrorKind::ConnectionRefused));
                }
                refused
            });
            let bind = |path: &PathBuf| {
                let listener = Listener::bind(path);
                next.fetch_add(1, Ordering::Relaxed);
                listener
            };
            let listeners: Vec<_> = paths.iter().map(bind).collect();
            (client.join().unwrap(), listeners)
        });
        assert_eq!(refused, 0);
        listeners.into_iter().for_each(|listener| drop(listener.unwrap()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn names_may_be_as_long_as_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let len = MAX_PATH - dir.path().as_os_str().len() - 1;
    let deep = dir.path().join("d".repeat(len - 2));
    std::fs::create_dir(&deep).unwrap();
    for path in [dir.path().join("s".repeat(len)), deep.join("s")] {
        assert_eq!(path.as_os_str().len(), MAX_PATH);
        let _listener = Listener::bind(&path).unwrap();
        call(&path).unwrap();
    }
}

#[test]
fn only_its_own_file_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = Listener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "another's").unwrap();
    drop(listener);
    assert_eq!(std::fs::read(&path).unwrap(), b"another's");
}

#[test]
fn names_that_cannot_be_are_refused() {
    assert!(matches!(Listener::bind(Path::new("")), Err(SocketError::NoPath)));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(Listener::bind(&file), Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
    let long = dir.path().join("x".repeat(200));
    assert!(matches!(Listener::bind(&long), Err(SocketError::TooLong { .. })));
}
