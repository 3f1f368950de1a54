//! Copies sampled rows of a tensor: what a probe keeps of hidden states, head outputs, logits.

use super::Cpu;
use crate::device::RowsJob;
use rayon::prelude::*;

/// Rows copied by one thread at a time: enough to outweigh handing them out.
const ROWS: usize = 16;

/// Copies every row, converted to fp32. Cost: one read and one write of the rows.
pub(super) fn run(cpu: &Cpu, job: RowsJob<'_>) -> Vec<f32> {
    let RowsJob { memory, rows, runs, run_step, length, step } = job;
    let width = runs * length;
    // Pages come zeroed from the system, so they are written once.
    let mut copied = vec![0.0; rows.len() * width];
    if width == 0 {
        return copied;
    }
    let widen = cpu.kernels.widen;
    cpu.pool.install(|| {
        copied.par_chunks_mut(width * ROWS).zip(rows.par_chunks(ROWS)).for_each(|(out, rows)| {
            for (out, &row) in out.chunks_exact_mut(width).zip(rows) {
                for (run, out) in out.chunks_exact_mut(length).enumerate() {
                    // SAFETY: the job's rows lie in memory that its owner promised to be readable during the call.
                    unsafe { memory.gather(row + run as i64 * run_step, step, widen, out) };
                }
            }
        });
    });
    copied
}
