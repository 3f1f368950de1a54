//! Results that may land after the call that asked for them.
//!
//! Host memory is read inside the call, so its results are there at once. A CUDA device writes them into pinned memory
//! when the stream gets there; the drain thread waits for that without a CUDA call, and the trainer never does.

use super::Stream;
use std::sync::Arc;
use std::time::Duration;

/// How long a thread that waits for a device sleeps between two looks. A sampled step's results are tens of
/// milliseconds behind the call anyway, since trainers queue work ahead.
const LOOK: Duration = Duration::from_micros(200);

/// What was asked for will never come: the device failed, or was given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Lost(pub String);

/// A result that is there or will land.
pub struct Pending<T> {
    state: State<T>,
    /// How to look for what lands later again.
    repeat: Option<Repeating<T>>,
    /// How to ask for the same again.
    again: Option<Again<T>>,
    /// It was known in the call that it will never come.
    is_refused: bool,
}

enum State<T> {
    Ready(T),
    Landing(Box<dyn FnMut() -> Option<Result<T, Lost>> + Send>),
}

/// Enqueues the same pass on a stream.
type Again<T> = Arc<dyn Fn(Stream) -> Pending<T> + Send + Sync>;

/// Looks for the result of one of several times.
type Repeating<T> = Arc<dyn Fn(u64) -> Option<Result<T, Lost>> + Send + Sync>;

impl<T: Send + 'static> Pending<T> {
    /// It is there.
    pub fn ready(value: T) -> Self {
        Self { state: State::Ready(value), repeat: None, again: None, is_refused: false }
    }

    /// `look` is called until it gives the result; it may be called from any one thread and must not block.
    pub fn landing(look: impl FnMut() -> Option<Result<T, Lost>> + Send + 'static) -> Self {
        Self { state: State::Landing(Box::new(look)), repeat: None, again: None, is_refused: false }
    }

    /// It lands again and again, as the results of a captured pass do. `look` gives that of the n-th time, from 0 on. The
    /// value itself stands for the first time.
    pub fn repeating(look: impl Fn(u64) -> Option<Result<T, Lost>> + Send + Sync + 'static) -> Self {
        let repeat: Repeating<T> = Arc::new(look);
        let first = repeat.clone();
        Self { repeat: Some(repeat), ..Self::landing(move || first(0)) }
    }

    /// What lands the n-th time; `None` if it lands once only.
    pub fn nth(&self, n: u64) -> Option<Self> {
        let look = self.repeat.clone()?;
        Some(Self::landing(move || look(n)))
    }

    /// The same, which can be asked for again as long as nothing that it is about has changed.
    pub fn with_again(self, again: impl Fn(Stream) -> Self + Send + Sync + 'static) -> Self {
        Self { again: Some(Arc::new(again)), ..self }
    }

    /// Asks for the same again, in the order of `stream`; `None` if that takes a new pass.
    pub fn again(&self, stream: Stream) -> Option<Self> {
        let again = self.again.clone()?;
        let pending = again(stream);
        Some(Self { again: Some(again), ..pending })
    }

    /// What only knows how to ask for the same again; `None` if this does not.
    pub fn recipe(&self) -> Option<Self> {
        let again = self.again.clone()?;
        Some(Self { again: Some(again), ..Self::lost(Lost("a recipe, not a result".into())) })
    }

    /// It will never come.
    pub fn lost(why: Lost) -> Self {
        Self { is_refused: true, ..Self::landing(move || Some(Err(why.clone()))) }
    }

    /// Nothing was enqueued: what the pass was to write is not written.
    pub fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// The result if it was there from the beginning, as that of host memory is; else what has to be waited for.
    pub fn now(self) -> Result<T, Self> {
        match self.state {
            State::Ready(value) => Ok(value),
            State::Landing(_) => Err(self),
        }
    }

    /// Waits for the result. Not for the trainer's thread.
    pub fn wait(self) -> Result<T, Lost> {
        self.wait_with(|| {})
    }

    /// The same, and calls `idle` between two looks: for a thread that has to show that it is alive.
    pub fn wait_with(self, mut idle: impl FnMut()) -> Result<T, Lost> {
        match self.state {
            State::Ready(value) => Ok(value),
            State::Landing(mut look) => loop {
                match look() {
                    Some(found) => return found,
                    None => {
                        idle();
                        std::thread::sleep(LOOK);
                    }
                }
            },
        }
    }

    /// Makes something else of the result once it is there.
    pub fn map<U: Send + 'static>(self, make: impl FnOnce(T) -> U + Send + 'static) -> Pending<U> {
        let is_refused = self.is_refused;
        match self.state {
            State::Ready(value) => Pending::ready(make(value)),
            State::Landing(mut look) => {
                let mut make = Some(make);
                let landing = Pending::landing(move || {
                    let found = look()?;
                    Some(found.and_then(|value| match make.take() {
                        Some(make) => Ok(make(value)),
                        None => Err(Lost("the result was taken already".into())),
                    }))
                });
                Pending { is_refused, ..landing }
            }
        }
    }

    /// All of several results, in their order.
    pub fn all(parts: Vec<Self>) -> Pending<Vec<T>> {
        if parts.iter().all(|part| matches!(part.state, State::Ready(_))) {
            let ready = parts.into_iter().filter_map(|part| match part.state {
                State::Ready(value) => Some(value),
                State::Landing(_) => None,
            });
            return Pending::ready(ready.collect());
        }
        let is_refused = parts.iter().any(|part| part.is_refused);
        let mut found: Vec<Option<T>> = parts.iter().map(|_| None).collect();
        let mut parts: Vec<_> = parts.into_iter().map(|part| Some(part.state)).collect();
        let all = Pending::landing(move || {
            for (part, found) in parts.iter_mut().zip(&mut found) {
                match part.take() {
                    Some(State::Ready(value)) => *found = Some(value),
                    Some(State::Landing(mut look)) => match look() {
                        Some(Ok(value)) => *found = Some(value),
                        Some(Err(lost)) => return Some(Err(lost)),
                        None => *part = Some(State::Landing(look)),
                    },
                    None => {}
                }
            }
            found.iter().all(Option::is_some).then(|| Ok(found.iter_mut().filter_map(Option::take).collect()))
        });
        Pending { is_refused, ..all }
    }
}

