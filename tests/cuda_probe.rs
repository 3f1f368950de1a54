//! Sampled rows of activations and attention on a CUDA device, against fp64 and the CPU device.

mod cuda_support;
mod device_support;
mod emulation_support;

use cuda_support::{Devices, Tensor, bits};
use device_support::{TYPES, check_given_probabilities, values};
use emulation_support::on_device;
use forgetscope::device::{
    AttentionFound, AttentionJob, AttentionRow, AttentionSource, DType, Device, Memory, QueryKey, RowsJob, Stream,
    Strided,
};

#[test]
fn rows_are_copied_from_every_type_and_stride() {
    on_device("rows_are_copied_from_every_type_and_stride", &[], || {
        let devices = Devices::open();
        let mut source = values(1, 4_000);
        (source[20], source[41]) = (f32::NAN, f32::INFINITY);
        let rows: Vec<i64> = (0..50).map(|k| (k * 37) % 61 * 20).collect();
        for dtype in TYPES {
            let tensor = Tensor::new(dtype, &source);
            for (runs, run_step, length, step) in
                [(1, 0, 20, 1), (3, 7, 5, 1), (2, 1, 6, 3), (1, 0, 1, 1), (1, 0, 300, 2)]
            {
                let job = |memory| RowsJob { memory, rows: &rows, runs, run_step, length, step };
                let found = devices.cuda.rows(Stream::NULL, job(tensor.on_device(0))).wait().expect("found");
                let other = devices.cpu.rows(Stream::NULL, job(tensor.on_host(0))).wait().expect("found");
                let at = |row: i64, run: usize, k: usize| (row + run as i64 * run_step + k as i64 * step) as usize;
                let places = rows
                    .iter()
                    .flat_map(|&row| (0..runs).flat_map(move |run| (0..length).map(move |k| at(row, run, k))));
                let expected: Vec<f32> = places.map(|at| tensor.seen[at]).collect();
                let numbers =
                    |x: &[f32]| bits(&x.iter().map(|x| if x.is_nan() { 0.0 } else { *x }).collect::<Vec<_>>());
                let nans = |x: &[f32]| x.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
                assert!(numbers(&found) == numbers(&expected) && nans(&found) == nans(&expected), "{dtype:?}");
                assert!(numbers(&found) == numbers(&other) && nans(&found) == nans(&other), "{dtype:?}");
            }
        }
        let tensor = Tensor::new(DType::F32, &source);
        let none = RowsJob { memory: tensor.on_device(0), rows: &[], runs: 1, run_step: 0, length: 4, step: 1 };
        assert!(devices.cuda.rows(Stream::NULL, none).wait().expect("found").is_empty());
    });
}

/// Sequences, positions, keys, heads, key heads, width of the attention that is computed again.
const SIZES: [usize; 6] = [2, 5, 300, 4, 2, 40];

struct Attention {
    query: Tensor,
    key: Tensor,
    scale: f32,
    softcap: f32,
}

type Place = fn(&Tensor) -> Memory;

const DEVICE: Place = |tensor| tensor.on_device(0);
const HOST: Place = |tensor| tensor.on_host(0);

impl Attention {
    fn new(dtype: DType, scale: f32, softcap: f32) -> Self {
        let [s, t, keys, heads, key_heads, width] = SIZES;
        let larger = |key, count| values(key, count).iter().map(|x| 8.0 * x).collect::<Vec<f32>>();
        let query = Tensor::new(dtype, &larger(2, s * t * heads * width));
        Self { query, key: Tensor::new(dtype, &larger(3, s * keys * key_heads * width)), scale, softcap }
    }

    /// Logits of one query in fp64.
    fn logits(&self, row: AttentionRow, head: usize) -> Vec<f64> {
        let [_, t, keys, heads, key_heads, width] = SIZES;
        let (s, position) = (row.sequence as usize, row.position as usize);
        let q = &self.query.seen[((s * t + position) * heads + head) * width..][..width];
        let visible = row.first_key as usize..row.first_key as usize + row.keys;
        let logit = |at: usize| {
            let k = &self.key.seen[((s * keys + at) * key_heads + head / (heads / key_heads)) * width..][..width];
            let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
            let (logit, cap) = (f64::from(self.scale) * dot, f64::from(self.softcap));
            if cap > 0.0 { cap * (logit / cap).tanh() } else { logit }
        };
        visible.map(logit).collect()
    }

