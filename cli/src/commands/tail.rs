//! `forgetscope tail`: the records of a run as they come.

mod line;

use std::collections::VecDeque;
use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};
use forgetscope::ring::{Poll, Reader, Record};
use serde_json::json;

use self::line::Printer;
use crate::format::plural;
use crate::names::Names;
use crate::run::{Place, open};

/// How long to wait when there is nothing new.
const PAUSE: Duration = Duration::from_millis(50);

/// Follow the records of a run
///
/// Prints a line for each record: step, kind, what it is about, the earlier task that it refers to, and its values by
/// name, as many as fit. What was not measured is left out; a value that noise hides is called undetermined.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Path, process id, name or beginning of the name of a run [default: the only one]
    run: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Print JSON, one object a line, every value (NaN and infinite ones as null)
    #[arg(long)]
    json: bool,
    /// Only records of this kind, for example evaluation; may be repeated
    #[arg(long, short, value_name = "KIND")]
    kind: Vec<String>,
    /// Only records at this level: head, tensor, role, layer, model or attention_head; may be repeated
    #[arg(long, short, value_name = "LEVEL")]
    level: Vec<String>,
    /// Begin with the oldest record that is still there
    #[arg(long)]
    from_start: bool,
    /// Begin with so many records before now
    #[arg(long, short = 'n', default_value_t = 10, value_name = "N", conflicts_with = "from_start")]
    lines: usize,
    /// End when the records that are there are printed
    #[arg(long)]
    no_follow: bool,
    /// Print every value, however long the line
    #[arg(long)]
    wide: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let mut reader = open(&args.place.find(args.run.as_deref())?)?;
    let mut names = Names::default();
    names.refresh(&mut reader)?;
    check("kind", &args.kind, names.kinds.values().map(|kind| &kind.name))?;
    check("level", &args.level, names.levels.values())?;
    let mut tail = Tail { printer: Printer::new(args.json, args.wide), args, names, reader };
    tail.history()?;
    if args.no_follow { Ok(()) } else { tail.follow() }
}

/// Refuses a name that this run does not have, unless it has none at all yet.
fn check<'a>(what: &str, wanted: &[String], known: impl Iterator<Item = &'a String>) -> Result<()> {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let is_known = |name: &str| known.is_empty() || known.contains(&name) || name.starts_with("kind_");
    match wanted.iter().find(|name| !is_known(name)) {
        None => Ok(()),
        Some(name) => bail!("this run has no {what} `{name}`; choose among {}", known.join(", ")),
    }
}

/// A record with its number in the ring, or how many were lost.
enum Item {
    Record(u64, Record),
    Lost(u64),
}

struct Tail<'a> {
    args: &'a Args,
    names: Names,
    reader: Reader,
    printer: Printer,
}

impl Tail<'_> {
    /// What is in the ring now: all of it, or the last lines of it.
    fn history(&mut self) -> Result<()> {
        let end = self.reader.published();
        let before = self.reader.position();
        if self.args.from_start && before > 0 {
            self.print([Item::Lost(before)])?;
        }
        let mut kept = VecDeque::new();
        while self.reader.position() < end {
            match self.reader.poll()? {
                Poll::Record(record) => {
                    if self.is_wanted(&record)? {
                        kept.push_back(Item::Record(self.reader.position(), record));
                    }
                }
                Poll::Lost(count) if self.args.from_start => kept.push_back(Item::Lost(count)),
                Poll::Lost(_) => {}
                Poll::Empty | Poll::Closed => break,
            }
            if self.args.from_start && kept.len() >= 4096 {
                self.print(kept.drain(..))?;
            } else if !self.args.from_start && kept.len() > self.args.lines {
                kept.pop_front();
            }
        }
        self.print(kept)
    }

    fn follow(&mut self) -> Result<()> {
        let mut fresh = Vec::new();
        loop {
            let poll = self.reader.poll()?;
            match poll {
                Poll::Record(record) => {
                    if self.is_wanted(&record)? {
                        fresh.push(Item::Record(self.reader.position(), record));
                    }
                    if fresh.len() < 1024 {
                        continue;
                    }
                }
                Poll::Lost(count) => fresh.push(Item::Lost(count)),
                Poll::Empty | Poll::Closed => {}
            }
            let is_idle = fresh.is_empty();
            self.print(fresh.drain(..))?;
            match poll {
                Poll::Closed => return Ok(self.printer.end(&self.reader)?),
                Poll::Empty if is_idle => sleep(PAUSE),
                _ => {}
            }
        }
    }

    /// Whether the filters let the record pass. A name that is not known yet is looked up again.
    fn is_wanted(&mut self, record: &Record) -> Result<bool> {
        if !self.names.kinds.contains_key(&record.kind) || !self.names.levels.contains_key(&record.level) {
            self.names.refresh(&mut self.reader)?;
        }
        let passes = |filter: &[String], name: String| filter.is_empty() || filter.contains(&name);
        Ok(passes(&self.args.kind, self.names.kind(record.kind))
            && passes(&self.args.level, self.names.level(record.level)))
    }

    /// Prints in one go. The catalog is read first: it names everything in records that were published before.
    fn print(&mut self, items: impl IntoIterator<Item = Item>) -> Result<()> {
        self.names.refresh(&mut self.reader)?;
        let header = self.reader.header().clone();
        let mut text = String::new();
        for item in items {
            match item {
                Item::Record(number, record) => {
                    self.printer.record(&mut text, &self.names, &header, number, &record);
                }
                Item::Lost(count) if self.args.json => text += &format!("{}\n", json!({ "lost": count })),
                Item::Lost(count) => text += &self.printer.remark(&format!("… {} lost", plural(count, "record"))),
            }
        }
        Ok(self.printer.write(&text)?)
    }
}

impl Printer {
    fn write(&self, text: &str) -> std::io::Result<()> {
        let mut out = anstream::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}
