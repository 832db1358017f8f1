// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The closing lines of a bench: one line per figure, `figure <name> <value> <unit> goal <goal>
//! met` (or `short`), and the same as JSON.

use std::fmt;

use serde_json::{Value, json};

/// The goal of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// None: printed for comparison.
    None,
}

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What was measured; words joined by dots and dashes.
    pub name: String,
    /// The value.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The goal.
    pub goal: Goal,
}

impl Figure {
    /// Whether the goal is reached; true without a goal.
    #[must_use]
    pub fn met(&self) -> bool {
        match self.goal {
            Goal::AtMost(limit) => self.value <= limit,
            Goal::AtLeast(limit) => self.value >= limit,
            Goal::None => true,
        }
    }
}

impl Figure {
    /// The same words as the line has, as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "goal": self.goal.to_string(),
            "met": self.met(),
        })
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "<={limit:.3}"),
            Self::AtLeast(limit) => write!(f, ">={limit:.3}"),
            Self::None => write!(f, "-"),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value, unit, goal } = self;
        let verdict = if self.met() { "met" } else { "short" };
        write!(f, "figure {name} {value:.3} {unit} goal {goal} {verdict}")
    }
}

/// The middle value; of an even number of values, the mean of the two in the middle.
///
/// # Panics
/// If `values` is empty.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_form_that_tools_read() {
        let name = "boot.ballast".to_owned();
        let figure = Figure { name, value: 1.5, unit: "s", goal: Goal::AtMost(1.2) };
        assert_eq!(figure.to_string(), "figure boot.ballast 1.500 s goal <=1.200 short");
        let figure = Figure { goal: Goal::AtLeast(1.0), ..figure };
        assert_eq!(figure.to_string(), "figure boot.ballast 1.500 s goal >=1.000 met");
        let figure = Figure { goal: Goal::None, ..figure };
        assert_eq!(figure.to_string(), "figure boot.ballast 1.500 s goal - met");
    }

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
