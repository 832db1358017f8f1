// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Misbehaving guests: the response is the standard's error, and nothing has changed.

use vm_memory::GuestAddress;
use zerocopy::IntoBytes;

use super::{FIRST_PAGE, XRGB, driver, image, pattern, picture, shown_blob};
use crate::display::{Rect, ScanoutId, Size};
use crate::gpu::mock::{BUFFERS, RAM, blob_surface, entry, single_pages};
use crate::gpu::protocol::{
    CommandHeader, CreateBlob, SetScanoutBlob, blob_mem, code, feature, header_flag,
};
use crate::gpu::response::{error, ok};
use crate::gpu::{CONTROL_QUEUE, CURSOR_QUEUE};
use crate::transport::mock::MockDescriptor;
use crate::virtio::{Deadline, Progress, VirtioDevice};

#[test]
fn config_space_ends_where_it_ends() {
    let d = driver();
    let mut bytes = [0xff; 24];
    d.gpu().read_config(0, &mut bytes);
    assert_eq!(bytes[8..12], 2u32.to_le_bytes());
    assert_eq!(bytes[12..], [0; 12]);
    d.gpu().read_config(u64::MAX, &mut bytes);
    assert_eq!(bytes, [0; 24]);
    for (offset, len) in [(4, 1), (4, 8), (5, 4), (u64::MAX, 4), (0, 0)] {
        d.gpu().write_config(offset, &vec![0xff; len]);
    }
}

#[test]
fn linux_leaves_no_room_behind_a_cursor_command() {
    let mut d = driver();
    let header = CommandHeader { kind: code::MOVE_CURSOR.into(), ..CommandHeader::default() };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(&[0; 32]);
    assert!(d.raw(CURSOR_QUEUE, &bytes, 0).is_empty());
    assert_eq!(d.gpu().stats().counters.errors, 0);
    // On the other queue each is an error.
    assert_eq!(d.raw(CONTROL_QUEUE, &bytes, 24)[..4], error::UNSPEC.to_le_bytes());
    bytes[..4].copy_from_slice(&code::GET_DISPLAY_INFO.to_le_bytes());
    assert_eq!(d.raw(CURSOR_QUEUE, &bytes, 1024)[..4], error::UNSPEC.to_le_bytes());
}

#[test]
fn fences_come_back_in_order_with_errors_too() {
    let mut d = driver();
    for (fence, kind) in
        (1..).zip([code::GET_DISPLAY_INFO, code::RESOURCE_UNREF, 0xdead, code::SUBMIT_3D])
    {
        let header = CommandHeader {
            kind: kind.into(),
            flags: header_flag::FENCE.into(),
            fence_id: fence.into(),
            ..CommandHeader::default()
        };
        let answer = d.send(header, &[&[0; 8]]);
        assert_eq!((answer.flags, answer.fence_id), (header_flag::FENCE, fence));
    }
}

#[test]
fn what_is_not_offered_gets_the_standards_error() {
    let mut d = driver();
    for (kind, code) in [
        (code::CTX_CREATE, error::UNSPEC),
        (code::RESOURCE_CREATE_3D, error::UNSPEC),
        (code::CTX_DESTROY, error::CONTEXT_ID),
        (code::CTX_ATTACH_RESOURCE, error::CONTEXT_ID),
        (code::CTX_DETACH_RESOURCE, error::CONTEXT_ID),
        (code::TRANSFER_TO_HOST_3D, error::CONTEXT_ID),
        (code::TRANSFER_FROM_HOST_3D, error::CONTEXT_ID),
        (code::SUBMIT_3D, error::CONTEXT_ID),
        (code::GET_CAPSET_INFO, error::PARAMETER),
        (code::GET_CAPSET, error::PARAMETER),
        (0, error::UNSPEC),
        (u32::MAX, error::UNSPEC),
    ] {
        assert_eq!(d.code(kind, &[&[0; 128]]), code, "{kind:#x}");
    }
}

