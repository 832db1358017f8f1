// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! HTTP/1 messages as bytes: heads and chunked bodies in, answers out. No I/O.
//!
//! The grammar is `httparse`'s; this file implements RFC 9112's framing and Firecracker's
//! connection handling: HTTP/1.0 connections are kept alive too, unless the client closes them.

use axum::response::Response;
use bytes::{Buf, Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::{HeaderMap, Method, Uri};
use mm::units::usize_from;

use super::path::target;

/// Longest head, in bytes.
pub(super) const MAX_HEAD: usize = 16 * 1024;

/// Most fields in a head.
const MAX_FIELDS: usize = 64;

/// The interim answer to `Expect: 100-continue`.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Bytes that are not the head or body of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum MessageError {
    /// Not a request line and fields.
    #[error("{0}")]
    Malformed(#[from] httparse::Error),
    /// No method, target or field that HTTP has.
    #[error("invalid method, target or header field")]
    Invalid,
    /// Too many bytes before the empty line.
    #[error("the head is longer than {MAX_HEAD} bytes")]
    TooLong,
    /// Two lengths, an unreadable one, or a coding other than chunked.
    #[error("cannot determine the length of the body")]
    Framing,
    /// Bytes where a chunk's size or end should be.
    #[error("malformed chunked body")]
    Chunk,
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes; 0 without a length field.
    Length(u64),
    /// In chunks that say themselves.
    Chunked,
}

/// Request line and fields.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// The client asks for the connection's end after this request.
    pub(super) closes: bool,
    /// The client waits for [`CONTINUE`] before it sends the body.
    pub(super) expects_continue: bool,
}

impl Head {
    /// Takes a whole head off the front of `buffer`; `None` while it is incomplete.
    pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Self>, MessageError> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let httparse::Status::Complete(length) = request.parse(buffer)? else {
            return if buffer.len() > MAX_HEAD { Err(MessageError::TooLong) } else { Ok(None) };
        };
        let head = Self::new(&request)?;
        buffer.advance(length);
        Ok(Some(head))
    }

    fn new(request: &httparse::Request<'_, '_>) -> Result<Self, MessageError> {
        let invalid = || MessageError::Invalid;
        let method = request.method.and_then(|method| method.parse().ok()).ok_or_else(invalid)?;
        let uri = request.path.and_then(|path| target(path).ok()).ok_or_else(invalid)?;
        let mut headers = HeaderMap::with_capacity(request.headers.len());
        for field in request.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| invalid())?;
            let value = HeaderValue::from_bytes(field.value).map_err(|_| invalid())?;
            headers.append(name, value);
        }
        let framing = framing(&headers)?;
        let closes = has_token(&headers, &CONNECTION, "close");
        let expects_continue =
            request.version == Some(1) && has_token(&headers, &EXPECT, "100-continue");
        Ok(Self { method, uri, headers, framing, closes, expects_continue })
    }
}

/// RFC 9112, 6.3: one length, or chunks, but never both.
fn framing(headers: &HeaderMap) -> Result<Framing, MessageError> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (lengths.next(), lengths.next(), codings.next(), codings.next()) {
        (None, _, None, _) => Ok(Framing::Length(0)),
        (Some(length), None, None, _) => {
            let digits = length.to_str().map_err(|_| MessageError::Framing)?;
            let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            match digits.parse() {
                Ok(length) if all_digits => Ok(Framing::Length(length)),
                _ => Err(MessageError::Framing),
            }
        }
        (None, _, Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            Ok(Framing::Chunked)
        }
        _ => Err(MessageError::Framing),
    }
}

/// Whether the comma-separated lists of field `name` contain `token`, in any case of letters.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// A chunked body being received.
#[derive(Debug)]
pub(super) struct Chunks {
    expects: Expects,
    body: BytesMut,
}

#[derive(Debug, Clone, Copy)]
enum Expects {
    Size,
    Data(usize),
    EndOfData,
    Trailer,
}

impl Chunks {
    pub(super) fn new() -> Self {
        Self { expects: Expects::Size, body: BytesMut::new() }
    }

    /// Bytes of the body so far.
    pub(super) fn len(&self) -> usize {
        self.body.len()
    }

    /// The body, when it is complete.
    pub(super) fn into_body(self) -> Bytes {
        self.body.freeze()
    }

