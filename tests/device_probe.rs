//! Sampled rows of activations and attention, against a plain fp64 computation from the same memory.

mod device_support;

use device_support::check_given_probabilities;
use forgetscope::device::cpu::Cpu;
use forgetscope::device::{
    AttentionFound, AttentionJob, AttentionRow, AttentionSource, DType, Device, Memory, QueryKey, RowsJob, Stream,
    Strided,
};
use forgetscope::sketch::hash::mix;
use half::{bf16, f16};

/// Reproducible values of about unit size.
fn values(key: u64, length: usize) -> Vec<f32> {
    (0..length as u64).map(|k| (mix(mix(key) ^ k) as f64 / u64::MAX as f64 * 4.0 - 2.0) as f32).collect()
}

fn memory<T>(data: &[T], dtype: DType) -> Memory {
    // SAFETY: the tests keep the data until the device has returned, and reach no further.
    unsafe { Memory::new(data.as_ptr().cast(), dtype) }
}

fn attention_of(threads: usize, job: AttentionJob) -> AttentionFound {
    Cpu::new(threads).unwrap().attention(Stream::NULL, job).wait().unwrap()
}

#[test]
fn rows_are_copied_from_every_type_and_stride() {
    let source = values(1, 4000);
    let (doubles, halves): (Vec<f64>, Vec<f16>) = source.iter().map(|&x| (f64::from(x), f16::from_f32(x))).unzip();
    let brains: Vec<bf16> = source.iter().map(|&x| bf16::from_f32(x)).collect();
    let rows: Vec<i64> = (0..50).map(|k| (k * 37) % 61 * 20).collect();
    let cases = [
        (memory(&source, DType::F32), Box::new(|k: usize| source[k]) as Box<dyn Fn(usize) -> f32>),
        (memory(&doubles, DType::F64), Box::new(|k| source[k])),
        (memory(&halves, DType::F16), Box::new(|k| halves[k].to_f32())),
        (memory(&brains, DType::Bf16), Box::new(|k| brains[k].to_f32())),
    ];
    for threads in [1, 3] {
        let device = Cpu::new(threads).unwrap();
        for (memory, value) in &cases {
            for (runs, run_step, length, step) in [(1, 0, 20, 1), (3, 7, 5, 1), (2, 1, 6, 3), (1, 0, 1, 1)] {
                let job = RowsJob { memory: *memory, rows: &rows, runs, run_step, length, step };
                let out = device.rows(Stream::NULL, job).wait().unwrap();
                let at = |row: i64, run: usize, k: usize| (row + run as i64 * run_step + k as i64 * step) as usize;
                let expected = rows
                    .iter()
                    .flat_map(|&row| (0..runs).flat_map(move |run| (0..length).map(move |k| at(row, run, k))));
                assert_eq!(out, expected.map(value).collect::<Vec<_>>());
            }
        }
    }
}

/// Sizes of the attention that is computed again: sequences, positions, keys, heads, key heads, width.
const SIZES: [usize; 6] = [2, 5, 7, 4, 2, 12];

struct Attention {
    query: Vec<f32>,
    key: Vec<f32>,
    scale: f32,
    softcap: f32,
}

impl Attention {
    fn new(softcap: f32) -> Self {
        let [s, t, keys, heads, key_heads, width] = SIZES;
        let (query, key) = (values(2, s * t * heads * width), values(3, s * keys * key_heads * width));
        Self { query, key, scale: 0.3, softcap }
    }

    /// Logits of one query in fp64.
    fn logits(&self, row: AttentionRow, head: usize) -> Vec<f64> {
        let [_, t, keys, heads, key_heads, width] = SIZES;
        let (s, position) = (row.sequence as usize, row.position as usize);
        let q = &self.query[((s * t + position) * heads + head) * width..][..width];
        let visible = row.first_key as usize..row.first_key as usize + row.keys;
        let logit = |at: usize| {
            let k = &self.key[((s * keys + at) * key_heads + head / (heads / key_heads)) * width..][..width];
            let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
            let (logit, cap) = (f64::from(self.scale) * dot, f64::from(self.softcap));
            if cap > 0.0 { cap * (logit / cap).tanh() } else { logit }
        };
        visible.map(logit).collect()
    }

