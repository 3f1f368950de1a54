//! Layers × heads, coloured on a diverging scale around 0. Cells that noise could explain are hatched and have no
//! colour: their sign means nothing.

use maud::{Markup, html};

use super::{Paint, px};
use crate::report::words::cosine;

/// One cell.
#[derive(Clone, Debug)]
pub struct Cell {
    pub layer: u32,
    pub head: u32,
    pub value: f64,
    pub is_noise: bool,
    /// What the cell says when pointed at.
    pub title: String,
}

/// A heat map.
#[derive(Clone, Debug)]
pub struct Heat<'a> {
    pub title: &'a str,
    pub cells: Vec<Cell>,
    pub layers: u32,
    pub heads: u32,
    /// The value that has the full colour; the same in all maps that are compared.
    pub limit: f64,
}

const LEFT: f64 = 34.0;
const TOP: f64 = 22.0;

/// Cells are as large as a map of a readable width allows.
pub fn cell_size(layers: u32, heads: u32) -> f64 {
    let wide = 172.0 / f64::from(heads.max(1));
    let high = 420.0 / f64::from(layers.max(1));
    wide.min(high).clamp(4.0, 40.0)
}

impl Heat<'_> {
    pub fn draw(&self, size: f64) -> Markup {
        let width = LEFT + f64::from(self.heads) * size + 6.0;
        let height = TOP + f64::from(self.layers) * size + 34.0;
        let gap = if size > 12.0 { 1.5 } else { 0.5 };
        // The values themselves are written where there is room for them.
        let is_written = size >= 36.0;
        let every = |count: u32| count.div_ceil((f64::from(count) * size / 22.0).max(1.0) as u32).max(1);
        html! {
            svg.heat viewBox=(format!("0 0 {} {}", px(width), px(height))) width=(px(width)) height=(px(height)) role="img" {
                text.map-name x=(px(LEFT)) y="13" { (self.title) }
                @for layer in (0..self.layers).step_by(every(self.layers) as usize) {
                    text.tick x=(px(LEFT - 6.0)) y=(px(TOP + (f64::from(layer) + 0.5) * size + 3.5)) text-anchor="end" { (layer) }
                }
                @for head in (0..self.heads).step_by(every(self.heads) as usize) {
                    text.tick x=(px(LEFT + (f64::from(head) + 0.5) * size)) y=(px(height - 20.0)) text-anchor="middle" { (head) }
                }
                text.axis-name x=(px(width - 6.0)) y=(px(height - 5.0)) text-anchor="end" { "head" }
                text.axis-name x="0" y="0" text-anchor="end" transform=(format!("translate(9 {}) rotate(-90)", px(TOP))) { "layer" }
                @for cell in &self.cells {
                    @let x = LEFT + f64::from(cell.head) * size;
                    @let y = TOP + f64::from(cell.layer) * size;
                    @let share = (cell.value / self.limit).clamp(-1.0, 1.0);
                    @let fill = if cell.is_noise { "fill:url(#noise)".into() } else { format!("fill:{}", Paint::diverging(share).0) };
                    rect class=(if cell.is_noise { "cell noise" } else { "cell" }) x=(px(x)) y=(px(y)) width=(px(size - gap))
                        height=(px(size - gap)) rx=(if size > 12.0 { "2" } else { "0" }) style=(fill) { title { (cell.title) } }
                    @if is_written && !cell.is_noise {
                        text class=(if share.abs() > 0.75 { "value strong" } else { "value" }) x=(px(x + 0.5 * (size - gap)))
                            y=(px(y + 0.5 * (size - gap) + 3.5)) text-anchor="middle" { (cosine(cell.value)) }
                    }
                }
            }
        }
    }
}

/// The pattern for what noise could explain; once a page.
pub fn definitions() -> Markup {
    html! {
        svg.definitions width="0" height="0" aria-hidden="true" {
            defs {
                pattern id="noise" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                    rect.noise-ground width="5" height="5" {}
                    line.noise-line x1="0" x2="0" y1="0" y2="5" {}
                }
            }
        }
    }
}

/// What colours and hatching mean.
pub fn legend(limit: f64, name: &str) -> Markup {
    let steps = 40;
    html! {
        svg.legend viewBox="0 0 560 34" style="max-width:560px" role="img" {
            @for step in 0..steps {
                @let share = (f64::from(step) + 0.5) / f64::from(steps) * 2.0 - 1.0;
                rect x=(px(f64::from(step) * 6.0)) y="0" width="6.3" height="10" style=(format!("fill:{}", Paint::diverging(share).0)) {}
            }
            text.tick x="0" y="26" { (cosine(-limit)) " against" }
            text.tick x="120" y="26" text-anchor="middle" { "0" }
            text.tick x="240" y="26" text-anchor="end" { "along " (cosine(limit)) }
            rect.cell.noise x="290" y="0" width="22" height="10" rx="2" style="fill:url(#noise)" {}
            text.tick x="320" y="9.5" { "within 2 null errors of 0: no sign" }
            text.tick x="290" y="26" { "colour: " (name) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: f64, is_noise: bool) -> String {
        let cell = Cell { layer: 0, head: 0, value, is_noise, title: "t".into() };
        Heat { title: "q", cells: vec![cell], layers: 1, heads: 1, limit: 0.5 }.draw(40.0).into_string()
    }

    #[test]
    fn noise_has_neither_colour_nor_number() {
        let noise = map(-0.01, true);
        assert!(noise.contains("url(#noise)") && !noise.contains("var(--negative)") && !noise.contains("−0.01"));
        let signal = map(-0.5, false);
        assert!(signal.contains("var(--negative) 100%") && signal.contains("−0.50"));
    }

    #[test]
    fn cells_fit() {
        assert_eq!(cell_size(4, 4), 40.0);
        assert!(cell_size(80, 64) >= 3.0 && cell_size(80, 64) <= 6.0);
    }
}
