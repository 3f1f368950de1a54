//! Colours: the names of CSS variables and mixtures of them, so that the page decides how they look.
//!
//! Categories are Okabe and Ito's colours, which people with any common colour blindness tell apart; `style.css` has a
//! darker and a lighter version of each.

/// How many categories have a colour of their own.
const CATEGORIES: usize = 7;

/// A colour as CSS text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paint(pub String);

impl Paint {
    /// The colour of category `index`; after the last they come again.
    pub fn category(index: usize) -> Self {
        Paint(format!("var(--c{})", index % CATEGORIES))
    }

    /// Between the two ends of an ordered scale, 0 to 1: for layers, from the first to the last.
    pub fn ordered(position: f64) -> Self {
        Paint(format!("color-mix(in oklab, var(--last) {:.0}%, var(--first))", 100.0 * position.clamp(0.0, 1.0)))
    }

    /// Diverging around 0, from −1 to 1.
    pub fn diverging(position: f64) -> Self {
        let end = if position < 0.0 { "negative" } else { "positive" };
        Paint(format!("color-mix(in oklab, var(--{end}) {:.0}%, var(--middle))", 100.0 * position.abs().min(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_the_diverging_scale_is_neutral() {
        assert_eq!(Paint::diverging(0.0).0, "color-mix(in oklab, var(--positive) 0%, var(--middle))");
        assert!(Paint::diverging(-2.0).0.contains("var(--negative) 100%"));
        assert_eq!(Paint::category(7), Paint::category(0));
    }
}
