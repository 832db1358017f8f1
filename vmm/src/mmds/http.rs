// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's requests: GET of a part of the document, PUT of a token.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::Instant;

use devices::net::{Exchange, Service};

use super::state::Mmds;
use super::store::{MetadataError, as_text};
use super::token::TokenError;

/// Headers of a request that are read at most.
const MAX_HEADERS: usize = 32;
/// Where tokens come from.
const TOKEN_PATH: &[&str] = &["latest", "api", "token"];
/// Headers with the token: Firecracker's and EC2's.
const TOKEN: &[&str] = &["X-metadata-token", "X-aws-ec2-metadata-token"];
/// Headers with the time to live of a new token, in seconds.
const TOKEN_TTL: &[&str] =
    &["X-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token-ttl-seconds"];

/// Which requests of the guest need a token, and the form of replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmdsRules {
    /// A GET without a valid token is rejected (version 2).
    pub tokens_required: bool,
    /// Always plain text regardless of the `Accept` header, as in EC2.
    pub always_plain: bool,
}

/// The service on one interface.
pub struct Http {
    mmds: Mmds,
    rules: MmdsRules,
}

/// A request's parts.
struct GuestRequest<'a> {
    method: &'a str,
    /// Without scheme, host and query.
    path: &'a str,
    headers: &'a [httparse::Header<'a>],
}

impl<'a> GuestRequest<'a> {
    /// The first of `names` that the request has, and its value.
    fn header<'n>(&self, names: &[&'n str]) -> Option<(&'n str, Cow<'a, str>)> {
        let find = |name: &'n str| {
            let header = self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            header.map(|header| (name, String::from_utf8_lossy(header.value.trim_ascii())))
        };
        names.iter().copied().find_map(find)
    }

    /// Whether the lists of field `Connection` contain `token` (RFC 9110, 7.6.1).
    fn connection_has(&self, token: &str) -> bool {
        let lists = self.headers.iter().filter(|it| it.name.eq_ignore_ascii_case("Connection"));
        lists
            .flat_map(|list| list.value.split(|byte| *byte == b','))
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }
}

/// The path of a request's target, which may be an absolute URI (RFC 9112, 3.2.2).
fn path(target: &str) -> &str {
    let path = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
        None => target,
    };
    path.split(['?', '#']).next().unwrap_or("")
}

/// The reply to a request.
struct GuestReply {
    status: &'static str,
    kind: &'static str,
    more: String,
    body: String,
}

impl GuestReply {
    fn text(status: &'static str, body: impl Into<String>) -> Self {
        Self { status, kind: "text/plain", more: String::new(), body: body.into() }
    }

