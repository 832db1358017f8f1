// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages of RFB 3.7 and 3.8 (RFC 6143, 7): as many as a viewer that only looks needs.

use std::io::{self, Read, Write};

use super::pixel_format::PixelFormat;
use crate::display::{Rect, Size};

/// Raw pixels (RFC 6143, 7.7.1).
const ENCODING_RAW: i32 = 0;
/// The rectangle's size is the new size of the desktop (7.8.2).
const ENCODING_DESKTOP_SIZE: i32 = -223;
/// No authentication (7.1.2).
const SECURITY_NONE: u8 = 1;
/// Encodings that are looked at, of those that a client lists.
const MAX_ENCODINGS: u16 = 256;
/// Bytes of clipboard that are read and dropped before a client is taken for a bad one.
const MAX_CUT_TEXT: u32 = 1 << 20;

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClientMessage {
    /// SetPixelFormat.
    Format(PixelFormat),
    /// SetEncodings: whether it understands that the desktop's size changes.
    Encodings {
        /// DesktopSize is among them.
        desktop_size: bool,
    },
    /// FramebufferUpdateRequest: of everything, or of what changed.
    Update {
        /// Not incremental.
        all: bool,
    },
    /// Keys, pointer or clipboard: not for us.
    Input,
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Version, security and ClientInit (7.1, 7.3.1).
pub(super) fn handshake(stream: &mut (impl Read + Write)) -> io::Result<()> {
    stream.write_all(b"RFB 003.008\n")?;
    let version: [u8; 12] = read(stream)?;
    let tells_result = match &version {
        b"RFB 003.008\n" => true,
        b"RFB 003.007\n" => false,
        _ => return Err(bad("the viewer speaks neither RFB 3.7 nor 3.8")),
    };
    stream.write_all(&[1, SECURITY_NONE])?;
    if read::<1>(stream)? != [SECURITY_NONE] {
        return Err(bad("the viewer chose a security type that was not offered"));
    }
    if tells_result {
        stream.write_all(&0u32.to_be_bytes())?;
    }
    // Whether it would share the desktop: it always does.
    read::<1>(stream).map(drop)
}

/// ServerInit (7.3.2).
pub(super) fn server_init(size: Size, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(extent(size.width));
    bytes.extend(extent(size.height));
    bytes.extend(PixelFormat::default().to_wire());
    bytes.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
    bytes.extend(name.as_bytes());
    bytes
}

/// A FramebufferUpdate (7.6.1) up to its pixels: of a new size, of an area of raw pixels, or both.
pub(super) fn update_header(size: Option<Size>, area: Option<Rect>) -> Vec<u8> {
    let resize = size.map(|size| (Rect::whole(size), ENCODING_DESKTOP_SIZE));
    let rectangles = resize.into_iter().chain(area.map(|area| (area, ENCODING_RAW)));
    let count = u16::from(size.is_some()) + u16::from(area.is_some());
    let mut bytes = vec![0, 0];
    bytes.extend(count.to_be_bytes());
    for (rect, encoding) in rectangles {
        for side in [rect.x, rect.y, rect.width, rect.height] {
            bytes.extend(extent(side));
        }
        bytes.extend(encoding.to_be_bytes());
    }
    bytes
}

/// A coordinate; modes have twelve bits, but what a guest shows may be larger and is cut.
fn extent(pixels: u32) -> [u8; 2] {
    u16::try_from(pixels).unwrap_or(u16::MAX).to_be_bytes()
}

/// The next message of a client (7.5).
pub(super) fn read_message(stream: &mut impl Read) -> io::Result<ClientMessage> {
    match read::<1>(stream)?[0] {
        0 => {
            let [_, _, _, format @ ..] = read::<19>(stream)?;
            let format = PixelFormat::from_wire(&format);
            format.map(ClientMessage::Format).ok_or_else(|| bad("not a true-colour format"))
        }
        2 => {
            let [_, high, low] = read(stream)?;
            let count = u16::from_be_bytes([high, low]);
            if count > MAX_ENCODINGS {
                return Err(bad("too many encodings"));
            }
            let mut desktop_size = false;
            for _ in 0..count {
                desktop_size |= i32::from_be_bytes(read(stream)?) == ENCODING_DESKTOP_SIZE;
            }
            Ok(ClientMessage::Encodings { desktop_size })
        }
        3 => {
            let [incremental, ..] = read::<9>(stream)?;
            Ok(ClientMessage::Update { all: incremental == 0 })
        }
        4 => read::<7>(stream).map(|_| ClientMessage::Input),
        5 => read::<5>(stream).map(|_| ClientMessage::Input),
        6 => {
            let [_, _, _, length @ ..] = read::<7>(stream)?;
            let length = u32::from_be_bytes(length);
            if length > MAX_CUT_TEXT {
                return Err(bad("too much clipboard"));
            }
            io::copy(&mut stream.take(length.into()), &mut io::sink())?;
            Ok(ClientMessage::Input)
        }
        _ => Err(bad("unknown message")),
    }
}

fn read<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes, it is a message or an error, and no more is taken than was sent.
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut left = &bytes[..];
            while let Ok(_message) = read_message(&mut left) {}
        }
    }

    #[test]
    fn a_clipboard_is_passed_over() {
        let mut bytes =
            &[6, 0, 0, 0, 0, 0, 0, 3, b'a', b'b', b'c', 3, 0, 0, 0, 0, 0, 0, 0, 0, 0][..];
        assert_eq!(read_message(&mut bytes).unwrap(), ClientMessage::Input);
        assert_eq!(read_message(&mut bytes).unwrap(), ClientMessage::Update { all: true });
        let mut long = &[6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff][..];
        assert!(read_message(&mut long).is_err());
    }
}
