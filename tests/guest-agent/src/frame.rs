// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lines that agent and harness exchange over a serial console that the kernel writes to as
//! well.
//!
//! A request is `@ID CHECK WORD...`. An answer is one or more lines `@ID SEQ CHECK PAYLOAD`, SEQ
//! counting from 0; the payload of the last one is `end ok` or `end err REASON`. CHECK is a
//! checksum over what else is in the line, so that a kernel message in the middle of a line is
//! noticed: the harness then asks for the whole answer again (the request `again`).

/// A request, as it goes to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the harness; the answer carries it too.
    pub id: u32,
    /// The command and its arguments, separated by blanks.
    pub words: String,
}

impl Request {
    /// The line, with its newline.
    #[must_use]
    pub fn encode(&self) -> String {
        let Self { id, words } = self;
        format!("@{id} {:08x} {words}\n", check(&format!("{id} {words}")))
    }

    /// `None` if the line is something else or was garbled on its way.
    #[must_use]
    pub fn decode(line: &str) -> Option<Self> {
        let mut fields = line.trim_end().strip_prefix('@')?.splitn(3, ' ');
        let id = fields.next()?.parse().ok()?;
        let sum = u32::from_str_radix(fields.next()?, 16).ok()?;
        let words = fields.next()?.to_owned();
        (sum == check(&format!("{id} {words}"))).then_some(Self { id, words })
    }
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerLine {
    /// The request's.
    pub id: u32,
    /// Position in the answer, from 0.
    pub seq: u32,
    /// The text.
    pub payload: String,
}

impl AnswerLine {
    /// The line, with its newline.
    #[must_use]
    pub fn encode(&self) -> String {
        let Self { id, seq, payload } = self;
        format!("@{id} {seq} {:08x} {payload}\n", check(&format!("{id} {seq} {payload}")))
    }

    /// `None` if the line is something else or was garbled on its way.
    #[must_use]
    pub fn decode(line: &str) -> Option<Self> {
        let mut fields = line.trim_end_matches(['\r', '\n']).strip_prefix('@')?.splitn(4, ' ');
        let id = fields.next()?.parse().ok()?;
        let seq = fields.next()?.parse().ok()?;
        let sum = u32::from_str_radix(fields.next()?, 16).ok()?;
        let payload = fields.next()?.to_owned();
        (sum == check(&format!("{id} {seq} {payload}"))).then_some(Self { id, seq, payload })
    }
}

/// 32-bit FNV-1a.
fn check(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_a_round_trip() {
        let request = Request { id: 7, words: "fill a 300M".into() };
        assert_eq!(Request::decode(&request.encode()), Some(request));
        let line = AnswerLine { id: 7, seq: 3, payload: "MemFree:  12 kB".into() };
        assert_eq!(AnswerLine::decode(&line.encode()), Some(line));
    }

    #[test]
    fn a_kernel_message_in_a_line_is_noticed() {
        let line = AnswerLine { id: 1, seq: 0, payload: "end ok".into() }.encode();
        for at in 0..line.len() - 1 {
            let garbled = format!("{}[    1.0] hello{}", &line[..at], &line[at..]);
            assert_eq!(AnswerLine::decode(&garbled), None, "{garbled}");
        }
    }
}
