// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Session tokens: random, with a time to live, and valid for this machine only.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};

/// Longest life of a token, in seconds.
pub(super) const MAX_TTL_S: u32 = 21_600;
/// Limit on valid tokens: a new one replaces the oldest.
const MAX_TOKENS: usize = 512;
/// Random bytes in a token.
const BYTES: usize = 24;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    /// Not a valid time to live.
    #[error("Invalid token lifetime of {0} seconds: give 1 to {MAX_TTL_S}.")]
    TimeToLive(u32),
    /// The host's random numbers cannot be read.
    #[error("cannot get random numbers: {0}")]
    Random(#[from] io::Error),
}

/// The tokens of one machine.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    valid: VecDeque<(String, Instant)>,
}

impl Tokens {
    /// A token that lives for `ttl_s` seconds.
    ///
    /// # Errors
    ///
    /// The time is not allowed, or the host cannot provide random numbers.
    pub(super) fn create(&mut self, ttl_s: u32, now: Instant) -> Result<String, TokenError> {
        if !(1..=MAX_TTL_S).contains(&ttl_s) {
            return Err(TokenError::TimeToLive(ttl_s));
        }
        let token: String = random()?.iter().map(|byte| format!("{byte:02x}")).collect();
        self.valid.retain(|(_, end)| *end > now);
        if self.valid.len() == MAX_TOKENS {
            self.valid.pop_front();
        }
        self.valid.push_back((token.clone(), now + Duration::from_secs(ttl_s.into())));
        Ok(token)
    }

    /// Whether `token` was created here and still lives.
    pub(super) fn is_valid(&self, token: &str, now: Instant) -> bool {
        // Tokens are long and random, and only their guest can try them: a comparison that ends
        // early leaks nothing useful.
        self.valid.iter().any(|(known, end)| known == token && *end > now)
    }
}

fn random() -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let filled = getrandom(&mut bytes, GetRandomFlags::NONBLOCK)?;
    if filled == BYTES { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_as_long_as_it_was_given() {
        let mut tokens = Tokens::default();
        let now = Instant::now();
        let token = tokens.create(60, now).unwrap();
        assert!(tokens.is_valid(&token, now + Duration::from_secs(59)));
        assert!(!tokens.is_valid(&token, now + Duration::from_secs(60)));
        assert!(!tokens.is_valid("", now));
        assert_ne!(tokens.create(60, now).unwrap(), tokens.create(60, now).unwrap());
        for ttl in [0, MAX_TTL_S + 1, u32::MAX] {
            assert!(matches!(tokens.create(ttl, now), Err(TokenError::TimeToLive(_))));
        }
    }

    #[test]
    fn a_guest_that_asks_for_many_has_the_newest() {
        let mut tokens = Tokens::default();
        let now = Instant::now();
        let all: Vec<_> = (0..MAX_TOKENS + 5).map(|_| tokens.create(60, now).unwrap()).collect();
        assert_eq!(tokens.valid.len(), MAX_TOKENS);
        assert!(!tokens.is_valid(&all[4], now));
        assert!(tokens.is_valid(&all[5], now));
        // Those that have expired make room first.
        tokens.create(60, now + Duration::from_secs(60)).unwrap();
        assert_eq!(tokens.valid.len(), 1);
    }
}