#[test]
fn features_that_were_not_negotiated_are_not_there() {
    let mut d = driver();
    d.start(1 << 32);
    let size = Size::new(64, 64);
    assert_eq!(d.on(code::GET_EDID, 0), error::UNSPEC);
    image(&mut d, XRGB, size);
    assert_eq!(d.on(code::RESOURCE_ASSIGN_UUID, 1), error::UNSPEC);
    assert_eq!(d.create_guest_blob(2, 4096, &single_pages([FIRST_PAGE])), error::UNSPEC);
    assert_eq!(d.migrate(1, &[(0, (FIRST_PAGE + 50) * 4096)]), error::UNSPEC);
    d.start(1 << 32 | feature::MIGRATE);
    image(&mut d, XRGB, size);
    assert_eq!(d.migrate(1, &[(0, (FIRST_PAGE + 50) * 4096)]), ok::NODATA);
    assert_eq!(d.migrate_pages(&[(1, 0, (FIRST_PAGE + 51) * 4096)]).0, error::UNSPEC);
}

#[test]
fn bad_images_are_refused() {
    let mut d = driver();
    let size = Size::new(64, 64);
    assert_eq!(d.create_2d(0, XRGB, size), error::RESOURCE_ID);
    for size in [(0, 1), (1, 0), (u32::MAX, u32::MAX), (65_536, 1), (1, 1 << 16), (1 << 31, 2)] {
        assert_eq!(d.create_2d_of(1, XRGB, size), error::PARAMETER, "{size:?}");
    }
    assert_eq!(d.create_2d(1, XRGB, Size::new(1024, 1281)), error::OUT_OF_MEMORY);
    let bad_format = [1u32, 5, 64, 64].map(u32::to_le_bytes).concat();
    assert_eq!(d.code(code::RESOURCE_CREATE_2D, &[&bad_format]), error::PARAMETER);
    assert_eq!(d.create_2d(1, XRGB, size), ok::NODATA);
    assert_eq!(d.create_2d(1, XRGB, size), error::RESOURCE_ID);
    assert_eq!(d.unref(2), error::RESOURCE_ID);
    assert_eq!(d.unref(0), error::RESOURCE_ID);
    assert_eq!(d.unref(1), ok::NODATA);
    assert_eq!(d.unref(1), error::RESOURCE_ID);
    d.gpu().validate();
}

#[test]
fn bad_backings_are_refused() {
    let mut d = driver();
    assert_eq!(d.create_2d(1, XRGB, Size::new(64, 64)), ok::NODATA);
    assert_eq!(d.attach(1, &[]), error::PARAMETER);
    for bad in [
        entry(BUFFERS, 0),
        entry(RAM, 1),
        entry(RAM - 1, 2),
        entry(u64::MAX, 1),
        entry(u64::MAX - 4095, 4096),
        entry(0, u32::MAX),
    ] {
        assert_eq!(d.attach(1, &[entry(BUFFERS, 4096), bad]), error::PARAMETER, "{bad:?}");
        assert_eq!(d.create_guest_blob(2, 4096, &[bad]), error::PARAMETER, "{bad:?}");
    }
    // More entries than the bytes that follow, up to those whose size overflows.
    for count in [2u32, 1 << 28, u32::MAX] {
        let head = [1u32.to_le_bytes(), count.to_le_bytes()].concat();
        let one = entry(BUFFERS, 4096);
        let answer = d.code(code::RESOURCE_ATTACH_BACKING, &[&head, one.as_bytes()]);
        assert_eq!(answer, error::PARAMETER);
    }
    let many = single_pages(std::iter::repeat_n(FIRST_PAGE, 1025));
    assert_eq!(d.attach(1, &many), error::OUT_OF_MEMORY);
    assert_eq!(d.on(code::RESOURCE_DETACH_BACKING, 1), error::UNSPEC, "nothing is attached");
    assert_eq!(d.attach(1, &many[..1024]), ok::NODATA);
    assert_eq!(d.attach(1, &many[..1]), error::UNSPEC, "attached already");
    assert_eq!(d.attach(7, &many[..1]), error::RESOURCE_ID);
    assert_eq!(d.on(code::RESOURCE_DETACH_BACKING, 1), ok::NODATA);
    assert_eq!(d.on(code::RESOURCE_DETACH_BACKING, 7), error::RESOURCE_ID);
    d.gpu().validate();
}

