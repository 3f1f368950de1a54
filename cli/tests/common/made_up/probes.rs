//! What probes of the made-up run show, and its landscapes: planted, not random.
//!
//! On the text of "legal", layer 2 changes most and layer 1 loses its likeness to the next; layer 2 head 1 is severe, layer
//! 1 head 3 changed, all others are as further training would leave them. There is no null for the heads of "medical".
//! The landscape of "legal" becomes flatter by its relative trace, that of "medical" stays within its error.

use forgetscope::ring::{NONE32, Record};

use super::catalog::{BASE, BLOCK, CONTINUED, EXTRAPOLATED, UNDETERMINED};
use super::{HEADS, LAYERS, STEPS, Story};

/// How far each layer has changed by the end of the next task: 1 − CKA.
pub const CHANGED: [f64; 4] = [0.10, 0.18, 0.45, 0.20];
/// What further training on the task itself would change.
const USUAL: f64 = 0.03;

/// Why a pass was taken.
#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Base,
    Later,
    Continued { updates: f64 },
}

impl Story {
    /// Passes over the probes of earlier tasks.
    pub fn look(&mut self) {
        for reference in 0..self.task {
            self.pass(reference, Pass::Later);
        }
    }

    /// Before a task is closed: the effect of its heads on earlier tasks, its own base, landscapes, and the similarity of
    /// all tasks at these weights.
    pub fn look_at_the_end(&mut self) {
        let task = self.task;
        for reference in 0..task {
            self.heads(reference, Pass::Later, true);
            self.landscape(reference, false);
        }
        self.pass(task, Pass::Base);
        if task == 0 {
            for updates in [20.0, 40.0] {
                self.pass(task, Pass::Continued { updates });
            }
        }
        self.landscape(task, true);
        for later in 1..3u16 {
            for earlier in 0..later {
                let overlap = 0.1 + 0.1 * f64::from(later - earlier);
                let values = [overlap, 0.9, 0.05, 0.3, 16.0, 4.0, 512.0, 512.0];
                let record = Record { task: later, reference: earlier, ..self.record(22, &values) };
                self.publish(record);
            }
        }
    }

    fn of_pass(&self, kind: u16, reference: u16, pass: Pass, values: &[f64]) -> Record {
        let flags = match pass {
            Pass::Base => BASE,
            Pass::Later => 0,
            Pass::Continued { .. } => CONTINUED,
        };
        Record { reference, flags, ..self.record(kind, values) }
    }

    fn pass(&mut self, reference: u16, pass: Pass) {
        for layer in 0..LAYERS {
            self.layer(reference, layer, pass);
        }
        if pass == Pass::Base {
            return;
        }
        self.heads(reference, pass, false);
        let (lower, upper) = (0.02, 0.05);
        let depth = self.of_pass(20, reference, pass, &[upper - lower, 0.01, 0.05, lower, upper, 8.0, 8.0, 0.95]);
        self.publish(depth);
    }

    /// 0 at the end of the task, 1 at the end of the next.
    fn since(&self, reference: u16) -> f64 {
        ((self.step + 1) as f64 / STEPS as f64 - f64::from(reference) - 1.0).min(1.0)
    }

    fn layer(&mut self, reference: u16, layer: u32, pass: Pass) {
        let none = f64::NAN;
        let change = match pass {
            Pass::Base => none,
            Pass::Later => CHANGED[layer as usize] * self.since(reference),
            Pass::Continued { .. } => USUAL,
        };
        let cka = 1.0 - change;
        let rank_base = if pass == Pass::Base { none } else { 12.0 };
        let states = [cka, 0.01, cka + 0.02, change, 0.5 * change, 0.1, 12.0 - 4.0 * change, rank_base, 512.0, 8.0];
        // The gap of the uppermost layer is too small for its angles to mean anything.
        let gap = if layer == LAYERS - 1 { 0.01 } else { 0.3 };
        let (degrees, overlap) = (60.0 * change, 1.0 - change);
        let angles = [degrees, 1.5 * degrees, 5.0, 8.0, overlap, 0.1, 6.0, gap, 0.3, 512.0];
        let moved = if pass != Pass::Base && layer == 1 { -0.12 } else { 0.004 };
        let neighbour = [0.9 + moved, 0.9, moved, 0.01, 512.0];
        for (kind, values) in [(14, &states[..]), (15, &angles), (16, &neighbour)] {
            let record = Record { level: 3, slice: layer, ..self.of_pass(kind, reference, pass, values) };
            self.publish(record);
        }
        if layer == LAYERS - 1 {
            let kept = if pass == Pass::Base { none } else { 0.6 };
            let values = [0.2, 0.05, kept, 0.14, 0.3, 0.01, 1.9, 2.0, 8.0, 512.0];
            let values =
                if pass == Pass::Base { [none, none, none, 0.14, none, 0.01, 2.0, none, 8.0, 512.0] } else { values };
            let record = Record { level: 3, slice: layer, ..self.of_pass(21, reference, pass, &values) };
            self.publish(record);
        }
    }