    /// Takes as much as possible off the front of `buffer`, at most `limit` bytes of body and one
    /// more chunk; true at the end of the body.
    pub(super) fn take(
        &mut self,
        buffer: &mut BytesMut,
        limit: usize,
    ) -> Result<bool, MessageError> {
        while self.len() <= limit {
            match self.expects {
                Expects::Size => match httparse::parse_chunk_size(buffer) {
                    Ok(httparse::Status::Complete((length, size))) => {
                        buffer.advance(length);
                        let size = usize_from(size);
                        self.expects =
                            if size == 0 { Expects::Trailer } else { Expects::Data(size) };
                    }
                    Ok(httparse::Status::Partial) if buffer.len() <= MAX_HEAD => return Ok(false),
                    _ => return Err(MessageError::Chunk),
                },
                Expects::Data(left) => {
                    let taken = left.min(buffer.len());
                    if taken == 0 {
                        return Ok(false);
                    }
                    self.body.extend_from_slice(&buffer.split_to(taken));
                    self.expects = if taken == left {
                        Expects::EndOfData
                    } else {
                        Expects::Data(left - taken)
                    };
                }
                Expects::EndOfData => match line(buffer)? {
                    None => return Ok(false),
                    Some(0) => self.expects = Expects::Size,
                    Some(_) => return Err(MessageError::Chunk),
                },
                // Fields after the body mean nothing here.
                Expects::Trailer => match line(buffer)? {
                    None => return Ok(false),
                    Some(0) => return Ok(true),
                    Some(_) => {}
                },
            }
        }
        Ok(false)
    }
}

/// Takes a line off `buffer` and returns its length without the line ending.
fn line(buffer: &mut BytesMut) -> Result<Option<usize>, MessageError> {
    match buffer.windows(2).position(|two| two == b"\r\n") {
        Some(length) => {
            buffer.advance(length + 2);
            Ok(Some(length))
        }
        None if buffer.len() > MAX_HEAD => Err(MessageError::Chunk),
        None => Ok(None),
    }
}

/// The bytes of a response; `closes` tells the client that the connection will close.
pub(super) fn answer(parts: &http::response::Parts, body: &Bytes, closes: bool) -> BytesMut {
    let mut out = BytesMut::with_capacity(256 + body.len());
    let reason = parts.status.canonical_reason().unwrap_or_default();
    out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", parts.status.as_str()).as_bytes());
    out.extend_from_slice(b"Server: Firecracker API\r\n");
    let connection: &[u8] = if closes { b"close" } else { b"keep-alive" };
    out.extend_from_slice(b"Connection: ");
    out.extend_from_slice(connection);
    out.extend_from_slice(b"\r\n");
    for (name, value) in &parts.headers {
        if name == CONTENT_LENGTH || name == CONNECTION {
            continue;
        }
        out.extend_from_slice(title_case(name.as_str()).as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    // RFC 9110, 8.6: none with 204.
    if parts.status != http::StatusCode::NO_CONTENT {
        out.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
    out
}

/// `content-type` as `Content-Type`: some clients compare letter by letter.
fn title_case(name: &str) -> String {
    let mut starts = true;
    let letter = |c: char| {
        let c = if starts { c.to_ascii_uppercase() } else { c };
        starts = c == '-';
        c
    };
    name.chars().map(letter).collect()
}

/// The whole body of a response that is made in memory.
pub(super) async fn whole(response: Response) -> (http::response::Parts, Bytes) {
    use http_body_util::BodyExt;
    let (parts, body) = response.into_parts();
    // Response bodies are in memory: reading them neither fails nor waits.
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    (parts, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Option<Head>, MessageError> {
        Head::take(&mut BytesMut::from(text))
    }

    #[test]
    fn heads_are_taken_whole() {
        let mut buffer = BytesMut::from("GET /a HTTP/1.0\r\nConnection: x, Close\r\n\r\nrest");
        let head = Head::take(&mut buffer).unwrap().unwrap();
        assert_eq!((head.method, head.uri.path(), head.closes), (Method::GET, "/a", true));
        assert_eq!(&buffer[..], b"rest");
        assert!(self::head("GET / HTTP/1.1\r\nHost: x\r\n").unwrap().is_none());
    }

    #[test]
    fn ambiguous_lengths_are_refused() {
        let framing = |fields: &str| {
            head(&format!("PUT / HTTP/1.1\r\n{fields}\r\n\r\n")).map(|head| head.unwrap().framing)
        };
        assert_eq!(framing("Content-Length: 3"), Ok(Framing::Length(3)));
        assert_eq!(framing("Transfer-Encoding: Chunked"), Ok(Framing::Chunked));
        for fields in [
            "Content-Length: +3",
            "Content-Length: ",
            "Content-Length: 99999999999999999999",
            "Content-Length: 1\r\nContent-Length: 2",
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ] {
            assert_eq!(framing(fields), Err(MessageError::Framing), "{fields}");
        }
    }

    #[test]
    fn chunks_may_come_in_any_pieces() {
        let text = b"4;x=y\r\nWiki\r\n5\r\npedia\r\n0\r\nTrailer: x\r\n\r\nnext";
        for size in 1..text.len() {
            let (mut chunks, mut buffer, mut done) = (Chunks::new(), BytesMut::new(), false);
            for piece in text.chunks(size) {
                buffer.extend_from_slice(piece);
                done = done || chunks.take(&mut buffer, 100).unwrap();
            }
            assert!(done);
            assert_eq!(chunks.into_body(), "Wikipedia");
            assert_eq!(&buffer[..], b"next");
        }
        for bad in [&b"x\r\n"[..], b"1\r\nab\r\n", b"ffffffffffffffffff\r\n"] {
            let taken = Chunks::new().take(&mut BytesMut::from(bad), 100);
            assert_eq!(taken, Err(MessageError::Chunk));
        }
    }
}
