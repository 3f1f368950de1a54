//! `forgetscope record`: runs as Parquet files, for as long as they go on.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::format::{count, plural};
use crate::recording::recorder::{Limits, Recorder, Turn};
use crate::run::{Place, open, short_name};

const PAUSE: Duration = Duration::from_millis(20);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Record runs as Parquet until they end
///
/// Writes one dataset for each kind of record, DIR/kind=KIND/rank=RANK/part-NNNNN.parquet, with a column for each of its
/// values, and DIR/catalog/rank=RANK.json with everything else that is known of the run. Ctrl-C ends the recording
/// properly. Several ranks of one run may be recorded into the same directory.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Paths, process ids, names or beginnings of names of runs [default: the only one]
    run: Vec<String>,
    /// Directory of the recording; created if need be
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Record until the runs end (the default)
    #[arg(long)]
    until_closed: bool,
    /// Record what is there now, and end
    #[arg(long, conflicts_with = "until_closed")]
    no_follow: bool,
    /// Rows after which a part is complete
    #[arg(long, default_value_t = 1_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    part_rows: u64,
    /// Minutes after which a part is complete
    #[arg(long, default_value_t = 10, value_name = "N")]
    part_minutes: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let paths = match args.run.is_empty() {
        true => vec![args.place.find(None)?],
        false => args.run.iter().map(|run| args.place.find(Some(run))).collect::<Result<_>>()?,
    };
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&stopped);
    ctrlc::set_handler(move || stop.store(true, Ordering::Relaxed))
        .map_err(|error| anyhow!("cannot listen to Ctrl-C: {error}"))?;
    let limits = Limits { rows: args.part_rows, time: Duration::from_secs(60 * args.part_minutes) };
    let mut active = Vec::new();
    for path in &paths {
        active.push((short_name(path), Recorder::begin(open(path)?, &args.out, limits)?));
    }

    let mut progress = Progress::new();
    let mut outcome = Ok(());
    while !active.is_empty() {
        let is_stopped = stopped.load(Ordering::Relaxed);
        let mut is_idle = true;
        let mut going_on = Vec::new();
        for (name, mut recorder) in active {
            let turn = recorder.turn();
            let has_ended = match &turn {
                Ok(turn) => *turn == Turn::Ended || *turn == Turn::Idle && args.no_follow || is_stopped,
                Err(_) => true,
            };
            is_idle &= matches!(turn, Ok(Turn::Idle));
            if has_ended {
                // Whatever happened, what was read so far becomes complete files.
                progress.clear();
                let facts = recorder.finish()?;
                say(&name, &facts, args);
                outcome = outcome.and(turn.map(drop));
            } else {
                going_on.push((name, recorder));
            }
        }
        active = going_on;
        progress.show(&active);
        if is_idle && !active.is_empty() {
            sleep(PAUSE);
        }
    }
    outcome
}

/// The last word on one run.
fn say(name: &str, facts: &crate::recording::catalog::Facts, args: &Args) {
    let mut text = format!("{name}: {} recorded in {}", plural(facts.records, "record"), args.out.display());
    text += &match facts.lost {
        0 => ", none lost".into(),
        lost => format!(", {} lost because the recorder was behind", count(lost)),
    };
    if facts.overwritten > 0 {
        text += &format!("; {} had been overwritten before it began", count(facts.overwritten));
    }
    text += match facts.state.as_str() {
        "died" => "; the run died without closing its ring",
        "running" => "; the run goes on",
        _ => "",
    };
    let _ = writeln!(io::stderr(), "{text}.");
}

/// A line on the terminal that is written over and over.
struct Progress {
    is_terminal: bool,
    shown: Option<Instant>,
    before: u64,
}

impl Progress {
    fn new() -> Self {
        Progress { is_terminal: io::stderr().is_terminal(), shown: None, before: 0 }
    }

    fn show(&mut self, active: &[(String, Recorder)]) {
        let elapsed = self.shown.map(|at| at.elapsed());
        if !self.is_terminal || active.is_empty() || elapsed.is_some_and(|time| time < PROGRESS_INTERVAL) {
            return;
        }
        let (records, lost) = active.iter().fold((0, 0), |(records, lost), (_, recorder)| {
            (records + recorder.facts().records, lost + recorder.facts().lost)
        });
        let rate = elapsed.map_or(0.0, |time| records.saturating_sub(self.before) as f64 / time.as_secs_f64());
        let line = format!("{}, {} lost, {} a second", plural(records, "record"), count(lost), count(rate as u64));
        let _ =
            write!(io::stderr(), "\r\x1b[Krecording {}: {line} (Ctrl-C ends it)", plural(active.len() as u64, "run"));
        (self.shown, self.before) = (Some(Instant::now()), records);
    }

    fn clear(&mut self) {
        if self.is_terminal && self.shown.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
