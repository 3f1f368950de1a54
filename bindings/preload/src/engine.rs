//! The one session of the process: opened at the first collective that counts, closed when none will follow.
//!
//! One lock for the process: collectives of one communicator come one after the other anyway.

use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;

use crate::boundary;
use crate::environment::{variable, variables};
use crate::launcher::is_first;
use crate::memory::Buffer;
use crate::session::{Session, Ticket};
use crate::settings::{Settings, unknown};
use crate::signature::{Communicator, Kind};
use crate::watch;

/// How long the end of the process waits for a thread that is inside.
const FAREWELL: Duration = Duration::from_secs(5);

/// A collective that was issued.
#[derive(Clone, Debug)]
pub struct Collective {
    pub kind: Kind,
    /// A reduction that leaves each rank a part of its own.
    pub is_scattered: bool,
    pub communicator: Communicator,
    /// Elements of all ranks together.
    pub count: u64,
    pub buffer: Buffer,
}

enum Engine {
    /// No collective has come.
    Unused,
    Open(Box<Session>),
    /// The scope is closed, or could not be opened.
    Over,
}

static ENGINE: Mutex<Engine> = Mutex::new(Engine::Unused);

/// A scope is open, or a thread is inside at this moment.
pub fn is_in_use() -> bool {
    ENGINE.try_lock().is_none_or(|engine| matches!(*engine, Engine::Open(_)))
}

/// The settings; `None` if they cannot be used, which was said then.
pub fn settings() -> Option<&'static Settings> {
    static SETTINGS: OnceLock<Option<Settings>> = OnceLock::new();
    let read = || match Settings::read(&variable) {
        Ok(settings) => {
            say_unknown();
            Some(settings)
        }
        Err(error) => {
            if is_first() {
                say!("{error}; training is not measured");
            }
            boundary::turn_off();
            None
        }
    };
    SETTINGS.get_or_init(read).as_ref()
}

/// A misspelt variable would be ignored.
fn say_unknown() {
    let names = variables().keys().filter_map(|name| name.to_str());
    for name in unknown(names).iter().filter(|_| is_first()) {
        say!("{name}: there is no such variable; docs/preload.md lists them");
    }
}

/// A collective was issued. If its result is not there yet (`is_complete`) and is wanted, a ticket comes back, for
/// [`complete`].
pub fn issued(collective: Collective, is_complete: bool) -> Option<Ticket> {
    let settings = settings()?;
    let is_small = collective.count < settings.min_elements;
    let is_elsewhere = settings.ranks.is_some_and(|ranks| collective.communicator.size != ranks);
    if is_small || is_elsewhere {
        watch::left_out(collective.count);
        return None;
    }
    let mut engine = ENGINE.lock();
    if let Engine::Unused = *engine {
        *engine = match Session::open(settings) {
            Ok(session) => {
                // SAFETY: a function of this library, which is never unloaded. Registered now it runs before what the
                // trainer's libraries registered earlier, CUDA's driver among them.
                unsafe { libc::atexit(close_at_exit) };
                Engine::Open(Box::new(session))
            }
            Err(error) => {
                say!("{error}; training is not measured");
                boundary::turn_off();
                Engine::Over
            }
        };
    }
    let Engine::Open(session) = &mut *engine else { return None };
    let ticket = session.issued(collective, is_complete);
    if session.is_over() {
        boundary::turn_off();
        end(&mut engine);
        return None;
    }
    ticket
}

/// The result is there.
pub fn complete(ticket: Ticket) {
    if let Engine::Open(session) = &mut *ENGINE.lock() {
        session.complete(&ticket);
    }
}

/// MPI ends. A trainer whose gradients are reduced by NCCL may go on.
pub fn close_with_mpi() {
    let Some(mut engine) = ENGINE.try_lock_for(FAREWELL) else { return };
    if matches!(&*engine, Engine::Open(session) if !session.has_nccl()) {
        end(&mut engine);
    }
}

/// No collective will follow: the scope is closed.
pub fn close() {
    if let Some(mut engine) = ENGINE.try_lock_for(FAREWELL) {
        end(&mut engine);
    }
}

fn end(engine: &mut Engine) {
    if let Engine::Open(session) = std::mem::replace(engine, Engine::Over) {
        session.close();
    }
}

extern "C" fn close_at_exit() {
    if boundary::is_on() {
        boundary::quietly(close);
    }
}
