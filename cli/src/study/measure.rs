//! What is measured of a case.

/// A measurement, taken in the first steps of the later task unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Natural logarithm of the mean norm of the later task's gradients before the trainer's scale, which clips them. Where
    /// that also undoes a loss scale, the loss scale is in it.
    NewGradient,
    /// Noise-corrected cosine of the two tasks' mean gradients.
    GradientCosine,
    /// Mean cosine of single gradients with the reference.
    Interference,
    /// Natural logarithm of the relative drift of all weights since the later task began.
    Drift,
    /// Predicted change of the earlier task's loss.
    Predicted,
    /// How much the debiased CKA with the earlier task's base pass fell since the later task began, mean over layers.
    CkaDrop,
    /// Subspace overlap of the two tasks' representations at the weights that the later one begins with, between chance (0)
    /// and what the same task would have (1).
    Similarity,
    /// How much of the earlier task was forgotten already when the later one began: what is gone is not forgotten again.
    ForgottenBefore,
    /// Loss of the later task before its training, above that after it: how much there was to learn. Known afterwards.
    ExcessLoss,
}

impl Measure {
    pub const ALL: [Self; 9] = [
        Self::NewGradient,
        Self::GradientCosine,
        Self::Interference,
        Self::Drift,
        Self::Predicted,
        Self::CkaDrop,
        Self::Similarity,
        Self::ForgottenBefore,
        Self::ExcessLoss,
    ];

    /// Those that a forecast uses: known in the first steps, and no two that say nearly the same.
    pub const FORECAST: [Self; 7] = [
        Self::NewGradient,
        Self::GradientCosine,
        Self::Drift,
        Self::Predicted,
        Self::CkaDrop,
        Self::Similarity,
        Self::ForgottenBefore,
    ];

    /// As it is called in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::NewGradient => "new_gradient",
            Self::GradientCosine => "gradient_cosine",
            Self::Interference => "interference",
            Self::Drift => "drift",
            Self::Predicted => "predicted",
            Self::CkaDrop => "cka_drop",
            Self::Similarity => "similarity",
            Self::ForgottenBefore => "forgotten_before",
            Self::ExcessLoss => "excess_loss",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|measure| measure.name() == name)
    }

    /// As people read it.
    pub fn title(self) -> &'static str {
        match self {
            Self::NewGradient => "new gradient before clipping, ln",
            Self::GradientCosine => "cosine of mean gradients",
            Self::Interference => "cosine of single gradients",
            Self::Drift => "weight drift since then, ln",
            Self::Predicted => "predicted loss change",
            Self::CkaDrop => "drop of CKA since then",
            Self::Similarity => "similarity of representations",
            Self::ForgottenBefore => "forgotten already",
            Self::ExcessLoss => "excess loss of the new task",
        }
    }
}
