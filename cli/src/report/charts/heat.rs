//! Layers × heads, coloured on a diverging scale. Cells that noise could explain are hatched and have no colour: what
//! they say means nothing.

use maud::{Markup, html};

use super::{Paint, px};

/// One cell.
#[derive(Clone, Debug)]
pub struct Cell {
    pub layer: u32,
    pub head: u32,
    /// Where it lies on the scale, from −1 to 1.
    pub share: f64,
    /// Lines that are written into it where there is room.
    pub lines: Vec<String>,
    pub mark: Mark,
    pub is_noise: bool,
    /// What the cell says when pointed at.
    pub title: String,
}

/// A frame around a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    None,
    Thin,
    Thick,
}

/// A heat map.
#[derive(Clone, Debug)]
pub struct Heat<'a> {
    pub title: &'a str,
    pub cells: Vec<Cell>,
    pub layers: u32,
    pub heads: u32,
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
        // Values are written where there is room for them.
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
                    @let share = cell.share.clamp(-1.0, 1.0);
                    @let fill = if cell.is_noise { "fill:url(#noise)".into() } else { format!("fill:{}", Paint::diverging(share).0) };
                    @let inset = match cell.mark { Mark::None => 0.0, Mark::Thin => 0.5, Mark::Thick => 1.3 };
                    rect class=(class(cell)) x=(px(x + inset)) y=(px(y + inset)) width=(px(size - gap - 2.0 * inset))
                        height=(px(size - gap - 2.0 * inset)) rx=(if size > 12.0 { "2" } else { "0" }) style=(fill) { title { (cell.title) } }
                    @if is_written && !cell.is_noise {
                        @let first = y + 0.5 * (size - gap) + 3.5 - 6.0 * (cell.lines.len() as f64 - 1.0);
                        @for (index, line) in cell.lines.iter().enumerate() {
                            text class=(if share.abs() > 0.75 { "value strong" } else { "value" }) x=(px(x + 0.5 * (size - gap)))
                                y=(px(first + 12.0 * index as f64)) text-anchor="middle" { (line) }
                        }
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

/// What colours, hatching and frames mean.
#[derive(Clone, Copy, Debug)]
pub struct Legend<'a> {
    /// Words at −1, 0 and 1 of the scale.
    pub scale: [&'a str; 3],
    pub name: &'a str,
    pub noise: &'a str,
    pub frames: Option<[&'a str; 2]>,
}

impl Legend<'_> {
    pub fn draw(&self) -> Markup {
        let steps = 40;
        let [low, middle, high] = self.scale;
        html! {
            svg.legend viewBox="0 0 720 34" style="max-width:720px" role="img" {
                @for step in 0..steps {
                    @let share = (f64::from(step) + 0.5) / f64::from(steps) * 2.0 - 1.0;
                    rect x=(px(f64::from(step) * 6.0)) y="0" width="6.3" height="10" style=(format!("fill:{}", Paint::diverging(share).0)) {}
                }
                text.tick x="0" y="26" { (low) }
                text.tick x="120" y="26" text-anchor="middle" { (middle) }
                text.tick x="240" y="26" text-anchor="end" { (high) }
                rect.cell.noise x="290" y="0" width="22" height="10" rx="2" style="fill:url(#noise)" {}
                text.tick x="320" y="9.5" { (self.noise) }
                text.tick x="290" y="26" { "colour: " (self.name) }
                @if let Some([thin, thick]) = self.frames {
                    rect.cell.changed x="540.5" y="0.5" width="21" height="9" rx="2" style="fill:var(--middle)" {}
                    text.tick x="570" y="9.5" { (thin) }
                    rect.cell.severe x="541.3" y="17.3" width="19.4" height="7.4" rx="2" style="fill:var(--middle)" {}
                    text.tick x="570" y="26" { (thick) }
                }
            }
        }
    }
}

fn class(cell: &Cell) -> &'static str {
    match (cell.is_noise, cell.mark) {
        (true, _) => "cell noise",
        (false, Mark::None) => "cell",
        (false, Mark::Thin) => "cell changed",
        (false, Mark::Thick) => "cell severe",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(share: f64, is_noise: bool) -> String {
        let lines = vec![format!("{share:.2}")];
        let cell = Cell { layer: 0, head: 0, share, lines, mark: Mark::Thick, is_noise, title: "t".into() };
        Heat { title: "q", cells: vec![cell], layers: 1, heads: 1 }.draw(40.0).into_string()
    }

    #[test]
    fn noise_has_neither_colour_nor_number() {
        let noise = map(-0.01, true);
        assert!(noise.contains("url(#noise)") && !noise.contains("var(--negative)") && !noise.contains("-0.01"));
        assert!(!noise.contains("severe"), "what means nothing is not marked");
        let signal = map(-1.0, false);
        assert!(signal.contains("var(--negative) 100%") && signal.contains("-1.00") && signal.contains("severe"));
    }

    #[test]
    fn cells_fit() {
        assert_eq!(cell_size(4, 4), 40.0);
        assert!(cell_size(80, 64) >= 3.0 && cell_size(80, 64) <= 6.0);
    }
}
