//! Data for tests of devices: values, their codes in every type, which of them a slice consists of.

#![allow(dead_code)] // Each test uses a part of it.

use forgetscope::device::{AttentionFound, DType, Segment};
use forgetscope::sketch::hash::mix;
use half::{bf16, f16};

/// Reproducible values of magnitudes between 2⁻¹² and 2⁻², and some zeros.
pub fn values(key: u64, length: usize) -> Vec<f32> {
    (0..length as u64)
        .map(|k| {
            let word = mix(mix(key) ^ k);
            let uniform = (word >> 40) as f32 / 16_777_216.0;
            let sign = if word & 1 == 0 { 1.0 } else { -1.0 };
            if word & 0x70 == 0 { 0.0 } else { sign * (10.0 * uniform - 12.0).exp2() }
        })
        .collect()
}

pub const TYPES: [DType; 6] = [DType::F32, DType::F64, DType::Bf16, DType::F16, DType::F8E4M3, DType::F8E5M2];

/// The value of an 8-bit code: 8 − 1 − `mantissa` bits of exponent. The top exponent is NaN and infinity, or with
/// `is_extended` numbers but for the last code.
pub fn float8(code: u8, mantissa: u32, is_extended: bool) -> f32 {
    let (bits, sign) = (u32::from(code & 0x7f), if code < 0x80 { 1.0 } else { -1.0 });
    let (exponent, fraction) = ((bits >> mantissa) as i32, bits % (1 << mantissa));
    let (top, bias) = ((1 << (7 - mantissa)) - 1, (1 << (6 - mantissa)) - 1);
    let unit = (-(mantissa as f32)).exp2();
    if is_extended && bits == 0x7f || !is_extended && exponent == top && fraction > 0 {
        return f32::NAN;
    }
    sign * match exponent {
        0 => fraction as f32 * unit * ((1 - bias) as f32).exp2(),
        e if e == top && !is_extended => f32::INFINITY,
        e => (1.0 + fraction as f32 * unit) * ((e - bias) as f32).exp2(),
    }
}

/// The code whose value is nearest.
pub fn to_float8(x: f32, mantissa: u32, is_extended: bool) -> u8 {
    let value = |code| float8(code, mantissa, is_extended);
    if !x.is_finite() {
        let same = |&code: &u8| value(code) == x;
        return (0..=255).find(same).unwrap_or(0x7f);
    }
    let finite = (0..=255).filter(|&code| value(code).is_finite());
    finite.min_by(|&a, &b| (value(a) - x).abs().total_cmp(&(value(b) - x).abs())).unwrap()
}

/// Values as the bytes of a type, and the fp32 values that a reader of those sees.
pub fn encode(dtype: DType, source: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let bytes: Vec<u8> = match dtype {
        DType::F32 => source.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F64 => source.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
        DType::Bf16 => source.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        DType::F16 => source.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::F8E4M3 => source.iter().map(|&x| to_float8(x, 3, true)).collect(),
        DType::F8E5M2 => source.iter().map(|&x| to_float8(x, 2, false)).collect(),
    };
    let seen = source.iter().zip(0..).map(|(&x, at)| match dtype {
        DType::F32 | DType::F64 => x,
        DType::Bf16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::F8E4M3 => float8(bytes[at], 3, true),
        DType::F8E5M2 => float8(bytes[at], 2, false),
    });
    let seen = seen.collect();
    (bytes, seen)
}

/// (index in slice, value) of everything the segments reach.
pub fn elements(seen: &[f32], segments: &[Segment]) -> Vec<(u64, f32)> {
    let mut found = Vec::new();
    for s in segments {
        for row in 0..s.rows {
            for col in 0..s.length {
                let offset = s.offset + row as i64 * s.row_step + col as i64 * s.column_step;
                found.push((s.index + row * s.index_step + col, seen[offset as usize]));
            }
        }
    }
    found
}

/// A slice of a row-major matrix: one run, or one run per row.
pub fn segment(rows: u64, length: u64, offset: i64, row_step: i64, column_step: i64) -> Segment {
    Segment { index: 0, index_step: length, rows, length, offset, row_step, column_step }
}

/// Two heads, three queries, four keys, all alike: what `attention` finds of query 1, as probabilities that are given.
pub fn check_given_probabilities(attention: impl Fn(&[f32]) -> AttentionFound) {
    let (heads, queries, keys) = (2, 3, 4);
    let mut probabilities = vec![0.25f32; heads * queries * keys];
    let found = attention(&probabilities);
    assert_eq!((found.off, found.probabilities), (0.0, vec![0.25; 8]));
    // ln p = logit − lse, which is 2.
    assert!(found.max_logits.iter().all(|logit| (logit - (0.25f32.ln() + 2.0)).abs() < 1e-6));
    probabilities[queries * keys + keys] = 0.75;
    assert_eq!(attention(&probabilities).off, 0.5);
    probabilities[keys] = f32::NAN;
    assert!(attention(&probabilities).off.is_nan());
}
