//! The parts of the page, in the order of the questions that a reader has: what is forgotten, where, and why one should
//! believe it.
//!
//! A part is a title that says what is to be seen, a note with units and sample sizes, and figures. If its records are
//! missing it is a sentence instead that says which call brings them.

mod angles;
mod conflicts;
mod corrected;
mod curves;
mod drift;
mod facts;
mod forecast;
mod heads;
mod landscape;
mod pairs;
mod prediction;
mod representation;
mod router;
mod severity;

pub use facts::caveats;

use maud::{Markup, html};

use super::charts::lines::{Series, Stroke};
use super::charts::{Paint, Stretch};
use super::data::Data;
use super::words::{cosine_error, figure};
use crate::format::NOTHING;

/// With more layers than this, only some lines have their names beside them.
const NAMED: usize = 8;

/// All parts after the headline.
pub fn all(data: &Data) -> Markup {
    html! {
        (curves::section(data))
        (heads::section(data))
        (conflicts::section(data))
        (drift::section(data))
        (prediction::section(data))
        (corrected::section(data))
        (representation::section(data))
        (angles::section(data))
        (severity::section(data))
        (router::section(data))
        (landscape::section(data))
        (pairs::section(data))
        (forecast::section(data))
        (facts::section(data))
    }
}

/// A part with figures.
struct Part<'a> {
    id: &'a str,
    /// What it is about, in two or three words.
    subject: &'a str,
    /// What there is to see.
    title: String,
    note: Markup,
    body: Markup,
}

impl Part<'_> {
    fn draw(self) -> Markup {
        html! {
            section id=(self.id) {
                p.subject { (self.subject) }
                h2 { (self.title) }
                (self.body)
                p.note { (self.note) }
            }
        }
    }
}

/// A part whose records are missing.
fn missing(id: &str, subject: &str, sentence: &str) -> Markup {
    html! {
        section.missing id=(id) {
            p.subject { (subject) }
            p { (sentence) }
        }
    }
}

/// A figure that belongs to one earlier task; the page's script can hide those of the others.
fn of_reference(data: &Data, reference: u16, caption: &str, figure: Markup) -> Markup {
    html! {
        figure data-reference=(data.task(reference)) {
            figcaption { (caption) }
            (figure)
        }
    }
}

/// A table with a heading over each column. What is in bold stands out for a reason that its column's heading gives.
fn columns(headings: &[&str], rows: &[Vec<Markup>]) -> Markup {
    html! {
        table.columns {
            thead { tr { @for heading in headings { th scope="col" { (heading) } } } }
            tbody { @for row in rows { tr { @for (index, cell) in row.iter().enumerate() {
                @if index == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
            } } } }
        }
    }
}

/// `0.42 ± 0.05`; a dash where there is no value.
fn with_error(value: f64, error: f64) -> String {
    match (value.is_finite(), error.is_finite()) {
        (true, true) => format!("{} ± {}", figure(value), cosine_error(error)),
        (true, false) => figure(value),
        (false, _) => NOTHING.into(),
    }
}

/// A value, or a dash.
fn or_nothing(value: f64) -> String {
    if value.is_finite() { figure(value) } else { NOTHING.into() }
}

/// Steps and values.
type Points = Vec<(f64, f64)>;

/// Lines of layers: darker ones are later. With many layers only some have their names beside them.
fn layer_lines(layers: &[(u32, Points)], is_named: impl Fn(usize) -> bool) -> Vec<Series> {
    let n = layers.len();
    let is_named = |index| {
        n <= NAMED || index == 0 || index == n - 1 || is_named(index) || index.is_multiple_of(n.div_ceil(NAMED))
    };
    let one = |(index, (layer, points)): (usize, &(u32, Points))| Series {
        name: if is_named(index) { format!("layer {layer}") } else { String::new() },
        paint: Paint::ordered(index as f64 / (n - 1).max(1) as f64),
        stroke: Stroke::Solid,
        points: points.clone(),
    };
    layers.iter().enumerate().map(one).collect()
}

/// The width of each of `n` figures: two stand side by side, one has the page for itself.
fn width_of(n: usize) -> f64 {
    if n == 1 { 920.0 } else { 460.0 }
}

/// When tasks were trained, for the axis of a figure. `after`: only from the end of that task on.
fn stretches(data: &Data, after: Option<u16>) -> Vec<Stretch> {
    let last = data.steps.last.unwrap_or(0);
    let ended = after.and_then(|task| data.spans.iter().find(|span| span.task == task)?.end);
    let spans = data.spans.iter().filter(|span| ended.is_none_or(|end| span.begin >= end));
    let stretch = |span: &super::data::Span| Stretch {
        name: data.task(span.task),
        begin: span.begin as f64,
        end: span.end.unwrap_or(last).max(span.begin) as f64,
    };
    spans.map(stretch).collect()
}

/// The smallest and largest of these counts, as words: `20` or `20 to 40`.
fn between(counts: impl Iterator<Item = u64>) -> String {
    let (low, high) = counts.fold((u64::MAX, 0), |(low, high), count| (low.min(count), high.max(count)));
    match low {
        u64::MAX => "0".into(),
        _ if low == high => crate::format::count(low),
        _ => format!("{} to {}", crate::format::count(low), crate::format::count(high)),
    }
}
