//! Algebra on sketches: inner products and sums, in a fixed order.
//!
//! Buckets are fp32 for gradients and fp64 for weights; products and sums are taken in fp64 lanes, because a sketch is
//! small and read on the drain thread: accuracy is free there.

/// Lanes summed side by side: enough for the compiler to vectorise, few enough to fold quickly.
const LANES: usize = 8;

/// Inner product of two sketches of the same slice.
pub fn dot<T: Copy + Into<f64>, U: Copy + Into<f64>>(x: &[T], y: &[U]) -> f64 {
    debug_assert_eq!(x.len(), y.len());
    let mut lanes = [0.0; LANES];
    let (x_lanes, x_rest) = x.as_chunks::<LANES>();
    let (y_lanes, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x_lanes.iter().zip(y_lanes) {
        for lane in 0..LANES {
            lanes[lane] += x[lane].into() * y[lane].into();
        }
    }
    let rest: f64 = x_rest.iter().zip(y_rest).map(|(&x, &y)| x.into() * y.into()).sum();
    lanes.iter().sum::<f64>() + rest
}

/// Squared norm of a sketch.
pub fn norm2<T: Copy + Into<f64>>(x: &[T]) -> f64 {
    dot(x, x)
}

/// Σ (xᵦ·yᵦ)² over buckets: an estimate of Σ(x·y)² over coordinates plus the variance that sketching adds to ⟨x, y⟩, which
/// together are the variance of the sketched inner product if every coordinate's sign were a fair coin.
pub fn dot_squares<T: Copy + Into<f64>, U: Copy + Into<f64>>(x: &[T], y: &[U]) -> f64 {
    debug_assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(&x, &y)| (x.into() * y.into()).powi(2)).sum()
}

/// `y += factor · x`.
pub fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) {
    debug_assert_eq!(x.len(), y.len());
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}
