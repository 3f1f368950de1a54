//! Which periods a sequence ends with.
//!
//! For every period up to a bound it is known how many of the latest elements equal the one a period before. That needs no
//! guess at where a period begins, and no element is forgotten too early. Cost: one comparison per possible period and
//! element, a few microseconds (up to a hundred without optimization); it runs only while a period is looked for.

/// Longest period that is looked for: collectives of one step.
pub const LONGEST: usize = 4096;

/// The end of a sequence of keys.
#[derive(Debug, Default)]
pub struct Repeats {
    /// The latest keys, at least [`LONGEST`] of them once there were as many.
    keys: Vec<u64>,
    /// `runs[p - 1]`: how many of the latest keys equal the key `p` before.
    runs: Vec<u32>,
}

impl Repeats {
    pub fn push(&mut self, key: u64) {
        if self.keys.len() == 4 * LONGEST {
            self.keys.drain(..3 * LONGEST);
        }
        if self.runs.len() < LONGEST {
            self.runs.push(0);
        }
        for (run, &before) in self.runs.iter_mut().zip(self.keys.iter().rev()) {
            *run = if before == key { run.saturating_add(1) } else { 0 };
        }
        self.keys.push(key);
    }

    /// The shortest period for which `is_enough(period, run)`: the sequence ends with `period + run` keys of that period.
    pub fn shortest(&self, is_enough: impl Fn(usize, usize) -> bool) -> Option<(usize, usize)> {
        let mut periods = (1..).zip(self.runs.iter().map(|&run| run as usize));
        periods.find(|&(period, run)| run > 0 && is_enough(period, run))
    }

    /// How many of the latest keys equal the key `period` before.
    #[cfg(test)]
    fn run(&self, period: usize) -> usize {
        self.runs.get(period - 1).map_or(0, |&run| run as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(keys: &[u64]) -> Repeats {
        let mut repeats = Repeats::default();
        keys.iter().for_each(|&key| repeats.push(key));
        repeats
    }

    #[test]
    fn runs_are_counted() {
        let repeats = of(&[9, 1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!((repeats.run(3), repeats.run(1), repeats.run(6)), (5, 0, 2));
        assert_eq!(repeats.shortest(|period, run| run >= period), Some((3, 5)));
        assert_eq!(of(&[]).shortest(|_, _| true), None);
    }

    #[test]
    fn long_sequences_are_cut_and_runs_are_not() {
        let keys: Vec<u64> = (0..10 * LONGEST as u64).map(|n| n % 7).collect();
        assert_eq!(of(&keys).run(7), keys.len() - 7);
    }

    proptest! {
        #[test]
        fn runs_are_the_definition(keys in prop::collection::vec(0u64..4, 1..60), period in 1usize..60) {
            let expected = (period..keys.len()).rev().take_while(|&n| keys[n] == keys[n - period]).count();
            prop_assert_eq!(of(&keys).run(period), expected);
        }
    }
}
