//! The additive sums that a device takes. Sums of shards, slices and tensors are added; nothing here is ever averaged.

use std::ops::AddAssign;

/// Sums over one slice of a gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GradientSums {
    /// Elements read.
    pub count: u64,
    /// Elements that were NaN or infinite; they count as zero in every sum.
    pub non_finite: u64,
    /// Σ g².
    pub squares: f64,
    /// max |g|. The only member that is not a sum: shards take the larger.
    pub peak: f32,
}

impl AddAssign for GradientSums {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.non_finite += other.non_finite;
        self.squares += other.squares;
        self.peak = self.peak.max(other.peak);
    }
}

/// Sums over one slice of a gradient g and a reference r.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairSums {
    /// Σ g·r.
    pub dot: f64,
    /// Σ |g·r| over the coordinates with opposing sign.
    pub opposing: f64,
    /// Coordinates with opposing sign.
    pub conflicts: u64,
    /// Coordinates where both are non-zero: what the share of conflicts is a share of.
    pub active: u64,
    /// Σ (g·r)²: the variance of the inner product if every coordinate's sign were a coin toss.
    pub dot_squares: f64,
    /// Σ r² over what was read.
    pub reference_squares: f64,
}

impl AddAssign for PairSums {
    fn add_assign(&mut self, other: Self) {
        self.dot += other.dot;
        self.opposing += other.opposing;
        self.conflicts += other.conflicts;
        self.active += other.active;
        self.dot_squares += other.dot_squares;
        self.reference_squares += other.reference_squares;
    }
}

/// Sums over one slice of the parameters θ and their update Δ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UpdateSums {
    /// Elements read.
    pub count: u64,
    /// Elements that were NaN or infinite; they count as zero.
    pub non_finite: u64,
    /// Σ θ².
    pub weights: f64,
    /// Σ Δ².
    pub updates: f64,
    /// max |Δ|.
    pub peak: f32,
}

impl AddAssign for UpdateSums {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.non_finite += other.non_finite;
        self.weights += other.weights;
        self.updates += other.updates;
        self.peak = self.peak.max(other.peak);
    }
}

/// Sums over one slice of the drift D = θ − θ_A from a snapshot θ_A.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DriftSums {
    /// Σ D².
    pub drift: f64,
    /// Σ D·θ_A.
    pub drift_dot_snapshot: f64,
    /// Σ θ_A².
    pub snapshot: f64,
    /// Σ r·D for the task's reference r at its snapshot; zero where that is not kept exactly.
    pub reference_dot: f64,
}

impl AddAssign for DriftSums {
    fn add_assign(&mut self, other: Self) {
        self.drift += other.drift;
        self.drift_dot_snapshot += other.drift_dot_snapshot;
        self.snapshot += other.snapshot;
        self.reference_dot += other.reference_dot;
    }
}
