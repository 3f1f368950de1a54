//! Options: defaults < options struct < TOML file named by `FGS_CONFIG` < `FGS_*` environment variables.
//!
//! All three sources fill the same [`Layer`] of optional values, and layers are laid over each other in that order, so an
//! option exists once and behaves alike everywhere. An unknown key or variable value is an error with a sentence, never
//! silently ignored.

use super::schedule::Rule;
use super::{Error, Result};
use crate::device::Packing;
use crate::stats::severity::Predicate;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Resolved options.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the run, for people.
    pub run: String,
    /// File of the ring; `None`: a new name under /dev/shm.
    pub ring_path: Option<PathBuf>,
    /// Directory of the ring when no path is given.
    pub ring_directory: Option<PathBuf>,
    pub ring_slots: u64,
    /// A step is sampled when `step − start` is a multiple of this; 0: never.
    pub every: u64,
    pub start_step: u64,
    /// First step that is not sampled any more.
    pub end_step: u64,
    /// Threads of the CPU device; 0: as many as there are processors, at most 4.
    pub threads: u32,
    pub rank: u32,
    pub world_size: u32,
    /// Bytes for exact references, snapshots and copies in each place that holds tensors; `None`: `reference_budget` of its
    /// memory.
    pub budget_bytes: Option<u64>,
    /// Share of the memory of the device that holds the tensors.
    pub reference_budget: f64,
    /// How CUDA devices keep references that are not added to.
    pub reference_format: Packing,
    /// References, snapshots and copies for which a CUDA device has no room go to pinned host memory.
    pub reference_spill: bool,
    /// Buckets of the sketch of a head.
    pub sketch_head: u32,
    /// Buckets of the sketch of a matrix that is not split into heads.
    pub sketch_matrix: u32,
    /// Sampled steps whose sketches are kept: for noise correction, and as a reference where none is given.
    pub window: u32,
    /// A snapshot is taken at each end of task.
    pub snapshot_at_task_end: bool,
    /// Tokens of a probe batch that are looked at, at most.
    pub probe_tokens: u32,
    /// Tokens of one sequence that are looked at, at most.
    pub probe_tokens_per_sequence: u32,
    /// Queries of a probe batch whose attention is looked at, at most.
    pub attention_rows: u32,
    /// Dimensions of the subspaces whose angles are taken.
    pub subspace_dimensions: u32,
    /// Share of the host's memory for passes that wait and bases that are kept.
    pub probe_budget: f64,
    /// When a head counts as changed, and when as severely disrupted.
    pub severity: Predicate,
    /// Which tensors are measured when; the last rule that matches decides.
    pub select: Vec<Rule>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            run: String::new(),
            ring_path: None,
            ring_directory: None,
            ring_slots: crate::ring::DEFAULT_SLOTS,
            every: 10,
            start_step: 0,
            end_step: u64::MAX,
            threads: 0,
            rank: 0,
            world_size: 1,
            budget_bytes: None,
            reference_budget: 0.02,
            reference_format: Packing::F32,
            reference_spill: false,
            sketch_head: 1024,
            sketch_matrix: 16384,
            window: 64,
            snapshot_at_task_end: true,
            probe_tokens: 1024,
            probe_tokens_per_sequence: 4,
            attention_rows: 64,
            subspace_dimensions: 10,
            probe_budget: 0.05,
            severity: Predicate::default(),
            select: Vec::new(),
        }
    }
}

/// Values that one source sets; the rest stays as it was.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    pub run: Option<String>,
    pub ring_path: Option<PathBuf>,
    pub ring_directory: Option<PathBuf>,
    pub ring_slots: Option<u64>,
    pub every: Option<u64>,
    pub start_step: Option<u64>,
    pub end_step: Option<u64>,
    pub threads: Option<u32>,
    pub rank: Option<u32>,
    pub world_size: Option<u32>,
    pub budget_bytes: Option<u64>,
    pub reference_budget: Option<f64>,
    pub reference_format: Option<Packing>,
    pub reference_spill: Option<bool>,
    pub sketch_head: Option<u32>,
    pub sketch_matrix: Option<u32>,
    pub window: Option<u32>,
    pub snapshot_at_task_end: Option<bool>,
    pub probe_tokens: Option<u32>,
    pub probe_tokens_per_sequence: Option<u32>,
    pub attention_rows: Option<u32>,
    pub subspace_dimensions: Option<u32>,
    pub probe_budget: Option<f64>,
    pub severity: Option<SeverityLayer>,
    #[serde(default)]
    pub select: Vec<Rule>,
}

/// The table `[severity]` of the configuration file.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeverityLayer {
    pub fdr: Option<f64>,
    pub quantile: Option<f64>,
    pub effect_errors: Option<f64>,
    pub effect_share: Option<f64>,
}

