//! From data to the page: linear scales, and logarithmic ones on both sides of 0, with round numbers on them.

/// A linear map from data to the page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    pub domain: (f64, f64),
    pub range: (f64, f64),
}

impl Scale {
    /// A scale over `domain`; one without extent is widened, so that a constant lies in the middle.
    pub fn new(domain: (f64, f64), range: (f64, f64)) -> Self {
        let (low, high) = domain;
        let domain = if high > low {
            domain
        } else {
            let margin = if low == 0.0 { 1.0 } else { 0.1 * low.abs() };
            (low - margin, low + margin)
        };
        Scale { domain, range }
    }

    pub fn at(&self, value: f64) -> f64 {
        let (low, high) = self.domain;
        self.range.0 + (value - low) / (high - low) * (self.range.1 - self.range.0)
    }

    /// About `count` round values within the domain, 1, 2 or 5 times a power of ten apart; at least three, since fewer
    /// do not show a scale.
    pub fn ticks(&self, count: usize) -> Vec<f64> {
        let finer = (count.max(1)..).step_by(count.max(1)).take(5).map(|count| self.ticks_of(count));
        let all: Vec<Vec<f64>> = finer.collect();
        all.iter().find(|ticks| ticks.len() >= 3).or(all.last()).cloned().unwrap_or_default()
    }

    fn ticks_of(&self, count: usize) -> Vec<f64> {
        let (low, high) = self.domain;
        let step = step(high - low, count);
        let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
        let number = (last - first).clamp(-1.0, 50.0) as i64;
        // Adding zero turns −0 into 0.
        (0..=number).map(|k| (first + k as f64) * step + 0.0).collect()
    }

    /// The domain extended to round values.
    pub fn nice(self, count: usize) -> Self {
        let (low, high) = self.domain;
        let step = step(high - low, count);
        let domain = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
        Scale { domain, ..self }
    }
}

/// A map that is linear around 0 and logarithmic beyond, for values of both signs that differ by orders of magnitude.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignedLog {
    /// Values below this are near 0.
    linear: f64,
    scale: Scale,
    domain: (f64, f64),
}

impl SignedLog {
    /// Over all finite values; what is `decades` below the largest is near 0. `None` without a value other than 0.
    pub fn new(values: impl IntoIterator<Item = f64>, decades: f64, range: (f64, f64)) -> Option<Self> {
        let domain = extent(values.into_iter().chain([0.0]))?;
        let largest = domain.0.abs().max(domain.1);
        let linear = largest * 10f64.powf(-decades);
        let folded = |value: f64| fold(value, linear);
        (linear > 0.0).then(|| SignedLog {
            linear,
            scale: Scale::new((folded(domain.0), folded(domain.1)), range),
            domain,
        })
    }

    pub fn at(&self, value: f64) -> f64 {
        self.scale.at(fold(value, self.linear))
    }

    /// 0 and powers of ten with their names, far enough apart to be read.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let name = |power: i32| match power {
            -3..=3 => format!("{}", 10f64.powi(power)),
            _ => format!("1e{power}"),
        };
        let (first, last) =
            ((10.0 * self.linear).log10().ceil() as i32, self.domain.1.max(-self.domain.0).log10().floor() as i32);
        let powers = || (first..=last).rev();
        let above = powers().map(|power| (10f64.powi(power), name(power))).filter(|tick| tick.0 <= self.domain.1);
        let below = powers()
            .map(|power| (-10f64.powi(power), format!("-{}", name(power))))
            .filter(|tick| tick.0 >= self.domain.0);
        let mut ticks: Vec<(f64, String)> = Vec::new();
        for (tick, text) in [(0.0, "0".into())].into_iter().chain(above).chain(below) {
            if ticks.iter().all(|other| (self.at(other.0) - self.at(tick)).abs() > 44.0) {
                ticks.push((tick, text.replace('-', "−")));
            }
        }
        ticks
    }
}

fn fold(value: f64, linear: f64) -> f64 {
    (value.abs() / linear).ln_1p().copysign(value)
}

/// The round distance between ticks.
fn step(extent: f64, count: usize) -> f64 {
    let raw = extent / count.max(1) as f64;
    let power = 10f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| raw <= factor * power * (1.0 + 1e-9));
    factor.unwrap_or(10.0) * power
}

