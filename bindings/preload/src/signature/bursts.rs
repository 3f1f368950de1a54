//! How long a period is looked for where there is none: in bursts, with pauses between them that double.
//!
//! The search costs microseconds for each collective. A trainer whose collectives never repeat (batches of any length, reduced
//! in one buffer) would pay them for ever: so it pays them for [`BURST`] collectives, then for as many after a pause of as
//! many, of twice as many, and so on. A sequence that begins to repeat is found after twice the time at most.

/// Collectives in which a period of any length that is looked for would be found.
pub const BURST: u64 = 10_000;

/// Which collectives are searched through.
#[derive(Debug)]
pub struct Bursts {
    /// Collectives of this burst, or this pause, that are still to come.
    left: u64,
    is_pause: bool,
    /// Length of the next pause.
    pause: u64,
}

/// What is to be done with a collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Search,
    /// What was seen before the pause is of no use.
    SearchAnew,
    Pause,
}

impl Bursts {
    pub fn new() -> Self {
        Self { left: BURST, is_pause: false, pause: BURST }
    }

    /// The next collective.
    pub fn next(&mut self) -> Turn {
        let turn = match (self.left, self.is_pause) {
            (1.., true) => Turn::Pause,
            (1.., false) => Turn::Search,
            (0, true) => {
                (self.left, self.is_pause) = (BURST, false);
                Turn::SearchAnew
            }
            (0, false) => {
                (self.left, self.is_pause) = (self.pause, true);
                self.pause = self.pause.saturating_mul(2);
                Turn::Pause
            }
        };
        self.left -= 1;
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double() {
        let mut bursts = Bursts::new();
        let mut lengths = vec![(Turn::Search, 0u64)];
        for _ in 0..20 * BURST {
            let turn = bursts.next();
            match lengths.last_mut() {
                Some((last, length)) if *last == turn => *length += 1,
                _ => lengths.push((turn, 1)),
            }
        }
        let pauses: Vec<u64> = lengths.iter().filter(|entry| entry.0 == Turn::Pause).map(|entry| entry.1).collect();
        assert_eq!(pauses[..3], [BURST, 2 * BURST, 4 * BURST]);
        let searched: Vec<u64> = lengths.iter().filter(|entry| entry.0 == Turn::Search).map(|entry| entry.1).collect();
        assert_eq!(searched[..3], [BURST, BURST - 1, BURST - 1], "and the first of each, which is anew");
    }
}
