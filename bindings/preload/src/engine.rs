//! One collective after the other: which step it belongs to, which bucket it is, and what is said to the library.
//!
//! A step begins with its first collective. Each reduced bucket is handed over right after its collective, on its stream;
//! gradients are ready after the last one; the step ends with its last collective. One lock for the process: collectives of
//! one communicator come one after the other anyway.
//!
//! Cost in a step that is not sampled: the lock and a comparison for each collective, and the library's three calls.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use forgetscope::control::{Identity, Server};
use parking_lot::Mutex;

use crate::boundary;
use crate::buckets::{Buckets, Wanted};
use crate::instrument::{Instrument, Outcome};
use crate::memory::{DType, Device};
use crate::parameters::Parameters;
use crate::say::counted;
use crate::settings::{Settings, unknown};
use crate::signature::{Event, Kind, News, Prior, Signature, Verdict};
use crate::tasks::Tasks;
use crate::{launcher, watch};

/// Different complaints of the library that are said.
const COMPLAINTS: usize = 16;
/// How long the end of the process waits for a thread that is inside.
const FAREWELL: Duration = Duration::from_secs(5);

/// This process in a communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub rank: u32,
    pub size: u32,
    /// The communicator's first rank, as a rank of the job; `None` where that is not known.
    pub first: Option<u32>,
}

/// What a collective left behind.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub address: usize,
    /// Which elements of the whole lie there.
    pub local: Range<u64>,
    pub dtype: DType,
    /// In the order of which the result is there; 0: it is there.
    pub stream: usize,
    /// This process is the one that measures it. Set by the engine.
    pub is_measured: bool,
}

/// A collective that was issued.
#[derive(Clone, Debug)]
pub struct Collective {
    pub kind: Kind,
    pub communicator: usize,
    /// Elements of all ranks together.
    pub count: u64,
    pub buffer: Buffer,
    /// Tells about the communicator.
    pub member: fn(usize) -> Option<Member>,
}

/// A collective of a sampled step whose result is not there yet.
#[derive(Debug)]
pub struct Ticket {
    step: u64,
    position: usize,
    buffer: Buffer,
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
fn settings() -> Option<&'static Settings> {
    static SETTINGS: OnceLock<Option<Settings>> = OnceLock::new();
    let read = || match Settings::read(&|name| std::env::var(name).ok()) {
        Ok(settings) => {
            say_unknown();
            Some(settings)
        }
        Err(error) => {
            say!("{error}; training is not measured");
            boundary::turn_off();
            None
        }
    };
    SETTINGS.get_or_init(read).as_ref()
}

/// A misspelt variable would be ignored.
fn say_unknown() {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in unknown(names).iter().filter(|_| launcher::is_first()) {
        say!("{name}: there is no such variable; docs/preload.md lists them");
    }
}

/// A collective was issued. If its result is not there yet (`is_complete`) and is wanted, a ticket comes back, for
/// [`complete`].
pub fn issued(collective: Collective, is_complete: bool) -> Option<Ticket> {
    let settings = settings()?;
    let is_small = collective.count < settings.min_elements;
    let is_elsewhere = || {
        let size = (collective.member)(collective.communicator).map(|member| member.size);
        settings.ranks.is_some_and(|ranks| size != Some(ranks))
    };
    if is_small || is_elsewhere() {
        watch::left_out(collective.count);
        return None;
    }
    let mut engine = ENGINE.lock();
    if let Engine::Unused = *engine {
        *engine = match Session::open(settings) {
            Ok(session) => Engine::Open(Box::new(session)),
            Err(error) => {
                say!("{error}; training is not measured");
                boundary::turn_off();
                Engine::Over
            }
        };
    }
    match &mut *engine {
        Engine::Open(session) => session.issued(collective, is_complete),
        _ => None,
    }
}

