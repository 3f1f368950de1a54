//! Dense algebra through LAPACK, behind one lock.
//!
//! Debian's serial OpenBLAS is not thread-safe: several threads inside it give wrong results, not just slow ones. So
//! every call in the library goes through this file, and every function here holds [`LOCK`] for as long as it computes.
//! Work of many seconds is done in several calls, so that others get in between.
//!
//! Everything is fp64. Non-finite input gives `None`, and so does a result that is not finite. The same input gives the
//! same bits: one thread, one order of summation.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayView2};
use ndarray_linalg::{EigValsh, JobSvd, QR, SVDDC, SolveC, UPLO};
use std::cell::Cell;
use std::ffi::{c_char, c_int};
use std::mem::ManuallyDrop;
use std::sync::{Mutex, MutexGuard, PoisonError};

// Links the archive that ndarray-linalg's declarations refer to.
use openblas_src as _;

/// Of the standard library, since it can be released in the child of a fork, whatever other threads were waiting for.
static LOCK: Mutex<()> = Mutex::new(());

fn lock() -> MutexGuard<'static, ()> {
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// What this thread holds while it forks. Never dropped with the thread: a destructor would keep the library loaded.
    static HELD: Cell<Option<ManuallyDrop<MutexGuard<'static, ()>>>> = const { Cell::new(None) };
}

/// Before a fork: waits until no thread computes, so that a child does not find the lock held by a thread that it does
/// not have, nor the algebra half-way.
pub fn hold_for_fork() {
    HELD.set(Some(ManuallyDrop::new(lock())));
}

/// After a fork, in the parent and in the child.
pub fn release_after_fork() {
    drop(HELD.take().map(ManuallyDrop::into_inner));
}

/// Solves A·x = b for a symmetric positive definite A. `None` if it is not.
pub fn solve_positive_definite(a: &Array2<f64>, b: &Array1<f64>) -> Option<Array1<f64>> {
    if a.iter().chain(b).any(|x| !x.is_finite()) {
        return None;
    }
    let _guard = lock();
    a.solvec(b).ok().filter(|x| x.iter().all(|x| x.is_finite()))
}

/// A·B. Either may be a transposed view: no copy is made. 2·m·n·k operations.
pub fn product(a: ArrayView2<f64>, b: ArrayView2<f64>) -> Option<Array2<f64>> {
    let mut sum = Array2::zeros((a.nrows(), b.ncols()));
    add_product(a, b, &mut sum)?;
    Some(sum)
}

/// sum += A·B: products that are too long for one call, piece by piece. `None` leaves the sum unusable.
pub fn add_product(a: ArrayView2<f64>, b: ArrayView2<f64>, sum: &mut Array2<f64>) -> Option<()> {
    let fits = finite(&a) && finite(&b) && a.ncols() == b.nrows();
    if !fits || sum.dim() != (a.nrows(), b.ncols()) {
        return None;
    }
    let _guard = lock();
    general_mat_mul(1.0, &a, &b, 1.0, sum);
    finite(&sum.view()).then_some(())
}

/// Eigenvalues of a symmetric matrix in descending order, and eigenvectors in the columns of the same order. Only one
/// triangle is read. About 9·n³ operations, n² of workspace times three.
///
/// Divide and conquer (`dsyevd`), which ndarray-linalg does not offer: its `dsyev` takes six times as long at n = 1024.
pub fn symmetric_eigen(a: &Array2<f64>) -> Option<(Array1<f64>, Array2<f64>)> {
    let n = a.nrows();
    if n == 0 || a.ncols() != n || !finite(&a.view()) {
        return None;
    }
    let mut vectors = a.as_standard_layout().into_owned();
    let mut values = Array1::zeros(n);
    let order = c_int::try_from(n).ok()?;
    let (job, triangle) = (b'V' as c_char, b'L' as c_char);
    let mut info: c_int = 0;
    let mut call = |work: &mut [f64], work_length: c_int, integers: &mut [c_int], integers_length: c_int| {
        // SAFETY: `vectors` is n × n and contiguous, `values` has n elements, both are borrowed by this closure alone;
        // the callers below give workspaces at least as long as they say, or ask for sizes (−1), which writes one
        // element of each. The lock is the caller's duty: it is held around every call.
        unsafe {
            lapack_sys::dsyevd_(
                &job,
                &triangle,
                &order,
                vectors.as_mut_ptr(),
                &order,
                values.as_mut_ptr(),
                work.as_mut_ptr(),
                &work_length,
                integers.as_mut_ptr(),
                &integers_length,
                &mut info,
            );
        }
        info == 0
    };
    let guard = lock();
    let (mut size, mut integer_size) = ([0.0], [0]);
    if !call(&mut size, -1, &mut integer_size, -1) {
        return None;
    }
    let mut work = vec![0.0; size[0] as usize];
    let mut integers = vec![0; integer_size[0] as usize];
    let (work_length, integers_length) = (size[0] as c_int, integer_size[0]);
    let converged = call(&mut work, work_length, &mut integers, integers_length);
    drop(guard);
    if !converged || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    values.invert_axis(ndarray::Axis(0));
    // LAPACK's columns are the rows of a row-major array.
    let mut vectors = vectors.reversed_axes();
    vectors.invert_axis(ndarray::Axis(1));
    Some((values, vectors.as_standard_layout().into_owned()))
}

/// Singular values in descending order.
pub fn singular_values(a: ArrayView2<f64>) -> Option<Array1<f64>> {
    if a.is_empty() || !finite(&a) {
        return None;
    }
    let _guard = lock();
    a.svddc(JobSvd::None).ok().map(|(_, values, _)| values).filter(|values| values.iter().all(|x| x.is_finite()))
}

