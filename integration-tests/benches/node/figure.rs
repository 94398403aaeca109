//! What measurements come to: figures, and the points of plots.

use std::{cell::RefCell, collections::BTreeMap};

use portcullis_policy::policyset::Backend;
use serde::{Deserialize, Serialize};

use crate::interrupt;

/// How often a tail is drawn again from its samples to see how much it may differ.
const RESAMPLES: usize = 1000;

/// Measurements of the same thing.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_unstable_by(f64::total_cmp);
        Self(values)
    }
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // of places among samples
impl Samples {
    /// Interpolated.
    pub fn quantile(&self, q: f64) -> f64 {
        let place = self.0.len().saturating_sub(1) as f64 * q;
        let at = |place: f64| self.0.get(place as usize).copied().unwrap_or(f64::NAN);
        at(place.floor()) + place.fract() * (at(place.ceil()) - at(place.floor()))
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Each divided by the same.
    pub fn over(&self, divisor: f64) -> Self {
        self.0.iter().map(|value| value / divisor).collect()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Drawn again, with repetition.
    fn resample(&self, random: &mut fastrand::Rng) -> Self {
        (0..self.0.len()).filter_map(|_| self.0.get(random.usize(..self.0.len())).copied()).collect()
    }

    /// For a plot of the distribution: value and percent of the samples that are not above it.
    pub fn distribution(&self) -> Vec<(f64, f64)> {
        (0..=200).map(|step| f64::from(step) / 200.0).map(|q| (self.quantile(q), q * 100.0)).collect()
    }
}

/// What a figure is to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// No more.
    AtMost(f64),
    /// No more, as far as half of the samples can tell.
    AtMostWithinNoise(f64),
}

/// What a measurement comes to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    pub section: String,
    pub name: String,
    pub unit: String,
    /// The median, unless the name tells another quantile.
    pub value: f64,
    /// Half of the samples are between these; of tails, half of what they come to when the samples are drawn again.
    pub low: f64,
    pub high: f64,
    pub samples: usize,
    pub goal: Option<Goal>,
}

impl Figure {
    fn new(name: &str, unit: &str, (low, value, high): (f64, f64, f64), samples: usize) -> Self {
        let (name, unit) = (name.to_owned(), unit.to_owned());
        // The section comes when it is noted.
        Self { section: String::new(), name, unit, value, low, high, samples, goal: None }
    }

    pub fn median(name: &str, unit: &str, samples: &Samples) -> Self {
        Self::new(name, unit, (samples.quantile(0.25), samples.median(), samples.quantile(0.75)), samples.len())
    }

    pub fn tail(name: &str, unit: &str, q: f64, samples: &Samples) -> Self {
        Self::resampled(name, unit, samples.quantile(q), samples.len(), |random| samples.resample(random).quantile(q))
    }

    /// The ratio of two tails.
    pub fn tails(name: &str, q: f64, samples: &Samples, to: &Samples) -> Self {
        let ratio = samples.quantile(q) / to.quantile(q);
        Self::resampled(name, RATIO, ratio, samples.len(), |random| {
            samples.resample(random).quantile(q) / to.resample(random).quantile(q)
        })
    }

    fn resampled(name: &str, unit: &str, value: f64, count: usize, draw: impl Fn(&mut fastrand::Rng) -> f64) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let drawn: Samples = (0..RESAMPLES).map(|_| draw(&mut random)).collect();
        Self::new(name, unit, (drawn.quantile(0.25), value, drawn.quantile(0.75)), count)
    }

    pub fn single(name: &str, unit: &str, value: f64) -> Self {
        Self::new(name, unit, (value, value, value), 1)
    }

    pub fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    pub fn at_most(self, goal: f64) -> Self {
        self.goal(Goal::AtMost(goal))
    }

    /// Only where the goal is for what is measured here.
    pub fn at_most_if(self, is_meant: bool, goal: f64) -> Self {
        if is_meant { self.at_most(goal) } else { self }
    }

    pub fn reached(&self) -> Option<bool> {
        self.goal.map(|goal| match goal {
            Goal::AtMost(most) => self.value <= most,
            Goal::AtMostWithinNoise(most) => self.value <= most || self.low <= most,
        })
    }
}