impl<T: Send + 'static> Pending<Vec<T>> {
    /// What was found of nothing: there now, at every replay, and again.
    pub fn nothing() -> Self {
        let now = Self { repeat: Some(Arc::new(|_| Some(Ok(Vec::new())))), ..Self::ready(Vec::new()) };
        now.with_again(|_| Self::nothing())
    }
}

impl<T> std::fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self.state {
            State::Ready(_) => "Pending(ready)",
            State::Landing(_) => "Pending(landing)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after<T: Send + Clone + 'static>(mut looks: u32, value: Result<T, Lost>) -> Pending<T> {
        Pending::landing(move || {
            looks = looks.saturating_sub(1);
            (looks == 0).then(|| value.clone())
        })
    }

    #[test]
    fn results_land_in_their_order() {
        assert_eq!(Pending::ready(3).map(|x| x + 1).wait(), Ok(4));
        assert_eq!(after(3, Ok(5)).map(|x| x * 2).wait(), Ok(10));
        let all = Pending::all(vec![after(5, Ok(1)), Pending::ready(2), after(2, Ok(3))]);
        assert_eq!(all.wait(), Ok(vec![1, 2, 3]));
        assert_eq!(Pending::all(vec![Pending::ready(1), Pending::ready(2)]).wait(), Ok(vec![1, 2]));
    }

    #[test]
    fn only_what_was_there_from_the_beginning_is_there_now() {
        assert_eq!(Pending::ready(1).now().ok(), Some(1));
        let mut idle = 0;
        let landing = after(3, Ok(2)).now().expect_err("it is not there");
        assert_eq!((landing.wait_with(|| idle += 1), idle), (Ok(2), 2));
        let lost = Lost("gone".into());
        assert_eq!(Pending::<()>::lost(lost.clone()).wait(), Err(lost));
    }

    #[test]
    fn what_lands_again_and_again_is_looked_for_by_number() {
        let repeating = Pending::repeating(|n| Some(Ok(10 * n)));
        assert_eq!(repeating.nth(3).map(Pending::wait), Some(Ok(30)));
        assert_eq!(repeating.wait(), Ok(0));
        assert!(Pending::ready(1).nth(0).is_none() && after(1, Ok(1)).nth(0).is_none());
    }

    #[test]
    fn one_lost_part_loses_the_whole() {
        let lost = Lost("gone".into());
        let all = Pending::all(vec![after(9, Ok(1)), after(2, Err(lost.clone()))]);
        assert_eq!(all.map(|all| all.len()).wait(), Err(lost));
    }
}
