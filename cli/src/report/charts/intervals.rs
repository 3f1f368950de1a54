//! Values with error bars, one a row. A value that noise hides has no point: its row is hatched.

use maud::{Markup, html};

use super::px;
use super::scale::{Scale, extent, texts};

/// One row. NaN: undetermined.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub value: f64,
    /// Ends of the bar.
    pub low: f64,
    pub high: f64,
    pub title: String,
}

/// Rows over a common axis with a line at 0.
#[derive(Clone, Debug)]
pub struct Intervals<'a> {
    pub rows: Vec<Row>,
    pub width: f64,
    pub axis_name: &'a str,
    /// The axis reaches at least so far to either side.
    pub least: f64,
    pub text: fn(f64) -> String,
}

const ROW: f64 = 22.0;
const LEFT: f64 = 74.0;
const TOP: f64 = 8.0;

impl Intervals<'_> {
    pub fn draw(&self) -> Markup {
        let Intervals { rows, width, axis_name, least, text: value_text } = self;
        let determined = |row: &&Row| row.value.is_finite() && row.low.is_finite() && row.high.is_finite();
        let ends = rows.iter().filter(determined).flat_map(|row| [row.low, row.value, row.high]);
        let (low, high) = extent(ends.chain([-least, *least])).unwrap_or((-1.0, 1.0));
        let right = width - 54.0;
        let scale = Scale::new((low, high), (LEFT, right)).nice(6);
        let bottom = TOP + ROW * rows.len() as f64;
        let ticks = scale.ticks(((right - LEFT) / 60.0) as usize);
        html! {
            svg.chart viewBox=(format!("0 0 {} {}", px(*width), px(bottom + 40.0))) style=(format!("max-width:{}px", px(*width))) role="img" {
                @for (tick, text) in ticks.iter().zip(texts(&ticks)) {
                    line.grid x1=(px(scale.at(*tick))) x2=(px(scale.at(*tick))) y1=(px(TOP)) y2=(px(bottom)) {}
                    text.tick x=(px(scale.at(*tick))) y=(px(bottom + 16.0)) text-anchor="middle" { (text) }
                }
                line.level x1=(px(scale.at(0.0))) x2=(px(scale.at(0.0))) y1=(px(TOP)) y2=(px(bottom)) {}
                @for (index, row) in rows.iter().enumerate() {
                    @let y = TOP + (index as f64 + 0.5) * ROW;
                    text.row-name x=(px(LEFT - 10.0)) y=(px(y + 3.8)) text-anchor="end" { (row.name) }
                    @if determined(&row) {
                        @let class = if row.low <= 0.0 && row.high >= 0.0 { "interval unsure" } else if row.value < 0.0 { "interval negative" } else { "interval positive" };
                        g class=(class) {
                            title { (row.title) }
                            line.bar x1=(px(scale.at(row.low))) x2=(px(scale.at(row.high))) y1=(px(y)) y2=(px(y)) {}
                            circle cx=(px(scale.at(row.value))) cy=(px(y)) r="4.5" {}
                        }
                        text.tick x=(px(right + 8.0)) y=(px(y + 3.8)) { (value_text(row.value)) }
                    } @else {
                        rect.undetermined x=(px(LEFT)) y=(px(y - 6.5)) width=(px(right - LEFT)) height="13" rx="2" style="fill:url(#noise)" { title { (row.title) } }
                        text.undetermined-name x=(px(0.5 * (LEFT + right))) y=(px(y + 3.8)) text-anchor="middle" { "undetermined" }
                    }
                }
                text.axis-name x=(px(right)) y=(px(bottom + 33.0)) text-anchor="end" { (axis_name) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f64, error: f64) -> String {
        let (low, high) = (value - 2.0 * error, value + 2.0 * error);
        let rows = vec![Row { name: "layer 0".into(), value, low, high, title: "t".into() }];
        Intervals { rows, width: 400.0, axis_name: "cosine", least: 0.1, text: crate::report::words::cosine }
            .draw()
            .into_string()
    }

    #[test]
    fn what_is_undetermined_has_no_point() {
        let text = row(f64::NAN, f64::NAN);
        assert!(text.contains("undetermined") && !text.contains("<circle"));
        assert!(!row(-0.4, f64::NAN).contains("<circle"), "a value without its error");
    }

    #[test]
    fn a_sign_needs_two_errors() {
        assert!(row(-0.4, 0.1).contains("interval negative"));
        assert!(row(-0.4, 0.3).contains("interval unsure"));
    }
}