/// An orthonormal basis of the columns of a tall matrix: Q of the thin QR factorisation.
pub fn orthonormal(a: &Array2<f64>) -> Option<Array2<f64>> {
    if a.is_empty() || a.nrows() < a.ncols() || !finite(&a.view()) {
        return None;
    }
    let _guard = lock();
    a.qr().ok().map(|(q, _)| q).filter(|q| q.iter().all(|x| x.is_finite()))
}

/// Eigenvalues of a symmetric matrix in ascending order, without vectors.
pub fn symmetric_eigenvalues(a: &Array2<f64>) -> Option<Array1<f64>> {
    if a.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let _guard = lock();
    a.eigvalsh(UPLO::Lower).ok().filter(|x| x.iter().all(|x| x.is_finite()))
}

fn finite(a: &ArrayView2<f64>) -> bool {
    a.iter().all(|x| x.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{arr1, arr2};

    /// A fixed matrix without structure.
    fn matrix(rows: usize, columns: usize) -> Array2<f64> {
        Array2::from_shape_fn((rows, columns), |(i, j)| ((i * 37 + j * 101 + i * j * 13) as f64).sin())
    }

    /// Largest deviation. Backward stable algorithms on n ≤ 60 of elements ≤ 1: n²·2⁻⁵³ < 10⁻¹².
    fn distance(x: &Array2<f64>, y: &Array2<f64>) -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn products_take_transposed_views_and_add_up() {
        let (a, b) = (matrix(20, 30), matrix(30, 11));
        let naive = Array2::from_shape_fn((20, 11), |(i, j)| (0..30).map(|k| a[[i, k]] * b[[k, j]]).sum::<f64>());
        assert!(distance(&product(a.view(), b.view()).unwrap(), &naive) < 1e-12);
        let (at, bt) = (a.t().to_owned(), b.t().to_owned());
        assert!(distance(&product(at.t(), bt.t()).unwrap(), &naive) < 1e-12);
        let mut sum = naive.clone();
        add_product(a.view(), b.view(), &mut sum).unwrap();
        assert!(distance(&sum, &(2.0 * &naive)) < 1e-12);
        assert!(product(a.view(), a.view()).is_none(), "shapes that do not fit");
        assert!(product(arr2(&[[f64::NAN]]).view(), arr2(&[[0.0]]).view()).is_none());
        assert!(product(arr2(&[[1e300]]).view(), arr2(&[[1e300]]).view()).is_none(), "overflow");
    }

    #[test]
    fn eigenvectors_diagonalise() {
        for n in [1, 2, 7, 60] {
            let a = matrix(n, n);
            let a = &a + &a.t();
            let (values, vectors) = symmetric_eigen(&a).unwrap();
            assert!(values.windows(2).into_iter().all(|pair| pair[0] >= pair[1]), "descending");
            let scaled = &vectors * &values;
            assert!(distance(&product(scaled.view(), vectors.t()).unwrap(), &a) < 1e-11);
            assert!(distance(&product(vectors.t(), vectors.view()).unwrap(), &Array2::eye(n)) < 1e-12);
        }
        assert!(symmetric_eigen(&arr2(&[[f64::INFINITY]])).is_none());
        assert!(symmetric_eigen(&Array2::zeros((2, 3))).is_none() && symmetric_eigen(&Array2::zeros((0, 0))).is_none());
    }

    #[test]
    fn singular_values_and_bases() {
        let a = matrix(40, 9);
        let (eigenvalues, _) = symmetric_eigen(&product(a.t(), a.view()).unwrap()).unwrap();
        for (s, lambda) in singular_values(a.view()).unwrap().iter().zip(&eigenvalues) {
            assert!((s * s - lambda).abs() < 1e-12 * eigenvalues[0]);
        }
        let q = orthonormal(&a).unwrap();
        assert!(distance(&product(q.t(), q.view()).unwrap(), &Array2::eye(9)) < 1e-13);
        let within = product(q.view(), product(q.t(), a.view()).unwrap().view()).unwrap();
        assert!(distance(&within, &a) < 1e-12, "the same span");
        assert!(orthonormal(&matrix(3, 4)).is_none());
        assert!(singular_values(arr2(&[[f64::NAN]]).view()).is_none());
    }

    #[test]
    fn solves_and_refuses() {
        let x = solve_positive_definite(&arr2(&[[4.0, 2.0], [2.0, 3.0]]), &arr1(&[8.0, 8.0])).unwrap();
        assert!((x[0] - 1.0).abs() < 1e-12 && (x[1] - 2.0).abs() < 1e-12);
        assert!(solve_positive_definite(&arr2(&[[1.0, 2.0], [2.0, 1.0]]), &arr1(&[1.0, 1.0])).is_none());
        assert!(solve_positive_definite(&arr2(&[[f64::NAN]]), &arr1(&[1.0])).is_none());
    }

    #[test]
    fn eigenvalues_of_a_reflection() {
        let found = symmetric_eigenvalues(&arr2(&[[0.0, 1.0], [1.0, 0.0]])).unwrap();
        assert!((found[0] + 1.0).abs() < 1e-14 && (found[1] - 1.0).abs() < 1e-14);
        assert!(symmetric_eigenvalues(&arr2(&[[f64::INFINITY]])).is_none());
    }

    #[test]
    fn nothing_is_computed_while_a_fork_holds_the_lock() {
        let solve = || solve_positive_definite(&arr2(&[[4.0]]), &arr1(&[8.0])).unwrap()[0];
        hold_for_fork();
        let other = std::thread::spawn(solve);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!other.is_finished());
        release_after_fork();
        assert_eq!((other.join().unwrap(), solve()), (2.0, 2.0));
        release_after_fork();
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
