//! Dense algebra through LAPACK, behind one lock.
//!
//! Debian's serial OpenBLAS is not thread-safe: several threads inside it give wrong results, not just slow ones. So
//! every call in the library goes through this file, and every function here holds [`LOCK`] for as long as it computes.

use ndarray::{Array1, Array2};
use ndarray_linalg::SolveC;
use parking_lot::Mutex;

// Links the archive that ndarray-linalg's declarations refer to.
use openblas_src as _;

static LOCK: Mutex<()> = Mutex::new(());

/// Solves A·x = b for a symmetric positive definite A. `None` if it is not.
pub fn solve_positive_definite(a: &Array2<f64>, b: &Array1<f64>) -> Option<Array1<f64>> {
    if a.iter().chain(b).any(|x| !x.is_finite()) {
        return None;
    }
    let _guard = LOCK.lock();
    a.solvec(b).ok().filter(|x| x.iter().all(|x| x.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{arr1, arr2};

    #[test]
    fn solves_and_refuses() {
        let x = solve_positive_definite(&arr2(&[[4.0, 2.0], [2.0, 3.0]]), &arr1(&[8.0, 8.0])).unwrap();
        assert!((x[0] - 1.0).abs() < 1e-12 && (x[1] - 2.0).abs() < 1e-12);
        assert!(solve_positive_definite(&arr2(&[[1.0, 2.0], [2.0, 1.0]]), &arr1(&[1.0, 1.0])).is_none());
        assert!(solve_positive_definite(&arr2(&[[f64::NAN]]), &arr1(&[1.0])).is_none());
    }

    #[test]
    fn threads_do_not_disturb_each_other() {
        let solve = |seed: usize| {
            let n = 24;
            let a = Array2::from_shape_fn((n, n), |(i, j)| {
                if i == j { n as f64 + seed as f64 } else { 1.0 / (1.0 + (i as f64 - j as f64).abs()) }
            });
            solve_positive_definite(&a, &Array1::ones(n)).unwrap()
        };
        let alone: Vec<_> = (0..4).map(solve).collect();
        std::thread::scope(|scope| {
            for (seed, expected) in alone.iter().enumerate() {
                scope.spawn(move || (0..200).for_each(|_| assert_eq!(&solve(seed), expected)));
            }
        });
    }
}
