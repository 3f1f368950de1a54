//! One collective after the other: which step it belongs to, which bucket it is, and what is said to the library.
//!
//! A step begins with its first collective. Each reduced bucket is handed over right after its collective, on its stream;
//! gradients are ready after the last one; the step ends with its last collective.
//!
//! Cost in a step that is not sampled: a lock and a comparison for each collective, and the library's three calls.

use std::collections::HashSet;
use std::path::Path;

use forgetscope::control::{Identity, Server};

use crate::buckets::{Buckets, Wanted};
use crate::engine::Collective;
use crate::instrument::{Instrument, Outcome};
use crate::launcher;
use crate::memory::{Buffer, Device};
use crate::parameters::Parameters;
use crate::real::Library;
use crate::say::{counted, shown};
use crate::settings::Settings;
use crate::signature::{Event, Kind, News, Period, Prior, Signature, Verdict};
use crate::tasks::Tasks;
use crate::threads::Threads;
use crate::watch;

/// Different complaints of the library that are said.
const COMPLAINTS: usize = 16;
/// Changes of the sequence that are said one by one.
const CHANGES: u64 = 8;
/// Sampled steps in a row whose requests are not seen to complete, after which that is said.
const UNFINISHED: u32 = 3;

/// A collective of a sampled step whose result is not there yet.
#[derive(Debug)]
pub struct Ticket {
    /// Of the step, among those that were begun: numbers of steps may come again.
    serial: u64,
    position: usize,
    buffer: Buffer,
}

/// Everything that is known while a scope is open.
pub struct Session {
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
    threads: Threads,
    /// What each collective of the period left behind last.
    places: Vec<Option<Buffer>>,
    step: Option<OpenStep>,
    /// Steps that were begun.
    begun: u64,
    /// Sampled steps in a row that were begun and whose requests have not completed.
    unfinished: u32,
    /// How often another sequence was followed than before.
    changes: u64,
    has_nccl: bool,
    /// Nothing that comes could mean anything.
    is_over: bool,
    /// The layout's buckets are those that are reduced, as far as is known.
    has_layout: bool,
    complaints: HashSet<String>,
}

/// A step that goes on.
struct OpenStep {
    number: u64,
    serial: u64,
    is_sampled: bool,
    /// A bucket was handed over.
    has_gradients: bool,
    /// Collectives that are not issued yet.
    to_come: usize,
    /// Reductions, and collectives, whose results are not there yet.
    reductions: usize,
    left: usize,
}