#[test]
fn bad_transfers_change_nothing() {
    let mut d = driver();
    let size = Size::new(64, 64);
    assert_eq!(d.create_2d(1, XRGB, size), ok::NODATA);
    assert_eq!(d.transfer(1, Rect::whole(size), 0), error::UNSPEC, "no backing");
    assert_eq!(d.attach(1, &single_pages(FIRST_PAGE..FIRST_PAGE + 4)), ok::NODATA);
    for (rect, offset) in [
        (Rect::new(0, 0, 0, 1), 0),
        (Rect::new(0, 0, 65, 1), 0),
        (Rect::new(1, 0, 64, 1), 0),
        (Rect::new(0, 63, 1, 2), 0),
        (Rect::new(u32::MAX, 0, 2, 1), 0),
        (Rect::new(0, 0, u32::MAX, u32::MAX), 0),
        (Rect::whole(size), 1),
        (Rect::new(0, 0, 1, 1), 16381),
        (Rect::new(0, 0, 1, 1), u64::MAX),
        (Rect::new(0, 0, 2, 2), u64::MAX - 256),
    ] {
        assert_eq!(d.transfer(1, rect, offset), error::PARAMETER, "{rect:?} at {offset}");
    }
    assert_eq!(d.transfer(9, Rect::whole(size), 0), error::RESOURCE_ID);
    assert_eq!(d.gpu().stats().host_bytes, 0, "no image was taken for any of them");
    assert_eq!(d.transfer(1, Rect::new(0, 0, 1, 1), 16380), ok::NODATA);
    d.gpu().validate();
}

#[test]
fn bad_scanouts_are_refused() {
    let mut d = driver();
    let size = Size::new(64, 64);
    image(&mut d, XRGB, size);
    assert_eq!(d.set_scanout(2, 1, Rect::whole(size)), error::SCANOUT_ID);
    assert_eq!(d.set_scanout(u32::MAX, 0, Rect::whole(size)), error::SCANOUT_ID);
    assert_eq!(d.set_scanout(0, 9, Rect::whole(size)), error::RESOURCE_ID);
    for rect in [
        Rect::default(),
        Rect::new(0, 0, 65, 64),
        Rect::new(1, 1, 64, 63),
        Rect::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX),
    ] {
        assert_eq!(d.set_scanout(0, 1, rect), error::PARAMETER, "{rect:?}");
        assert_eq!(d.flush(1, rect), error::PARAMETER, "{rect:?}");
    }
    assert_eq!(d.flush(9, Rect::whole(size)), error::RESOURCE_ID);
    assert_eq!(d.set_scanout_blob(0, 1, size), error::PARAMETER, "it is not a blob");

    let entries = single_pages(FIRST_PAGE + 10..FIRST_PAGE + 14);
    assert_eq!(d.create_guest_blob(2, 16384, &entries), ok::NODATA);
    assert_eq!(d.set_scanout(0, 2, Rect::whole(size)), error::PARAMETER, "it is a blob");
    let bad: [fn(&mut SetScanoutBlob); 8] = [
        |c| c.format = 5.into(),
        |c| c.width = 65.into(),
        |c| c.height = 65.into(),
        |c| c.height = u32::MAX.into(),
        |c| c.strides[0] = 255.into(),
        |c| c.strides[0] = u32::MAX.into(),
        |c| c.offsets[0] = 4.into(),
        |c| c.rect.width = 0.into(),
    ];
    for (n, spoil) in bad.into_iter().enumerate() {
        let mut c = blob_surface(size);
        c.resource_id = 2.into();
        spoil(&mut c);
        assert_eq!(d.code(code::SET_SCANOUT_BLOB, &[c.as_bytes()]), error::PARAMETER, "case {n}");
    }
    d.gpu().validate();
}

