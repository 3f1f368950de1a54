//! Looks at a task's probe: the base, and what came after it.

use forgetscope::ring::Record;

use crate::names::Names;

/// Why a pass over a probe was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// What later passes are compared with.
    Base,
    /// While other tasks are trained.
    Later,
    /// After further training on the task itself: change that is usual.
    Continued,
}

impl Purpose {
    pub fn of(names: &Names, record: &Record) -> Self {
        match () {
            () if names.has_flag(record, "base") => Purpose::Base,
            () if names.has_flag(record, "continued") => Purpose::Continued,
            () => Purpose::Later,
        }
    }
}

/// A measurement at a step.
#[derive(Clone, Copy, Debug)]
pub struct Look<T> {
    pub step: u64,
    pub found: T,
}

/// One thing, looked at again and again.
#[derive(Clone, Debug)]
pub struct Looks<T> {
    /// Step of the base.
    pub base: Option<u64>,
    pub later: Vec<Look<T>>,
    pub continued: Vec<Look<T>>,
}

impl<T> Default for Looks<T> {
    fn default() -> Self {
        Looks { base: None, later: Vec::new(), continued: Vec::new() }
    }
}

impl<T> Looks<T> {
    /// A new base makes what was compared with the old one history.
    pub fn add(&mut self, purpose: Purpose, step: u64, found: T) {
        let look = Look { step, found };
        match purpose {
            Purpose::Base => *self = Looks { base: Some(step), ..Looks::default() },
            Purpose::Later => self.later.push(look),
            Purpose::Continued => self.continued.push(look),
        }
    }

    /// Keeps what was found later at steps that qualify.
    pub fn retain(&mut self, qualifies: impl Fn(u64) -> bool) {
        self.later.retain(|look| qualifies(look.step));
    }

    pub fn latest(&self) -> Option<&Look<T>> {
        self.later.last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_base_begins_anew() {
        let mut looks = Looks::default();
        looks.add(Purpose::Base, 1, 'a');
        looks.add(Purpose::Later, 2, 'b');
        looks.add(Purpose::Continued, 2, 'c');
        assert_eq!(looks.latest().map(|look| (look.step, look.found)), Some((2, 'b')));
        looks.add(Purpose::Base, 3, 'd');
        assert!(looks.later.is_empty() && looks.continued.is_empty());
        assert_eq!(looks.base, Some(3));
    }
}