/// Reads a variable of the environment. A function, so that tests need not change the process's environment.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Options {
    /// Resolves `given` (the options struct) under the configuration file and the environment.
    pub fn resolve(given: Layer, environment: Environment) -> Result<Self> {
        let mut options = Self::default();
        let mut layers = vec![given];
        if let Some(path) = environment("FGS_CONFIG").filter(|path| !path.is_empty()) {
            layers.push(read(Path::new(&path))?);
        }
        layers.push(from_environment(environment)?);
        // Launchers say which rank this is; every source of ours may overrule them.
        let ranks_are_ours = layers.iter().any(|layer| layer.rank.is_some() || layer.world_size.is_some());
        let (rank, world_size) = launched(environment);
        if ranks_are_ours || rank < world_size {
            (options.rank, options.world_size) = (rank, world_size);
        }
        layers.into_iter().for_each(|layer| options.lay(layer));
        options.check()?;
        Ok(options)
    }

    fn lay(&mut self, layer: Layer) {
        macro_rules! take {
            ($($field:ident),*) => { $(if let Some(value) = layer.$field { self.$field = value; })* };
        }
        take!(run, ring_slots, every, start_step, end_step, threads, rank, world_size, reference_budget);
        take!(reference_format, reference_spill, sketch_head, sketch_matrix, window, snapshot_at_task_end);
        take!(probe_tokens, probe_tokens_per_sequence, attention_rows, subspace_dimensions, probe_budget);
        if let Some(severity) = layer.severity {
            let predicate = &mut self.severity;
            predicate.fdr = severity.fdr.unwrap_or(predicate.fdr);
            predicate.quantile = severity.quantile.unwrap_or(predicate.quantile);
            predicate.effect_errors = severity.effect_errors.unwrap_or(predicate.effect_errors);
            predicate.effect_share = severity.effect_share.unwrap_or(predicate.effect_share);
        }
        self.ring_path = layer.ring_path.or(self.ring_path.take());
        self.ring_directory = layer.ring_directory.or(self.ring_directory.take());
        self.budget_bytes = layer.budget_bytes.or(self.budget_bytes);
        self.select.retain(|earlier| !layer.select.iter().any(|rule| rule.replaces(earlier)));
        self.select.extend(layer.select);
    }

    fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Config(text));
        if !(0.0..=1.0).contains(&self.reference_budget) {
            return wrong(format!("reference_budget: {} is not a share between 0 and 1", self.reference_budget));
        }
        if self.rank >= self.world_size {
            return wrong(format!("rank: {} is not below world_size, which is {}", self.rank, self.world_size));
        }
        for (name, buckets) in [("sketch_head", self.sketch_head), ("sketch_matrix", self.sketch_matrix)] {
            if buckets == 0 || buckets % 256 != 0 || buckets > 1 << 24 {
                return wrong(format!("{name}: {buckets} is not a multiple of 256 from 256 to 16777216"));
            }
        }
        if self.threads > 1024 {
            return wrong(format!("threads: {} are more than the 1024 that are allowed", self.threads));
        }
        if self.window > 4096 {
            return wrong(format!("window: {} steps are more than the 4096 that are allowed", self.window));
        }
        if !(16..=1 << 28).contains(&self.ring_slots) {
            return wrong(format!("ring_slots: {} is not between 16 and 268435456", self.ring_slots));
        }
        if !(0.0..=1.0).contains(&self.probe_budget) {
            return wrong(format!("probe_budget: {} is not a share between 0 and 1", self.probe_budget));
        }
        let counts = [
            ("probe_tokens", self.probe_tokens, 16384),
            ("probe_tokens_per_sequence", self.probe_tokens_per_sequence, 1024),
            ("attention_rows", self.attention_rows, 16384),
            ("subspace_dimensions", self.subspace_dimensions, 512),
        ];
        for (name, count, most) in counts {
            if !(1..=most).contains(&count) {
                return wrong(format!("{name}: {count} is not between 1 and {most}"));
            }
        }
        let Predicate { fdr, quantile, effect_errors, effect_share, .. } = self.severity;
        for (name, share) in [("fdr", fdr), ("quantile", quantile)] {
            if !(share > 0.0 && share < 1.0) {
                return wrong(format!("severity.{name}: {share} is not between 0 and 1"));
            }
        }
        for (name, value) in [("effect_errors", effect_errors), ("effect_share", effect_share)] {
            if !(value.is_finite() && value >= 0.0) {
                return wrong(format!("severity.{name}: {value} is not a number of at least 0"));
            }
        }
        self.select.iter().try_for_each(Rule::check)
    }

    /// Threads of the CPU device.
    pub fn device_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get().min(4)),
            threads => threads as usize,
        }
    }
}

