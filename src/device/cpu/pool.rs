//! A pool of threads that have ended when it is dropped: after `fgs_close` a trainer may unload the library.

use super::set_float_mode;
use crate::thread::spawn;
use rayon::ThreadPoolBuildError;
use std::thread::JoinHandle;

/// rayon's pool tells its threads to end and does not wait for them; this one does.
pub struct Pool {
    /// `None` while it is dropped.
    pool: Option<rayon::ThreadPool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub fn new(count: usize) -> Result<Self, ThreadPoolBuildError> {
        let mut threads = Vec::with_capacity(count);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .start_handler(|_| set_float_mode())
            .spawn_handler(|thread| {
                let name = format!("fgs-cpu-{}", thread.index());
                threads.push(spawn(&name, || thread.run())?);
                Ok(())
            })
            .build()?;
        Ok(Self { pool: Some(pool), threads })
    }

    /// Runs `work` on the pool's threads and waits for its result.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.pool = None;
        for thread in self.threads.drain(..) {
            // A panic was handed to the call that met it.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Weak};

    #[test]
    fn threads_have_ended_when_the_pool_is_dropped() {
        thread_local!(static KEPT: std::cell::RefCell<Option<Arc<()>>> = const { std::cell::RefCell::new(None) });
        let pool = Pool::new(3).unwrap();
        let kept: Weak<()> = pool.install(|| {
            let token = Arc::new(());
            KEPT.set(Some(token.clone()));
            Arc::downgrade(&token)
        });
        assert!(kept.upgrade().is_some());
        drop(pool);
        assert!(kept.upgrade().is_none(), "a thread still holds its thread-local value");
    }
}
