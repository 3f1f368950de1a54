//! Which tokens of a probe batch are looked at.
//!
//! Neighbouring tokens of a sequence say nearly the same, so a few tokens of many sequences say more than many tokens of
//! a few. The choice depends on the batch's number and shape alone: every pass over the same probe, in every layer and
//! run, looks at the same tokens.

use crate::sketch::hash::mix;

/// A token of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub sequence: u64,
    pub position: u64,
}

/// Part of every choice. A change of the rule must change it, or old base passes would be compared with other tokens.
const SEED: u64 = 0x7072_6f62_6500_0001;

/// Up to `per_sequence` tokens of each sequence, one from each of as many equal stretches of it, and `most` in all: then
/// from fewer places per sequence, and in the end from fewer sequences, spread evenly.
pub fn choose(batch: u64, sequences: u64, length: u64, per_sequence: u64, most: u64) -> Vec<Token> {
    let taken = sequences.min(most);
    if taken == 0 || length == 0 {
        return Vec::new();
    }
    let places = per_sequence.min(length).min(most / taken).max(1);
    let token = |k: u64| {
        let (sequence, place) = (k / places * sequences / taken, k % places);
        let hash = mix(mix(SEED ^ batch) ^ (sequence * places + place));
        let (low, high) = (place * length / places, (place + 1) * length / places);
        Token { sequence, position: low + hash % (high - low) }
    };
    (0..taken * places).map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn tokens_are_distinct_inside_and_as_many_as_asked(
            batch in 0u64..9, sequences in 1u64..300, length in 1u64..300, per in 1u64..6, most in 1u64..500,
        ) {
            let tokens = choose(batch, sequences, length, per, most);
            let distinct: BTreeSet<_> = tokens.iter().map(|token| (token.sequence, token.position)).collect();
            prop_assert_eq!(distinct.len(), tokens.len());
            prop_assert!(tokens.iter().all(|token| token.sequence < sequences && token.position < length));
            prop_assert!(tokens.len() as u64 <= most);
            prop_assert!(tokens.len() as u64 >= sequences.min(most));
            let wanted = sequences * per.min(length);
            prop_assert!(wanted > most || tokens.len() as u64 == wanted);
        }
    }

    #[test]
    fn positions_cover_the_sequence() {
        let tokens = choose(0, 4096, 128, 4, 1 << 20);
        let mean = tokens.iter().map(|token| token.position as f64).sum::<f64>() / tokens.len() as f64;
        // Uniform on 0..128: mean 63.5; each stratum's position has variance 32²/12, so the mean's error is 9.2/√16384.
        assert!((mean - 63.5).abs() < 5.0 * 0.072, "{mean}");
        assert_ne!(tokens, choose(1, 4096, 128, 4, 1 << 20));
    }
}
