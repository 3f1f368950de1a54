//! Host memory that probes take: passes that wait, and the bases that later ones are compared with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A limit on bytes, shared by both sides of the scope.
#[derive(Debug)]
pub struct ProbeMemory {
    used: Arc<AtomicU64>,
    limit: u64,
}

/// Bytes that are taken until it is dropped.
#[derive(Debug, Default)]
pub struct Lease {
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl ProbeMemory {
    pub fn new(limit: u64) -> Self {
        Self { used: Arc::default(), limit }
    }

    pub fn lease(&self) -> Lease {
        Lease { used: self.used.clone(), bytes: 0 }
    }

    /// Takes more bytes for `lease`; false if that would be over the limit. Only the calling side takes, so that nothing
    /// comes between looking and taking.
    pub fn extend(&self, lease: &mut Lease, bytes: u64) -> bool {
        let fits = self.used.load(Ordering::Relaxed).saturating_add(bytes) <= self.limit;
        if fits {
            self.used.fetch_add(bytes, Ordering::Relaxed);
            lease.bytes += bytes;
        }
        fits
    }

    /// Returns a part of what a lease took.
    pub fn give_back(&self, lease: &mut Lease, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        lease.bytes -= bytes;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        let memory = ProbeMemory::new(100);
        let mut first = memory.lease();
        assert!(memory.extend(&mut first, 60) && memory.extend(&mut first, 20));
        let mut second = memory.lease();
        assert!(!memory.extend(&mut second, 30));
        memory.give_back(&mut first, 20);
        assert!(memory.extend(&mut second, 40) && !memory.extend(&mut second, 1));
        drop(first);
        assert!(memory.extend(&mut second, 60) && !memory.extend(&mut second, 1));
    }
}
