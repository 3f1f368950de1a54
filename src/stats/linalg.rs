//! Dense algebra through LAPACK, behind one lock.
//!
//! Debian's serial OpenBLAS is not thread-safe: several threads inside it give wrong results, not just slow ones. So
//! every call in the library goes through this file, and every function here holds [`LOCK`] for as long as it computes.

use ndarray::{Array1, Array2};
use ndarray_linalg::{EigValsh, SolveC, UPLO};
use std::cell::Cell;
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

/// Eigenvalues of a symmetric A, ascending. `None` if an element is not finite.
pub fn symmetric_eigenvalues(a: &Array2<f64>) -> Option<Array1<f64>> {
    if a.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let _guard = lock();
    a.eigvalsh(UPLO::Lower).ok().filter(|x| x.iter().all(|x| x.is_finite()))
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
