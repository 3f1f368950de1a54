//! The loss landscape of a task: runs that asked the trainer for gradients, and what references say for nothing.

use std::collections::BTreeMap;

/// What is known of one task's landscape.
#[derive(Clone, Debug, Default)]
pub struct Landscapes {
    /// By step.
    pub runs: BTreeMap<u64, Landscape>,
    /// The latest.
    pub fisher: Option<Fisher>,
    pub secant: Option<Secant>,
}

/// A run with its step.
pub type Run<'a> = (u64, &'a Landscape);

/// One run.
#[derive(Clone, Debug, Default)]
pub struct Landscape {
    /// Later runs are compared with it.
    pub is_base: bool,
    pub curvature: Option<Curvature>,
    /// By index, the largest first.
    pub eigenvalues: BTreeMap<u32, Eigenvalue>,
    /// Nodes of the spectral density: about so many eigenvalues (second) near a value (first).
    pub density: Vec<(f64, f64)>,
    /// Position between the snapshot (0) and the weights as they are (1), and the loss there.
    pub path: Vec<(f64, f64)>,
    pub flattening: Option<Flattening>,
    /// Tensors by themselves.
    pub blocks: BTreeMap<u32, Curvature>,
}

#[derive(Clone, Copy, Debug)]
pub struct Curvature {
    pub largest: f64,
    pub trace: f64,
    pub trace_error: f64,
    pub effective_rank: f64,
    pub relative_trace: f64,
    pub relative_trace_error: f64,
    pub along_drift: f64,
    pub along_old: f64,
    pub gradient_norm: f64,
    pub loss: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Eigenvalue {
    pub value: f64,
    pub residual: f64,
}

/// Now over then; below 1 is flatter.
#[derive(Clone, Copy, Debug)]
pub struct Flattening {
    pub largest: f64,
    pub trace: f64,
    pub trace_error: f64,
    pub relative_trace: f64,
    pub relative_trace_error: f64,
    pub gradient_norm: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Fisher {
    pub eigenvalues: [f64; 5],
    pub trace: f64,
    pub effective_rank: f64,
    pub batches: f64,
    /// The batch size is unknown: only ratios mean something.
    pub is_unscaled: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Secant {
    pub step: u64,
    pub curvature: f64,
    pub error: f64,
    pub distance: f64,
    pub batches: f64,
}

impl Landscapes {
    /// The latest base, and the latest run after it.
    pub fn then_and_now(&self) -> (Option<Run<'_>>, Option<Run<'_>>) {
        let measured = || self.runs.iter().map(|(step, run)| (*step, run)).filter(|(_, run)| run.curvature.is_some());
        let then = measured().rfind(|(_, run)| run.is_base);
        let now = measured().rfind(|(step, run)| !run.is_base && then.is_none_or(|then| *step >= then.0));
        (then, now)
    }

    /// The latest run against the base.
    pub fn flattening(&self) -> Option<Flattening> {
        self.then_and_now().1?.1.flattening
    }
}

impl Landscape {
    pub fn add_eigenvalue(&mut self, value: impl Fn(&str) -> f64) {
        let index = value("index");
        if index >= 0.0 {
            let found = Eigenvalue { value: value("value"), residual: value("residual") };
            self.eigenvalues.insert(index as u32, found);
        }
    }
}

impl Curvature {
    pub fn of(value: impl Fn(&str) -> f64) -> Self {
        Curvature {
            largest: value("largest"),
            trace: value("trace"),
            trace_error: value("trace_error"),
            effective_rank: value("effective_rank"),
            relative_trace: value("relative_trace"),
            relative_trace_error: value("relative_trace_error"),
            along_drift: value("along_drift"),
            along_old: value("along_old"),
            gradient_norm: value("gradient_norm"),
            loss: value("loss"),
        }
    }
}

impl Flattening {
    pub fn of(value: impl Fn(&str) -> f64) -> Self {
        Flattening {
            largest: value("largest_ratio"),
            trace: value("trace_ratio"),
            trace_error: value("trace_ratio_error"),
            relative_trace: value("relative_trace_ratio"),
            relative_trace_error: value("relative_trace_ratio_error"),
            gradient_norm: value("gradient_norm_ratio"),
        }
    }
}

impl Fisher {
    pub fn of(value: impl Fn(&str) -> f64, is_unscaled: bool) -> Self {
        Fisher {
            eigenvalues: ["largest", "second", "third", "fourth", "fifth"].map(&value),
            trace: value("trace"),
            effective_rank: value("effective_rank"),
            batches: value("batches"),
            is_unscaled,
        }
    }
}

impl Secant {
    pub fn of(step: u64, value: impl Fn(&str) -> f64) -> Self {
        Secant {
            step,
            curvature: value("curvature"),
            error: value("error"),
            distance: value("distance"),
            batches: value("batches"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(is_base: bool) -> Landscape {
        Landscape { is_base, curvature: Some(Curvature::of(|_| 1.0)), ..Landscape::default() }
    }

    #[test]
    fn the_latest_run_is_compared_with_the_latest_base() {
        let mut all = Landscapes::default();
        assert!(matches!(all.then_and_now(), (None, None)));
        all.runs.insert(10, run(true));
        all.runs.insert(20, run(false));
        all.runs.insert(30, run(true));
        let (then, now) = all.then_and_now();
        assert_eq!((then.unwrap().0, now.is_none()), (30, true), "nothing was compared with the new base yet");
        all.runs.insert(40, run(false));
        all.runs.insert(50, Landscape::default());
        assert_eq!(all.then_and_now().1.unwrap().0, 40, "a run without its curvature is none");
    }
}
