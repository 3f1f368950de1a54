//! Gradients and weights against those of an earlier task.

#[derive(Clone, Copy, Debug)]
pub struct Conflict {
    pub step: u64,
    pub fraction: f64,
    pub active: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Drift {
    pub step: u64,
    pub relative: f64,
    pub resolution: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Prediction {
    pub step: u64,
    pub predicted: f64,
    pub first_order: f64,
    pub first_order_error: f64,
    pub quadratic: f64,
    pub path: f64,
    pub is_unscaled: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Corrected {
    pub step: u64,
    pub cosine: f64,
    pub error: f64,
    pub steps: f64,
    pub batches: f64,
}

impl Conflict {
    pub fn of(step: u64, value: impl Fn(&str) -> f64) -> Self {
        Conflict { step, fraction: value("conflict_fraction"), active: value("active") }
    }
}

impl Drift {
    pub fn of(step: u64, value: impl Fn(&str) -> f64) -> Self {
        Drift { step, relative: value("relative"), resolution: value("resolution") }
    }
}

impl Prediction {
    pub fn of(step: u64, value: impl Fn(&str) -> f64, is_unscaled: bool) -> Self {
        Prediction {
            step,
            predicted: value("predicted"),
            first_order: value("first_order"),
            first_order_error: value("first_order_error"),
            quadratic: value("quadratic"),
            path: value("path"),
            is_unscaled,
        }
    }
}

impl Corrected {
    pub fn of(step: u64, value: impl Fn(&str) -> f64) -> Self {
        Corrected {
            step,
            cosine: value("cosine"),
            error: value("error"),
            steps: value("steps"),
            batches: value("batches"),
        }
    }
}