/// Rank and number of ranks as launchers say: the first that gives both and means it. A lone rank or number is kept for
/// our own options to complete; what results may contradict itself, and is no reason to fail.
fn launched(environment: Environment) -> (u32, u32) {
    const LAUNCHERS: [(&str, &str); 4] = [
        ("RANK", "WORLD_SIZE"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_RANK", "PMI_SIZE"),
        ("SLURM_PROCID", "SLURM_NTASKS"),
    ];
    let number = |name| environment(name)?.trim().parse::<u32>().ok();
    let said = LAUNCHERS.map(|(rank, size)| (number(rank), number(size)));
    let both = said.iter().find_map(|&(rank, size)| Some((rank?, size?)).filter(|(rank, size)| rank < size));
    both.unwrap_or_else(|| {
        let rank = said.iter().find_map(|said| said.0);
        let size = said.iter().find_map(|said| said.1);
        (rank.unwrap_or(0), size.unwrap_or(1))
    })
}

fn read(path: &Path) -> Result<Layer> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::Config(format!("FGS_CONFIG: cannot read {}: {error}", path.display())))?;
    toml::from_str(&text).map_err(|error| Error::Config(format!("FGS_CONFIG: {}: {error}", path.display())))
}

fn from_environment(environment: Environment) -> Result<Layer> {
    fn parse<T: std::str::FromStr>(environment: Environment, name: &str) -> Result<Option<T>> {
        let Some(text) = environment(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        let value = text.trim().parse();
        value.map(Some).map_err(|_| Error::Config(format!("{name}: '{text}' is not a {}", kind_of::<T>())))
    }
    fn kind_of<T>() -> &'static str {
        match std::any::type_name::<T>() {
            "f64" => "number",
            "bool" => "truth value (true or false)",
            name if name.ends_with("Packing") => "format (f32, bf16 or e4m3)",
            _ => "whole number in range",
        }
    }
    let text = |name: &str| environment(name).filter(|text| !text.is_empty());
    Ok(Layer {
        run: text("FGS_RUN"),
        ring_path: text("FGS_RING").map(PathBuf::from),
        ring_directory: text("FGS_RING_DIR").map(PathBuf::from),
        ring_slots: parse(environment, "FGS_RING_SLOTS")?,
        every: parse(environment, "FGS_EVERY")?,
        start_step: parse(environment, "FGS_START_STEP")?,
        end_step: parse(environment, "FGS_END_STEP")?,
        threads: parse(environment, "FGS_THREADS")?,
        rank: parse(environment, "FGS_RANK")?,
        world_size: parse(environment, "FGS_WORLD_SIZE")?,
        budget_bytes: parse(environment, "FGS_BUDGET_BYTES")?,
        reference_budget: parse(environment, "FGS_REFERENCE_BUDGET")?,
        reference_format: parse(environment, "FGS_REFERENCE_FORMAT")?,
        reference_spill: parse(environment, "FGS_REFERENCE_SPILL")?,
        sketch_head: parse(environment, "FGS_SKETCH_HEAD")?,
        sketch_matrix: parse(environment, "FGS_SKETCH_MATRIX")?,
        window: parse(environment, "FGS_WINDOW")?,
        snapshot_at_task_end: parse(environment, "FGS_SNAPSHOT_AT_TASK_END")?,
        probe_tokens: parse(environment, "FGS_PROBE_TOKENS")?,
        probe_tokens_per_sequence: parse(environment, "FGS_PROBE_TOKENS_PER_SEQUENCE")?,
        attention_rows: parse(environment, "FGS_ATTENTION_ROWS")?,
        subspace_dimensions: parse(environment, "FGS_SUBSPACE_DIMENSIONS")?,
        probe_budget: parse(environment, "FGS_PROBE_BUDGET")?,
        severity: None,
        select: Rule::from_environment(text("FGS_INCLUDE"), text("FGS_EXCLUDE")),
    })
}

