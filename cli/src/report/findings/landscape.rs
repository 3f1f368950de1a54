//! Whether a task's loss landscape is flatter than it was.

use crate::report::data::Landscapes;

/// A ratio, now over then, that is more than two errors from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flatness {
    pub ratio: f64,
    pub error: f64,
    /// It is of the relative trace, which does not change when weights are rescaled; else of the trace.
    pub is_relative: bool,
}

impl Flatness {
    pub fn is_flatter(&self) -> bool {
        self.ratio < 1.0
    }
}

pub fn of(landscapes: &Landscapes) -> Option<Flatness> {
    let found = landscapes.flattening()?;
    let ratios = [(found.relative_trace, found.relative_trace_error, true), (found.trace, found.trace_error, false)];
    // What the ratio that rescaling cannot change does not say is not taken from the one that it can.
    let (ratio, error, is_relative) =
        ratios.into_iter().find(|(ratio, error, _)| ratio.is_finite() && error.is_finite())?;
    ((ratio - 1.0).abs() > 2.0 * error).then_some(Flatness { ratio, error, is_relative })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::data::{Curvature, Flattening, Landscape};

    fn found(relative: (f64, f64), trace: (f64, f64)) -> Option<Flatness> {
        let value = |name: &str| match name {
            "relative_trace_ratio" => relative.0,
            "relative_trace_ratio_error" => relative.1,
            "trace_ratio" => trace.0,
            "trace_ratio_error" => trace.1,
            _ => f64::NAN,
        };
        let curvature = Some(Curvature::of(|_| 1.0));
        let run = Landscape { curvature, flattening: Some(Flattening::of(value)), ..Landscape::default() };
        let mut all = Landscapes::default();
        all.runs.insert(1, run);
        of(&all)
    }

    #[test]
    fn a_ratio_is_said_only_beyond_two_errors() {
        let flatter = found((0.4, 0.05), (0.9, 0.01)).unwrap();
        assert!(flatter.is_flatter() && flatter.is_relative && flatter.ratio == 0.4);
        assert_eq!(found((0.9, 0.06), (0.4, 0.05)), None, "rescaling would explain the trace");
        assert!(!found((f64::NAN, 0.1), (1.5, 0.1)).unwrap().is_relative);
        assert_eq!(found((f64::NAN, 0.1), (0.5, f64::NAN)), None);
        assert_eq!(of(&Landscapes::default()), None);
    }
}