/// The result is there.
pub fn complete(ticket: Ticket) {
    if let Engine::Open(session) = &mut *ENGINE.lock() {
        session.complete(&ticket);
    }
}

/// No collective will follow: the scope is closed.
pub fn close() {
    let Some(mut engine) = ENGINE.try_lock_for(FAREWELL) else { return };
    if let Engine::Open(session) = std::mem::replace(&mut *engine, Engine::Over) {
        session.close();
    }
}

extern "C" fn close_at_exit() {
    if boundary::is_on() {
        boundary::quietly(close);
    }
}

/// Everything that is known while a scope is open.
struct Session {
    settings: &'static Settings,
    instrument: Instrument,
    world: u32,
    rank: u32,
    signature: Signature,
    /// Of the signature, when buckets were registered last.
    generation: u64,
    buckets: Buckets,
    wanted: Vec<Wanted>,
    parameters: Parameters,
    tasks: Tasks,
    members: HashMap<usize, Member>,
    /// What each collective of the period left behind last.
    places: Vec<Option<Buffer>>,
    step: Option<OpenStep>,
    /// The layout's buckets are those that are reduced, as far as is known.
    has_layout: bool,
    complaints: HashSet<String>,
}

/// A step that goes on.
struct OpenStep {
    number: u64,
    is_sampled: bool,
    /// Reductions, and collectives, whose results are not there yet.
    reductions: usize,
    left: usize,
}

impl Session {
    fn open(settings: &'static Settings) -> Outcome<Self> {
        let instrument = Instrument::open()?;
        let identity = instrument.identity()?;
        // SAFETY: a function of this library, which is never unloaded. Registered now it runs before what the trainer's
        // libraries registered earlier, CUDA's driver among them.
        unsafe { libc::atexit(close_at_exit) };
        let page =
            Identity { instance: identity.instance, rank: identity.rank, world: identity.world, job: launcher::job() };
        let server = Server::create(Path::new(&identity.ring), &page);
        let server = server.inspect_err(|error| say!("{error}; `forgetscope ctl` cannot be used")).ok();
        let buckets = settings.layout.as_ref().map(|layout| layout.counts());
        let prior = Prior { length: settings.step, buckets };
        if identity.rank == 0 {
            say!("measuring; {} has the records", identity.ring);
        }
        Ok(Self {
            settings,
            instrument,
            world: identity.world,
            rank: identity.rank,
            has_layout: prior.buckets.is_some(),
            signature: Signature::new(prior),
            generation: 0,
            buckets: Buckets::default(),
            wanted: Vec::new(),
            parameters: Parameters::new(settings.parameters),
            tasks: Tasks::new(settings.tasks.clone(), server),
            members: HashMap::new(),
            places: Vec::new(),
            step: None,
            complaints: HashSet::new(),
        })
    }

    fn issued(&mut self, collective: Collective, is_complete: bool) -> Option<Ticket> {
        let Collective { kind, communicator, count, buffer, member } = collective;
        // Handles may be used again for other communicators, which changes the sequence.
        if self.signature.period().is_none() || !self.members.contains_key(&communicator) {
            self.members.insert(communicator, member(communicator)?);
        }
        let event = Event { kind, communicator, count, dtype: buffer.dtype as u32, address: buffer.address };
        let verdict = self.signature.observe(event);
        while let Some(news) = self.signature.news() {
            self.tell(news);
        }
        let (step, position) = match verdict {
            Verdict::Part { step, position } => (step, position),
            Verdict::Outside => return None,
            Verdict::Lost => {
                self.give_up_step();
                let unbound = self.parameters.unbind(&self.instrument);
                self.complain(unbound);
                return None;
            }
        };
        let is_scattered = buffer.local != (0..count);
        let is_first = self.members.get(&communicator).is_some_and(|member| member.rank == 0);
        let buffer = Buffer { is_measured: is_scattered || is_first, ..buffer };
        if position == 0 {
            self.begin(step, is_scattered);
        }
        let open = self.step.as_ref().filter(|open| open.number == step)?;
        let is_awaited = open.is_sampled && !is_complete;
        let has_moved = self.places[position].as_ref().is_some_and(|before| before.address != buffer.address);
        self.places[position] = Some(buffer.clone());
        if kind == Kind::Gather && has_moved {
            let unbound = self.parameters.moved(&self.instrument);
            self.complain(unbound);
        }
        let ticket = Ticket { step, position, buffer };
        if is_awaited {
            return Some(ticket);
        }
        self.complete(&ticket);
        None
    }

