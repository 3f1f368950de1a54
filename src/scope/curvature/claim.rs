//! Memory that runs have moved, over all scopes of the process: another run must not take it for the weights themselves.

use parking_lot::Mutex;
use std::ops::Range;

/// Address ranges of all runs that are going on.
static MOVED: Mutex<Vec<Range<usize>>> = Mutex::new(Vec::new());

/// Address ranges that one run moves, until it is dropped.
#[derive(Debug, Default)]
pub struct Claim(Vec<Range<usize>>);

impl Claim {
    /// Claims ranges, given in order. `None` if another run has moved a part of them.
    pub fn take(ranges: impl IntoIterator<Item = Range<usize>>) -> Option<Self> {
        // Slices lie side by side, so that few ranges are left.
        let mut own: Vec<Range<usize>> = Vec::new();
        for range in ranges {
            match own.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => own.push(range),
            }
        }
        let mut moved = MOVED.lock();
        let meets = |range: &Range<usize>| own.iter().any(|own| own.start < range.end && range.start < own.end);
        if moved.iter().any(meets) {
            return None;
        }
        moved.extend(own.iter().cloned());
        Some(Self(own))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        MOVED.lock().retain(|range| !self.0.contains(range));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_claimed_is_claimed_once() {
        let take = |start, end| Claim::take(std::iter::once(start..end));
        let first = Claim::take([0x1_0000..0x1_0100, 0x1_0100..0x1_0200, 0x2_0000..0x2_0100]).unwrap();
        assert_eq!(first.0, [0x1_0000..0x1_0200, 0x2_0000..0x2_0100]);
        assert!(take(0x1_01f0, 0x1_0300).is_none() && take(0x1_f000, 0x2_0001).is_none());
        let beside = take(0x1_0200, 0x1_0300).unwrap();
        drop(first);
        assert!(take(0x1_0000, 0x1_0200).is_some(), "given back");
        assert!(take(0x1_02ff, 0x1_0300).is_none(), "{beside:?} is still claimed");
    }
}
