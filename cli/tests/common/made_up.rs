//! A made-up run in a real ring: three tasks, four layers of four heads, with interference planted in known heads.
//!
//! While "medical" is trained, layer 2 head q.1 and layer 1 head v.3 work against "legal"; while "code" is trained, layer
//! 3 head o.0 works against "medical" as well. Everywhere else is noise. On the text of "legal", layer 2 changes most and
//! its head 1 does harm (`made_up/probes.rs`). The catalog is written out (`made_up/catalog.rs`) and not taken from the
//! library: what the program knows of names must come from the ring.

#![allow(dead_code)]

#[path = "made_up/catalog.rs"]
mod catalog;
#[path = "made_up/probes.rs"]
mod probes;

use std::path::{Path, PathBuf};

use catalog::UNDETERMINED;
#[allow(unused_imports, reason = "not every test that includes this file looks at the catalog")]
pub use catalog::{EXACT, FROZEN, KINDS, ROLES};

use forgetscope::ring::{Entry, NONE16, Record, RingError, Writer, WriterOptions, monotonic_ns};

pub const TASKS: [&str; 3] = ["legal", "medical", "code"];
pub const LAYERS: u32 = 4;
pub const HEADS: u32 = 4;
/// Steps of each task; every tenth is sampled.
pub const STEPS: u64 = 200;
pub const EVERY: u64 = 10;

/// A kind that the catalog does not have.
pub const UNKNOWN_KIND: u16 = 77;

/// How the run is written.
#[derive(Clone, Debug)]
pub struct Run {
    pub path: PathBuf,
    pub slots: u64,
    pub rank: u32,
    pub world: u32,
    pub name: String,
    /// Nothing that needs an earlier task's reference, snapshot or evaluation.
    pub bare: bool,
}

impl Run {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Run { path: path.into(), slots: 1 << 17, rank: 0, world: 1, name: "made-up".into(), bare: false }
    }

    /// A path that `forgetscope ls` finds.
    pub fn in_directory(directory: &Path) -> Self {
        Run::new(forgetscope::ring::default_path(Some(directory), 0))
    }

    pub fn create(&self) -> Result<Story, RingError> {
        let mut options = WriterOptions::new(&self.path);
        (options.slots, options.rank, options.world) = (self.slots, self.rank, self.world);
        let mut story = Story {
            writer: Writer::create(&options)?,
            published: Vec::new(),
            noise: Noise(7),
            rank: self.rank,
            step: 0,
            task: NONE16,
        };
        story.catalog(&self.name)?;
        Ok(story)
    }

    /// The whole run, closed. Returns what was published.
    pub fn write(&self) -> Result<Vec<Record>, RingError> {
        let mut story = self.create()?;
        match self.bare {
            true => story.bare(),
            false => story.tell(),
        }
        Ok(story.close())
    }
}

/// A run that is being written.
pub struct Story {
    pub writer: Writer,
    pub published: Vec<Record>,
    noise: Noise,
    rank: u32,
    pub step: u64,
    pub task: u16,
}

impl Story {
    /// A record of now at the level of the model.
    pub fn record(&self, kind: u16, values: &[f64]) -> Record {
        let mut record = Record {
            time_ns: monotonic_ns(),
            step: self.step,
            kind,
            level: 4,
            rank: self.rank,
            task: self.task,
            ..Record::default()
        };
        record.values[..values.len()].copy_from_slice(values);
        record
    }

    pub fn publish(&mut self, record: Record) {
        self.writer.publish(&record);
        self.published.push(record);
    }

    pub fn close(self) -> Vec<Record> {
        self.writer.close();
        self.published
    }

    /// Steps and nothing else.
    fn bare(&mut self) {
        for step in 0..20 {
            self.step = step;
            self.publish(self.record(1, &[1.0, 1.0, 1.0, 0.0, 1e5, 24.0, 1.0, 1e-4]));
        }
    }

