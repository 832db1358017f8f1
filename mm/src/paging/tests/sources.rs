// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that is read from a file.

use super::*;

#[test]
fn memory_is_read_from_a_file_when_it_is_touched() {
    let mut file = tempfile();
    let pages = 8 * MIB / PAGE_SIZE;
    for page in 0..pages {
        io::Write::write_all(&mut file, &Fixture::text(page, 9)).unwrap();
    }
    let source: Arc<dyn PageSource> = Arc::new(FileSource::new(file, 0));
    let f = Fixture::with(8, 8, BackingKind::Thp, Box::new(Lz4), vec![source]);
    f.paging.attach(0).unwrap();
    assert_eq!(f.resident(), 0);
    assert!(f.holds(700, 9));
    f.paging.settle();
    assert_eq!(f.resident(), 2 * MIB);
    f.write(700, 10);
    // What has come from a file may go to the store.
    let report = f.park();
    assert_eq!(report.parked, 1, "{report:?} {:?}", f.paging.stats());
    assert!(f.holds(700, 10));
    f.write(700, 9);
    f.unpark();
    f.check(9);
    assert!(matches!(f.paging.attach(0), Err(PagingError::InUse)));
}

fn tempfile() -> std::fs::File {
    use rustix::fs::{MemfdFlags, memfd_create};
    memfd_create(c"snapshot", MemfdFlags::CLOEXEC).unwrap().into()
}