    /// Position 0 of a period: what has to happen between two steps, then the step.
    fn begin(&mut self, step: u64, is_scattered: bool) {
        self.give_up_step();
        if self.signature.generation() != self.generation {
            self.generation = self.signature.generation();
            self.register(is_scattered);
        }
        // SAFETY: the user says that gathered buffers stay; they are unbound when one moves and before the process ends.
        let settled = unsafe { self.parameters.settle(&self.places, &self.buckets, &self.instrument) };
        self.complain(settled);
        // SAFETY: the trainer's thread is here, between its steps.
        let said = unsafe { self.tasks.before(step, &self.instrument, self.parameters.are_visible()) };
        self.complain(said);
        let begun = self.instrument.step_begin(step);
        let is_sampled = *begun.as_ref().unwrap_or(&false);
        self.complain(begun.map(drop));
        let Some(period) = self.signature.period() else { return };
        let (reductions, left) = (period.buckets().count(), period.len());
        self.step = Some(OpenStep { number: step, is_sampled, reductions, left });
    }

    /// The step that goes on will not be completed.
    fn give_up_step(&mut self) {
        if let Some(open) = self.step.take() {
            let given_up = self.instrument.give_up_step(open.number);
            self.complain(given_up);
        }
    }

    /// The result of a collective is there: hands it over, and what follows from that.
    fn complete(&mut self, ticket: &Ticket) {
        let Ticket { step, position, buffer } = ticket;
        let (Some(open), Some(period)) = (&mut self.step, self.signature.period()) else { return };
        if open.number != *step || *position >= period.len() {
            return;
        }
        let is_reduction = period.events()[*position].kind == Kind::Reduce;
        open.left -= 1;
        open.reductions -= usize::from(is_reduction);
        let (is_sampled, is_ready, is_over) = (open.is_sampled, is_reduction && open.reductions == 0, open.left == 0);
        if is_reduction && is_sampled && buffer.is_measured {
            let bucket = period.events()[..*position].iter().filter(|event| event.kind == Kind::Reduce).count();
            let fed = self.feed(bucket, buffer);
            self.complain(fed);
        }
        if is_ready {
            // SAFETY: the trainer's thread is inside a call that has just reduced the gradients, or waits for it; it does
            // not write to parameters.
            let ready = unsafe { self.instrument.gradients_ready(self.settings.scale, buffer.stream) };
            self.complain(ready);
        }
        if is_over {
            self.step = None;
            // SAFETY: as above, after parameters were gathered.
            let ended = unsafe { self.instrument.step_end(buffer.stream) };
            self.complain(ended);
            if is_sampled && self.settings.flush {
                let flushed = self.instrument.flush();
                self.complain(flushed);
            }
        }
    }

    /// Hands a reduced bucket over.
    fn feed(&self, bucket: usize, buffer: &Buffer) -> Outcome {
        let device = Device::of(buffer.address);
        let stream = if device.is_host() { 0 } else { buffer.stream };
        for piece in self.buckets.pieces(bucket, buffer.local.clone()) {
            let mut shape = piece.shape;
            let address = buffer.address + piece.at as usize * buffer.dtype.bytes();
            let tensor = device.tensor(address, buffer.dtype, &mut shape);
            // SAFETY: the real collective has written these elements, or will in the order of the stream; the trainer's
            // thread is inside the call.
            unsafe { self.instrument.feed(piece.id, &tensor, piece.first, self.settings.scale, stream) }?;
        }
        Ok(())
    }

