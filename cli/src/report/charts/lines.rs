//! Series over steps: lines with their names at the end.

use maud::{Markup, html};

use super::frame::{AxisNames, Size, Stretch, axes, stretches};
use super::labels::spread;
use super::scale::{Scale, extent};
use super::{Paint, px};
use crate::report::words::figure;

/// More points than this are averaged in groups: there are no more pixels.
const MOST_POINTS: usize = 360;
/// Up to so many points of a figure are marked and say their value.
const MARKED: usize = 400;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stroke {
    Solid,
    Bold,
    Dashed,
    Dotted,
    /// Points without a line.
    Points,
}

/// Values over steps.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub paint: Paint,
    pub stroke: Stroke,
    pub points: Vec<(f64, f64)>,
}

/// A range over steps that is tinted.
#[derive(Clone, Debug, Default)]
pub struct Band {
    /// Step, low, high.
    pub points: Vec<(f64, f64, f64)>,
    pub paint: Option<Paint>,
}

/// A figure of series over steps.
#[derive(Clone, Debug, Default)]
pub struct Lines<'a> {
    /// What is along the horizontal axis, if not steps.
    pub x_name: Option<&'a str>,
    pub y_name: &'a str,
    pub width: f64,
    pub height: f64,
    pub series: Vec<Series>,
    pub stretches: &'a [Stretch],
    pub band: Band,
    /// A value that the others are to be compared with.
    pub level: Option<f64>,
    /// A strip above the horizontal axis.
    pub strip: Vec<Piece>,
}

/// A piece of the strip: what the series are doing from one step to another.
#[derive(Clone, Debug)]
pub struct Piece {
    pub begin: f64,
    pub end: f64,
    pub paint: Paint,
    /// What it says when pointed at.
    pub title: String,
}

impl Lines<'_> {
    pub fn draw(&self) -> Markup {
        let series: Vec<(&Series, Vec<(f64, f64)>)> =
            self.series.iter().map(|series| (series, thinned(&series.points))).filter(|(_, p)| !p.is_empty()).collect();
        let points = || series.iter().flat_map(|(_, points)| points.iter().copied());
        let ends = self.stretches.iter().flat_map(|stretch| [stretch.begin, stretch.end]);
        let band = self.band.points.iter().flat_map(|point| [point.1, point.2]);
        let (Some(x), Some(y)) =
            (extent(points().map(|p| p.0).chain(ends)), extent(points().map(|p| p.1).chain(band).chain(self.level)))
        else {
            return html! {};
        };
        let longest = series.iter().map(|(series, _)| series.name.chars().count()).max().unwrap_or(0);
        let right = (16.0 + 6.6 * longest as f64).clamp(40.0, 150.0);
        let size = Size { width: self.width, height: self.height, left: 52.0, right, top: 44.0, bottom: 38.0 };
        let x = Scale::new(x, size.horizontal());
        let y = Scale::new(y, size.vertical()).nice(5);
        html! {
            svg.chart viewBox=(size.view()) role="img" style=(format!("max-width:{}px", px(self.width))) {
                (stretches(&size, &x, self.stretches))
                (axes(&size, &x, &y, AxisNames { x: self.x_name.unwrap_or("step"), y: self.y_name }))
                (self.draw_band(&x, &y))
                (self.draw_strip(&size, &x))
                @if let Some(level) = self.level {
                    line.level x1=(px(size.left)) x2=(px(size.width - size.right)) y1=(px(y.at(level))) y2=(px(y.at(level))) {}
                }
                @let is_marked = points().count() <= MARKED;
                @for (series, points) in &series { (line(series, points, is_marked, &x, &y)) }
                (names(&series, &size, &x, &y))
            }
        }
    }

    fn draw_strip(&self, size: &Size, x: &Scale) -> Markup {
        html! {
            @for piece in &self.strip {
                rect.piece x=(px(x.at(piece.begin))) y=(px(size.height - size.bottom - 4.5)) height="3"
                    width=(px((x.at(piece.end) - x.at(piece.begin) - 1.0).max(1.0))) style=(format!("fill:{}", piece.paint.0)) { title { (piece.title) } }
            }
        }
    }

    fn draw_band(&self, x: &Scale, y: &Scale) -> Markup {
        let points: Vec<_> =
            self.band.points.iter().filter(|point| point.1.is_finite() && point.2.is_finite()).collect();
        let upper = points.iter().map(|point| format!("{},{}", px(x.at(point.0)), px(y.at(point.2))));
        let lower = points.iter().rev().map(|point| format!("{},{}", px(x.at(point.0)), px(y.at(point.1))));
        let outline: Vec<String> = upper.chain(lower).collect();
        let style = self.band.paint.as_ref().map(|paint| format!("fill:{}", paint.0));
        html! { @if points.len() > 1 { polygon.band points=(outline.join(" ")) style=[style] {} } }
    }
}

