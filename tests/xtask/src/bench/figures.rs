//! Medians, spreads and ratios.

/// The median of some figures, with the smallest and the largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// Of at least one figure.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Spread { median, least, most })
    }

    /// Half the distance from the smallest to the largest, as a share of the median.
    pub fn deviation(&self) -> f64 {
        if self.median > 0.0 { (self.most - self.least) / 2.0 / self.median } else { f64::INFINITY }
    }
}

/// A ratio whose deviation is larger than this says nothing.
const MEANINGLESS: f64 = 0.25;

/// A ratio of two sides' times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ratio {
    /// The median of the runs' ratios.
    Clear(Spread),
    /// The runs' ratios vary too much.
    Unclear(Spread),
}

impl Ratio {
    /// Of times that were taken in the same runs.
    pub fn of(over: &[f64], under: &[f64]) -> Option<Self> {
        let ratios: Vec<_> = over.iter().zip(under).map(|(over, under)| over / under).collect();
        let spread = Spread::of(&ratios)?;
        // The deviation of a ratio that is infinite is not a number.
        let clear = spread.deviation() <= MEANINGLESS;
        Some(if clear { Ratio::Clear(spread) } else { Ratio::Unclear(spread) })
    }
}

/// The geometric mean.
pub fn geometric_mean(figures: &[f64]) -> Option<f64> {
    let logarithms: f64 = figures.iter().map(|figure| figure.ln()).sum();
    (!figures.is_empty()).then(|| (logarithms / figures.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!(Spread::of(&[]).is_none());
        let odd = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.least, odd.most), (2.0, 1.0, 3.0));
        assert_eq!(odd.deviation(), 0.5);
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }

    #[test]
    fn ratios_that_vary_are_unclear() {
        assert!(matches!(Ratio::of(&[6.0, 6.2, 5.8], &[2.0, 2.0, 2.0]), Some(Ratio::Clear(_))));
        assert!(matches!(Ratio::of(&[6.0, 12.0, 5.8], &[2.0, 2.0, 2.0]), Some(Ratio::Unclear(_))));
        // What slows both sides down alike harms no ratio.
        assert!(matches!(Ratio::of(&[6.0, 12.0], &[2.0, 4.0]), Some(Ratio::Clear(_))));
        // A run whose end was seen together with its start took no time.
        assert!(matches!(Ratio::of(&[6.0, 6.0], &[2.0, 0.0]), Some(Ratio::Unclear(_))));
        assert!(Ratio::of(&[], &[]).is_none());
    }

    #[test]
    fn geometric_means() {
        assert_eq!(geometric_mean(&[]), None);
        assert!((geometric_mean(&[2.0, 8.0]).unwrap() - 4.0).abs() < 1e-12);
    }
}
