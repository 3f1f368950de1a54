//! What surrounds the data of a figure over steps: axes, grid, and the stretches in which tasks were trained.

use maud::{Markup, html};

use super::px;
use super::scale::{Scale, texts};

/// A stretch of the horizontal axis with a name: a task in training.
#[derive(Clone, Debug, PartialEq)]
pub struct Stretch {
    pub name: String,
    pub begin: f64,
    pub end: f64,
}

/// Sizes of a figure, in pixels at its natural width.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub width: f64,
    pub height: f64,
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
}

impl Size {
    pub fn horizontal(&self) -> (f64, f64) {
        (self.left, self.width - self.right)
    }

    /// From the bottom up, as values grow.
    pub fn vertical(&self) -> (f64, f64) {
        (self.height - self.bottom, self.top)
    }

    pub fn view(&self) -> String {
        format!("0 0 {} {}", px(self.width), px(self.height))
    }
}

/// The names of the two axes, with units.
#[derive(Clone, Copy, Debug)]
pub struct AxisNames<'a> {
    pub x: &'a str,
    pub y: &'a str,
}

/// The stretches behind the data. Every second one is tinted, and all are named above.
pub fn stretches(size: &Size, x: &Scale, stretches: &[Stretch]) -> Markup {
    let (left, right) = size.horizontal();
    html! {
        @for (index, stretch) in stretches.iter().enumerate() {
            @let begin = x.at(stretch.begin).clamp(left, right);
            @let end = x.at(stretch.end).clamp(left, right);
            @if end > begin {
                @if index % 2 == 0 {
                    rect.stretch x=(px(begin)) y=(px(size.top)) width=(px(end - begin))
                        height=(px(size.height - size.top - size.bottom)) {}
                }
                // A name that has no room is left to the tooltip of the figure beside it.
                @if end - begin > 6.5 * stretch.name.chars().count() as f64 {
                    text.stretch-name x=(px(0.5 * (begin + end))) y=(px(size.top - 7.0)) text-anchor="middle" {
                        (stretch.name)
                    }
                }
                @if index > 0 {
                    line.switch x1=(px(begin)) x2=(px(begin)) y1=(px(size.top)) y2=(px(size.height - size.bottom)) {}
                }
            }
        }
    }
}

/// Axes with grid lines, ticks and names.
pub fn axes(size: &Size, x: &Scale, y: &Scale, names: AxisNames) -> Markup {
    let (left, right) = size.horizontal();
    let (bottom, top) = size.vertical();
    let (x_ticks, y_ticks) = (x.ticks(((right - left) / 90.0) as usize), y.ticks(((bottom - top) / 40.0) as usize));
    html! {
        @for (tick, text) in y_ticks.iter().zip(texts(&y_ticks)) {
            @let at = px(y.at(*tick));
            line.grid x1=(px(left)) x2=(px(right)) y1=(at) y2=(at) {}
            text.tick x=(px(left - 8.0)) y=(px(y.at(*tick) + 3.5)) text-anchor="end" { (text) }
        }
        line.axis x1=(px(left)) x2=(px(right)) y1=(px(bottom)) y2=(px(bottom)) {}
        @for (tick, text) in x_ticks.iter().zip(texts(&x_ticks)) {
            line.axis x1=(px(x.at(*tick))) x2=(px(x.at(*tick))) y1=(px(bottom)) y2=(px(bottom + 4.0)) {}
            text.tick x=(px(x.at(*tick))) y=(px(bottom + 17.0)) text-anchor="middle" { (text) }
        }
        text.axis-name x=(px(right)) y=(px(bottom + 33.0)) text-anchor="end" { (names.x) }
        text.axis-name x="0" y=(px((top - 24.0).max(10.0))) text-anchor="start" { (names.y) }
    }
}
