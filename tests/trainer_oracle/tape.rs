//! Reads what tap.cpp wrote.

use std::path::Path;

/// A step of the trainer.
pub struct Step {
    pub task: usize,
    pub scale: f64,
    pub gradients: Vec<f32>,
    pub before: Vec<f32>,
    pub after: Vec<f32>,
}

/// Everything the trainer handed over, tensors one after another.
#[derive(Default)]
pub struct Tape {
    /// Name and elements of each tensor.
    pub tensors: Vec<(String, usize)>,
    pub tasks: Vec<String>,
    /// By step number.
    pub steps: Vec<Step>,
    /// Per task: batch gradients, and the examples of a batch.
    pub references: Vec<Vec<Vec<f32>>>,
    pub examples: f64,
    /// Per task: parameters at its end.
    pub snapshots: Vec<Vec<f32>>,
    /// (current task or none yet, is training of it over, evaluated task, value), in order.
    pub losses: Vec<(Option<usize>, String, f64)>,
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn bytes(&mut self, count: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }
    fn word(&mut self) -> u64 {
        u64::from_ne_bytes(self.bytes(8).try_into().unwrap())
    }
    fn number(&mut self) -> f64 {
        f64::from_bits(self.word())
    }
    fn text(&mut self) -> String {
        let length = self.word() as usize;
        String::from_utf8(self.bytes(length).to_vec()).unwrap()
    }
    fn values(&mut self, tensors: &[(String, usize)]) -> Vec<f32> {
        let count: usize = tensors.iter().map(|(_, numel)| numel).sum();
        self.bytes(4 * count).chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
    }
}

impl Tape {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let mut cursor = Cursor(&bytes);
        let mut tape = Self::default();
        let mut before = Vec::new();
        while !cursor.0.is_empty() {
            match cursor.word() as u8 {
                b't' => tape.tensors.push((cursor.text(), cursor.word() as usize)),
                b'b' => {
                    tape.tasks.push(cursor.text());
                    tape.references.push(Vec::new());
                }
                b'e' => tape.snapshots.push(cursor.values(&tape.tensors)),
                b'r' => {
                    tape.examples = cursor.number();
                    let batch = cursor.values(&tape.tensors);
                    tape.references.last_mut().unwrap().push(batch);
                }
                b's' => {
                    assert_eq!(cursor.word(), tape.steps.len() as u64, "the trainer counts its steps from 0");
                    before = cursor.values(&tape.tensors);
                }
                b'g' => {
                    let scale = cursor.number();
                    let gradients = cursor.values(&tape.tensors);
                    let (task, before) = (tape.tasks.len() - 1, std::mem::take(&mut before));
                    tape.steps.push(Step { task, scale, gradients, before, after: Vec::new() });
                }
                b'a' => {
                    let after = cursor.values(&tape.tensors);
                    tape.steps.last_mut().unwrap().after = after;
                }
                b'l' => {
                    let current = tape.tasks.len().checked_sub(1);
                    tape.losses.push((current, cursor.text(), cursor.number()));
                }
                other => panic!("event {other}"),
            }
        }
        tape
    }
}