    /// All three tasks.
    pub fn tell(&mut self) {
        for (id, name) in [(0, "loss"), (1, "accuracy")] {
            let entry = Entry::Metric { id, name: name.into(), higher_is_better: id == 1 };
            self.writer.append(&entry).unwrap();
        }
        for task in 0..3u16 {
            let name = TASKS[usize::from(task)].into();
            self.writer.append(&Entry::Task { id: task, name }).unwrap();
            self.begin(task);
            let begin = u64::from(task) * STEPS;
            for step in begin..begin + STEPS {
                self.step = step;
                if step.is_multiple_of(EVERY) {
                    self.sampled_step();
                }
                if step % 20 == 19 {
                    self.evaluate();
                }
                if step % 40 == 19 {
                    self.look();
                }
            }
            self.look_at_the_end();
            self.end(task);
        }
        // What no version of this program knows.
        let unknown = Record { level: 200, flags: 1 << 20, ..self.record(UNKNOWN_KIND, &[1.5; 10]) };
        self.publish(unknown);
        self.writer.count(1, 2);
        self.publish(self.record(13, &[1.0, 2.0]));
    }

    pub fn begin(&mut self, task: u16) {
        self.task = task;
        let event = Record { reference: task, ..self.record(12, &[0.0, 0.0]) };
        self.publish(event);
    }

    pub fn end(&mut self, task: u16) {
        for event in [2.0, 3.0, 1.0] {
            let event = Record { reference: task, ..self.record(12, &[event, 32.0]) };
            self.publish(event);
        }
        self.task = NONE16;
    }

    /// Everything that a sampled step leaves behind.
    fn sampled_step(&mut self) {
        let norm = 1.0 + 0.2 * self.noise.next();
        self.publish(self.record(1, &[norm, norm * norm, 1.0, 0.0, 98304.0, 24.0, 1.0, 3e-4]));
        let trained = (self.step - u64::from(self.task) * STEPS) as f64 / STEPS as f64;
        for reference in 0..self.task {
            self.interference(reference);
            self.drift(reference, trained);
            if self.step.is_multiple_of(40) && trained > 0.0 {
                self.corrected(reference);
            }
        }
    }

    fn interference(&mut self, reference: u16) {
        for layer in 0..LAYERS {
            for (index, (role, _)) in ROLES.iter().take(4).enumerate() {
                for head in 0..HEADS {
                    let truth = planted(self.task, reference, layer, *role, head);
                    let cosine = truth + 0.02 * self.noise.next();
                    let record = Record {
                        level: 0,
                        tensor: layer * 6 + index as u32,
                        slice: u32::from(*role) << 16 | head,
                        ..self.compared(3, reference, &interference(cosine, 0.03, 1024.0))
                    };
                    self.publish(record);
                }
            }
        }
        for (role, name) in ROLES.iter().take(6) {
            let shift = if *name == "q" {
                -0.12
            } else if *name == "v" {
                -0.06
            } else {
                0.0
            };
            let cosine = shift + 0.01 * self.noise.next();
            let record = Record {
                level: 2,
                slice: u32::from(*role),
                ..self.compared(3, reference, &interference(cosine, 0.015, 16384.0))
            };
            self.publish(record);
        }
        let cosine = -0.08 + 0.01 * self.noise.next();
        self.publish(self.compared(3, reference, &interference(cosine, 0.008, 98304.0)));
    }

    fn drift(&mut self, reference: u16, trained: f64) {
        let since = trained + f64::from(self.task - reference - 1);
        for layer in 0..LAYERS {
            let relative = 0.02 * since.sqrt() * [0.6, 0.9, 1.8, 1.1][layer as usize];
            let values = [relative, relative, relative * relative, 0.0, 1.0, 0.01, 0.011, 1e-8, 24576.0];
            let record = Record { level: 3, slice: layer, ..self.compared(8, reference, &values) };
            self.publish(record);
        }
        let actual = loss(reference, self.step) - loss_at_end(reference);
        let quadratic = 0.8 * actual + 0.01 * self.noise.next();
        let first = 0.1 * actual;
        self.publish(self.compared(
            9,
            reference,
            &[first + quadratic, first, 0.02, quadratic, 0.97 * actual, 32.0, 512.0, since * 20.0],
        ));
    }

