//! What the records mean: kinds, the names of their values, levels, roles, flags, counters.
//!
//! The ring carries this table in its catalog, so a reader that knows none of it can still name every number. docs/
//! statistics explains each kind. Numbers are stable: a kind is never reused, new values are appended.

use crate::ring::Entry;

/// Kinds of records.
pub mod kind {
    /// One optimizer step that was sampled.
    pub const STEP: u16 = 1;
    /// A gradient's size.
    pub const GRADIENT: u16 = 2;
    /// A gradient against the reference of an earlier task.
    pub const INTERFERENCE: u16 = 3;
    /// The same between means, freed of mini-batch noise.
    pub const CORRECTED: u16 = 4;
    /// The component that projection methods would remove.
    pub const PROJECTION: u16 = 5;
    /// The optimizer's update against the parameters.
    pub const UPDATE: u16 = 6;
    /// The optimizer's update against the reference of an earlier task.
    pub const ALIGNMENT: u16 = 7;
    /// Parameters against the snapshot of an earlier task.
    pub const DRIFT: u16 = 8;
    /// Predicted change of an earlier task's loss.
    pub const PREDICTION: u16 = 9;
    /// An evaluation that the trainer reported, with forgetting.
    pub const EVALUATION: u16 = 10;
    /// Backward transfer over all earlier tasks.
    pub const TRANSFER: u16 = 11;
    /// A task began or ended, a reference or a snapshot was taken.
    pub const TASK: u16 = 12;
    /// Something could not be measured.
    pub const FAULT: u16 = 13;
    /// A layer's hidden states against those at the task's base pass.
    pub const REPRESENTATION: u16 = 14;
    /// Principal angles between a layer's leading subspaces then and now.
    pub const SUBSPACE: u16 = 15;
    /// A layer's similarity to the next one, then and now.
    pub const NEIGHBOUR: u16 = 16;
    /// Class means of a layer's hidden states (neural collapse).
    pub const COLLAPSE: u16 = 17;
    /// What an attention head attends to.
    pub const ATTENTION: u16 = 18;
    /// What an attention head contributes, and its severity class.
    pub const HEAD: u16 = 19;
    /// Lower against upper layers.
    pub const DEPTH: u16 = 20;
    /// A router of a mixture of experts.
    pub const ROUTER: u16 = 21;
    /// How alike two tasks are at the same weights.
    pub const SIMILARITY: u16 = 22;
    /// The loss landscape around the present weights, on a task's probe batch.
    pub const CURVATURE: u16 = 23;
    /// One eigenvalue of the Hessian.
    pub const EIGENVALUE: u16 = 24;
    /// One node of the Hessian's spectral density.
    pub const DENSITY: u16 = 25;
    /// The landscape now against the landscape at the task's snapshot.
    pub const FLATTENING: u16 = 26;
    /// The loss at a point between the snapshot and now.
    pub const LOSS_PATH: u16 = 27;
    /// Spectrum of the empirical Fisher information, from the reference's batches.
    pub const FISHER: u16 = 28;
    /// Curvature along the drift, from two references.
    pub const SECANT: u16 = 29;
    /// The stage of the loss curve of the task in training: plateau, descent or rise.
    pub const STAGE: u16 = 30;
}

/// What a record is about: a head, a tensor, or a sum over many.
pub mod level {
    /// `tensor`, and `slice` = role << 16 | head.
    pub const HEAD: u8 = 0;
    /// `tensor`.
    pub const TENSOR: u8 = 1;
    /// `slice` = role.
    pub const ROLE: u8 = 2;
    /// `slice` = layer.
    pub const LAYER: u8 = 3;
    /// All measured tensors of this rank.
    pub const MODEL: u8 = 4;
    /// `slice` = layer << 16 | head: an attention head as a whole.
    pub const ATTENTION_HEAD: u8 = 5;
}

