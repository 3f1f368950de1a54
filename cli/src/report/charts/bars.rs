//! Shares between 0 and 1 as bars, one a row, with what came of each beside it.

use maud::{Markup, html};

use super::scale::Scale;
use super::{Paint, px};

/// One row.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    /// NaN: unknown.
    pub share: f64,
    /// What came of it: it happened, it did not, or nobody knows.
    pub happened: Option<bool>,
    pub outcome: String,
}

const ROW: f64 = 24.0;
const TOP: f64 = 20.0;
const WIDTH: f64 = 920.0;

/// The rows; `base` is marked with its name.
pub fn draw(rows: &[Row], base: (f64, &str)) -> Markup {
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let left = (20.0 + 6.8 * longest as f64).clamp(90.0, 300.0);
    let scale = Scale::new((0.0, 1.0), (left, WIDTH - 300.0));
    let bottom = TOP + ROW * rows.len() as f64;
    html! {
        svg.chart viewBox=(format!("0 0 {} {}", px(WIDTH), px(bottom + 40.0))) style=(format!("max-width:{}px", px(WIDTH))) role="img" {
            @for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
                line.grid x1=(px(scale.at(tick))) x2=(px(scale.at(tick))) y1=(px(TOP)) y2=(px(bottom)) {}
                text.tick x=(px(scale.at(tick))) y=(px(bottom + 16.0)) text-anchor="middle" { (format!("{:.0} %", 100.0 * tick)) }
            }
            @for (index, row) in rows.iter().enumerate() {
                @let y = TOP + (index as f64 + 0.5) * ROW;
                text.row-name x=(px(left - 10.0)) y=(px(y + 3.8)) text-anchor="end" { (row.name) }
                @if row.share.is_finite() {
                    rect.bar x=(px(left)) y=(px(y - 7.0)) width=(px(scale.at(row.share) - left)) height="14" style=(format!("fill:{}", Paint::category(5).0)) {}
                    text.tick x=(px(scale.at(row.share) + 6.0)) y=(px(y + 3.8)) { (format!("{:.0} %", 100.0 * row.share)) }
                } @else {
                    text.tick x=(px(left + 6.0)) y=(px(y + 3.8)) { "unknown" }
                }
                @let at = WIDTH - 226.0;
                @match row.happened {
                    Some(true) => circle cx=(px(at)) cy=(px(y)) r="4.5" style=(format!("fill:{}", Paint::category(1).0)) {},
                    Some(false) => circle.hollow cx=(px(at)) cy=(px(y)) r="4" {},
                    None => {},
                }
                text.row-name x=(px(at + 12.0)) y=(px(y + 3.8)) { (row.outcome) }
            }
            @if base.0.is_finite() {
                line.switch x1=(px(scale.at(base.0))) x2=(px(scale.at(base.0))) y1=(px(TOP)) y2=(px(bottom)) {}
                text.tick x=(px(scale.at(base.0))) y=(px(TOP - 7.0)) text-anchor="middle" { (base.1) }
            }
            text.axis-name x=(px(scale.at(1.0))) y=(px(bottom + 33.0)) text-anchor="end" { "risk" }
            text.axis-name x=(px(WIDTH - 232.0)) y=(px(TOP - 7.0)) { "what happened" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_risk_has_no_bar() {
        let row = |share, happened| Row { name: "a, while b".into(), share, happened, outcome: "+0.2".into() };
        let text = draw(&[row(f64::NAN, None)], (0.5, "rate")).into_string();
        assert!(text.contains("unknown") && !text.contains("<rect") && !text.contains("<circle"));
        let text = draw(&[row(0.25, Some(true)), row(0.5, Some(false))], (f64::NAN, "rate")).into_string();
        assert!(text.contains("25 %") && text.matches("<circle").count() == 2 && !text.contains("class=\"switch\""));
    }
}