    fn views(&self) -> (Strided, Strided) {
        let [s, t, keys, heads, key_heads, width] = SIZES.map(|n| n as u64);
        let dense = |lengths: [u64; 4]| {
            let strides = [lengths[1] * lengths[2] * lengths[3], lengths[2] * lengths[3], lengths[3], 1];
            lengths.into_iter().zip(strides.map(|stride| stride as i64))
        };
        let query = Strided::new(memory(&self.query, DType::F32), dense([s, t, heads, width])).unwrap();
        let key = Strided::new(memory(&self.key, DType::F32), dense([s, keys, key_heads, width])).unwrap();
        (query, key)
    }
}

#[test]
fn attention_is_computed_from_queries_and_keys() {
    let [s, t, _, heads, key_heads, _] = SIZES;
    let rows = [(0, 0, 0, 3), (1, 4, 0, 7), (0, 3, 2, 4), (1, 0, 0, 1)]
        .map(|(sequence, position, first_key, keys)| AttentionRow { sequence, position, first_key, keys });
    for softcap in [0.0, 1.5] {
        let attention = Attention::new(softcap);
        let (query, key) = attention.views();
        // The log-sum-exp that a trainer would keep, of the rows that are asked for.
        let mut lse = vec![0.0f32; s * heads * t];
        for row in rows {
            for head in 0..heads {
                let total: f64 = attention.logits(row, head).iter().map(|l| l.exp()).sum();
                lse[(row.sequence as usize * heads + head) * t + row.position as usize] = total.ln() as f32;
            }
        }
        let strides = [(s, heads * t), (heads, t), (t, 1)].map(|(length, stride)| (length as u64, stride as i64));
        let lse = Strided::new(memory(&lse, DType::F32), strides).unwrap();
        for log_sum_exp in [None, Some(lse)] {
            let (scale, group) = (attention.scale, (heads / key_heads) as u64);
            let source = AttentionSource::QueryKey(QueryKey { query, key, log_sum_exp, scale, softcap, group });
            let results = [1, 3].map(|threads| {
                let found = attention_of(threads, AttentionJob { source, heads, rows: &rows });
                assert!(found.off < 1e-5, "{}", found.off);
                (found.probabilities, found.max_logits)
            });
            assert_eq!(results[0], results[1]);
            let (out, max_logits) = &results[0];
            let mut at = 0;
            let mut largest = vec![f64::MIN; heads];
            for row in rows {
                for (head, largest) in largest.iter_mut().enumerate() {
                    let logits = attention.logits(row, head);
                    let total: f64 = logits.iter().map(|l| l.exp()).sum();
                    for logit in logits {
                        // fp32 logits of size 8 err by a few 2⁻²¹, and so does p relatively.
                        assert!((f64::from(out[at]) - logit.exp() / total).abs() < 1e-5);
                        *largest = largest.max(logit);
                        at += 1;
                    }
                }
            }
            for (found, expected) in max_logits.iter().zip(largest) {
                assert!((f64::from(*found) - expected).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn probabilities_are_copied_and_sums_that_are_off_are_seen() {
    let log_sum_exp = [2.0f32; 6];
    let rows = [AttentionRow { sequence: 0, position: 1, first_key: 0, keys: 4 }];
    check_given_probabilities(|probabilities| {
        let view =
            |data: &[f32], dims: &[(u64, i64)]| Strided::new(memory(data, DType::F32), dims.iter().copied()).unwrap();
        let source = AttentionSource::Probabilities {
            probabilities: view(probabilities, &[(1, 24), (2, 12), (3, 4), (4, 1)]),
            log_sum_exp: Some(view(&log_sum_exp, &[(1, 6), (2, 3), (3, 1)])),
        };
        attention_of(2, AttentionJob { source, heads: 2, rows: &rows })
    });
}
