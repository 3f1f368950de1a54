//! The mean cosine of a head over sampled steps.
//!
//! Ratios are not averaged where sums are to be had: if several tensors hold parts of a head, their sums of one step are
//! added before the cosine is taken.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeadKey {
    pub role: u16,
    pub layer: u32,
    pub head: u32,
}

/// The mean of a head's cosine over sampled steps, each step's from sums over the tensors that hold the head.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    pub n: u64,
    cosines: f64,
    null_squares: f64,
    step: Option<(u64, Sums)>,
}

/// Sums of one step.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    dot: f64,
    squares: f64,
    reference_squares: f64,
    null_variance: f64,
}

impl Mean {
    /// Adds a record; `value` gives its values by name. What was not measured does not count.
    pub fn add(&mut self, step: u64, value: impl Fn(&str) -> f64) {
        let (squares, reference_squares) = (value("squares"), value("reference_squares"));
        let (cosine, null) = (value("cosine"), value("null_error"));
        let norms = (squares * reference_squares).sqrt();
        if !cosine.is_finite() || norms.is_nan() || norms <= 0.0 {
            return;
        }
        if self.step.is_some_and(|(open, _)| open != step) {
            self.close();
        }
        let (_, sums) = self.step.get_or_insert((step, Sums::default()));
        sums.dot += cosine * norms;
        sums.squares += squares;
        sums.reference_squares += reference_squares;
        sums.null_variance += (null * norms).powi(2);
    }

    fn close(&mut self) {
        if let Some((_, sums)) = self.step.take() {
            let norms = (sums.squares * sums.reference_squares).sqrt();
            self.n += 1;
            self.cosines += sums.dot / norms;
            self.null_squares += sums.null_variance / (norms * norms);
        }
    }

    /// The mean cosine, its null error and the number of steps.
    ///
    /// The null error is that of one step (root mean square over steps): successive gradients resemble each other, so
    /// averaging them does not make it smaller by the root of their number.
    pub fn result(mut self) -> (f64, f64, u64) {
        self.close();
        let n = self.n as f64;
        (self.cosines / n, (self.null_squares / n).sqrt(), self.n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(cosine: f64, squares: f64) -> impl Fn(&str) -> f64 {
        move |name| match name {
            "cosine" => cosine,
            "null_error" => 0.1,
            "squares" => squares,
            _ => 1.0,
        }
    }

    #[test]
    fn a_mean_is_over_steps() {
        let mut mean = Mean::default();
        mean.add(0, step(-0.2, 1.0));
        mean.add(10, step(-0.4, 1.0));
        let (cosine, null, n) = mean.result();
        assert!((cosine + 0.3).abs() < 1e-12 && (null - 0.1).abs() < 1e-12);
        assert_eq!(n, 2);
    }

    #[test]
    fn tensors_of_one_head_are_added_and_not_averaged() {
        let mut mean = Mean::default();
        mean.add(0, step(1.0, 1.0));
        mean.add(0, step(0.0, 3.0));
        let (cosine, _, n) = mean.result();
        // Σg·r = 1, Σg² = 4, Σr² = 2.
        assert!((cosine - 1.0 / 8f64.sqrt()).abs() < 1e-12);
        assert_eq!(n, 1);
    }

    #[test]
    fn what_was_not_measured_does_not_count() {
        let mut mean = Mean::default();
        mean.add(0, step(f64::NAN, 1.0));
        assert_eq!(mean.result().2, 0);
    }
}
