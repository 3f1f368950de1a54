//! The page: headline, parts, style and a script that nobody needs.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::data::Data;
use super::findings::Findings;
use super::words::{Headline, headline};
use super::{charts, sections};
use crate::format::{count, moment};

const STYLE: &str = include_str!("style.css");
/// Adds a menu that shows the figures of one earlier task only.
const SCRIPT: &str = include_str!("script.js");

/// The whole page.
pub fn render(data: &Data) -> String {
    let run = data.catalog.names.attributes.get("run").filter(|name| !name.is_empty());
    let title = run.map_or_else(|| "Forgetting report".into(), |run| format!("Forgetting report: {run}"));
    let Headline { first, rest } = headline(data, &Findings::of(data));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="generator" content=(concat!("forgetscope ", env!("CARGO_PKG_VERSION")));
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (charts::heat::definitions())
                main {
                    header {
                        p.run { (run.map_or("forgetscope", String::as_str)) (run_facts(data)) }
                        h1 { (first) }
                        @for sentence in rest { p.lead { (sentence) } }
                        @for caveat in sections::caveats(data) { p.caveat { (caveat) } }
                    }
                    (sections::all(data))
                    footer { p { "Made by forgetscope " (env!("CARGO_PKG_VERSION")) " from " code { (data.source) } "." } }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

/// Steps, tasks and time in one line.
fn run_facts(data: &Data) -> Markup {
    let tasks: Vec<String> = data.spans.iter().map(|span| data.task(span.task)).collect();
    html! {
        @if let Some(last) = data.steps.last { " · step " (count(last)) }
        @if !tasks.is_empty() { " · " (tasks.join(" → ")) }
        " · " (moment(data.catalog.facts.created_realtime_ns))
    }
}