    fn source(&self, lse: Option<&Tensor>, place: Place) -> AttentionSource {
        let [s, t, keys, heads, key_heads, width] = SIZES.map(|n| n as u64);
        let dense = |memory, lengths: &[u64]| {
            let strides = (0..lengths.len()).map(|k| lengths[k + 1..].iter().product::<u64>() as i64);
            Strided::new(memory, lengths.iter().copied().zip(strides)).expect("at most four dimensions")
        };
        AttentionSource::QueryKey(QueryKey {
            query: dense(place(&self.query), &[s, t, heads, width]),
            key: dense(place(&self.key), &[s, keys, key_heads, width]),
            log_sum_exp: lse.map(|lse| dense(place(lse), &[s, heads, t])),
            scale: self.scale,
            softcap: self.softcap,
            group: heads / key_heads,
        })
    }

    /// The log-sum-exp that a trainer would keep, of the rows that are asked for.
    fn lse(&self, rows: &[AttentionRow]) -> Tensor {
        let [s, t, _, heads, ..] = SIZES;
        let mut lse = vec![0.0f32; s * heads * t];
        for row in rows {
            for head in 0..heads {
                let total: f64 = self.logits(*row, head).iter().map(|logit| logit.exp()).sum();
                lse[(row.sequence as usize * heads + head) * t + row.position as usize] = total.ln() as f32;
            }
        }
        Tensor::new(DType::F32, &lse)
    }
}

#[test]
fn attention_is_computed_from_queries_and_keys() {
    on_device("attention_is_computed_from_queries_and_keys", &[], || {
        let devices = Devices::open();
        let heads = SIZES[3];
        let rows = [(0, 0, 0, 3), (1, 4, 0, 300), (0, 3, 20, 130), (1, 0, 0, 1), (1, 2, 299, 1)]
            .map(|(sequence, position, first_key, keys)| AttentionRow { sequence, position, first_key, keys });
        for (dtype, scale, softcap) in [(DType::F32, 0.3, 0.0), (DType::Bf16, 0.3, 1.5), (DType::F16, 20.0, 0.0)] {
            let attention = Attention::new(dtype, scale, softcap);
            let lse = attention.lse(&rows);
            for lse in [None, Some(&lse)] {
                let job = |place| AttentionJob { source: attention.source(lse, place), heads, rows: &rows };
                let found = devices.cuda.attention(Stream::NULL, job(DEVICE)).wait().expect("found");
                let other = devices.cpu.attention(Stream::NULL, job(HOST)).wait().expect("found");
                for found in [&found, &other] {
                    check_attention(&attention, &rows, found);
                }
            }
        }
    });
}

/// fp32 logits err by a few 2⁻²⁴ of the products that they are sums of, here up to 100, and so does p relatively.
fn check_attention(attention: &Attention, rows: &[AttentionRow], found: &AttentionFound) {
    let heads = SIZES[3];
    assert!(found.off < 1e-3, "{}", found.off);
    let mut at = 0;
    let mut largest = vec![f64::MIN; heads];
    for row in rows {
        for (head, largest) in largest.iter_mut().enumerate() {
            let logits = attention.logits(*row, head);
            let most = logits.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = logits.iter().map(|logit| (logit - most).exp()).sum();
            for logit in logits {
                let exact = (logit - most).exp() / total;
                assert!(
                    (f64::from(found.probabilities[at]) - exact).abs() < 1e-4,
                    "{} {exact}",
                    found.probabilities[at]
                );
                *largest = largest.max(logit);
                at += 1;
            }
        }
    }
    assert_eq!(at, found.probabilities.len());
    for (found, expected) in found.max_logits.iter().zip(largest) {
        assert!((f64::from(*found) - expected).abs() < 1e-4 * expected.abs().max(1.0), "{found} {expected}");
    }
}

#[test]
fn probabilities_are_copied_and_sums_that_are_off_are_seen() {
    on_device("probabilities_are_copied_and_sums_that_are_off_are_seen", &[], || {
        let devices = Devices::open();
        let log_sum_exp = Tensor::new(DType::F32, &[2.0; 6]);
        let rows = [AttentionRow { sequence: 0, position: 1, first_key: 0, keys: 4 }];
        check_given_probabilities(|probabilities| {
            let tensor = Tensor::new(DType::F32, probabilities);
            let view = |tensor: &Tensor, dimensions: &[(u64, i64)]| {
                Strided::new(tensor.on_device(0), dimensions.iter().copied()).expect("at most four dimensions")
            };
            let source = AttentionSource::Probabilities {
                probabilities: view(&tensor, &[(1, 24), (2, 12), (3, 4), (4, 1)]),
                log_sum_exp: Some(view(&log_sum_exp, &[(1, 6), (2, 3), (3, 1)])),
            };
            let job = AttentionJob { source, heads: 2, rows: &rows };
            devices.cuda.attention(Stream::NULL, job).wait().expect("found")
        });
    });
}
