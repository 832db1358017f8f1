// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The figures of `cargo xtask bench mm`: one line each, `figure <name> <value> <unit> goal <goal>
//! met|short`, after tables with what lies behind them. Seeds are fixed; times are medians of
//! rounds that alternate between us and what we compare with, in processor time of the thread, so
//! that only ratios count and a busy machine disturbs little.
//!
//! - `speed.rs`   frames, compaction, zsmalloc and the store beside mimalloc, memcpy and codecs
//! - `claim.rs`   what movability buys: high orders, blocks and CMA, with it and without

#[path = "../common/mod.rs"]
mod common;

mod claim;
mod speed;

/// What a figure is measured by.
#[derive(Clone, Copy)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
    None,
}

struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    goal: Goal,
}

impl Figure {
    fn line(&self) -> String {
        let (goal, met) = match self.goal {
            Goal::AtMost(limit) => (format!("<={limit:.3}"), self.value <= limit),
            Goal::AtLeast(limit) => (format!(">={limit:.3}"), self.value >= limit),
            Goal::None => ("-".to_owned(), true),
        };
        let met = if met { "met" } else { "short" };
        format!("figure {} {:.3} {} goal {goal} {met}", self.name, self.value, self.unit)
    }

    /// As the other benches write it; names and units need no escapes.
    fn json(&self) -> String {
        let goal = match self.goal {
            Goal::AtMost(limit) => format!("{{\"at-most\": {limit}}}"),
            Goal::AtLeast(limit) => format!("{{\"at-least\": {limit}}}"),
            Goal::None => "\"none\"".to_owned(),
        };
        let Self { name, value, unit, .. } = self;
        format!(
            "  {{\"name\": \"{name}\", \"value\": {value}, \"unit\": \"{unit}\", \"goal\": {goal}}}"
        )
    }
}

/// The figures so far, printed together at the end.
#[derive(Default)]
pub(crate) struct Figures(Vec<Figure>);

impl Figures {
    /// A value that should be at most `goal`.
    pub(crate) fn at_most(&mut self, name: &str, value: f64, unit: &'static str, goal: f64) {
        self.push(name, value, unit, Goal::AtMost(goal));
    }

    /// A value that should be at least `goal`.
    pub(crate) fn at_least(&mut self, name: &str, value: f64, unit: &'static str, goal: f64) {
        self.push(name, value, unit, Goal::AtLeast(goal));
    }

    /// A value to compare with, without a goal.
    pub(crate) fn note(&mut self, name: &str, value: f64, unit: &'static str) {
        self.push(name, value, unit, Goal::None);
    }

    fn push(&mut self, name: &str, value: f64, unit: &'static str, goal: Goal) {
        self.0.push(Figure { name: format!("mm.{name}"), value, unit, goal });
    }
}

/// Measures something and adds its figures.
type Part = fn(&mut Figures);

fn main() {
    // `cargo bench` passes `--bench`; names choose parts, `--json FILE` writes the figures there.
    let mut arguments = std::env::args().skip(1);
    let (mut wanted, mut json) = (Vec::new(), None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--json" => json = arguments.next(),
            option if option.starts_with('-') => {}
            _ => wanted.push(argument),
        }
    }
    if wanted.iter().any(|w| w == speed::MIMALLOC_MEMORY) {
        println!("{}", speed::mimalloc_memory());
        return;
    }
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    let mut figures = Figures::default();
    let parts: [(&str, Part); 5] = [
        ("frames", speed::frames),
        ("compaction", speed::compaction),
        ("zsmalloc", speed::zsmalloc),
        ("store", speed::store),
        ("claim", claim::run),
    ];
    for (name, part) in parts {
        if runs(name) {
            part(&mut figures);
        }
    }
    println!();
    figures.0.iter().for_each(|figure| println!("{}", figure.line()));
    if let Some(path) = json {
        let figures: Vec<_> = figures.0.iter().map(Figure::json).collect();
        std::fs::write(path, format!("[\n{}\n]\n", figures.join(",\n")))
            .expect("the file of figures");
    }
}
