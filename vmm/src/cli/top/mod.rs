// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ballast top`: a live view of guest memory, its devices and the host.
//!
//! An ordinary client: it polls the API's socket and reads the host's files, independent of the
//! monitor's process.
//!
//! - `snapshot.rs`: data polled from the monitor and the host
//! - `sections.rs`: its figures as text
//! - `view.rs`: a snapshot drawn
//! - `map.rs`: the blocks drawn, one cell for one or several

mod map;
mod sections;
mod snapshot;
mod view;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use http::Method;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::json;

use super::error::CliError;
use super::target::Target;
use snapshot::TopSnapshot;

/// `ballast top`.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Time between two looks, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(50..=3_600_000))]
    interval: u64,
    #[command(flatten)]
    target: Target,
}

/// Command of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Quit,
    Compact,
    Cancel,
    Redraw,
}

impl TopArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
            let words =
                "`top` needs a terminal; `ballast memory map` and `ballast memory show` do not";
            return Err(CliError::Usage(words.into()));
        }
        // A missing monitor is reported before the screen is switched.
        let first = TopSnapshot::take(&self.target)?;
        let mut terminal = ratatui::try_init()?;
        let outcome = self.watch(&mut terminal, first);
        ratatui::restore();
        outcome
    }

    fn watch(
        &self,
        terminal: &mut ratatui::DefaultTerminal,
        mut now: TopSnapshot,
    ) -> Result<(), CliError> {
        let interval = Duration::from_millis(self.interval);
        loop {
            terminal.draw(|frame| view::draw(frame, &now))?;
            let next = Instant::now() + interval;
            let wish = loop {
                let left = next.saturating_duration_since(Instant::now());
                if !event::poll(left)? {
                    break None;
                }
                if let Some(wish) = wish(&event::read()?) {
                    break Some(wish);
                }
            };
            let said = match wish {
                Some(Wish::Quit) => return Ok(()),
                Some(Wish::Redraw) => continue,
                Some(Wish::Compact) => {
                    self.target.put("/memory/compact", &json!({ "wait": false })).err()
                }
                Some(Wish::Cancel) => {
                    self.target.ask(Method::DELETE, "/memory/compact", None).err()
                }
                None => None,
            };
            now = TopSnapshot::take(&self.target)?;
            now.said = said.map(|error| error.to_string());
        }
    }
}

/// Command of an event, if any.
fn wish(event: &Event) -> Option<Wish> {
    match event {
        Event::Resize(..) => Some(Wish::Redraw),
        Event::Key(KeyEvent { kind: KeyEventKind::Release, .. }) => None,
        Event::Key(KeyEvent { code: KeyCode::Char('c'), modifiers, .. })
            if modifiers.contains(KeyModifiers::CONTROL) =>
        {
            Some(Wish::Quit)
        }
        Event::Key(KeyEvent { code: KeyCode::Char('q') | KeyCode::Esc, .. }) => Some(Wish::Quit),
        Event::Key(KeyEvent { code: KeyCode::Char('c'), .. }) => Some(Wish::Compact),
        Event::Key(KeyEvent { code: KeyCode::Char('x'), .. }) => Some(Wish::Cancel),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let key = |code, modifiers| wish(&Event::Key(KeyEvent::new(code, modifiers)));
        let plain = |c| key(KeyCode::Char(c), KeyModifiers::NONE);
        assert_eq!(plain('q'), Some(Wish::Quit));
        assert_eq!(plain('c'), Some(Wish::Compact));
        assert_eq!(plain('x'), Some(Wish::Cancel));
        assert_eq!(plain('z'), None);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Wish::Quit));
        assert_eq!(wish(&Event::Resize(1, 1)), Some(Wish::Redraw));
    }
}