fn line(series: &Series, points: &[(f64, f64)], is_marked: bool, x: &Scale, y: &Scale) -> Markup {
    let paint = &series.paint.0;
    let class = match series.stroke {
        Stroke::Solid => "line",
        Stroke::Bold => "line bold",
        Stroke::Dashed => "line dashed",
        Stroke::Dotted => "line dotted",
        Stroke::Points => "line none",
    };
    let is_marked = is_marked && series.stroke != Stroke::Bold;
    let radius = match series.stroke {
        Stroke::Points => "3",
        _ => "1.7",
    };
    html! {
        g {
            @if !series.name.is_empty() { title { (series.name) } }
            @for path in paths(points, x, y) { path class=(class) d=(path) style=(format!("stroke:{paint}")) {} }
            @if is_marked || series.stroke == Stroke::Points {
                @for (step, value) in points.iter().filter(|point| point.1.is_finite()) {
                    circle.mark cx=(px(x.at(*step))) cy=(px(y.at(*value))) r=(radius) style=(format!("fill:{paint}")) {
                        title { (series.name) ", step " (step.round()) ": " (figure(*value)) }
                    }
                }
            }
        }
    }
}

/// Lines through the points; a value that is missing is a gap and not a bridge.
fn paths(points: &[(f64, f64)], x: &Scale, y: &Scale) -> Vec<String> {
    let pieces = points.split(|(_, value)| !value.is_finite()).filter(|piece| piece.len() > 1);
    let path = |piece: &[(f64, f64)]| {
        let point = |(step, value): &(f64, f64)| format!("{} {}", px(x.at(*step)), px(y.at(*value)));
        format!("M{}", piece.iter().map(point).collect::<Vec<_>>().join("L"))
    };
    pieces.map(path).collect()
}

/// The series' names beside their last points.
fn names(series: &[(&Series, Vec<(f64, f64)>)], size: &Size, x: &Scale, y: &Scale) -> Markup {
    let last = |points: &[(f64, f64)]| points.iter().rev().find(|point| point.1.is_finite()).copied();
    let ends: Vec<(&Series, (f64, f64))> = series
        .iter()
        .filter(|(series, _)| !series.name.is_empty())
        .filter_map(|(series, points)| Some((*series, last(points)?)))
        .collect();
    let wanted: Vec<f64> = ends.iter().map(|(_, end)| y.at(end.1)).collect();
    let placed = spread(&wanted, 14.0, size.top + 4.0, size.height - size.bottom - 2.0);
    let edge = size.width - size.right;
    html! {
        @for (((series, (step, _)), at), wanted) in ends.iter().zip(placed).zip(wanted) {
            @let from = x.at(*step);
            @if (at - wanted).abs() > 2.0 || edge - from > 2.0 {
                path.leader d=(format!("M{} {}L{} {}L{} {}", px(from), px(wanted), px(edge.max(from)), px(wanted), px(edge + 7.0), px(at))) {}
            }
            text.name x=(px(edge + 9.0)) y=(px(at + 3.8)) style=(format!("fill:{}", series.paint.0)) { (series.name) }
        }
    }
}

/// At most so many points that each has a pixel: means of neighbours, gaps kept.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |group: &[(f64, f64)]| {
        let n = group.len() as f64;
        let values: Vec<f64> = group.iter().map(|point| point.1).filter(|value| value.is_finite()).collect();
        let value = values.iter().sum::<f64>() / values.len() as f64;
        (group.iter().map(|point| point.0).sum::<f64>() / n, value)
    };
    let thinned: Vec<_> = points.chunks(group).map(mean).collect();
    if thinned.iter().any(|point| point.1.is_finite()) { thinned } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_value_is_a_gap() {
        let scale = Scale::new((0.0, 4.0), (0.0, 4.0));
        let points = [(0.0, 1.0), (1.0, 1.0), (2.0, f64::NAN), (3.0, 2.0), (4.0, 2.0)];
        assert_eq!(paths(&points, &scale, &scale), ["M0 1L1 1", "M3 2L4 2"]);
    }

    #[test]
    fn many_points_become_means() {
        let points: Vec<_> = (0..10_000).map(|i| (f64::from(i), 2.0)).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= MOST_POINTS && thin.iter().all(|point| point.1 == 2.0));
        assert!(thinned(&[(0.0, f64::NAN)]).is_empty());
    }

    #[test]
    fn a_figure_without_data_is_nothing() {
        let lines = Lines { y_name: "loss", width: 600.0, height: 200.0, ..Lines::default() };
        assert_eq!(lines.draw().into_string(), "");
    }
}