#[test]
fn bad_blobs_are_refused() {
    let mut d = driver();
    let pages = single_pages([FIRST_PAGE]);
    assert_eq!(d.create_guest_blob(1, 0, &pages), error::PARAMETER);
    assert_eq!(d.create_guest_blob(1, 4097, &pages), error::PARAMETER, "larger than its backing");
    assert_eq!(d.create_guest_blob(1, u64::MAX, &pages), error::PARAMETER);
    assert_eq!(d.create_guest_blob(1, 4096, &[]), error::PARAMETER);
    assert_eq!(d.create_guest_blob(0, 4096, &pages), error::RESOURCE_ID);
    let spoilt: [fn(&mut CreateBlob); 5] = [
        |c| c.blob_mem = 0.into(),
        |c| c.blob_mem = blob_mem::HOST3D_GUEST.into(),
        |c| c.blob_mem = 4.into(),
        |c| c.blob_flags = 8.into(),
        |c| c.blob_id = 1.into(),
    ];
    for (n, spoil) in spoilt.into_iter().enumerate() {
        let mut c =
            CreateBlob { resource_id: 1.into(), blob_mem: 2.into(), ..CreateBlob::default() };
        c.size = 4096.into();
        spoil(&mut c);
        assert_eq!(
            d.code(code::RESOURCE_CREATE_BLOB, &[c.as_bytes()]),
            error::PARAMETER,
            "case {n}"
        );
    }
    assert_eq!(d.create_host_blob(1, 0, true), error::PARAMETER);
    assert_eq!(d.create_host_blob(1, (5 << 20) + 1, true), error::OUT_OF_MEMORY);
    assert_eq!(d.create_host_blob(1, u64::MAX, true), error::OUT_OF_MEMORY);
    assert_eq!(d.create_guest_blob(1, 4096, &pages), ok::NODATA);
    assert_eq!(d.create_guest_blob(1, 4096, &pages), error::RESOURCE_ID);
    assert_eq!(d.attach(1, &pages), error::PARAMETER, "a blob has its backing for life");
    assert_eq!(d.on(code::RESOURCE_DETACH_BACKING, 1), error::PARAMETER);
    d.gpu().validate();
}

#[test]
fn a_mapped_blob_is_no_ram_for_a_backing() {
    let mut d = driver();
    assert_eq!(d.create_host_blob(1, 4096, true), ok::NODATA);
    assert_eq!(d.map(1, 0), ok::MAP_INFO);
    assert_eq!(d.create_guest_blob(2, 4096, &[entry(1 << 40, 4096)]), error::PARAMETER);
}

#[test]
fn bad_migrations_change_nothing() {
    let mut d = driver();
    let size = Size::new(64, 64);
    shown_blob(&mut d, size);
    let bytes = pattern(6, 16384);
    d.write(BUFFERS, &bytes);
    let free = (FIRST_PAGE + 50) * 4096;
    for bad in [
        (16384, free),
        (u64::MAX - 4095, free),
        (1, free),
        (4096, free + 1),
        (4096, RAM),
        (4096, u64::MAX - 4095),
        (4096, 1 << 40),
        (0, free + 4096), // named twice
    ] {
        assert_eq!(d.migrate(1, &[(0, free), bad]), error::PARAMETER, "{bad:x?}");
        d.write(free, &[0xee; 8192]);
        assert_eq!(d.flush(1, Rect::whole(size)), ok::NODATA);
        assert_eq!(picture(&mut d), bytes, "{bad:x?}");
    }
    assert_eq!(d.migrate(1, &[]), error::PARAMETER);
    assert_eq!(d.migrate_pages(&[]).0, error::PARAMETER);
    let many: Vec<(u32, u64, u64)> = (0..513).map(|n| (1, n * 4096, free)).collect();
    assert_eq!(d.migrate_pages(&many).0, error::PARAMETER);
    let many: Vec<(u64, u64)> = (0..513).map(|n| (n * 4096, free)).collect();
    assert_eq!(d.migrate(1, &many), error::PARAMETER);
    assert_eq!(d.migrate(9, &[(0, free)]), error::RESOURCE_ID);
    assert_eq!(d.create_2d(2, XRGB, size), ok::NODATA);
    assert_eq!(d.migrate(2, &[(0, free)]), error::RESOURCE_ID, "no guest backing");
    assert_eq!(d.create_host_blob(3, 4096, true), ok::NODATA);
    assert_eq!(d.migrate(3, &[(0, free)]), error::RESOURCE_ID, "no guest backing");
    assert_eq!(d.unref(1), ok::NODATA);
    assert_eq!(d.migrate(1, &[(0, free)]), error::RESOURCE_ID, "dead");
    assert_eq!(d.gpu().stats().counters.migrated_pages, 0);
    d.gpu().validate();
}