impl Session {
    pub fn open(settings: &'static Settings) -> Outcome<Self> {
        let instrument = Instrument::open()?;
        let identity = instrument.identity()?;
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
            threads: Threads::default(),
            places: Vec::new(),
            step: None,
            begun: 0,
            unfinished: 0,
            changes: 0,
            has_nccl: false,
            is_over: false,
            complaints: HashSet::new(),
        })
    }

    /// Measuring has no sense any more, which was said.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    pub fn has_nccl(&self) -> bool {
        self.has_nccl
    }

    pub fn issued(&mut self, collective: Collective, is_complete: bool) -> Option<Ticket> {
        let Collective { kind, is_scattered, communicator, count, buffer } = collective;
        self.has_nccl |= buffer.library == Library::Nccl;
        if self.threads.are_on_their_own(communicator.handle) {
            self.stop(
                "several threads reduce at the same time, each in a communicator of its own: their steps cannot be told \
                 apart",
            );
            return None;
        }
        let event =
            Event { kind, is_scattered, communicator, count, dtype: buffer.dtype as u32, address: buffer.address };
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
        let buffer = Buffer { is_measured: is_scattered || communicator.rank == 0, ..buffer };
        if position == 0 {
            self.begin(step);
        }
        let open = self.step.as_mut().filter(|open| open.number == step)?;
        open.to_come = open.to_come.saturating_sub(1);
        let (serial, is_awaited) = (open.serial, open.is_sampled && !is_complete);
        let has_moved = self.places[position].as_ref().is_some_and(|before| before.address != buffer.address);
        self.places[position] = Some(buffer.clone());
        if kind == Kind::Gather && has_moved {
            let unbound = self.parameters.moved(&self.instrument);
            self.complain(unbound);
        }
        let ticket = Ticket { serial, position, buffer };
        if is_awaited {
            return Some(ticket);
        }
        self.complete(&ticket);
        None
    }

    /// Position 0 of a period: what has to happen between two steps, then the step.
    fn begin(&mut self, step: u64) {
        self.say_if_unfinished();
        self.give_up_step();
        if self.signature.generation() != self.generation {
            self.generation = self.signature.generation();
            self.register();
        }
        // SAFETY: the user says that gathered buffers stay; they are unbound when one moves and before the process ends.
        let settled = unsafe { self.parameters.settle(&self.places, &self.buckets, &self.instrument) };
        self.complain(settled);
        // SAFETY: the trainer's thread is here, between its steps.
        let said = unsafe { self.tasks.before(step, &self.instrument, &mut self.parameters) };
        self.complain(said);
        let begun = self.instrument.step_begin(step);
        let is_sampled = *begun.as_ref().unwrap_or(&false);
        self.complain(begun.map(drop));
        let Some(period) = self.signature.period() else { return };
        let (reductions, left) = (period.buckets().count(), period.len());
        self.begun += 1;
        self.step = Some(OpenStep {
            number: step,
            serial: self.begun,
            is_sampled,
            has_gradients: false,
            to_come: left,
            reductions,
            left,
        });
    }

    /// The step that goes on will not be completed.
    fn give_up_step(&mut self) {
        if let Some(open) = self.step.take() {
            let given_up = self.instrument.give_up_step(open.number);
            self.complain(given_up);
        }
    }

    /// The next step begins, and requests of the one that goes on have not completed.
    fn say_if_unfinished(&mut self) {
        if self.step.as_ref().is_none_or(|open| !open.is_sampled || open.to_come > 0) {
            return;
        }
        self.unfinished += 1;
        if self.unfinished == UNFINISHED && self.rank == 0 {
            say!(
                "{UNFINISHED} sampled steps were not completed: the trainer's requests complete where it is not seen, or \
                 after the next step has begun. Such steps are left out"
            );
        }
    }

    /// The result of a collective is there: hands it over, and what follows from that.
    pub fn complete(&mut self, ticket: &Ticket) {
        let Ticket { serial, position, buffer } = ticket;
        let (Some(open), Some(period)) = (&mut self.step, self.signature.period()) else { return };
        if open.serial != *serial || *position >= period.len() {
            return;
        }
        let is_reduction = period.events()[*position].kind == Kind::Reduce;
        // Parameters are read with the first bucket, and when the step ends.
        let is_first = is_reduction && !std::mem::replace(&mut open.has_gradients, true);
        open.left -= 1;
        open.reductions -= usize::from(is_reduction);
        let (is_sampled, is_ready, is_over) = (open.is_sampled, is_reduction && open.reductions == 0, open.left == 0);
        let bucket = if is_sampled { bucket_at(period, *position) } else { 0 };
        if is_sampled && (is_first || is_over) {
            let checked = self.parameters.check(&self.instrument);
            self.complain(checked);
        }
        if is_reduction && is_sampled && buffer.is_measured {
            let fed = self.feed(bucket, buffer);
            self.complain(fed);
        }
        if is_ready {
            // SAFETY: the trainer's thread is inside a call that has just reduced the gradients, or waits for it; it does
            // not write to parameters, whose memory was there when it was read.
            let ready = unsafe { self.instrument.gradients_ready(self.settings.scale, buffer.stream) };
            self.complain(ready);
        }
        if is_over {
            self.step = None;
            // SAFETY: as above, after parameters were gathered; their memory was there a moment ago.
            let ended = unsafe { self.instrument.step_end(buffer.stream) };
            self.complain(ended);
            self.unfinished = if is_sampled { 0 } else { self.unfinished };
            if is_sampled && self.settings.flush {
                let flushed = self.instrument.flush();
                self.complain(flushed);
            }
        }
    }

    /// Hands a reduced bucket over.
    fn feed(&self, bucket: usize, buffer: &Buffer) -> Outcome {
        let device = Device::of(buffer)?;
        let stream = if device.is_host() { 0 } else { buffer.stream };
        for piece in self.buckets.pieces(bucket, buffer.local.clone()) {
            let mut shape = piece.shape;
            let address = buffer.address + piece.at as usize * buffer.dtype.bytes();
            let tensor = device.tensor(address, buffer.dtype, &mut shape);
            // SAFETY: the real collective has written these elements, or will in the order of the stream; the trainer's
            // thread is inside the call, and parameters were there a moment ago.
            unsafe { self.instrument.feed(piece.id, &tensor, piece.first, self.settings.scale, stream) }?;
        }
        Ok(())
    }

    /// Another sequence is followed: its buckets.
    fn register(&mut self) {
        let Some(period) = self.signature.period() else { return };
        self.places = vec![None; period.len()];
        let wanted: Vec<Wanted> = period.buckets().map(|event| self.wanted(event)).collect();
        let is_new = self.wanted != wanted;
        self.changes += u64::from(is_new && !self.wanted.is_empty());
        if self.rank == 0 && is_new && self.changes <= CHANGES {
            let (buckets, all) = (wanted.len() as u64, period.len() as u64);
            let elements: u64 = wanted.iter().map(|bucket| bucket.numel).sum();
            let again = if self.changes > 0 { "the sequence of collectives has changed: " } else { "" };
            let more = if self.changes == CHANGES { ". It has changed often; more is said at the end" } else { "" };
            let step = self.signature.step();
            let (buckets, all) = (counted(buckets, "bucket"), counted(all, "collective"));
            say!("{again}a step is {buckets} of {elements} elements in {all}; measuring from step {step}{more}");
        }
        self.wanted = wanted;
        let layout = self.settings.layout.as_ref().filter(|_| self.has_layout);
        let registered = self.buckets.register(&self.instrument, &self.wanted, layout);
        let planned = self.parameters.plan(period, &self.instrument);
        if self.buckets.are_too_many() {
            self.stop("the buckets change again and again, and a measurement of each is one of nothing");
        }
        self.complain(registered);
        self.complain(planned);
    }

    /// How a bucket is registered.
    fn wanted(&self, event: &Event) -> Wanted {
        let communicator = event.communicator;
        let is_copy = !event.is_scattered && communicator.size > 1;
        let prefix = match &self.settings.prefix {
            Some(prefix) => prefix.clone(),
            None if communicator.size < self.world => format!("rank{}.", communicator.first.unwrap_or(self.rank)),
            None => String::new(),
        };
        Wanted { numel: event.count, replica: is_copy.then_some(communicator.rank), prefix }
    }

    fn tell(&mut self, news: News) {
        let text = match news {
            News::Misfit { expected, seen } => {
                self.has_layout = false;
                format!(
                    "FGS_PRELOAD_LAYOUT: the layout has buckets of {} elements, and the trainer reduces {}; the layout is \
                     not used, buckets have numbers for names",
                    shown(&expected),
                    shown(&seen)
                )
            }
            News::Nothing { events, latest } => format!(
                "{events} collectives and no sequence that repeats; nothing is measured. The latest had {} elements. Set \
                 FGS_PRELOAD_STEP, FGS_PRELOAD_RANKS or FGS_PRELOAD_MIN_ELEMENTS (docs/preload.md)",
                shown(&latest)
            ),
        };
        if self.rank == 0 {
            say!("{text}");
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

    /// Nothing is measured any more.
    fn stop(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_over, true) && self.rank == 0 {
            say!("{why}; training goes on and is not measured any more");
        }
    }

    pub fn close(mut self) {
        self.give_up_step();
        // The trainer's buffers may be gone.
        let unbound = self.parameters.unbind(&self.instrument);
        self.complain(unbound);
        // SAFETY: no parameters are bound.
        let ended = unsafe { self.tasks.end(&self.instrument) };
        self.complain(ended);
        if self.signature.generation() == 0 && !self.is_over {
            watch::nothing_found();
        }
        if self.changes > CHANGES && self.rank == 0 {
            say!("the sequence of collectives has changed {} times in all", self.changes);
        }
        self.instrument.close();
    }
}

/// Which of the period's buckets is at a position.
fn bucket_at(period: &Period, position: usize) -> usize {
    period.events()[..position].iter().filter(|event| event.kind == Kind::Reduce).count()
}
