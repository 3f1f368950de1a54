//! Collectives between ncclGroupStart and ncclGroupEnd, of this thread.

use std::cell::RefCell;

use super::Called;

thread_local! {
    static GROUP: RefCell<Group> = const { RefCell::new(Group { depth: 0, called: Vec::new() }) };
}

struct Group {
    depth: usize,
    called: Vec<Called>,
}

/// Runs on this thread's group; a thread that is being torn down has none.
fn with<T: Default>(body: impl FnOnce(&mut Group) -> T) -> T {
    GROUP.try_with(|group| body(&mut group.borrow_mut())).unwrap_or_default()
}

pub fn start() {
    with(|group| group.depth += 1);
}

/// Keeps a collective for the end of the group; gives it back where there is none.
pub fn note(called: Called) -> Option<Called> {
    with(|group| {
        if group.depth == 0 {
            return Some(called);
        }
        group.called.push(called);
        None
    })
}

/// A group has ended: what was called in it, if it was the outermost one.
pub fn end() -> Vec<Called> {
    with(|group| {
        group.depth = group.depth.saturating_sub(1);
        if group.depth == 0 { std::mem::take(&mut group.called) } else { Vec::new() }
    })
}