#[test]
fn commands_on_dead_resources_are_refused_and_scanouts_go_dark() {
    let mut d = driver();
    let size = Size::new(64, 64);
    image(&mut d, XRGB, size);
    assert_eq!(d.set_scanout(0, 1, Rect::whole(size)), ok::NODATA);
    assert_eq!(d.set_scanout(1, 1, Rect::whole(size)), ok::NODATA);
    assert_eq!(d.unref(1), ok::NODATA);
    assert!((0..2).all(|n| d.frames.size(ScanoutId::new(n).unwrap()).is_none()));
    assert_eq!(d.flush(1, Rect::whole(size)), error::RESOURCE_ID);
    assert_eq!(d.transfer(1, Rect::whole(size), 0), error::RESOURCE_ID);
    assert_eq!(d.attach(1, &single_pages([FIRST_PAGE])), error::RESOURCE_ID);
    for kind in [
        code::RESOURCE_DETACH_BACKING,
        code::RESOURCE_ASSIGN_UUID,
        code::RESOURCE_UNMAP_BLOB,
        code::RESOURCE_UNREF,
    ] {
        assert_eq!(d.on(kind, 1), error::RESOURCE_ID, "{kind:#x}");
    }
    assert_eq!(d.set_scanout(0, 0, Rect::default()), ok::NODATA);
    d.gpu().validate();
}

#[test]
fn stalled_and_broken_buffers_come_back() {
    let mut d = driver();
    let header = CommandHeader { kind: code::GET_DISPLAY_INFO.into(), ..CommandHeader::default() };
    // No room, less than a header, less than the response.
    for room in [0, 1, 23] {
        assert!(d.raw(CONTROL_QUEUE, header.as_bytes(), room).is_empty());
    }
    assert_eq!(d.raw(CONTROL_QUEUE, header.as_bytes(), 24)[..4], error::PARAMETER.to_le_bytes());
    // No command, or a part of a header.
    assert_eq!(d.raw(CONTROL_QUEUE, &[], 24)[..4], error::PARAMETER.to_le_bytes());
    assert_eq!(
        d.raw(CONTROL_QUEUE, &header.as_bytes()[..23], 24)[..4],
        error::PARAMETER.to_le_bytes()
    );
    // Buffers that are not RAM, are out of order, or overflow.
    for descriptors in [
        [(RAM, 24, false), (0x2_0000, 24, true)],
        [(0x2_0000, 24, true), (0x3_0000, 24, false)],
        [(u64::MAX, 24, false), (0x2_0000, 24, true)],
        [(0x2_0000, u32::MAX, false), (0x3_0000, u32::MAX, true)],
    ] {
        let buffers = descriptors.map(|(addr, len, writable)| match writable {
            true => MockDescriptor::writable(GuestAddress(addr), len),
            false => MockDescriptor::readable(GuestAddress(addr), len),
        });
        assert_eq!(d.submit(CONTROL_QUEUE, &buffers), 0, "{descriptors:x?}");
    }
    // The queue still works.
    assert_eq!(d.code(code::GET_DISPLAY_INFO, &[]), ok::DISPLAY_INFO);
}

#[test]
fn a_reset_forgets_what_the_guest_made_and_late_notifications_are_nothing() {
    let mut d = driver();
    let size = Size::new(64, 64);
    image(&mut d, XRGB, size);
    d.transfer(1, Rect::whole(size), 0);
    d.set_scanout(0, 1, Rect::whole(size));
    d.gpu().set_mode(1, None).unwrap();
    d.reset();
    assert_eq!(d.gpu().process(CONTROL_QUEUE, &mut Deadline::new()).unwrap(), Progress::Done);
    assert_eq!(d.gpu().process(CURSOR_QUEUE, &mut Deadline::new()).unwrap(), Progress::Done);
    assert_eq!(d.gpu().process(77, &mut Deadline::new()).unwrap(), Progress::Done);
    assert_eq!(d.gpu().stats().host_bytes, 0);
    assert_eq!(d.gpu().mode(ScanoutId::new(1).unwrap()), None, "the host's choice stays");
    let features = d.gpu().features();
    d.start(features);
    assert_eq!(d.flush(1, Rect::whole(size)), error::RESOURCE_ID);
    image(&mut d, XRGB, size);
}
