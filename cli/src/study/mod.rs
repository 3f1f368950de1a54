//! Many runs: which measurements go with forgetting, and how well the first steps of a task foretell it.
//!
//! A *case* is one earlier task while one later task was trained. Cases of one run are not independent, so intervals
//! resample runs, and forecasts are judged by leaving out runs.
//!
//! | file | concept |
//! |---|---|
//! | `case` | one earlier task while one later task was trained |
//! | `evidence` | what the records of a run say of its cases |
//! | `measure` | what is measured of a case, by name |
//! | `forecast` | a calibrated forecast, as a file |
//! | `origin` | the runs that a forecast comes from |
//! | `table` | the results as text and as JSON |

mod case;
mod evidence;
mod forecast;
mod measure;
mod origin;
mod table;

#[cfg(test)]
pub use case::case_of;
pub use case::{Case, cases_of};
pub use evidence::Evidence;
pub use forecast::{Forecast, forecast};
pub use measure::Measure;
pub use origin::Origin;
pub use table::{json, text};

use forgetscope::stats::correlation::{Correlation, Pair, correlate};

/// Share of a task's steps that count as its first, unless one says otherwise.
pub const EARLY: f64 = 0.15;

/// Seed of the bootstrap: the same runs give the same interval.
const SEED: u64 = 0x5eed;

/// The relation of one measurement to forgetting.
#[derive(Clone, Copy, Debug)]
pub struct Relation {
    pub measure: Measure,
    pub correlation: Correlation,
}

/// All measurements against forgetting.
pub fn relations(cases: &[Case]) -> Vec<Relation> {
    let relation = |&measure: &Measure| {
        let pair = |case: &Case| Pair { run: case.run, x: case.value(measure), y: case.forgetting };
        Relation { measure, correlation: correlate(&cases.iter().map(pair).collect::<Vec<_>>(), SEED) }
    };
    Measure::ALL.iter().map(relation).filter(|relation| relation.correlation.pairs > 0).collect()
}

/// The middle of what was forgotten: half of the cases are beyond it.
pub fn median_forgetting(cases: &[Case]) -> f64 {
    let mut all: Vec<f64> = cases.iter().map(|case| case.forgetting).filter(|value| value.is_finite()).collect();
    all.sort_unstable_by(f64::total_cmp);
    match all.len() {
        0 => f64::NAN,
        count => 0.5 * (all[(count - 1) / 2] + all[count / 2]),
    }
}
