//! From jobs to items, and from what was found of items back to what was asked.

use super::plan::{ItemId, Measured, Stage, Tables, count};
use super::results::Results;
use super::table::{KeptEntry, PAIRS, flag, sum};
use super::values::entry;
use crate::device::{
    AccumulateFound, AccumulateJob, DriftSums, GradientFound, GradientJob, GradientSums, Kept, PairSums,
    ParameterFound, ParameterJob, SliceRead, TaskFound, UpdateSums,
};

/// A pass: where to find what was asked for.
pub type Decode<T> = Box<dyn Fn(&Results) -> T + Send + Sync>;

/// Where a reference of a job is paired: item and place in it.
type Paired = Option<(ItemId, usize)>;

/// Items of the same slice that share out its references; the first has everything else too. `rest` is what the others
/// measure.
fn paired<'a>(
    tables: &mut Tables,
    first: Measured<'a>,
    rest: Measured<'a>,
    references: impl Iterator<Item = Option<Kept<'a>>>,
) -> (ItemId, Vec<Paired>) {
    let references: Vec<Option<KeptEntry>> = references.map(|kept| kept.map(entry)).collect();
    let exact: Vec<KeptEntry> = references.iter().flatten().copied().collect();
    let mut groups = exact.chunks(PAIRS);
    let id = tables.add(Stage::Narrow, &Measured { pairs: groups.next().unwrap_or_default(), ..first });
    let mut ids = vec![id];
    for pairs in groups {
        ids.push(tables.add(Stage::Narrow, &Measured { pairs, ..rest }));
    }
    let mut next = 0..;
    let place = |kept: Option<KeptEntry>| kept.and_then(|_| next.next()).map(|k: usize| (ids[k / PAIRS], k % PAIRS));
    (id, references.into_iter().map(place).collect())
}

fn pair_sums(results: &Results, paired: Paired) -> PairSums {
    let Some((id, place)) = paired else { return PairSums::default() };
    let sums = &results.sums(id)[sum::FIRST_PAIR + place * sum::OF_A_PAIR..][..sum::OF_A_PAIR];
    PairSums {
        dot: sums[sum::PAIR_DOT],
        opposing: sums[sum::PAIR_OPPOSING],
        conflicts: sums[sum::PAIR_CONFLICTS] as u64,
        active: sums[sum::PAIR_ACTIVE] as u64,
        dot_squares: sums[sum::PAIR_SQUARES],
        reference_squares: sums[sum::PAIR_REFERENCE],
    }
}

fn gradient_sums(results: &Results, id: ItemId, count: u64) -> GradientSums {
    let sums = results.sums(id);
    GradientSums {
        count,
        non_finite: sums[sum::NON_FINITE] as u64,
        squares: sums[sum::VALUES],
        peak: sums[sum::MAX_VALUES] as f32,
    }
}

/// Norms, pairs and sketches of gradients.
pub fn gradients(tables: &mut Tables, jobs: Vec<GradientJob>) -> Decode<Vec<GradientFound>> {
    let place = |job: &GradientJob| {
        let plain = Measured::of(job.read);
        let first = Measured { with_sketch: true, ..plain };
        let (id, pairs) = paired(tables, first, plain, job.references.iter().copied());
        (id, pairs, count(job.read.segments))
    };
    let places: Vec<_> = jobs.iter().map(place).collect();
    Box::new(move |results| {
        let found = |(id, pairs, count): &(ItemId, Vec<Paired>, u64)| GradientFound {
            sums: gradient_sums(results, *id, *count),
            pairs: pairs.iter().map(|paired| pair_sums(results, *paired)).collect(),
            sketch: results.sketch(*id),
        };
        places.iter().map(found).collect()
    })
}

/// Gradients that are added to references.
pub fn accumulate(tables: &mut Tables, jobs: Vec<AccumulateJob>) -> Decode<Vec<AccumulateFound>> {
    let place = |job: &AccumulateJob| {
        let sum = job.sum.as_ref().map(|(span, values)| entry(Kept { span: *span, values }));
        let measured = Measured {
            flags: flag::SCALE | if sum.is_some() { flag::ADD } else { 0 },
            other: sum.unwrap_or_default(),
            with_sketch: true,
            ..Measured::of(job.read)
        };
        (tables.add(Stage::Narrow, &measured), count(job.read.segments))
    };
    let places: Vec<_> = jobs.iter().map(place).collect();
    Box::new(move |results| {
        let found = |(id, count): &(ItemId, u64)| AccumulateFound {
            sums: gradient_sums(results, *id, *count),
            sketch: results.sketch(*id),
        };
        places.iter().map(found).collect()
    })
}

/// Where the parts of a parameter job are.
struct ParameterPlaces {
    count: u64,
    /// Compared with a copy.
    update: Option<ItemId>,
    update_sketch: bool,
    /// Has sums of the parameters themselves.
    weights: Option<ItemId>,
    sketch: Option<ItemId>,
    tasks: Vec<TaskPlaces>,
}

