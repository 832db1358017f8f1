// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages of RFB 3.3, 3.7 and 3.8 (RFC 6143, 7): as many as a viewer that only looks needs.

use std::io::{self, Read, Write};

use super::pixel_format::ClientPixelFormat;
use crate::display::{Area, Extent, Size};

/// Raw pixels (RFC 6143, 7.7.1).
const ENCODING_RAW: i32 = 0;
/// The rectangle's size is the new size of the desktop (7.8.2).
const ENCODING_DESKTOP_SIZE: i32 = -223;
/// No authentication (7.1.2).
const SECURITY_NONE: u8 = 1;
/// Encodings that are looked at, of those that a client lists.
const MAX_ENCODINGS: u16 = 256;
/// Largest clipboard message that is read and dropped; a longer one is an error.
const MAX_CUT_TEXT: u32 = 1 << 20;

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClientMessage {
    /// SetPixelFormat.
    Format(ClientPixelFormat),
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
    /// Keys, pointer or clipboard: ignored.
    Input,
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The version that the two sides speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// 3.3, and any version that is not one of the others (7.1.1).
    V3_3,
    V3_7,
    V3_8,
}

impl Version {
    fn parse(message: &[u8; 12]) -> Option<Self> {
        let [b'R', b'F', b'B', b' ', major @ .., b'.', _, _, _, b'\n'] = message else {
            return None;
        };
        if !major.iter().chain(&message[8..11]).all(u8::is_ascii_digit) {
            return None;
        }
        Some(match message {
            b"RFB 003.008\n" => Self::V3_8,
            b"RFB 003.007\n" => Self::V3_7,
            _ => Self::V3_3,
        })
    }
}

/// Version, security and ClientInit (7.1, 7.3.1).
///
/// # Errors
///
/// When the stream ends, its deadline passes, or the peer is not a viewer.
pub(super) fn handshake(stream: &mut (impl Read + Write)) -> io::Result<()> {
    stream.write_all(b"RFB 003.008\n")?;
    let version = Version::parse(&read(stream)?).ok_or_else(|| bad("not an RFB client"))?;
    if version == Version::V3_3 {
        // The server decides, and there is no result for None (7.1.2, 7.1.3).
        stream.write_all(&u32::from(SECURITY_NONE).to_be_bytes())?;
    } else {
        stream.write_all(&[1, SECURITY_NONE])?;
        if read::<1>(stream)? != [SECURITY_NONE] {
            return Err(bad("the viewer chose an unsupported security type"));
        }
    }
    if version == Version::V3_8 {
        stream.write_all(&0u32.to_be_bytes())?;
    }
    // Whether it would share the desktop: it always does.
    read::<1>(stream).map(drop)
}

/// ServerInit (7.3.2).
pub(super) fn server_init(size: Size, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for side in [size.width, size.height] {
        bytes.extend(Extent::get(side).to_be_bytes());
    }
    bytes.extend(ClientPixelFormat::default().to_wire());
    let name = &name.as_bytes()[..name.len().min(255)];
    bytes.extend([0, 0, 0, name.len() as u8]);
    bytes.extend(name);
    bytes
}

/// A FramebufferUpdate (7.6.1) up to its pixels: of a new size, of an area of raw pixels, or both.
pub(super) fn update_header(size: Option<Size>, area: Option<Area>) -> Vec<u8> {
    let resize = size.map(|size| (Area::whole(size), ENCODING_DESKTOP_SIZE));
    let rectangles = resize.into_iter().chain(area.map(|area| (area, ENCODING_RAW)));
    let count = u16::from(size.is_some()) + u16::from(area.is_some());
    let mut bytes = vec![0, 0];
    bytes.extend(count.to_be_bytes());
    for (Area { x, y, size }, encoding) in rectangles {
        for side in [x, y, size.width.get(), size.height.get()] {
            bytes.extend(side.to_be_bytes());
        }
        bytes.extend(encoding.to_be_bytes());
    }
    bytes
}

/// The next message of a client (7.5), whose first byte is `kind`.
///
/// # Errors
///
/// When the stream ends, its deadline passes, or the message is invalid.
pub(super) fn read_message(kind: u8, stream: &mut impl Read) -> io::Result<ClientMessage> {
    match kind {
        0 => {
            let [_, _, _, format @ ..] = read::<19>(stream)?;
            let format = ClientPixelFormat::from_wire(&format);
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
                return Err(bad("clipboard message too long"));
            }
            let skipped = io::copy(&mut stream.take(length.into()), &mut io::sink())?;
            if skipped < u64::from(length) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
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
        /// Any input is a message or an error, and no more is taken than was sent.
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut left = &bytes[..];
            while let Some((kind, rest)) = left.split_first() {
                left = rest;
                if read_message(*kind, &mut left).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_clipboard_is_skipped() {
        let mut bytes = &[0, 0, 0, 0, 0, 0, 3, b'a', b'b', b'c', 0, 0, 0, 0, 0, 0, 0, 0, 0][..];
        assert_eq!(read_message(6, &mut bytes).unwrap(), ClientMessage::Input);
        assert_eq!(read_message(3, &mut bytes).unwrap(), ClientMessage::Update { all: true });
        let mut long = &[0, 0, 0, 0xff, 0xff, 0xff, 0xff][..];
        assert!(read_message(6, &mut long).is_err());
        let mut cut = &[0, 0, 0, 0, 0, 0, 9, b'a'][..];
        assert!(read_message(6, &mut cut).is_err(), "the clipboard ends early");
    }

    /// A client's half of a conversation, and the server's answers.
    struct Talk<'a> {
        says: &'a [u8],
        hears: Vec<u8>,
    }

    impl Read for Talk<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.says.read(out)
        }
    }

    impl Write for Talk<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.hears.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_version_gets_its_own_handshake() {
        let ours = b"RFB 003.008\n";
        let shake = |says: &[u8]| {
            let mut talk = Talk { says, hears: Vec::new() };
            let result = handshake(&mut talk);
            assert!(talk.hears.starts_with(ours));
            result.map(|()| (talk.hears[12..].to_vec(), talk.says.len()))
        };
        // 3.8 gets the result, 3.7 does not.
        assert_eq!(shake(b"RFB 003.008\n\x01\x01").unwrap(), (vec![1, 1, 0, 0, 0, 0], 0));
        assert_eq!(shake(b"RFB 003.007\n\x01\x01").unwrap(), (vec![1, 1], 0));
        // All others are spoken to as 3.3: macOS calls itself 3.889.
        for version in ["003.003", "003.889", "003.005", "004.001"] {
            let says = format!("RFB {version}\n\x01");
            assert_eq!(shake(says.as_bytes()).unwrap(), (vec![0, 0, 0, 1], 0), "{version}");
        }
        for bad in [&b"GET / HTTP/1.1\r\n"[..], b"RFB 003.00x\n\x01", b"RFB 003", b""] {
            assert!(shake(bad).is_err());
        }
        assert!(shake(b"RFB 003.008\n\x02\x01").is_err(), "a security type that is not offered");
    }
}