/// Ticks as text with the decimals that tell neighbours apart.
pub fn texts(ticks: &[f64]) -> Vec<String> {
    let distance = ticks.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(f64::INFINITY, f64::min);
    let largest = ticks.iter().fold(0.0f64, |max, tick| max.max(tick.abs()));
    let text = |&tick: &f64| {
        if largest >= 1e6 || largest < 1e-3 && largest > 0.0 {
            let digits = (largest / distance).log10().ceil().clamp(0.0, 6.0) as usize;
            let text = format!("{tick:.digits$e}");
            return if tick == 0.0 { "0".into() } else { text };
        }
        let decimals = if distance.is_finite() { (-distance.log10().floor()).clamp(0.0, 9.0) as usize } else { 2 };
        let text = format!("{tick:.decimals$}");
        match text.split_once('.') {
            None if tick.abs() >= 1e4 => grouped(tick),
            _ => text,
        }
    };
    ticks.iter().map(|tick| text(tick).replace('-', "−")).collect()
}

fn grouped(tick: f64) -> String {
    let sign = if tick < 0.0 { "-" } else { "" };
    sign.to_string() + &crate::format::count(tick.abs() as u64)
}

/// The smallest range that holds all finite values; `None` if there are none.
pub fn extent(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values.into_iter().filter(|value| value.is_finite()).fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((f64::min(low, value), f64::max(high, value))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_linear() {
        let scale = Scale::new((0.0, 10.0), (100.0, 0.0));
        assert_eq!((scale.at(0.0), scale.at(5.0), scale.at(10.0)), (100.0, 50.0, 0.0));
    }

    #[test]
    fn a_constant_lies_in_the_middle() {
        assert_eq!(Scale::new((3.0, 3.0), (0.0, 1.0)).at(3.0), 0.5);
        assert_eq!(Scale::new((0.0, 0.0), (0.0, 1.0)).at(0.0), 0.5);
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let ticks = |low, high, count| Scale::new((low, high), (0.0, 1.0)).ticks(count);
        assert_eq!(ticks(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(-0.42, 0.21, 4), [-0.4, -0.2, 0.0, 0.2]);
        assert_eq!(ticks(319.0, 479.0, 2), [350.0, 400.0, 450.0], "one tick is no scale");
        for (low, high) in [(1.7, 2.9), (-1e-6, 3e-6), (0.0, 123_456.0), (1e9, 1.1e9)] {
            let found = ticks(low, high, 5);
            assert!((2..=12).contains(&found.len()), "{low} {high}: {found:?}");
            let slack = 1e-9 * (high - low);
            assert!(found.iter().all(|&tick| tick >= low - slack && tick <= high + slack));
        }
    }

    #[test]
    fn nice_domains_contain_the_data() {
        let nice = Scale::new((1.73, 2.91), (0.0, 1.0)).nice(5);
        assert!(nice.domain.0 <= 1.73 && nice.domain.1 >= 2.91);
        assert!((nice.domain.0 - 1.5).abs() < 1e-9 && (nice.domain.1 - 3.0).abs() < 1e-9);
    }

    #[test]
    fn texts_tell_neighbours_apart() {
        assert_eq!(texts(&[-0.5, 0.0, 0.5]), ["−0.5", "0.0", "0.5"]);
        assert_eq!(texts(&[0.0, 10000.0, 20000.0]), ["0", "10,000", "20,000"]);
        assert_eq!(texts(&[0.0, 5e-6, 1e-5]), ["0", "5.0e−6", "1.0e−5"]);
        assert_eq!(texts(&[0.49, 0.495, 0.5]), ["0.490", "0.495", "0.500"]);
    }

    #[test]
    fn a_signed_logarithm_keeps_order_and_sign() {
        let scale = SignedLog::new([-3.0, 1e-9, 200.0, f64::NAN], 5.0, (0.0, 900.0)).unwrap();
        assert_eq!((scale.at(-3.0), scale.at(200.0)), (0.0, 900.0));
        let places: Vec<f64> =
            [-3.0, -0.1, 0.0, 0.1, 2.0, 20.0, 200.0].into_iter().map(|value| scale.at(value)).collect();
        assert!(places.windows(2).all(|pair| pair[0] < pair[1]), "{places:?}");
        // A decade far from 0 has the same length everywhere.
        assert!((scale.at(20.0) - scale.at(2.0) - (scale.at(200.0) - scale.at(20.0))).abs() < 1.0);
        let texts: Vec<String> = scale.ticks().into_iter().map(|(_, text)| text).collect();
        assert!(
            texts.contains(&"0".into()) && texts.contains(&"100".into()) && texts.contains(&"−1".into()),
            "{texts:?}"
        );
        assert!(SignedLog::new([0.0, f64::NAN], 5.0, (0.0, 1.0)).is_none());
    }

    #[test]
    fn extents_pass_over_holes() {
        assert_eq!(extent([f64::NAN, 2.0, -1.0, f64::INFINITY]), Some((-1.0, 2.0)));
        assert_eq!(extent([f64::NAN]), None);
    }
}
