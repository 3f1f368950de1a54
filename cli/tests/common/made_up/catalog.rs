//! The catalog of the made-up run.

use forgetscope::ring::{Entry, RingError, TensorEntry};

use super::{HEADS, LAYERS, Story};

pub const KINDS: [(u16, &str, &[&str]); 30] = [
    (
        1,
        "step",
        &["gradient_norm", "gradient_squares", "scale", "non_finite", "elements", "tensors", "applied", "cost_seconds"],
    ),
    (2, "gradient", &["norm", "squares", "peak", "non_finite", "elements"]),
    (
        3,
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
        4,
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
    (5, "projection", &["agem", "removed_share", "span_share", "span_null", "span_coefficient", "references"]),
    (6, "update", &["relative_step", "updates", "weights", "peak", "elements", "non_finite"]),
    (7, "alignment", &["cosine", "null_error", "dot", "updates", "reference_squares", "dot_sketched", "elements"]),
    (
        8,
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
        9,
        "prediction",
        &["predicted", "first_order", "first_order_error", "quadratic", "path", "batches", "examples", "path_steps"],
    ),
    (10, "evaluation", &["value", "best", "own", "forgetting_maximum", "forgetting_since_own", "metric"]),
    (11, "transfer", &["backward", "mean_forgetting_maximum", "mean_forgetting_since_own", "tasks", "metric"]),
    (12, "task", &["event", "batches"]),
    (13, "fault", &["code", "count"]),
    (
        14,
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
        15,
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
    (16, "neighbour", &["cka", "cka_base", "change", "change_error", "tokens"]),
    (17, "collapse", &["nc1", "nc1_base", "nc1_null", "classes", "tokens"]),
    (
        18,
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
        19,
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
    (20, "depth", &["difference", "low", "high", "lower", "upper", "lower_heads", "upper_heads", "confidence"]),
    (
        21,
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
        22,
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
        23,
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
    (24, "eigenvalue", &["index", "value", "residual", "along_now"]),
    (25, "density", &["node", "weight", "vectors"]),
    (
        26,
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
    (27, "loss_path", &["position", "loss", "distance"]),
    (
        28,
        "fisher",
        &["largest", "second", "third", "fourth", "fifth", "trace", "effective_rank", "batches", "examples"],
    ),
    (29, "secant", &["curvature", "error", "distance", "batches"]),
    (30, "stage", &["stage", "slope", "slope_error", "loss", "evaluations"]),
];

pub const EXACT: u32 = 1 << 0;
pub const FROZEN: u32 = 1 << 1;
pub const UNDETERMINED: u32 = 1 << 5;
pub const BASE: u32 = 1 << 11;
pub const EXTRAPOLATED: u32 = 1 << 12;
pub const BLOCK: u32 = 1 << 13;
pub const CONTINUED: u32 = 1 << 14;
const FLAGS: [&str; 15] = [
    "exact",
    "frozen",
    "refreshed",
    "trailing",
    "non_finite",
    "undetermined",
    "partial",
    "rerun",
    "skipped",
    "unreduced",
    "unscaled",
    "base",
    "extrapolated",
    "block",
    "continued",
];

pub const ROLES: [(u16, &str); 7] =
    [(3, "q"), (4, "k"), (5, "v"), (7, "o"), (9, "mlp_in"), (10, "mlp_out"), (12, "norm")];

const LEVELS: [&str; 6] = ["head", "tensor", "role", "layer", "model", "attention_head"];

const SEVERITY: &str = "severity 1: changed if q ≤ 0.05 against continued training and beyond the null's 99 % quantile";

impl Story {
    pub fn catalog(&mut self, name: &str) -> Result<(), RingError> {
        let mut add = |entry: Entry| self.writer.append(&entry);
        for (kind, name, values) in KINDS {
            add(Entry::Kind { kind, name: name.into(), values: values.iter().map(|v| (*v).into()).collect() })?;
        }
        for (id, name) in LEVELS.iter().enumerate() {
            add(Entry::Level { id: id as u8, name: (*name).into() })?;
        }
        for (bit, name) in FLAGS.iter().enumerate() {
            add(Entry::Flag { bit: 1 << bit, name: (*name).into() })?;
        }
        for (id, name) in ROLES {
            add(Entry::Role { id, name: name.into() })?;
        }
        for (index, name) in
            ["sampled steps left out, evaluation was behind", "sampled steps with NaN or infinite values"]
                .iter()
                .enumerate()
        {
            add(Entry::Counter { index: index as u8, name: (*name).into() })?;
        }
        for (key, value) in
            [("run", name), ("every", "10"), ("sketch_head", "1024"), ("window", "64"), ("severity", SEVERITY)]
        {
            add(Entry::Attribute { key: key.into(), value: value.into() })?;
        }
        for layer in 0..LAYERS {
            for (index, (role, role_name)) in ROLES.iter().take(6).enumerate() {
                let id = layer * 6 + index as u32;
                let heads = if index < 4 { HEADS } else { 0 };
                add(Entry::Tensor(TensorEntry {
                    id,
                    name: format!("h.{layer}.{role_name}.weight"),
                    role: *role,
                    layer: layer as i32,
                    expert: -1,
                    head_count: heads,
                    kv_head_count: heads,
                    rows: 64,
                    cols: 64,
                    ..TensorEntry::default()
                }))?;
                for head in 0..heads {
                    let slice = u32::from(*role) << 16 | head;
                    add(Entry::Slice {
                        tensor: id,
                        slice,
                        name: format!("{role_name}.{head}"),
                        role: *role,
                        numel: 1024,
                    })?;
                }
            }
        }
        Ok(())
    }
}
