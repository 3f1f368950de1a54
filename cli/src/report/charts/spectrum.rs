//! Spectra: stems on an axis that is logarithmic on both sides of 0, one spectrum above the other.

use maud::{Markup, html};

use super::scale::SignedLog;
use super::{Paint, px};
use crate::report::words::figure;

/// One spectrum.
#[derive(Clone, Debug)]
pub struct Spectrum {
    pub name: String,
    pub paint: Paint,
    /// About so many eigenvalues (second) near a value (first).
    pub density: Vec<(f64, f64)>,
    /// Single eigenvalues, and within how much of each there is one.
    pub eigenvalues: Vec<(f64, f64)>,
}

const WIDTH: f64 = 920.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 42.0;
const PANEL: f64 = 96.0;
const GAP: f64 = 30.0;
/// Decades below the largest value that are told apart from 0.
const DECADES: f64 = 5.0;

/// The spectra over one axis, so that what has moved is seen.
pub fn draw(spectra: &[Spectrum]) -> Markup {
    let values = || {
        spectra
            .iter()
            .flat_map(|s| s.density.iter().map(|node| node.0).chain(s.eigenvalues.iter().map(|found| found.0)))
    };
    let Some(scale) = SignedLog::new(values(), DECADES, (LEFT + 12.0, WIDTH - RIGHT - 12.0)) else { return html! {} };
    let weights = spectra.iter().flat_map(|spectrum| spectrum.density.iter().map(|node| node.1));
    // From a tenth of an eigenvalue up: quadrature gives single outliers weights below one.
    let most = weights.filter(|weight| weight.is_finite()).fold(10.0, f64::max);
    let height = |weight: f64| PANEL * ((10.0 * weight.max(0.1)).log10() / (10.0 * most).log10()).clamp(0.02, 1.0);
    let bottom = TOP + spectra.len() as f64 * (PANEL + GAP) - GAP;
    html! {
        svg.chart viewBox=(format!("0 0 {} {}", px(WIDTH), px(bottom + 42.0))) style=(format!("max-width:{}px", px(WIDTH))) role="img" {
            @for (tick, text) in scale.ticks() {
                line.grid x1=(px(scale.at(tick))) x2=(px(scale.at(tick))) y1=(px(TOP)) y2=(px(bottom)) {}
                text.tick x=(px(scale.at(tick))) y=(px(bottom + 16.0)) text-anchor="middle" { (text) }
            }
            @for (index, spectrum) in spectra.iter().enumerate() {
                @let base = TOP + (index as f64 + 1.0) * PANEL + index as f64 * GAP;
                text.map-name x=(px(LEFT)) y=(px(base - PANEL - 8.0)) { (spectrum.name) }
                line.axis x1=(px(LEFT)) x2=(px(WIDTH - RIGHT)) y1=(px(base)) y2=(px(base)) {}
                @for power in decades(most) {
                    @let y = base - height(power);
                    text.tick x=(px(LEFT - 8.0)) y=(px(y + 3.5)) text-anchor="end" { (figure(power)) }
                    line.axis x1=(px(LEFT - 4.0)) x2=(px(LEFT)) y1=(px(y)) y2=(px(y)) {}
                }
                @for (value, weight) in spectrum.density.iter().filter(|node| node.0.is_finite() && node.1.is_finite()) {
                    @let x = px(scale.at(*value));
                    g style=(format!("stroke:{}", spectrum.paint.0)) {
                        title { "about " (figure(*weight)) " eigenvalues near " (figure(*value)) }
                        line.stem x1=(x) x2=(x) y1=(px(base)) y2=(px(base - height(*weight))) {}
                    }
                }
                @for (value, residual) in spectrum.eigenvalues.iter().filter(|found| found.0.is_finite()) {
                    circle cx=(px(scale.at(*value))) cy=(px(base)) r="4" style=(format!("fill:{}", spectrum.paint.0)) {
                        title { "eigenvalue " (figure(*value)) ", residual " (figure(*residual)) }
                    }
                }
            }
            text.axis-name x=(px(WIDTH - RIGHT)) y=(px(bottom + 33.0)) text-anchor="end" { "eigenvalue, logarithmic on both sides of 0" }
            text.axis-name x="0" y="10" { "number of eigenvalues" }
        }
    }
}

/// Powers of ten that the vertical axis names: three at most.
fn decades(most: f64) -> Vec<f64> {
    let highest = most.log10().floor() as i32;
    let step = (highest / 2).max(1);
    (0..=highest).step_by(step as usize).map(|power| 10f64.powi(power)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spectrum(density: Vec<(f64, f64)>) -> Spectrum {
        Spectrum {
            name: "now".into(),
            paint: Paint::category(0),
            density,
            eigenvalues: vec![(12.0, 0.1), (f64::NAN, 0.1)],
        }
    }

    #[test]
    fn stems_are_where_nodes_are() {
        let text = draw(&[spectrum(vec![(-1e-3, 4.0), (0.0, 1e5), (12.0, 0.8), (f64::NAN, 1.0)])]).into_string();
        assert_eq!((text.matches("class=\"stem\"").count(), text.matches("<circle").count()), (3, 1));
        assert!(!text.contains("NaN"));
        assert_eq!(decades(1e6), [1.0, 1e3, 1e6]);
    }

    #[test]
    fn without_values_there_is_no_figure() {
        assert_eq!(draw(&[]).into_string(), "");
        let nothing = Spectrum { eigenvalues: vec![(f64::NAN, 0.1)], ..spectrum(vec![]) };
        assert_eq!(draw(&[nothing]).into_string(), "");
    }
}