    fn corrected(&mut self, reference: u16) {
        for layer in 0..LAYERS {
            let (cosine, error) = [(f64::NAN, f64::NAN), (-0.24, 0.07), (-0.41, 0.05), (0.06, 0.09)][layer as usize];
            let mut record =
                self.compared(4, reference, &[cosine, error, -1e-3, 1e-4, 0.1, 0.02, 0.2, 0.01, 20.0, 32.0]);
            (record.level, record.slice) = (3, layer);
            if cosine.is_nan() {
                record.flags |= UNDETERMINED;
            }
            self.publish(record);
        }
        self.publish(self.compared(4, reference, &[-0.19, 0.04, -1e-3, 1e-4, 0.1, 0.02, 0.2, 0.01, 20.0, 32.0]));
    }

    fn evaluate(&mut self) {
        for task in 0..3u16 {
            let value = loss(task, self.step);
            let (own, best) = match task < self.task {
                true => (loss_at_end(task), loss_at_end(task)),
                false => (f64::NAN, f64::NAN),
            };
            let evaluation =
                Record { reference: task, ..self.record(10, &[value, best, own, value - best, value - own, 0.0]) };
            self.publish(evaluation);
            let (accuracy, own) = ((-value / 3.0).exp(), (-own / 3.0).exp());
            let evaluation = Record {
                reference: task,
                ..self.record(10, &[accuracy, own, own, own - accuracy, own - accuracy, 1.0])
            };
            self.publish(evaluation);
        }
        let trained = self.step - u64::from(self.task) * STEPS;
        if trained > 40 {
            // Falls for as long as its own training goes on steeply.
            let (stage, slope) = if trained < 120 { (1.0, -0.01) } else { (0.0, -0.001) };
            let stage = Record { reference: self.task, ..self.record(30, &[stage, slope, 8e-4, 2.0, 8.0]) };
            self.publish(stage);
        }
        if self.task > 0 {
            self.publish(self.record(11, &[-0.5, 0.5, 0.5, f64::from(self.task), 0.0]));
        }
    }

    pub fn compared(&self, kind: u16, reference: u16, values: &[f64]) -> Record {
        Record { reference, flags: EXACT | FROZEN, ..self.record(kind, values) }
    }
}

/// The interference that was planted.
pub fn planted(task: u16, reference: u16, layer: u32, role: u16, head: u32) -> f64 {
    match (task, reference, layer, role, head) {
        (_, 0, 2, 3, 1) => -0.42,
        (_, 0, 1, 5, 3) => -0.30,
        (2, 1, 3, 7, 0) => -0.25,
        (_, 0, 0, 7, 2) => 0.21,
        _ => 0.0,
    }
}

/// The loss of a task at a step: falls while it is trained, rises when others are.
pub fn loss(task: u16, step: u64) -> f64 {
    let begin = u64::from(task) * STEPS;
    if step < begin {
        return 4.0 - 0.2 * f64::from(task);
    }
    let trained = (step - begin).min(STEPS - 1) as f64 / STEPS as f64;
    let since = (step + 1).saturating_sub(begin + STEPS) as f64 / STEPS as f64;
    let harm = [0.55, 0.30, 0.0][usize::from(task)];
    1.5 + 0.2 * f64::from(task) + 2.3 * (-4.0 * trained).exp() + harm * (1.0 - (-2.0 * since).exp())
}

/// The loss of a task at the end of its own training.
pub fn loss_at_end(task: u16) -> f64 {
    loss(task, (u64::from(task) + 1) * STEPS - 1)
}

fn interference(cosine: f64, null: f64, active: f64) -> [f64; 10] {
    let fraction = 0.5 - cosine * 0.4;
    [cosine, null, cosine, 1.0, 1.0, cosine, fraction, (fraction * active).round(), active, 0.5 * (1.0 - cosine)]
}

/// The same noise in every run, near enough to a normal distribution.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        let uniforms = (0..12).map(|_| {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        });
        uniforms.sum::<f64>() - 6.0
    }
}