    /// Another sequence is followed: its buckets.
    fn register(&mut self, is_scattered: bool) {
        let Some(period) = self.signature.period() else { return };
        self.places = vec![None; period.len()];
        let wanted: Vec<Wanted> = period.buckets().map(|event| self.wanted(event, is_scattered)).collect();
        let has_changed = !self.wanted.is_empty() && self.wanted != wanted;
        if self.rank == 0 && (self.wanted.is_empty() || has_changed) {
            let (buckets, all) = (wanted.len() as u64, period.len() as u64);
            let elements: u64 = wanted.iter().map(|bucket| bucket.numel).sum();
            let again = if has_changed { "the sequence of collectives has changed: " } else { "" };
            let step = self.signature.step();
            let (buckets, all) = (counted(buckets, "bucket"), counted(all, "collective"));
            say!("{again}a step is {buckets} of {elements} elements in {all}; measuring from step {step}");
        }
        self.wanted = wanted;
        let layout = self.settings.layout.as_ref().filter(|_| self.has_layout);
        let registered = self.buckets.register(&self.instrument, &self.wanted, layout);
        let planned = self.parameters.plan(period, &self.instrument);
        self.complain(registered);
        self.complain(planned);
    }

    /// How a bucket is registered. Reductions of one step are taken to be of one kind.
    fn wanted(&self, event: &Event, is_scattered: bool) -> Wanted {
        let member = self.members.get(&event.communicator).copied();
        let member = member.unwrap_or(Member { rank: 0, size: self.world, first: None });
        let is_copy = !is_scattered && member.size > 1;
        let prefix = match &self.settings.prefix {
            Some(prefix) => prefix.clone(),
            None if member.size < self.world => format!("rank{}.", member.first.unwrap_or(self.rank)),
            None => String::new(),
        };
        Wanted { numel: event.count, replica: is_copy.then_some(member.rank), prefix }
    }

    fn tell(&mut self, news: News) {
        match news {
            News::Misfit { expected, seen } => {
                self.has_layout = false;
                let (expected, seen) = (shown(&expected), shown(&seen));
                say!(
                    "FGS_PRELOAD_LAYOUT: the layout has buckets of {expected} elements, and the trainer reduces {seen}; the \
                     layout is not used, buckets have numbers for names"
                );
            }
            News::Nothing { events, latest } => {
                let latest = shown(&latest);
                say!(
                    "{events} collectives and no sequence that repeats; nothing is measured. The latest had {latest} \
                     elements. Set FGS_PRELOAD_STEP, FGS_PRELOAD_RANKS or FGS_PRELOAD_MIN_ELEMENTS (docs/preload.md)"
                );
            }
        }
    }

    /// Says what the library refused, once.
    fn complain(&mut self, outcome: Outcome) {
        let Err(text) = outcome else { return };
        if self.complaints.len() < COMPLAINTS && !self.complaints.contains(&text) {
            say!("{text}");
            self.complaints.insert(text);
        }
    }

    fn close(mut self) {
        self.give_up_step();
        // The trainer's buffers may be gone.
        let unbound = self.parameters.unbind(&self.instrument);
        self.complain(unbound);
        // SAFETY: no parameters are bound.
        let ended = unsafe { self.tasks.end(&self.instrument) };
        self.complain(ended);
        if self.signature.generation() == 0 {
            watch::nothing_found();
        }
        self.instrument.close();
    }
}

/// A few numbers of a list, and how many there are.
fn shown(counts: &[u64]) -> String {
    const SHOWN: usize = 12;
    match counts.get(..SHOWN) {
        Some(first) if counts.len() > SHOWN => format!("{first:?}… ({} in all)", counts.len()),
        _ => format!("{counts:?}"),
    }
}