struct TaskPlaces {
    update: Paired,
    drift: Option<ItemId>,
    drift_sketch: bool,
    anchor: bool,
}

/// Updates, drifts, copies and sketches of parameters.
pub fn parameters(tables: &mut Tables, jobs: Vec<ParameterJob>) -> Decode<Vec<ParameterFound>> {
    let places: Vec<_> = jobs.iter().map(|job| place_parameters(tables, job)).collect();
    Box::new(move |results| places.iter().map(|places| found_parameters(results, places)).collect())
}

fn place_parameters(tables: &mut Tables, job: &ParameterJob) -> ParameterPlaces {
    let read = job.read;
    let plain = Measured::of(read);
    let mut pairs: Vec<Paired> = vec![None; job.tasks.len()];
    let mut update = None;
    let mut weights = None;
    if let Some(kept) = &job.copy {
        let other = entry(Kept { span: kept.span, values: kept.values });
        let replace = if kept.replace { flag::REPLACE } else { 0 };
        if kept.compare {
            let exact = job.tasks.iter().filter(|task| task.reference.is_some()).count();
            // Another item may not have compared yet when this one replaces.
            let is_shared = exact > PAIRS;
            let compare = Measured { flags: flag::COMPARE, other, ..plain };
            let first = Measured {
                flags: flag::COMPARE | if is_shared { 0 } else { replace },
                with_sketch: job.update_sketch,
                ..compare
            };
            let (id, found) = paired(tables, first, compare, job.tasks.iter().map(|task| task.reference));
            (update, pairs) = (Some(id), found);
            if is_shared && kept.replace {
                tables.add(Stage::Late, &Measured { flags: replace, other, ..plain });
            }
        } else if kept.replace {
            weights = Some(tables.add(Stage::Narrow, &Measured { flags: replace, other, ..plain }));
        }
    }
    let sketch = job.sketch.then(|| tables.add(Stage::Wide, &Measured { with_sketch: true, ..plain }));
    let tasks: Vec<_> =
        job.tasks.iter().zip(pairs).map(|(task, update)| place_task(tables, read, task, update)).collect();
    let drift = tasks.iter().find_map(|task| task.drift);
    // Whichever reads the parameters anyway.
    let weights = update.or(weights).or(sketch).or(drift);
    let weights = weights.or_else(|| Some(tables.add(Stage::Narrow, &plain)));
    let update_sketch = job.update_sketch;
    ParameterPlaces { count: count(read.segments), update, update_sketch, weights, sketch, tasks }
}

fn place_task(tables: &mut Tables, read: SliceRead, task: &crate::device::TaskJob, update: Paired) -> TaskPlaces {
    let anchor = task.anchor.map(entry);
    let drift = task.snapshot.map(|snapshot| {
        let measured = Measured {
            flags: flag::COMPARE,
            other: entry(snapshot),
            with_sketch: task.drift_sketch,
            pairs: anchor.as_slice(),
            ..Measured::of(read)
        };
        tables.add(Stage::Narrow, &measured)
    });
    TaskPlaces { update, drift, drift_sketch: task.drift_sketch, anchor: anchor.is_some() }
}

fn found_parameters(results: &Results, places: &ParameterPlaces) -> ParameterFound {
    let mut update = UpdateSums { count: places.count, ..UpdateSums::default() };
    if let Some(id) = places.weights {
        let sums = results.sums(id);
        update.non_finite = sums[sum::NON_FINITE] as u64;
        update.weights = sums[sum::VALUES];
    }
    if let Some(id) = places.update {
        let sums = results.sums(id);
        update.updates = sums[sum::DIFFERENCE];
        update.peak = sums[sum::MAX_DIFFERENCE] as f32;
    }
    let task = |places: &TaskPlaces| TaskFound {
        update: pair_sums(results, places.update),
        drift: places.drift.map_or(DriftSums::default(), |id| {
            let sums = results.sums(id);
            DriftSums {
                drift: sums[sum::DIFFERENCE],
                drift_dot_snapshot: sums[sum::CROSS],
                snapshot: sums[sum::OTHER],
                reference_dot: if places.anchor { sums[sum::FIRST_PAIR + sum::PAIR_DOT] } else { 0.0 },
            }
        }),
        drift_sketch: places.drift.filter(|_| places.drift_sketch).map_or(Vec::new(), |id| results.sketch(id)),
    };
    ParameterFound {
        update,
        update_sketch: places.update.filter(|_| places.update_sketch).map_or(Vec::new(), |id| results.sketch(id)),
        sketch: places.sketch.map_or(Vec::new(), |id| results.sketch(id)),
        tasks: places.tasks.iter().map(task).collect(),
    }
}