/// Bits of a record's flags.
pub mod flag {
    /// The reference or snapshot is kept exactly; the sums are sums over all coordinates.
    pub const EXACT: u32 = 1 << 0;
    /// Reference gradients were taken at the task's final weights.
    pub const FROZEN: u32 = 1 << 1;
    /// Reference gradients were taken again later, at the weights of that moment.
    pub const REFRESHED: u32 = 1 << 2;
    /// No reference was given: the mean over the task's last sampled steps stands in.
    pub const TRAILING: u32 = 1 << 3;
    /// Non-finite values were met and counted as zero.
    pub const NON_FINITE: u32 = 1 << 4;
    /// Noise hides the value; it is NaN.
    pub const UNDETERMINED: u32 = 1 << 5;
    /// Not every registered tensor is in the sums.
    pub const PARTIAL: u32 = 1 << 6;
    /// This step number was seen before: the trainer went back.
    pub const RERUN: u32 = 1 << 7;
    /// The trainer skipped this step's update.
    pub const SKIPPED: u32 = 1 << 8;
    /// The gradient was read before the data-parallel reduction.
    pub const UNREDUCED: u32 = 1 << 9;
    /// The batch size of the reference is unknown: the quadratic term lacks its factor.
    pub const UNSCALED: u32 = 1 << 10;
    /// The pass itself became the task's base: there is nothing earlier to compare with.
    pub const BASE: u32 = 1 << 11;
    /// Beyond the updates that the null was measured over: the null is extrapolated.
    pub const EXTRAPOLATED: u32 = 1 << 12;
    /// The pass was taken after more updates on the same task: what it shows is usual change.
    pub const CONTINUED: u32 = 1 << 14;
    /// Curvature within one tensor: the block of the Hessian on its diagonal, not the model's.
    pub const BLOCK: u32 = 1 << 13;
}

/// Roles of tensors and slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Role {
    Other = 0,
    Embedding = 1,
    Position = 2,
    Query = 3,
    Key = 4,
    Value = 5,
    Qkv = 6,
    Output = 7,
    Gate = 8,
    MlpIn = 9,
    MlpOut = 10,
    MlpGate = 11,
    Norm = 12,
    Router = 13,
    LmHead = 14,
    Bias = 15,
}

impl Role {
    /// Every role with its name.
    pub const ALL: [(Self, &'static str); 16] = [
        (Self::Other, "other"),
        (Self::Embedding, "embedding"),
        (Self::Position, "position"),
        (Self::Query, "q"),
        (Self::Key, "k"),
        (Self::Value, "v"),
        (Self::Qkv, "qkv"),
        (Self::Output, "o"),
        (Self::Gate, "gate"),
        (Self::MlpIn, "mlp_in"),
        (Self::MlpOut, "mlp_out"),
        (Self::MlpGate, "mlp_gate"),
        (Self::Norm, "norm"),
        (Self::Router, "router"),
        (Self::LmHead, "lm_head"),
        (Self::Bias, "bias"),
    ];

    /// The role with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().map(|&(role, _)| role).find(|&role| role as u32 == number)
    }

    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// The `slice` of a record at the level of heads.
pub const fn head_slice(role: Role, head: u32) -> u32 {
    (role as u32) << 16 | head & 0xffff
}

/// The `slice` of a record at the level of attention heads.
pub const fn attention_head_slice(layer: u32, head: u32) -> u32 {
    layer << 16 | head & 0xffff
}

/// Why something was not measured: value 0 of a FAULT record, and the counter of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// A sampled step was left out because earlier ones were still being evaluated.
    Overrun = 0,
    /// A sampled step met NaN or infinite values.
    NonFinite = 1,
    /// `fgs_step_begin` without the end of the step before.
    Abandoned = 2,
    /// A bug of ours was caught at the boundary; the call did nothing.
    Panic = 3,
    /// The catalog of the ring is full: later names are missing.
    CatalogFull = 4,
    /// A reference or snapshot had to be dropped because bindings changed shape.
    Dropped = 5,
    /// A pass over a probe was left out: with what waits and what is kept it is over `probe_budget`. Or the attention of a
    /// layer in device memory was: its rows are no probabilities.
    ProbeLeftOut = 6,
    /// A pass over a probe was begun and not ended.
    ProbeAbandoned = 7,
    /// A curvature run ended before it was complete; the parameters are as they were before it.
    Curvature = 8,
    /// What a device was asked for never came: the step, batch, snapshot or pass was left out.
    Device = 9,
    /// A device failed while a curvature run put the parameters back: they are not as they were.
    LeftMoved = 10,
}

impl Fault {
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::Overrun, "sampled steps left out, evaluation was behind"),
        (Self::NonFinite, "sampled steps with NaN or infinite values"),
        (Self::Abandoned, "steps begun and not ended"),
        (Self::Panic, "calls given up because of a bug in forgetscope"),
        (Self::CatalogFull, "names that did not fit the catalog"),
        (Self::Dropped, "references and snapshots dropped, bindings changed"),
        (Self::ProbeLeftOut, "passes over probes left out, no memory in probe_budget"),
        (Self::ProbeAbandoned, "passes over probes begun and not ended"),
        (Self::Curvature, "curvature runs given up before they were complete"),
        (Self::Device, "steps, batches, snapshots and passes left out, what a device was asked for never came"),
        (Self::LeftMoved, "curvature runs after which a device failed to put the parameters back"),
    ];
}