pub const RATIO: &str = "ratio";
pub const MS: &str = "ms";
pub const MB: &str = "MB";

/// What is drawn together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Plot {
    pub section: String,
    /// As its file is called, after the section.
    pub name: String,
    pub title: String,
    pub x: String,
    pub y: String,
    /// Whether x grows tenfold from mark to mark.
    pub logarithmic: bool,
    pub lines: BTreeMap<String, Vec<(f64, f64)>>,
    /// Instead of lines: what went on from when to when.
    pub bars: Vec<(String, f64, f64)>,
}

/// On what was measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Machine {
    pub name: String,
    pub kernel: String,
    pub backend: String,
    pub containerd: String,
    pub runc: String,
    pub cpus: usize,
    pub memory_gb: u64,
    pub load: String,
    pub date: String,
    pub commit: String,
    pub quick: bool,
    /// Whether its clock counts instructions.
    pub counts_instructions: bool,
    /// How many runs this is of.
    pub boots: usize,
}

/// All that was measured in one run at one place.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Run {
    pub machine: Machine,
    pub figures: Vec<Figure>,
    pub plots: Vec<Plot>,
    /// What is to be said of figures, by section.
    pub notes: Vec<(String, String)>,
}

/// Where a section leaves what it has measured.
pub struct Notebook {
    section: &'static str,
    run: RefCell<Run>,
}

impl Notebook {
    pub fn new(machine: Machine) -> Self {
        Self { section: "", run: RefCell::new(Run { machine, ..Run::default() }) }
    }

    pub fn open(&mut self, section: &'static str) {
        self.section = section;
    }

    pub fn add(&self, figure: Figure) {
        self.add_to(self.section, figure);
    }

    /// To another section than the one that measured it.
    pub fn add_to(&self, section: &str, figure: Figure) {
        let figure = Figure { section: section.to_owned(), ..figure };
        let Figure { name, unit, value, low, high, .. } = &figure;
        eprintln!("   {section}: {name}: {value:.4} {unit} ({low:.4} to {high:.4})");
        self.run.borrow_mut().figures.push(figure);
    }

    pub fn draw(&self, plot: Plot) {
        self.run.borrow_mut().plots.push(Plot { section: self.section.to_owned(), ..plot });
    }

    pub fn note(&self, text: impl Into<String>) {
        self.run.borrow_mut().notes.push((self.section.to_owned(), text.into()));
    }

    pub fn into_run(self) -> Run {
        self.run.into_inner()
    }
}

/// What is measured by turns: in each round all of them, in another order each time.
pub fn by_turns<const N: usize>(
    rounds: usize,
    mut measure: impl FnMut(usize) -> anyhow::Result<f64>,
) -> anyhow::Result<[Vec<f64>; N]> {
    let mut all = [const { Vec::new() }; N];
    for round in 0..rounds {
        interrupt::check()?;
        let mut values = [0.0; N];
        for place in 0..N {
            // Forwards and backwards, each beginning with every one.
            let place = if round % 2 == 0 { place } else { N - 1 - place };
            let which = (place + round / 2) % N;
            if let Some(value) = values.get_mut(which) {
                *value = measure(which)?;
            }
        }
        for (all, value) in all.iter_mut().zip(values) {
            all.push(value);
        }
    }
    Ok(all)
}

/// The ratios of what was measured in the same rounds.
pub fn ratios(of: &[f64], to: &[f64]) -> Samples {
    of.iter().zip(to).map(|(of, to)| of / to).collect()
}

pub fn is_lsm(backend: Backend) -> bool {
    backend == Backend::Lsm
}
