//! Rows of attention probabilities: copied where the trainer has them, computed from queries and keys where it does not.
//!
//! Flash attention never stores probabilities. A few rows are cheap to compute again: with q and k of one head,
//! p = exp(scale·q·k − lse), or the softmax if the trainer does not hand over its log-sum-exp. Cost per row and head:
//! the visible keys are read once.

use super::Cpu;
use crate::device::{AttentionFound, AttentionJob, AttentionRow, AttentionSource, QueryKey, Strided};
use rayon::prelude::*;

/// The rows of every head.
pub(super) fn run(cpu: &Cpu, job: AttentionJob<'_>) -> AttentionFound {
    let AttentionJob { source, heads, rows } = job;
    let mut probabilities = vec![0.0; heads * rows.iter().map(|row| row.keys).sum::<usize>()];
    // One piece of the output per row.
    let mut pieces = Vec::with_capacity(rows.len());
    let mut rest = &mut probabilities[..];
    for row in rows {
        let (piece, later) = rest.split_at_mut(heads * row.keys);
        pieces.push((row, piece));
        rest = later;
    }
    let widen = cpu.kernels.widen;
    let found: Vec<(f32, Vec<f32>)> = cpu.pool.install(|| {
        let row = |(row, out): (&AttentionRow, &mut [f32])| {
            let mut reader = Reader { widen, query: Vec::new(), key: Vec::new() };
            let mut worst = 0.0f32;
            let mut logits = Vec::with_capacity(heads);
            for (head, out) in out.chunks_exact_mut(row.keys.max(1)).enumerate() {
                logits.push(reader.fill(&source, row, head as u64, out));
                let off = (out.iter().sum::<f32>() - 1.0).abs();
                // `max` would pass over NaN.
                worst = if off.is_nan() || worst.is_nan() { f32::NAN } else { worst.max(off) };
            }
            (worst, logits)
        };
        pieces.into_par_iter().map(row).collect()
    });
    let mut worst = 0.0f32;
    let mut max_logits = vec![f32::NAN; heads];
    for (off, logits) in found {
        worst = if off.is_nan() || worst.is_nan() { f32::NAN } else { worst.max(off) };
        for (most, logit) in max_logits.iter_mut().zip(logits) {
            // Of two numbers the larger, of a number and NaN the number.
            *most = most.max(logit);
        }
    }
    AttentionFound { probabilities, max_logits, off: worst }
}

/// Reads pieces of memory into buffers of its own.
struct Reader {
    widen: fn(&[u16], &mut [f32]),
    query: Vec<f32>,
    key: Vec<f32>,
}

impl Reader {
    /// Fills one row of one head; returns its largest logit, NaN if that is not known.
    fn fill(&mut self, source: &AttentionSource, row: &AttentionRow, head: u64, out: &mut [f32]) -> f32 {
        match source {
            AttentionSource::Probabilities { probabilities, log_sum_exp } => {
                let from = probabilities.offset(&[row.sequence, head, row.position, row.first_key]);
                read(probabilities, from, probabilities.strides()[3], self.widen, out);
                let Some(lse) = log_sum_exp else { return f32::NAN };
                let most = out.iter().copied().fold(f32::NAN, f32::max);
                most.ln() + read_one(lse, lse.offset(&[row.sequence, head, row.position]), self.widen)
            }
            AttentionSource::QueryKey(source) => self.compute(source, row, head, out),
        }
    }

    fn compute(&mut self, source: &QueryKey, row: &AttentionRow, head: u64, out: &mut [f32]) -> f32 {
        let QueryKey { query, key, log_sum_exp, scale, softcap, group } = source;
        let width = query.shape()[3] as usize;
        self.query.resize(width, 0.0);
        self.key.resize(width, 0.0);
        let from = query.offset(&[row.sequence, row.position, head, 0]);
        read(query, from, query.strides()[3], self.widen, &mut self.query);
        for (out, at) in out.iter_mut().zip(row.first_key..) {
            let from = key.offset(&[row.sequence, at, head / group, 0]);
            read(key, from, key.strides()[3], self.widen, &mut self.key);
            let logit = scale * dot(&self.query, &self.key);
            *out = if *softcap > 0.0 { softcap * (logit / softcap).tanh() } else { logit };
        }
        let most = out.iter().copied().fold(f32::NAN, f32::max);
        match log_sum_exp {
            Some(lse) => {
                let lse = read_one(lse, lse.offset(&[row.sequence, head, row.position]), self.widen);
                out.iter_mut().for_each(|p| *p = (*p - lse).exp());
            }
            None => {
                out.iter_mut().for_each(|p| *p = (*p - most).exp());
                let total: f32 = out.iter().sum();
                out.iter_mut().for_each(|p| *p /= total);
            }
        }
        most
    }
}

fn read(view: &Strided, from: i64, step: i64, widen: fn(&[u16], &mut [f32]), out: &mut [f32]) {
    // SAFETY: the view's owner promised that its elements are readable during the call, and the caller's indices are
    // inside its shape.
    unsafe { view.memory.gather(from, step, widen, out) };
}

fn read_one(view: &Strided, from: i64, widen: fn(&[u16], &mut [f32])) -> f32 {
    let mut value = [0.0];
    read(view, from, 1, widen, &mut value);
    value[0]
}

/// Eight partial sums: a head's width is short, and one sum would wait for itself.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0f32; LANES];
    let (x, y) = (x.chunks(LANES), y.chunks(LANES));
    for (x, y) in x.zip(y) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    sums.iter().sum()
}
