//! Which layers represent an earlier task's text most differently.

use forgetscope::stats::hypot::hypot;

use crate::report::data::Layers;

/// The layer with the lowest CKA, and those that cannot be told from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Representation {
    pub layer: u32,
    pub cka: f64,
    pub error: f64,
    /// Layers that have been compared with their base.
    pub layers: usize,
    /// Layers whose CKA is within two errors of the difference.
    pub tied: Vec<u32>,
    /// Lowest CKA in that layer after further training on the task itself.
    pub continued: Option<f64>,
    /// The lowest is within two errors of 1.
    pub is_unchanged: bool,
}

pub fn of(layers: &Layers) -> Option<Representation> {
    let found: Vec<(u32, f64, f64)> = layers
        .iter()
        .filter_map(|(number, layer)| Some((*number, layer.latest()?.found.cka, layer.latest()?.found.error)))
        .collect();
    let (layer, cka, error) = found.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let is_tied = |other: &&(u32, f64, f64)| other.0 != layer && !is_beyond(other.1 - cka, hypot(error, other.2));
    Some(Representation {
        layer,
        cka,
        error,
        layers: found.len(),
        tied: found.iter().filter(is_tied).map(|other| other.0).collect(),
        continued: layers[&layer].continued(),
        is_unchanged: !is_beyond(1.0 - cka, error),
    })
}

/// More than two errors; a value without its error can be told from nothing.
fn is_beyond(difference: f64, error: f64) -> bool {
    difference > 2.0 * error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::data::{Layer, Purpose, States};

    fn layers(found: &[(f64, f64)]) -> Layers {
        let layer = |&(cka, error): &(f64, f64)| {
            let mut layer = Layer::default();
            let states = |cka| States::of(move |name| if name == "cka_error" { error } else { cka });
            layer.states.add(Purpose::Continued, 1, states(0.97));
            layer.states.add(Purpose::Later, 2, states(cka));
            layer
        };
        (0..).zip(found.iter().map(layer)).collect()
    }

    #[test]
    fn the_lowest_is_told_from_others_by_two_errors() {
        let found = of(&layers(&[(0.9, 0.01), (0.6, 0.02), (0.64, 0.02)])).unwrap();
        assert_eq!((found.layer, &found.tied[..], found.layers, found.continued), (1, &[2][..], 3, Some(0.97)));
        assert!(!found.is_unchanged);
        let found = of(&layers(&[(0.9, 0.01), (0.6, f64::NAN)])).unwrap();
        assert_eq!((&found.tied[..], found.is_unchanged), (&[0][..], true), "without an error nothing is told");
    }

    #[test]
    fn nothing_measured_nothing_found() {
        assert_eq!(of(&Layers::default()), None);
        assert_eq!(of(&layers(&[(f64::NAN, 0.1)])), None);
        assert!(of(&layers(&[(0.99, 0.01)])).unwrap().is_unchanged);
    }
}
