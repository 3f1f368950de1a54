//! Values beside the range of their null, one a row.

use maud::{Markup, html};

use super::px;
use super::scale::{Scale, extent, texts};

/// One row. NaN: undetermined.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub value: f64,
    /// Mean and 95th percentile of the null.
    pub null: (f64, f64),
    /// Something makes the value hard to trust.
    pub is_doubtful: bool,
    pub title: String,
}

const LEFT: f64 = 74.0;
const TOP: f64 = 8.0;
/// From so many rows on they are lower, and not all are named.
const MANY: usize = 24;

/// The rows over a common axis from 0.
pub fn draw(rows: &[Row], width: f64, axis_name: &str, text: fn(f64) -> String) -> Markup {
    let ends = rows.iter().flat_map(|row| [row.value, row.null.0, row.null.1]);
    let (_, high) = extent(ends.chain([0.0])).unwrap_or((0.0, 1.0));
    let (row_height, every) = if rows.len() > MANY { (11.0, rows.len().div_ceil(MANY)) } else { (22.0, 1) };
    let right = width - 54.0;
    let scale = Scale::new((0.0, high), (LEFT, right)).nice(6);
    let bottom = TOP + row_height * rows.len() as f64;
    let ticks = scale.ticks(((right - LEFT) / 60.0) as usize);
    html! {
        svg.chart viewBox=(format!("0 0 {} {}", px(width), px(bottom + 40.0))) style=(format!("max-width:{}px", px(width))) role="img" {
            @for (tick, text) in ticks.iter().zip(texts(&ticks)) {
                line.grid x1=(px(scale.at(*tick))) x2=(px(scale.at(*tick))) y1=(px(TOP)) y2=(px(bottom)) {}
                text.tick x=(px(scale.at(*tick))) y=(px(bottom + 16.0)) text-anchor="middle" { (text) }
            }
            line.level x1=(px(LEFT)) x2=(px(LEFT)) y1=(px(TOP)) y2=(px(bottom)) {}
            @for (index, row) in rows.iter().enumerate() {
                @let y = TOP + (index as f64 + 0.5) * row_height;
                @if index % every == 0 {
                    text.row-name x=(px(LEFT - 10.0)) y=(px(y + 3.8)) text-anchor="end" { (row.name) }
                }
                @if row.null.1.is_finite() {
                    rect.null x=(px(LEFT)) y=(px(y - 0.3 * row_height)) width=(px(scale.at(row.null.1) - LEFT)) height=(px(0.6 * row_height)) {}
                }
                @if row.null.0.is_finite() {
                    line.null-mean x1=(px(scale.at(row.null.0))) x2=(px(scale.at(row.null.0))) y1=(px(y - 0.3 * row_height)) y2=(px(y + 0.3 * row_height)) {}
                }
                @if row.value.is_finite() {
                    @let class = if row.is_doubtful || row.value.partial_cmp(&row.null.1) != Some(std::cmp::Ordering::Greater) { "interval unsure" } else { "interval negative" };
                    g class=(class) {
                        title { (row.title) }
                        circle cx=(px(scale.at(row.value))) cy=(px(y)) r=(px((0.2 * row_height).max(2.5))) {}
                    }
                    @if index % every == 0 {
                        text.tick x=(px(right + 8.0)) y=(px(y + 3.8)) { (text(row.value)) }
                    }
                }
            }
            text.axis-name x=(px(right)) y=(px(bottom + 33.0)) text-anchor="end" { (axis_name) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f64, high: f64, is_doubtful: bool) -> String {
        let row = Row { name: "layer 0".into(), value, null: (0.7 * high, high), is_doubtful, title: "t".into() };
        draw(&[row], 400.0, "degrees", |value| format!("{value:.1}")).into_string()
    }

    #[test]
    fn colour_is_for_what_the_null_does_not_explain() {
        assert!(row(9.0, 6.0, false).contains("interval negative"));
        assert!(row(5.0, 6.0, false).contains("interval unsure"));
        assert!(row(9.0, 6.0, true).contains("interval unsure"));
        assert!(row(9.0, f64::NAN, false).contains("interval unsure"), "a value without its null");
        assert!(!row(f64::NAN, 6.0, false).contains("<circle"));
    }

    #[test]
    fn many_rows_are_not_all_named() {
        let row = |index| Row {
            name: format!("layer {index}"),
            value: 1.0,
            null: (0.1, 0.2),
            is_doubtful: false,
            title: String::new(),
        };
        let text = draw(&(0..80).map(row).collect::<Vec<_>>(), 400.0, "degrees", |_| String::new()).into_string();
        assert_eq!(text.matches("row-name").count(), 20);
    }
}