/// What happened, in a TASK record: value 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEvent {
    Begin = 0,
    End = 1,
    /// Value 1: batches in the reference so far.
    Reference = 2,
    Snapshot = 3,
}

/// Names of the ten values of each kind.
pub const KINDS: [(u16, &str, &[&str]); 30] = [
    (
        kind::STEP,
        "step",
        &["gradient_norm", "gradient_squares", "scale", "non_finite", "elements", "tensors", "applied", "cost_seconds"],
    ),
    (kind::GRADIENT, "gradient", &["norm", "squares", "peak", "non_finite", "elements"]),
    (
        kind::INTERFERENCE,
        "interference",
        &[
            "cosine",
            "null_error",
            "dot",
            "squares",
            "reference_squares",
            "dot_sketched",
            "conflict_fraction",
            "conflicts",
            "active",
            "opposing",
        ],
    ),
    (
        kind::CORRECTED,
        "corrected",
        &[
            "cosine",
            "error",
            "dot",
            "dot_error",
            "gradient_norm2",
            "gradient_norm2_error",
            "reference_norm2",
            "reference_norm2_error",
            "steps",
            "batches",
        ],
    ),
    (
        kind::PROJECTION,
        "projection",
        &["agem", "removed_share", "span_share", "span_null", "span_coefficient", "references"],
    ),
    (kind::UPDATE, "update", &["relative_step", "updates", "weights", "peak", "elements", "non_finite"]),
    (
        kind::ALIGNMENT,
        "alignment",
        &["cosine", "null_error", "dot", "updates", "reference_squares", "dot_sketched", "elements"],
    ),
    (
        kind::DRIFT,
        "drift",
        &[
            "relative",
            "angle",
            "drift",
            "drift_dot_snapshot",
            "snapshot",
            "first_order",
            "first_order_sketched",
            "resolution",
            "elements",
        ],
    ),
    (
        kind::PREDICTION,
        "prediction",
        &["predicted", "first_order", "first_order_error", "quadratic", "path", "batches", "examples", "path_steps"],
    ),
    (kind::EVALUATION, "evaluation", &["value", "best", "own", "forgetting_maximum", "forgetting_since_own", "metric"]),
    (
        kind::TRANSFER,
        "transfer",
        &["backward", "mean_forgetting_maximum", "mean_forgetting_since_own", "tasks", "metric"],
    ),
    (kind::TASK, "task", &["event", "batches"]),
    (kind::FAULT, "fault", &["code", "count"]),
    (
        kind::REPRESENTATION,
        "representation",
        &[
            "cka",
            "cka_error",
            "cka_biased",
            "procrustes",
            "mean_shift",
            "variance_shift",
            "effective_rank",
            "effective_rank_base",
            "tokens",
            "batches",
        ],
    ),
    (
        kind::SUBSPACE,
        "subspace",
        &[
            "angle_mean",
            "angle_max",
            "null_mean",
            "null_high",
            "overlap",
            "overlap_null",
            "dimensions",
            "eigengap",
            "eigengap_base",
            "tokens",
        ],
    ),
    (kind::NEIGHBOUR, "neighbour", &["cka", "cka_base", "change", "change_error", "tokens"]),
    (kind::COLLAPSE, "collapse", &["nc1", "nc1_base", "nc1_null", "classes", "tokens"]),
    (
        kind::ATTENTION,
        "attention",
        &[
            "entropy",
            "entropy_base",
            "sink",
            "sink_base",
            "dormant",
            "dormant_base",
            "divergence",
            "max_logit",
            "max_logit_base",
            "rows",
        ],
    ),
    (
        kind::HEAD,
        "head",
        &[
            "contribution_change",
            "output_cosine",
            "null_median",
            "null_high",
            "p_value",
            "q_value",
            "severity",
            "effect",
            "effect_error",
            "updates",
        ],
    ),
    (
        kind::DEPTH,
        "depth",
        &[
            "difference",
            "low",
            "high",
            "lower",
            "upper",
            "lower_heads",
            "upper_heads",
            "confidence",
            "null_slope",
            "null_degrees",
        ],
    ),
    (
        kind::ROUTER,
        "router",
        &[
            "divergence",
            "js_divergence",
            "jaccard",
            "jaccard_null",
            "load_divergence",
            "load_divergence_null",
            "load_entropy",
            "load_entropy_base",
            "experts",
            "tokens",
        ],
    ),
    (
        kind::SIMILARITY,
        "similarity",
        &[
            "overlap",
            "overlap_ceiling",
            "overlap_null",
            "mean_cosine",
            "dimensions",
            "layers",
            "tokens",
            "tokens_other",
        ],
    ),
    (
        kind::CURVATURE,
        "curvature",
        &[
            "largest",
            "trace",
            "trace_error",
            "effective_rank",
            "relative_trace",
            "relative_trace_error",
            "along_drift",
            "along_old",
            "gradient_norm",
            "loss",
        ],
    ),
    (kind::EIGENVALUE, "eigenvalue", &["index", "value", "residual", "along_now"]),
    (kind::DENSITY, "density", &["node", "weight", "vectors"]),
    (
        kind::FLATTENING,
        "flattening",
        &[
            "largest_ratio",
            "trace_ratio",
            "trace_ratio_error",
            "relative_trace_ratio",
            "relative_trace_ratio_error",
            "gradient_norm_ratio",
        ],
    ),
    (kind::LOSS_PATH, "loss_path", &["position", "loss", "distance"]),
    (
        kind::FISHER,
        "fisher",
        &["largest", "second", "third", "fourth", "fifth", "trace", "effective_rank", "batches", "examples"],
    ),
    (kind::SECANT, "secant", &["curvature", "error", "distance", "batches"]),
    (kind::STAGE, "stage", &["stage", "slope", "slope_error", "loss", "evaluations"]),
];