/// `FGS_DISABLE` is set to anything but nothing or 0.
pub fn is_disabled(environment: Environment) -> bool {
    environment("FGS_DISABLE").is_some_and(|value| !matches!(value.trim(), "" | "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(given: Layer, variables: &[(&str, &str)]) -> Result<Options> {
        Options::resolve(given, &|name| variables.iter().find(|(key, _)| *key == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn later_sources_win() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.toml");
        std::fs::write(&path, "every = 20\nwindow = 32\n[[select]]\ntensors = 'mlp'\nevery = 5\n").unwrap();
        let config = path.to_str().unwrap();
        let given = Layer { every: Some(7), rank: Some(0), sketch_head: Some(512), ..Layer::default() };
        let options = resolve(given, &[("FGS_CONFIG", config), ("FGS_WINDOW", "16")]).unwrap();
        assert_eq!((options.every, options.window, options.sketch_head), (20, 16, 512));
        assert_eq!(options.select.len(), 1);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |variables: &[(&str, &str)]| resolve(Layer::default(), variables).unwrap_err().to_string();
        assert_eq!(error(&[("FGS_EVERY", "ten")]), "FGS_EVERY: 'ten' is not a whole number in range");
        assert!(error(&[("FGS_REFERENCE_BUDGET", "2")]).starts_with("reference_budget: 2"));
        assert!(error(&[("FGS_SKETCH_HEAD", "100")]).starts_with("sketch_head: 100"));
        assert!(error(&[("FGS_CONFIG", "/nonexistent")]).contains("cannot read /nonexistent"));
        assert!(error(&[("FGS_RANK", "3")]).starts_with("rank: 3"));
        assert!(error(&[("FGS_INCLUDE", "(")]).contains("FGS_INCLUDE"));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.toml");
        std::fs::write(&path, "evry = 20\n").unwrap();
        assert!(error(&[("FGS_CONFIG", path.to_str().unwrap())]).contains("evry"));
    }

    #[test]
    fn launchers_tell_the_rank() {
        let options =
            resolve(Layer::default(), &[("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "4")]).unwrap();
        assert_eq!((options.rank, options.world_size), (3, 4));
    }

    #[test]
    fn launchers_that_contradict_themselves_are_ignored() {
        let ranks = |variables: &[(&str, &str)]| {
            let options = resolve(Layer::default(), variables).unwrap();
            (options.rank, options.world_size)
        };
        assert_eq!(ranks(&[("RANK", "3")]), (0, 1));
        assert_eq!(ranks(&[("RANK", "3"), ("WORLD_SIZE", "2")]), (0, 1));
        assert_eq!(ranks(&[("RANK", "0"), ("WORLD_SIZE", "0")]), (0, 1));
        assert_eq!(ranks(&[("RANK", "none"), ("WORLD_SIZE", "2")]), (0, 2));
        // The next launcher may be sound: sbatch leaves its variables to what torchrun starts, and the other way round.
        assert_eq!(ranks(&[("RANK", "3"), ("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")]), (1, 2));
        // Ours complete a launcher's, and have to be consistent.
        assert_eq!(ranks(&[("RANK", "3"), ("FGS_WORLD_SIZE", "8")]), (3, 8));
        assert_eq!(ranks(&[("WORLD_SIZE", "4"), ("FGS_RANK", "2")]), (2, 4));
        assert_eq!(ranks(&[("RANK", "3"), ("FGS_RANK", "0")]), (0, 1));
        let error = resolve(Layer::default(), &[("FGS_RANK", "3"), ("FGS_WORLD_SIZE", "2")]).unwrap_err();
        assert!(error.to_string().starts_with("rank: 3"));
    }

    #[test]
    fn includes_and_excludes_replace_earlier_ones_of_their_kind() {
        use crate::scope::schedule::Schedule;
        let given =
            || Layer { select: Rule::from_options(Some("attn".into()), Some("bias".into())), ..Layer::default() };
        let measured = |variables: &[(&str, &str)]| {
            let options = resolve(given(), variables).unwrap();
            let names = ["attn.weight", "attn.bias", "mlp.weight", "mlp.bias"];
            names.map(|name| Schedule::of(&options, name).unwrap().every != 0)
        };
        assert_eq!(measured(&[]), [true, false, false, false]);
        assert_eq!(measured(&[("FGS_INCLUDE", "mlp")]), [false, false, true, false]);
        assert_eq!(measured(&[("FGS_EXCLUDE", "mlp")]), [true, true, false, false]);
        assert_eq!(measured(&[("FGS_INCLUDE", "mlp"), ("FGS_EXCLUDE", "x")]), [false, false, true, true]);
        // Rules of a file are of another kind.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.toml");
        std::fs::write(&path, "[[select]]\ntensors = 'attn.weight'\nevery = 0\n").unwrap();
        let config = ("FGS_CONFIG", path.to_str().unwrap());
        assert_eq!(measured(&[config, ("FGS_EXCLUDE", "x")]), [false, true, false, false]);
    }

    #[test]
    fn disabled() {
        for (value, disabled) in [("1", true), ("true", true), ("0", false), ("", false)] {
            assert_eq!(is_disabled(&|_| Some(value.into())), disabled);
        }
        assert!(!is_disabled(&|_| None));
    }
}
