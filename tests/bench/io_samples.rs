// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `bench io` measured, of all monitors, and the figures made of it. Kept in a file where each
//! monitor is measured in a machine of its own.

use std::fs;
use std::path::{Path, PathBuf};

use harness::figures::{Figure, Goal, median};
use harness::monitor::Kind;
use harness::{Error, Result};
use serde_json::{Value, json};

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// One value of one round.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// The values of each monitor; without a monitor, those of the limits.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Samples(Vec<(Option<Kind>, Vec<Sample>)>);

impl Samples {
    /// What [`write`](Self::write) has left in these files.
    pub(crate) fn read(files: &[PathBuf]) -> Result<Self> {
        let mut samples = Self::default();
        read_each(files, |text| samples.add(text))?;
        Ok(samples)
    }

    fn add(&mut self, text: &str) -> Option<()> {
        let values: Value = serde_json::from_str(text).ok()?;
        for entry in values.as_array()? {
            let kind = match entry["monitor"].as_str() {
                Some(name) => Some(name.parse().ok()?),
                None => None,
            };
            let sample = Sample {
                name: entry["name"].as_str()?.to_owned(),
                value: entry["value"].as_f64()?,
                // Kept until the program ends, soon.
                unit: entry["unit"].as_str()?.to_owned().leak(),
                better: if entry["more_is_better"] == true { Better::More } else { Better::Less },
            };
            self.keep(kind, vec![sample]);
        }
        Some(())
    }

    /// Adds values of one round.
    pub(crate) fn keep(&mut self, kind: Option<Kind>, values: Vec<Sample>) {
        match self.0.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, known)) => known.extend(values),
            None => self.0.push((kind, values)),
        }
    }

    /// Writes all to a file.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, self.json().to_string())
            .map_err(Error::io(format!("writing {}", path.display())))
    }

    fn json(&self) -> Value {
        let entries = self.0.iter().flat_map(|(kind, samples)| {
            samples.iter().map(|sample| {
                json!({
                    "monitor": kind.map(Kind::name),
                    "name": sample.name,
                    "value": sample.value,
                    "unit": sample.unit,
                    "more_is_better": sample.better == Better::More,
                })
            })
        });
        entries.collect()
    }

    /// Medians; Ballast's goal in each row is the best of its peers in it.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for (kind, values) in &self.0 {
            let mut names: Vec<&str> = Vec::new();
            for value in values {
                if !names.contains(&value.name.as_str()) {
                    names.push(&value.name);
                }
            }
            for name in names {
                let Some((value, unit, better)) = middle(values, name) else { continue };
                let peers = self.0.iter().filter(|(other, _)| {
                    *kind == Some(Kind::Ballast) && other.is_some() && *other != Some(Kind::Ballast)
                });
                let theirs = peers.filter_map(|(_, values)| middle(values, name)).map(|(v, ..)| v);
                let goal = match better {
                    Better::More => theirs.reduce(f64::max).map_or(Goal::None, Goal::AtLeast),
                    Better::Less => theirs.reduce(f64::min).map_or(Goal::None, Goal::AtMost),
                };
                let who = kind.map_or("limit", Kind::name);
                figures.push(Figure { name: format!("io.{who}.{name}"), value, unit, goal });
            }
        }
        figures
    }
}

/// Shows the contents of each file to `add`, which gives `None` if they are not of its bench.
pub(crate) fn read_each(files: &[PathBuf], mut add: impl FnMut(&str) -> Option<()>) -> Result<()> {
    for path in files {
        let name = path.display();
        let text = fs::read_to_string(path).map_err(Error::io(format!("reading {name}")))?;
        add(&text).ok_or_else(|| Error::Check(format!("{name} has no samples of this bench")))?;
    }
    Ok(())
}

/// The median of all rounds.
fn middle(values: &[Sample], name: &str) -> Option<(f64, &'static str, Better)> {
    let of_name: Vec<&Sample> = values.iter().filter(|value| value.name == name).collect();
    let first = of_name.first()?;
    let numbers: Vec<f64> = of_name.iter().map(|value| value.value).collect();
    Some((median(&numbers), first.unit, first.better))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(value: f64, better: Better) -> Sample {
        Sample { name: "disk".into(), value, unit: "IOPS", better }
    }

    #[test]
    fn a_file_keeps_everything() {
        let mut samples = Samples::default();
        samples.keep(None, vec![sample(3.5, Better::More)]);
        samples.keep(Some(Kind::Ballast), vec![sample(1.0, Better::Less)]);
        let mut read = Samples::default();
        read.add(&samples.json().to_string()).unwrap();
        assert_eq!(read, samples);
        assert!(read.add("{}").is_none());
    }

    #[test]
    fn the_goal_is_the_best_of_the_peers_medians() {
        let mut samples = Samples::default();
        let three = |values: [f64; 3]| values.map(|value| sample(value, Better::More)).to_vec();
        samples.keep(Some(Kind::Ballast), three([5.0, 4.0, 6.0]));
        samples.keep(Some(Kind::Qemu), three([1.0, 9.0, 3.0]));
        samples.keep(Some(Kind::Firecracker), three([5.5, 1.0, 7.0]));
        samples.keep(None, three([90.0, 90.0, 90.0]));
        let figures = samples.figures();
        assert_eq!(figures[0].to_string(), "figure io.ballast.disk 5.000 IOPS goal >=5.500 short");
        assert_eq!(figures[1].to_string(), "figure io.qemu.disk 3.000 IOPS goal - met");
    }
}
