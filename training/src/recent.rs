//! Sums and means over the newest values of a series.

/// The newest `size` values of a series, as a sum. It is put together from the end of one block of `size` values and the start of
/// the next, and nothing is ever taken off it: one huge value would take the digits of all others with it when it leaves.
#[derive(Debug)]
pub struct Recent {
    size: usize,
    /// Values of the block that is being filled, and their sum.
    block: Vec<f64>,
    start: f64,
    /// Of the block before: the sums from each place to its end.
    ends: Vec<f64>,
}

impl Recent {
    pub fn new(size: usize) -> Self {
        Recent { size: size.max(1), block: Vec::new(), start: 0.0, ends: Vec::new() }
    }

    pub fn push(&mut self, value: f64) {
        if self.block.len() == self.size {
            self.turn();
        }
        self.block.push(value);
        self.start += value;
    }

    fn turn(&mut self) {
        self.ends = std::mem::take(&mut self.block);
        self.start = 0.0;
        let mut sum = 0.0;
        for value in self.ends.iter_mut().rev() {
            sum += *value;
            *value = sum;
        }
    }

    pub fn sum(&self) -> f64 {
        self.start + self.ends.get(self.block.len()).unwrap_or(&0.0)
    }

    fn len(&self) -> usize {
        if self.ends.is_empty() { self.block.len() } else { self.size }
    }

    /// 0 where there is none.
    pub fn mean(&self) -> f64 {
        self.sum() / self.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_newest_values() {
        let values: Vec<f64> = (0..20).map(|i| f64::from(i * i)).collect();
        for size in [1, 2, 3, 7, 20, 30] {
            let mut recent = Recent::new(size);
            assert_eq!((recent.len(), recent.mean()), (0, 0.0));
            for end in 1..=values.len() {
                recent.push(values[end - 1]);
                let newest = &values[end.saturating_sub(size)..end];
                assert_eq!((recent.len(), recent.sum()), (newest.len(), newest.iter().sum()), "{size} {end}");
            }
        }
    }

    #[test]
    fn a_huge_value_leaves_no_trace() {
        let mut recent = Recent::new(20);
        for step in 1..=300 {
            recent.push(if step == 50 { 1e18 } else { 2.0 });
            if !(50..70).contains(&step) {
                assert_eq!(recent.mean(), 2.0, "{step}");
            }
        }
    }
}
