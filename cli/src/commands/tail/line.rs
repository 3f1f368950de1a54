//! One record as one line: aligned columns for people, an object for programs.

use std::io::{self, IsTerminal};

use anstyle::{AnsiColor, Style};
use forgetscope::ring::{Header, NONE32, Reader, Record, WriterState};
use serde_json::{Map, Value, json};

use crate::format::{NOTHING, ending, number, plural, printable, rfc3339, shortened};
use crate::names::Names;

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();
/// For what qualifies a measurement.
const REMARK: Style = AnsiColor::Yellow.on_default();

/// Flags that say how a measurement was made. The others qualify it and are always shown.
const ORDINARY: [&str; 4] = ["exact", "frozen", "refreshed", "trailing"];

/// Turns records into lines.
pub struct Printer {
    json: bool,
    /// Columns that a line may take.
    width: usize,
    /// The task whose heading was printed last.
    task: Option<u16>,
}

impl Printer {
    pub fn new(json: bool, wide: bool) -> Self {
        let terminal = io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
        let width = terminal.filter(|_| !wide).map_or(usize::MAX, |(width, _)| usize::from(width.0));
        Printer { json, width, task: None }
    }

    /// Appends the line of a record, and a heading if the task in training has changed.
    pub fn record(&mut self, out: &mut String, names: &Names, header: &Header, number: u64, record: &Record) {
        if self.json {
            *out += &object(names, header, number, record).to_string();
            out.push('\n');
            return;
        }
        if self.task != Some(record.task) {
            self.task = Some(record.task);
            let text = match names.task(record.task) {
                Some(task) => format!("training {}", printable(&task)),
                None => "between tasks".into(),
            };
            *out += &format!("{BOLD}── {text} ──{BOLD:#}\n");
        }
        *out += &self.line(names, record);
        out.push('\n');
    }

    /// A line that is no record.
    pub fn remark(&self, text: &str) -> String {
        format!("{REMARK}{text}{REMARK:#}\n")
    }

    /// Says how the run ended. A program sees that the stream has ended.
    pub fn end(&self, reader: &Reader) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let text = match reader.state() {
            WriterState::Died => "the run died without closing its ring",
            _ => "the run has ended",
        };
        self.write(&self.remark(&format!("── {text}, {} in all ──", plural(reader.published(), "record"))))
    }

    fn line(&self, names: &Names, record: &Record) -> String {
        let kind = printable(&names.kind(record.kind));
        let place = ending(&printable(&names.place_text(record)), 15);
        let reference = names.task(record.reference).map_or(String::new(), |task| shortened(&printable(&task), 10));
        let mut line = Line { text: String::new(), used: 0, width: self.width };
        line.push(Style::new(), &format!("{:>7}  ", record.step));
        line.push(BOLD, &format!("{:<14}  ", shortened(&kind, 14)));
        line.push(Style::new(), &format!("{place:<15} "));
        line.push(DIM, &format!("{reference:<10}"));

        for flag in names.flags(record.flags).iter().filter(|flag| !ORDINARY.contains(&flag.as_str())) {
            line.push(REMARK, &format!("  {}", printable(flag)));
        }
        // What an id stands for says which measurement the other values are of, so it comes first.
        let mut values: Vec<_> = names.values(record.kind).into_iter().zip(record.values).collect();
        values.sort_by_key(|(name, _)| !Names::is_id(&kind, name));
        for (name, value) in values.iter().filter(|(_, value)| !value.is_nan()) {
            let fits = match names.meaning(&kind, name, *value) {
                Some(meaning) => line.id(&printable(&meaning)),
                None => line.pair(&printable(name), &number(*value)),
            };
            if !fits {
                break;
            }
        }
        if record.values.iter().all(|value| value.is_nan()) {
            line.push(DIM, &format!("  {NOTHING}"));
        }
        line.text
    }
}

/// A line that knows how much of it is visible.
struct Line {
    text: String,
    used: usize,
    width: usize,
}

impl Line {
    fn push(&mut self, style: Style, text: &str) {
        self.text += &format!("{style}{text}{style:#}");
        self.used += text.chars().count();
    }

    /// Adds what an id stands for, as much of it as fits.
    fn id(&mut self, meaning: &str) -> bool {
        let room = self.width.saturating_sub(self.used + 2);
        let fits = room >= meaning.chars().count();
        if room > 3 {
            self.push(Style::new(), &format!("  {}", shortened(meaning, room)));
        }
        fits
    }

    /// Adds a value if it fits.
    fn pair(&mut self, name: &str, value: &str) -> bool {
        let length = 3 + name.chars().count() + value.chars().count();
        let fits = self.used + length <= self.width;
        if fits {
            self.push(DIM, &format!("  {name} "));
            self.push(Style::new(), value);
        }
        fits
    }
}

/// The record as JSON: everything by name, ids that have no name as they are.
fn object(names: &Names, header: &Header, number: u64, record: &Record) -> Value {
    let kind = names.kind(record.kind);
    let place = names.place(record);
    let mut values = Map::new();
    for (name, value) in names.values(record.kind).iter().zip(record.values) {
        values.insert(name.clone(), json!(value));
        if let Some(meaning) = names.meaning(&kind, name, value) {
            values.insert(format!("{name}_name"), json!(meaning));
        }
    }
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| drop(object.insert(key.into(), value));
    set("number", json!(number));
    set("time", json!(rfc3339(header.realtime_ns(record.time_ns))));
    set("step", json!(record.step));
    set("kind", json!(kind));
    set("level", json!(names.level(record.level)));
    set("flags", json!(names.flags(record.flags)));
    set("rank", json!((record.rank != NONE32).then_some(record.rank)));
    set("task", json!(names.task(record.task)));
    set("reference", json!(names.task(record.reference)));
    set("tensor", json!(place.tensor.and_then(|tensor| names.tensor(tensor))));
    set("layer", json!(place.layer));
    set("expert", json!(place.expert));
    set("role", json!(place.role.map(|role| names.role(role))));
    set("head", json!(place.head));
    set("values", Value::Object(values));
    Value::Object(object)
}
