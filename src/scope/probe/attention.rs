//! What a trainer hands over of attention, and which keys a query sees.

use super::sampling::Token;
use crate::device::{AttentionRow, AttentionSource};
use crate::scope::{Result, error::invalid};

/// Which keys a query may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All keys.
    None,
    /// Keys up to its own position; with more keys than queries, the last query sees all.
    Causal,
}

/// Attention of one layer over a batch.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub source: AttentionSource,
    pub mask: Mask,
    /// Only so many of the latest visible keys; 0: all.
    pub window: u64,
    /// Number of the first head in the whole model.
    pub first_head: u32,
}

impl Attention {
    /// Heads and keys, checked against a batch of `sequences` of `length` tokens.
    pub fn check(&self, sequences: u64, length: u64) -> Result<(u64, u64)> {
        let (heads, keys, lse) = match &self.source {
            AttentionSource::Probabilities { probabilities, log_sum_exp } => {
                let &[s, heads, queries, keys] = probabilities.shape() else {
                    return Err(invalid!(
                        "attention.probabilities: shape {:?} is not sequences × heads × queries × keys",
                        probabilities.shape()
                    ));
                };
                if (s, queries) != (sequences, length) {
                    return Err(invalid!(
                        "attention.probabilities: shape {:?} has not the batch's {sequences} sequences of {length} queries",
                        probabilities.shape()
                    ));
                }
                (heads, keys, log_sum_exp)
            }
            AttentionSource::QueryKey(source) => {
                let (query, key) = (source.query.shape(), source.key.shape());
                let (&[s, positions, heads, width], &[key_s, keys, key_heads, key_width]) = (query, key) else {
                    return Err(invalid!(
                        "attention.query: shapes {query:?} and {key:?} are not sequences × positions × heads × width"
                    ));
                };
                if (s, positions) != (sequences, length) || key_s != sequences || width != key_width {
                    return Err(invalid!(
                        "attention.key: shapes {query:?} and {key:?} do not fit each other and the batch's {sequences} \
                         sequences of {length} positions"
                    ));
                }
                if key_heads == 0 || !heads.is_multiple_of(key_heads) {
                    return Err(invalid!(
                        "attention.key: {heads} query heads cannot share {key_heads} key heads evenly"
                    ));
                }
                if !(source.scale.is_finite() && source.scale > 0.0) {
                    return Err(invalid!("attention.scale: {} is not a finite number above zero", source.scale));
                }
                if !(source.softcap.is_finite() && source.softcap >= 0.0) {
                    return Err(invalid!("attention.softcap: {} is neither 0 nor a number above it", source.softcap));
                }
                (heads, keys, &source.log_sum_exp)
            }
        };
        if heads == 0 || keys == 0 {
            return Err(invalid!("attention: there are {heads} heads and {keys} keys"));
        }
        if let Some(lse) = lse
            && lse.shape() != [sequences, heads, length]
        {
            return Err(invalid!(
                "attention.log_sum_exp: shape {:?} is not {sequences} sequences × {heads} heads × {length} queries",
                lse.shape()
            ));
        }
        if self.mask == Mask::Causal && keys < length {
            return Err(invalid!("attention.mask: {keys} keys are too few for {length} queries with a causal mask"));
        }
        Ok((heads, keys))
    }

    /// The row of a token's query.
    pub fn row(&self, token: Token, length: u64, keys: u64) -> AttentionRow {
        let visible = match self.mask {
            Mask::None => keys,
            Mask::Causal => keys - length + token.position + 1,
        };
        let first_key = if self.window > 0 { visible.saturating_sub(self.window) } else { 0 };
        let Token { sequence, position } = token;
        AttentionRow { sequence, position, first_key, keys: (visible - first_key) as usize }
    }
}
