//! `forgetscope ls`: the runs on this machine.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Result, anyhow};
use forgetscope::control::page_path;
use forgetscope::ring::{Discovered, WriterState};
use serde_json::{Value, json};

use crate::format::{count, duration, plural, printable, rfc3339, shortened};
use crate::run::{Place, Summary, age, short_name, state_name};

/// List the runs on this machine
///
/// A run that was killed is listed as "died" and keeps its last records until it is pruned.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Remove the rings of runs that have ended, saying which
    #[arg(long)]
    prune: bool,
    /// Print one JSON array, for programs
    #[arg(long)]
    json: bool,
}

/// A run and what its ring holds. The content of a damaged ring is left empty: the run is there all the same.
struct Row {
    ring: Discovered,
    summary: Summary,
}

pub fn run(args: &Args) -> Result<()> {
    let row = |ring: Discovered| Row { summary: Summary::of(&ring.path).unwrap_or_default(), ring };
    let rows: Vec<Row> = args.place.rings().into_iter().map(row).collect();
    let mut out = anstream::stdout().lock();
    if args.prune {
        let ended = rows.iter().filter(|row| row.ring.state != WriterState::Running);
        return prune(&mut out, ended, args.json);
    }
    if args.json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
    } else if rows.is_empty() {
        writeln!(out, "No runs. A trainer that uses forgetscope shows up here as soon as it opens a scope.")?;
    } else {
        table(&mut out, &rows)?;
    }
    Ok(())
}

fn prune<'a>(out: &mut impl Write, ended: impl Iterator<Item = &'a Row>, json: bool) -> Result<()> {
    let mut removed = Vec::new();
    for row in ended {
        let Discovered { path, state, published, .. } = &row.ring;
        if !json {
            let (name, state) = (path.display(), state_name(*state));
            writeln!(out, "removing {name} ({state}, {})", plural(*published, "record"))?;
        }
        // The page for commands goes first: without its ring nobody would find it.
        remove(&page_path(path))?;
        remove(path)?;
        removed.push(row.json());
    }
    match json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&removed)?)?,
        false if removed.is_empty() => writeln!(out, "Nothing to remove: no run has ended.")?,
        false => {}
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        // There is none, or somebody else pruned it at the same moment.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(anyhow!("cannot remove {}: {error}; remove it by hand", path.display()))
        }
        _ => Ok(()),
    }
}

fn table(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    let title = ["RUN", "PID", "RANK", "STATE", "RECORDS", "AGE", "STEP", "TASK", "TENSORS"].map(String::from);
    let lines: Vec<[String; 9]> = std::iter::once(title).chain(rows.iter().map(Row::cells)).collect();
    let widths: [usize; 9] =
        std::array::from_fn(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0));
    for (index, line) in lines.iter().enumerate() {
        let mut text = String::new();
        for (column, cell) in line.iter().enumerate() {
            // Numbers line up at the right.
            match column {
                1 | 2 | 4 | 6 | 8 => text += &format!("{cell:>0$}  ", widths[column]),
                _ => text += &format!("{cell:<0$}  ", widths[column]),
            }
        }
        let style = match rows.get(index.wrapping_sub(1)).map(|row| row.ring.state) {
            None => anstyle::Style::new().bold(),
            Some(WriterState::Running) => anstyle::Style::new(),
            Some(WriterState::Closed) => anstyle::Style::new().dimmed(),
            Some(WriterState::Died) => anstyle::AnsiColor::Yellow.on_default(),
        };
        writeln!(out, "{style}{}{style:#}", text.trim_end())?;
    }
    Ok(())
}

impl Row {
    fn name(&self) -> String {
        let attribute = self.summary.names.attributes.get("run").filter(|name| !name.is_empty());
        attribute.map_or_else(
            || short_name(&self.ring.path),
            |name| format!("{} {}", short_name(&self.ring.path), shortened(&printable(name), 24)),
        )
    }

    fn task(&self) -> Option<String> {
        self.summary.task.and_then(|task| self.summary.names.task(task))
    }

    fn cells(&self) -> [String; 9] {
        let Discovered { header, state, published, .. } = &self.ring;
        let nothing = || "-".to_string();
        [
            self.name(),
            header.pid.to_string(),
            if header.world > 1 { format!("{}/{}", header.rank, header.world) } else { header.rank.to_string() },
            state_name(*state).into(),
            count(*published),
            age(&self.ring).map_or_else(nothing, duration),
            self.summary.step.map_or_else(nothing, count),
            self.task().map_or_else(nothing, |task| shortened(&printable(&task), 20)),
            count(self.summary.names.tensors.len() as u64),
        ]
    }

    fn json(&self) -> Value {
        let Discovered { path, header, state, published } = &self.ring;
        json!({
            "name": short_name(path),
            "run": self.summary.names.attributes.get("run"),
            "path": path,
            "pid": header.pid,
            "rank": header.rank,
            "world": header.world,
            "state": state_name(*state),
            "records": published,
            "slots": header.slots,
            "created": rfc3339(header.created_realtime_ns),
            "age_seconds": age(&self.ring).map(|age| age.as_secs_f64()),
            "step": self.summary.step,
            "task": self.task(),
            "tensors": self.summary.names.tensors.len(),
        })
    }
}
