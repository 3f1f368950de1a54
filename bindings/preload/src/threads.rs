//! Whether several threads reduce at the same time, each in a communicator of its own.
//!
//! Then what comes is several sequences, mixed as the threads happen to run, and none of them can be followed. Threads that
//! take turns are something else: PyTorch gathers in one thread and reduces in another, which waits for the first.

use crate::boundary;

/// Turns of that kind after which it is no accident.
const TURNS: u32 = 16;

#[derive(Debug, Default)]
pub struct Threads {
    /// Thread and communicator of the latest collective.
    latest: Option<(usize, usize)>,
    turns: u32,
}

impl Threads {
    /// The next collective. It follows one of another thread in another communicator while another thread is inside of one,
    /// and that not for the first time.
    pub fn are_on_their_own(&mut self, communicator: usize) -> bool {
        let now = (boundary::thread(), communicator);
        let before = self.latest.replace(now);
        let is_turn = before.is_some_and(|(thread, other)| thread != now.0 && other != communicator);
        self.turns += u32::from(is_turn && boundary::is_crowded());
        self.turns >= TURNS
    }
}