    fn bytes(&self, close: bool) -> Vec<u8> {
        let Self { status, kind, more, body } = self;
        let connection = if close { "close" } else { "keep-alive" };
        format!(
            "HTTP/1.1 {status}\r\nServer: Ballast\r\nConnection: {connection}\r\n{more}\
             Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

impl Http {
    /// The service on an interface with these `rules`, to be put behind TCP.
    pub fn new(mmds: Mmds, rules: MmdsRules) -> Self {
        Self { mmds, rules }
    }

    fn respond(&self, request: &GuestRequest<'_>, now: Instant) -> GuestReply {
        match request.method {
            "GET" => self.get(request, now),
            "PUT" => self.put(request, now),
            method => GuestReply {
                more: "Allow: GET, PUT\r\n".into(),
                ..GuestReply::text("405 Method Not Allowed", format!("{method}: send GET or PUT."))
            },
        }
    }

    /// A new token.
    fn put(&self, request: &GuestRequest<'_>, now: Instant) -> GuestReply {
        let refuse = |problem: String| GuestReply::text("400 Bad Request", problem);
        // A proxy would hand the token to others than the guest.
        if let Some((name, _)) = request.header(&["X-Forwarded-For"]) {
            return refuse(format!("A request with {name} gets no token."));
        }
        if !request.path.split('/').filter(|part| !part.is_empty()).eq(TOKEN_PATH.iter().copied()) {
            let problem = format!("{}: only /latest/api/token takes PUT.", request.path);
            return GuestReply::text("404 Not Found", problem);
        }
        let Some((name, ttl)) = request.header(TOKEN_TTL) else {
            return refuse(format!("Give the token's time to live in {}.", TOKEN_TTL[0]));
        };
        let Ok(ttl) = ttl.parse() else {
            return refuse(format!("{name}: `{ttl}` is not a number of seconds."));
        };
        match self.mmds.tokens().create(ttl, now) {
            Ok(token) => GuestReply {
                more: format!("{name}: {ttl}\r\n"),
                ..GuestReply::text("200 OK", token)
            },
            Err(error @ TokenError::TimeToLive(_)) => refuse(error.to_string()),
            Err(error) => GuestReply::text("500 Internal Server Error", error.to_string()),
        }
    }

    /// A part of the document.
    fn get(&self, request: &GuestRequest<'_>, now: Instant) -> GuestReply {
        if let Err(refusal) = self.check_token(request, now)
            && self.rules.tokens_required
        {
            return refusal;
        }
        let json = !self.rules.always_plain
            && request
                .header(&["Accept"])
                .is_some_and(|(_, kind)| kind.contains("application/json"));
        let store = self.mmds.store();
        let reply = store.at(request.path).and_then(|value| match json {
            true => Ok(GuestReply {
                kind: "application/json",
                ..GuestReply::text("200 OK", value.to_string())
            }),
            false => as_text(value).map(|text| GuestReply::text("200 OK", text)),
        });
        reply.unwrap_or_else(|error| {
            let status = match error {
                MetadataError::UnsupportedType => "501 Not Implemented",
                _ => "404 Not Found",
            };
            GuestReply::text(status, error.to_string())
        })
    }

    /// Counts missing and invalid tokens, also where none is required: so a user sees whether the
    /// guests are ready for version 2.
    fn check_token(&self, request: &GuestRequest<'_>, now: Instant) -> Result<(), GuestReply> {
        let counters = self.mmds.token_counters();
        let (counter, problem) = match request.header(TOKEN) {
            Some((_, token)) if self.mmds.tokens().is_valid(&token, now) => return Ok(()),
            Some(_) => (&counters.rx_invalid_token, "The token is unknown or has expired."),
            None => {
                (&counters.rx_no_token, "Give a token of /latest/api/token in X-metadata-token.")
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Err(GuestReply::text("401 Unauthorized", problem))
    }
}

impl Service for Http {
    fn answer(&mut self, received: &[u8], full: bool, now: Instant) -> Exchange {
        let refuse = |problem: &str| Exchange::Reply {
            consumed: received.len(),
            bytes: GuestReply::text("400 Bad Request", problem).bytes(true),
            close: true,
        };
        let incomplete = || match full {
            true => refuse("The request is too long."),
            false => Exchange::Incomplete,
        };
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        let head = match parsed.parse(received) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) => return incomplete(),
            Err(error) => return refuse(&format!("This is not an HTTP request: {error}.")),
        };
        let request = GuestRequest {
            method: parsed.method.unwrap_or(""),
            path: path(parsed.path.unwrap_or("")),
            headers: parsed.headers,
        };
        if request.header(&["Transfer-Encoding"]).is_some() {
            return refuse("A body in chunks is not supported.");
        }
        let body = match request.header(&["Content-Length"]).map(|(_, len)| len.parse::<usize>()) {
            None => 0,
            Some(Ok(len)) => len,
            Some(Err(_)) => return refuse("Content-Length is not a number."),
        };
        let Some(consumed) = head.checked_add(body).filter(|len| *len <= received.len()) else {
            return incomplete();
        };
        // RFC 9112, 9.3: version 1.0 keeps a connection only where it is asked to.
        let old = parsed.version == Some(0);
        let close =
            request.connection_has("close") || (old && !request.connection_has("keep-alive"));
        // A reply to HEAD, which is rejected, must not have a body.
        let close = close || !matches!(request.method, "GET" | "PUT");
        let response = self.respond(&request, now);
        Exchange::Reply { consumed, bytes: response.bytes(close), close }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    const V1: MmdsRules = MmdsRules { tokens_required: false, always_plain: false };
    const V2: MmdsRules = MmdsRules { tokens_required: true, always_plain: false };

    fn http(rules: MmdsRules) -> Http {
        let mmds = Mmds::new(1000);
        mmds.store().put(json!({"a": {"b": "text", "n": 1}})).unwrap();
        Http::new(mmds, rules)
    }

    fn ask(http: &mut Http, request: &str, now: Instant) -> String {
        match http.answer(request.as_bytes(), false, now) {
            Exchange::Reply { consumed, bytes, .. } => {
                assert_eq!(consumed, request.len());
                String::from_utf8(bytes).unwrap()
            }
            Exchange::Incomplete => panic!("{request:?} is incomplete"),
        }
    }

    fn status(reply: &str) -> &str {
        reply.split(' ').nth(1).unwrap()
    }

    #[test]
    fn version_1_serves_parts_as_text_or_json() {
        let (mut http, now) = (http(V1), Instant::now());
        let reply = ask(&mut http, "GET /a/b HTTP/1.1\r\n\r\n", now);
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        assert!(reply.ends_with("Content-Type: text/plain\r\nContent-Length: 4\r\n\r\ntext"));
        let json = "GET /a HTTP/1.1\r\nAccept: application/json\r\n\r\n";
        assert!(ask(&mut http, json, now).ends_with(r#"{"b":"text","n":1}"#));
        assert!(ask(&mut http, "GET /a HTTP/1.1\r\n\r\n", now).ends_with("\r\n\r\nb\nn"));
        let absolute = "GET http://169.254.169.254/a/b?x=y HTTP/1.1\r\n\r\n";
        assert!(ask(&mut http, absolute, now).ends_with("text"));
        for (request, code) in [
            ("GET /a/n HTTP/1.1\r\n\r\n", "501"),
            ("GET /x HTTP/1.1\r\n\r\n", "404"),
            ("GET http://169.254.169.254 HTTP/1.1\r\n\r\n", "200"),
            ("DELETE /a HTTP/1.1\r\n\r\n", "405"),
            ("POST /a HTTP/1.1\r\n\r\n", "405"),
            // Tokens can be requested and used before version 2 is enabled.
            ("PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n", "200"),
            ("GET /a HTTP/1.1\r\nX-metadata-token: 00\r\n\r\n", "200"),
        ] {
            assert_eq!(status(&ask(&mut http, request, now)), code, "{request:?}");
        }
        let counters = http.mmds.token_counters();
        assert_eq!(counters.rx_invalid_token.load(Ordering::Relaxed), 1);
        assert_eq!(counters.rx_no_token.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn with_imds_compatibility_replies_are_plain_text() {
        let mut http = http(MmdsRules { always_plain: true, ..V1 });
        let json = "GET /a HTTP/1.1\r\nAccept: application/json\r\n\r\n";
        assert!(ask(&mut http, json, Instant::now()).ends_with("\r\n\r\nb\nn"));
    }

    #[test]
    fn version_2_requires_a_token_that_has_not_expired() {
        let (mut http, now) = (http(V2), Instant::now());
        assert_eq!(status(&ask(&mut http, "GET /a/b HTTP/1.1\r\n\r\n", now)), "401");
        let wrong = "GET /a/b HTTP/1.1\r\nX-metadata-token: 00\r\n\r\n";
        assert_eq!(status(&ask(&mut http, wrong, now)), "401");
        for (ttl, token) in TOKEN_TTL.iter().zip(TOKEN) {
            let put = format!("PUT /latest/api/token HTTP/1.1\r\n{ttl}: 60\r\n\r\n");
            let reply = ask(&mut http, &put, now);
            assert!(reply.contains(&format!("\r\n{ttl}: 60\r\n")), "{reply}");
            let value = reply.rsplit("\r\n").next().unwrap();
            let name = token.to_uppercase();
            let get = format!("GET /a/b HTTP/1.1\r\n{name}: {value}\r\n\r\n");
            assert!(ask(&mut http, &get, now).ends_with("text"));
            let late = now + Duration::from_secs(60);
            assert_eq!(status(&ask(&mut http, &get, late)), "401");
        }
        for bad in [
            "PUT /latest/api/token HTTP/1.1\r\n\r\n",
            "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 0\r\n\r\n",
            "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 21601\r\n\r\n",
            "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: -1\r\n\r\n",
            "PUT /latest/api/token HTTP/1.1\r\nX-Forwarded-For: a\r\n\
             X-metadata-token-ttl-seconds: 60\r\n\r\n",
        ] {
            assert_eq!(status(&ask(&mut http, bad, now)), "400", "{bad}");
        }
        let other = "PUT /other HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
        assert_eq!(status(&ask(&mut http, other, now)), "404");
    }

    #[test]
    fn parts_of_requests_are_waited_for_and_malformed_ones_are_refused() {
        let (mut http, now) = (http(V1), Instant::now());
        for part in [
            "",
            "GET /a HT",
            "GET /a HTTP/1.1\r\nA: b\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab",
            "PUT / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n",
        ] {
            let whole = http.answer(part.as_bytes(), false, now);
            assert_eq!(whole, Exchange::Incomplete, "{part:?}");
            let full = http.answer(part.as_bytes(), true, now);
            assert!(matches!(full, Exchange::Reply { close: true, .. }), "{part:?}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        for malformed in [
            "\x16\x03\x01\x02",
            "GET /a HTTP/9\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            &many,
        ] {
            let Exchange::Reply { bytes, close, .. } =
                http.answer(malformed.as_bytes(), false, now)
            else {
                panic!("{malformed:?}");
            };
            assert!(close && bytes.starts_with(b"HTTP/1.1 400 "), "{malformed:?}");
        }
    }

    #[test]
    fn requests_in_a_row_are_answered_one_by_one() {
        let (mut http, now) = (http(V1), Instant::now());
        let two = "GET /a/b HTTP/1.1\r\n\r\nGET /";
        let Exchange::Reply { consumed, close, .. } = http.answer(two.as_bytes(), false, now)
        else {
            panic!("no reply");
        };
        assert_eq!((consumed, close), (two.len() - 5, false));
        for last in [
            "GET /a HTTP/1.0\r\n\r\n",
            "HEAD /a HTTP/1.1\r\n\r\n",
            "GET /a HTTP/1.1\r\nConnection: Close\r\n\r\n",
            "GET /a HTTP/1.1\r\nConnection: x\r\nConnection: y , close\r\n\r\n",
            "GET /a HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
        ] {
            let reply = http.answer(last.as_bytes(), false, now);
            assert!(matches!(reply, Exchange::Reply { close: true, .. }), "{last}");
        }
        for kept in [
            "GET /a HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
            "GET /a HTTP/1.0\r\nConnection: TE, keep-alive\r\n\r\n",
        ] {
            let Exchange::Reply { bytes, close, .. } = http.answer(kept.as_bytes(), false, now)
            else {
                panic!("no reply");
            };
            let text = String::from_utf8(bytes).unwrap();
            assert!(!close && text.contains("\r\nConnection: keep-alive\r\n"), "{kept}: {text}");
        }
    }
}
