//! What probes read: sampled rows of activations, and sampled rows of attention.

use super::{Memory, Place, Strided};

/// Rows of a tensor that are copied as fp32, in the order given.
pub struct RowsJob<'a> {
    pub memory: Memory,
    /// Where each row begins, in elements.
    pub rows: &'a [i64],
    /// A row is `runs` runs, `run_step` apart, of `length` elements, `step` apart.
    pub runs: usize,
    pub run_step: i64,
    pub length: usize,
    pub step: i64,
}

/// Where attention comes from.
#[derive(Clone, Copy, Debug)]
pub enum AttentionSource {
    /// As the trainer has it: sequences × heads × queries × keys. `log_sum_exp`: sequences × heads × queries, or unknown.
    Probabilities { probabilities: Strided, log_sum_exp: Option<Strided> },
    /// To be computed again.
    QueryKey(QueryKey),
}

/// Queries and keys of one layer.
#[derive(Clone, Copy, Debug)]
pub struct QueryKey {
    /// Sequences × positions × heads × elements, rotated and normalised as they enter the product.
    pub query: Strided,
    /// Sequences × positions × key heads × elements.
    pub key: Strided,
    /// Sequences × heads × positions; `None`: the softmax is taken over the visible keys.
    pub log_sum_exp: Option<Strided>,
    pub scale: f32,
    /// Logits are c·tanh(logit/c); 0: they are not capped.
    pub softcap: f32,
    /// Query heads that share one key head.
    pub group: u64,
}

impl AttentionSource {
    /// Where everything lies; `None` if it is not all in one place.
    pub fn place(&self) -> Option<Place> {
        let (first, others) = match self {
            Self::Probabilities { probabilities, log_sum_exp } => (probabilities, [log_sum_exp.as_ref(), None]),
            Self::QueryKey(source) => (&source.query, [Some(&source.key), source.log_sum_exp.as_ref()]),
        };
        let place = first.memory.place;
        others.into_iter().flatten().all(|view| view.memory.place == place).then_some(place)
    }
}

/// One query, and the keys that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionRow {
    pub sequence: u64,
    pub position: u64,
    pub first_key: u64,
    pub keys: usize,
}

/// Sampled rows of attention that are wanted.
pub struct AttentionJob<'a> {
    pub source: AttentionSource,
    pub heads: usize,
    pub rows: &'a [AttentionRow],
}

/// Sampled rows of attention.
#[derive(Clone, Debug, Default)]
pub struct AttentionFound {
    /// Row by row, head by head, key by key.
    pub probabilities: Vec<f32>,
    /// Per head, the largest logit of its rows as it enters the softmax; NaN if it is not known.
    pub max_logits: Vec<f32>,
    /// How far from 1 the sum of a row is at worst; NaN if a sum is not a number.
    pub off: f32,
}