/// Names of levels.
pub const LEVELS: [(u8, &str); 6] = [
    (level::HEAD, "head"),
    (level::TENSOR, "tensor"),
    (level::ROLE, "role"),
    (level::LAYER, "layer"),
    (level::MODEL, "model"),
    (level::ATTENTION_HEAD, "attention_head"),
];

/// Names of flags.
pub const FLAGS: [(u32, &str); 15] = [
    (flag::EXACT, "exact"),
    (flag::FROZEN, "frozen"),
    (flag::REFRESHED, "refreshed"),
    (flag::TRAILING, "trailing"),
    (flag::NON_FINITE, "non_finite"),
    (flag::UNDETERMINED, "undetermined"),
    (flag::PARTIAL, "partial"),
    (flag::RERUN, "rerun"),
    (flag::SKIPPED, "skipped"),
    (flag::UNREDUCED, "unreduced"),
    (flag::UNSCALED, "unscaled"),
    (flag::BASE, "base"),
    (flag::EXTRAPOLATED, "extrapolated"),
    (flag::BLOCK, "block"),
    (flag::CONTINUED, "continued"),
];

/// The schema as catalog entries.
pub fn entries() -> impl Iterator<Item = Entry> {
    let kinds = KINDS.iter().map(|&(kind, name, values)| Entry::Kind {
        kind,
        name: name.into(),
        values: values.iter().map(|&value| value.into()).collect(),
    });
    let levels = LEVELS.iter().map(|&(id, name)| Entry::Level { id, name: name.into() });
    let flags = FLAGS.iter().map(|&(bit, name)| Entry::Flag { bit, name: name.into() });
    let roles = Role::ALL.iter().map(|&(role, name)| Entry::Role { id: role as u16, name: name.into() });
    let counters = Fault::ALL.iter().map(|&(fault, name)| Entry::Counter { index: fault as u8, name: name.into() });
    kinds.chain(levels).chain(flags).chain(roles).chain(counters)
}

/// FNV-1a over all names: readers that were built for one schema recognise it.
pub fn hash() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |text: &str| {
        for byte in text.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for (kind, name, values) in KINDS {
        add(&kind.to_string());
        add(name);
        values.iter().for_each(|value| add(value));
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_indexed_by_their_numbers() {
        for (index, (role, _)) in Role::ALL.iter().enumerate() {
            assert_eq!(*role as usize, index);
        }
        for (index, (fault, _)) in Fault::ALL.iter().enumerate() {
            assert_eq!(*fault as usize, index);
        }
        for (index, (kind, _, values)) in KINDS.iter().enumerate() {
            assert_eq!(usize::from(*kind), index + 1);
            assert!(values.len() <= 10);
        }
    }
}
