// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use super::*;

/// The sizes of the standard's structures, which include the header.
#[test]
fn structures_have_the_standard_sizes() {
    const HEADER: usize = 24;
    assert_eq!(size_of::<CommandHeader>(), HEADER);
    assert_eq!(HEADER + size_of::<Create2d>(), 40);
    assert_eq!(HEADER + size_of::<SetScanout>(), 48);
    assert_eq!(HEADER + size_of::<Flush>(), 48);
    assert_eq!(HEADER + size_of::<TransferToHost>(), 56);
    assert_eq!(HEADER + size_of::<CreateBlob>(), 56);
    assert_eq!(HEADER + size_of::<SetScanoutBlob>(), 96);
    assert_eq!(HEADER + size_of::<MapBlob>(), 40);
    assert_eq!(HEADER + size_of::<UpdateCursor>(), 56);
    assert_eq!(size_of::<MemEntry>(), 16);
    assert_eq!(size_of::<MigrateEntry>(), 16);
    assert_eq!(size_of::<MigratePage>(), 24);
}

fn decode(kind: u32, bytes: &[u8]) -> Result<Command, DecodeError> {
    Command::decode(kind, &mut CommandBody::new(bytes, bytes.len() as u64), 4)
}

#[test]
fn a_count_beyond_the_bytes_sent_takes_no_memory() {
    for count in [2u32, 3, 1 << 28, u32::MAX] {
        let mut bytes = [0; 8 + 16];
        bytes[4..8].copy_from_slice(&count.to_le_bytes());
        assert_eq!(
            decode(code::RESOURCE_ATTACH_BACKING, &bytes).err(),
            Some(DecodeError::Malformed)
        );
    }
}

#[test]
fn a_count_beyond_the_limit_is_refused() {
    let attach = |count: u8| {
        let mut bytes = vec![0; 8 + usize::from(count) * 16];
        bytes[4] = count;
        decode(code::RESOURCE_ATTACH_BACKING, &bytes).err()
    };
    assert_eq!((attach(4), attach(5)), (None, Some(DecodeError::TooManyEntries)));

    let migrate = |count: u32| {
        let mut bytes = vec![0; 8 + count as usize * 16];
        bytes[4..8].copy_from_slice(&count.to_le_bytes());
        decode(code::RESOURCE_MIGRATE_BACKING, &bytes).err()
    };
    assert_eq!((migrate(512), migrate(513)), (None, Some(DecodeError::TooManyMoves)));
}

#[test]
fn every_command_cut_short_is_malformed() {
    let whole = [0u8; 96];
    for (kind, size) in [
        (code::RESOURCE_CREATE_2D, 16),
        (code::RESOURCE_UNREF, 8),
        (code::SET_SCANOUT, 24),
        (code::RESOURCE_FLUSH, 24),
        (code::TRANSFER_TO_HOST_2D, 32),
        (code::RESOURCE_ATTACH_BACKING, 8),
        (code::RESOURCE_DETACH_BACKING, 8),
        (code::GET_EDID, 8),
        (code::RESOURCE_ASSIGN_UUID, 8),
        (code::RESOURCE_CREATE_BLOB, 32),
        (code::SET_SCANOUT_BLOB, 72),
        (code::RESOURCE_MAP_BLOB, 16),
        (code::RESOURCE_UNMAP_BLOB, 8),
        (code::RESOURCE_MIGRATE_BACKING, 8),
        (code::UPDATE_CURSOR, 32),
        (code::MOVE_CURSOR, 32),
    ] {
        assert!(decode(kind, &whole[..size]).is_ok(), "{kind:#x}");
        assert_eq!(
            decode(kind, &whole[..size - 1]).err(),
            Some(DecodeError::Malformed),
            "{kind:#x}"
        );
    }
}

#[test]
fn what_is_not_offered_is_a_value() {
    for kind in [0, code::CTX_CREATE, code::RESOURCE_CREATE_3D, 0x01ff, u32::MAX] {
        assert!(matches!(decode(kind, &[]), Ok(Command::Unsupported(raw)) if raw == kind));
    }
}