    fn heads(&mut self, reference: u16, pass: Pass, is_patched: bool) {
        let updates = match pass {
            Pass::Continued { updates } => updates,
            _ => self.since(reference) * STEPS as f64,
        };
        let none = f64::NAN;
        let is_judged = pass == Pass::Later && reference == 0;
        for layer in 0..LAYERS {
            for head in 0..HEADS {
                let ratio = match (layer, head) {
                    (2, 1) => 6.0,
                    (1, 3) => 4.0,
                    _ => 1.0,
                };
                let (q_value, severity) = match (is_judged, layer, head) {
                    (false, ..) => (none, none),
                    (_, 2, 1) => (1e-6, if is_patched { 2.0 } else { 1.0 }),
                    (_, 1, 3) => (1e-4, 1.0),
                    _ => (0.8, 0.0),
                };
                let (median, high) = if is_judged { (0.01, 0.03) } else { (none, none) };
                let effect = if is_patched { if (layer, head) == (2, 1) { 0.08 } else { 0.001 } } else { none };
                let error = if is_patched { 0.01 } else { none };
                let values = [0.01 * ratio, 0.5, median, high, q_value, q_value, severity, effect, error, updates];
                let mut record = self.of_pass(19, reference, pass, &values);
                (record.level, record.slice) = (5, layer << 16 | head);
                if is_judged && updates > 40.0 {
                    record.flags |= EXTRAPOLATED;
                }
                if pass == Pass::Later && !is_judged {
                    record.flags |= UNDETERMINED;
                }
                self.publish(record);
                let divergence = if (layer, head) == (2, 1) { 0.2 } else { 0.002 * f64::from(1 + head) };
                let values = [2.5, 3.0, 0.1, 0.2, 0.0, 0.0, divergence, none, none, 256.0];
                let attention = self.of_pass(18, reference, pass, &values);
                self.publish(Record { level: 5, slice: layer << 16 | head, ..attention });
            }
        }
    }

    fn landscape(&mut self, reference: u16, is_base: bool) {
        let none = f64::NAN;
        let pass = if is_base { Pass::Base } else { Pass::Later };
        // Flatter for legal only.
        let flatter = if is_base || reference != 0 { 1.0 } else { 0.42 };
        let largest = 40.0 * flatter;
        let (drift, old) = if is_base { (none, none) } else { (0.3, 11.0) };
        let values = [largest, 900.0 * flatter, 30.0, 120.0, 2.0 * flatter, 0.1, drift, old, 0.4, 1.8];
        let record = self.of_pass(23, reference, pass, &values);
        self.publish(record);
        for (index, share) in [1.0, 0.6, 0.3].into_iter().enumerate() {
            let record = self.of_pass(24, reference, pass, &[index as f64, largest * share, 1e-6, old]);
            self.publish(record);
        }
        for (node, weight) in
            [(-0.8, 6.0), (-0.02, 4e4), (0.003, 9e4), (0.2, 3e3), (3.0, 40.0), (0.7, 90.0), (1.0, 0.7)]
        {
            let scale = if node >= 0.7 { largest } else { 1.0 };
            let record = self.of_pass(25, reference, pass, &[node * scale, weight, 1.0]);
            self.publish(record);
        }
        let block = self.of_pass(23, reference, pass, &[9.0, 80.0, 4.0, none, none, none, none, none, 0.1, none]);
        self.publish(Record { level: 1, tensor: 2, slice: NONE32, flags: block.flags | BLOCK, ..block });
        if is_base {
            let fisher =
                self.of_pass(28, reference, Pass::Later, &[50.0, 20.0, 12.0, 9.0, 7.0, 300.0, 14.0, 32.0, 512.0]);
            self.publish(fisher);
            return;
        }
        let error = 0.05;
        let flattening = [flatter, flatter, error, flatter, error, 1.2];
        let record = self.of_pass(26, reference, pass, &flattening);
        self.publish(record);
        for index in 0..5 {
            let position = f64::from(index) / 4.0;
            let record =
                self.of_pass(27, reference, pass, &[position, 1.5 + 0.4 * position * position, 3.0 * position]);
            self.publish(record);
        }
        let secant = self.of_pass(29, reference, pass, &[0.25, 0.06, 3.0, 16.0]);
        self.publish(secant);
    }
}
