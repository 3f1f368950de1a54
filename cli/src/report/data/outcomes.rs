//! Evaluations, and the stage that the loss curve of a task in training is in.

#[derive(Clone, Copy, Debug)]
pub struct Evaluation {
    pub step: u64,
    pub value: f64,
    /// Value at the end of its own training; NaN before that.
    pub own: f64,
    pub maximum: f64,
    pub since_own: f64,
}

impl Evaluation {
    pub fn of(step: u64, value: impl Fn(&str) -> f64) -> Self {
        Evaluation {
            step,
            value: value("value"),
            own: value("own"),
            maximum: value("forgetting_maximum"),
            since_own: value("forgetting_since_own"),
        }
    }
}

/// What the last few evaluations of the task in training say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    pub step: u64,
    pub trend: Trend,
    /// Change of ln loss per step, and its standard error.
    pub slope: f64,
    pub error: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trend {
    Plateau,
    Descent,
    Rise,
}

impl Stage {
    pub fn of(step: u64, value: impl Fn(&str) -> f64) -> Option<Self> {
        let trend = match value("stage") {
            0.0 => Trend::Plateau,
            1.0 => Trend::Descent,
            2.0 => Trend::Rise,
            _ => return None,
        };
        Some(Stage { step, trend, slope: value("slope"), error: value("slope_error") })
    }
}

impl Trend {
    pub fn name(self) -> &'static str {
        match self {
            Trend::Plateau => "plateau",
            Trend::Descent => "descent",
            Trend::Rise => "rise",
        }
    }
}
