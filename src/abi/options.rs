//! `fgs_options`: what a trainer sets in code. Files and the environment overrule it.

use super::boundary::Outcome;
use super::text::{check_struct, optional};
use crate::scope::{Layer, Rule};
use std::ffi::c_char;
use std::path::PathBuf;

/// Options of `fgs_open`. Initialise with `FGS_OPTIONS_INIT`, then set what differs from the defaults.
///
/// Unset values are NULL, `FGS_UNSET_U32`, `FGS_UNSET_U64`, or negative. Precedence, lowest first: defaults, this struct,
/// the TOML file named by the environment variable `FGS_CONFIG`, variables `FGS_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fgs_options {
    /// sizeof(fgs_options); set by FGS_OPTIONS_INIT.
    pub size: u32,
    /// FGS_MAGIC; set by FGS_OPTIONS_INIT.
    pub magic: u32,
    /// Name of the run, for people. Variable FGS_RUN.
    pub run: *const c_char,
    /// File of the ring, which must not exist. Default: a new file in /dev/shm. Variable FGS_RING.
    pub ring_path: *const c_char,
    /// Regular expression: only tensors whose name contains a match are measured. Variable FGS_INCLUDE.
    pub include: *const c_char,
    /// Regular expression: tensors whose name contains a match are not measured. Variable FGS_EXCLUDE.
    pub exclude: *const c_char,
    /// Records that the ring holds; rounded up to a power of two, 128 bytes each. Default 65536. Variable FGS_RING_SLOTS.
    pub ring_slots: u64,
    /// A step is sampled when (step − start_step) is a multiple of this; 0: never. Default 10. Variable FGS_EVERY.
    pub every: u64,
    /// First step that may be sampled. Default 0. Variable FGS_START_STEP.
    pub start_step: u64,
    /// First step that is not sampled any more. Default: none. Variable FGS_END_STEP.
    pub end_step: u64,
    /// Bytes for exact references, snapshots and copies, in each place that holds tensors (host, each device); beyond it
    /// sketches are kept. Default: `reference_budget` of the memory of that place. Variable FGS_BUDGET_BYTES.
    pub budget_bytes: u64,
    /// Share of the device's memory, 0 to 1. Default 0.02. Variable FGS_REFERENCE_BUDGET.
    pub reference_budget: f64,
    /// Threads that measure tensors in host memory. Default: processors, at most 4. Variable FGS_THREADS.
    pub threads: u32,
    /// Rank of this process. Default: from the launcher's environment, else 0. Variable FGS_RANK.
    pub rank: u32,
    /// Number of ranks. Default: from the launcher's environment, else 1. Variable FGS_WORLD_SIZE.
    pub world_size: u32,
    /// Buckets of the sketch of a head; a multiple of 256. Default 1024. Variable FGS_SKETCH_HEAD.
    pub sketch_head: u32,
    /// Buckets of the sketch of a matrix without heads; a multiple of 256. Default 16384. Variable FGS_SKETCH_MATRIX.
    pub sketch_matrix: u32,
    /// Sampled steps whose sketches are kept for noise correction and as trailing reference. Default 64. Variable
    /// FGS_WINDOW.
    pub window: u32,
}

/// The options that are set.
///
/// # Safety
/// `options` must be NULL or point to a struct that is readable; its strings as for [`optional`].
pub(super) unsafe fn layer(options: *const fgs_options) -> Outcome<Layer> {
    // SAFETY: the caller's promise.
    let Some(options) = (unsafe { options.as_ref() }) else { return Ok(Layer::default()) };
    check_struct(options.size, options.magic, size_of::<fgs_options>(), "fgs_options")?;
    // SAFETY: the caller's promise, for each string.
    let text = |text, argument| unsafe { optional(text, argument) }.map(|text| text.map(str::to_owned));
    let number = |value: u64| (value != u64::MAX).then_some(value);
    let small = |value: u32| (value != u32::MAX).then_some(value);
    Ok(Layer {
        run: text(options.run, "options.run")?,
        ring_path: text(options.ring_path, "options.ring_path")?.map(PathBuf::from),
        ring_directory: None,
        ring_slots: number(options.ring_slots),
        every: number(options.every),
        start_step: number(options.start_step),
        end_step: number(options.end_step),
        threads: small(options.threads),
        rank: small(options.rank),
        world_size: small(options.world_size),
        budget_bytes: number(options.budget_bytes),
        reference_budget: (options.reference_budget >= 0.0 || options.reference_budget.is_nan())
            .then_some(options.reference_budget),
        reference_format: None,
        reference_spill: None,
        sketch_head: small(options.sketch_head),
        sketch_matrix: small(options.sketch_matrix),
        window: small(options.window),
        snapshot_at_task_end: None,
        probe_tokens: None,
        probe_tokens_per_sequence: None,
        attention_rows: None,
        subspace_dimensions: None,
        probe_budget: None,
        severity: None,
        select: Rule::from_options(
            text(options.include, "options.include")?,
            text(options.exclude, "options.exclude")?,
        ),
    })
}
