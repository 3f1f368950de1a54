//! Random numbers for resampling: the same seed gives the same numbers on every machine.
//!
//! SplitMix64 (Steele, Lea & Flood 2014): a counter through a bijection of 64-bit words. Bootstraps and permutations need
//! no more, and a statistic that draws its own numbers from a fixed seed is as reproducible as one that draws none.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random {
    counter: u64,
}

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self { counter: seed }
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = self.counter;
        let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A whole number in 0 .. bound. The bias of multiplication is bound·2⁻⁶⁴: nothing at sizes that fit in memory.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// A random order (Fisher & Yates 1938).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
impl Random {
    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A standard normal variate (Box & Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Independent standard normal variates.
    pub fn normals(&mut self, rows: usize, columns: usize) -> ndarray::Array2<f64> {
        ndarray::Array2::from_shape_simple_fn((rows, columns), || self.normal())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_words_of_the_published_generator() {
        // splitmix64.c by Vigna, seed 1234567.
        let mut random = Random::new(1_234_567);
        let words: Vec<u64> = (0..3).map(|_| random.bits()).collect();
        assert_eq!(words, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn every_order_of_four_is_as_frequent() {
        let mut random = Random::new(1);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..24_000 {
            let mut items = [0, 1, 2, 3];
            random.shuffle(&mut items);
            *counts.entry(items).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 24);
        // Each count is binomial with mean 1000 and standard deviation 31: five of them.
        assert!(counts.values().all(|&count| (845..=1155).contains(&count)), "{counts:?}");
    }
}
