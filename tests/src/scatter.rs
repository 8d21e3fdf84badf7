//! Which addresses a benchmark asks for: a fixed permutation, and a skewed choice.

/// A permutation of `0..n`, the same for the same seed: neighbours come to lie far apart.
#[derive(Debug, Clone)]
pub struct Scatter {
    n: u64,
    mask: u64,
    shift: u32,
    keys: [u64; 3],
}

impl Scatter {
    /// A permutation of `0..n`; `n` is at least 1.
    pub fn new(n: u64, seed: u64) -> Self {
        let bits = (u64::BITS - n.max(2).saturating_sub(1).leading_zeros()).max(2);
        let mut random = fastrand::Rng::with_seed(seed);
        let keys = [random.u64(..), random.u64(..), random.u64(..)];
        Self { n: n.max(1), mask: u64::MAX >> (u64::BITS - bits), shift: bits.div_ceil(2), keys }
    }

    /// Where `i` goes.
    pub fn at(&self, i: u64) -> u64 {
        let mut x = i % self.n;
        // Steps of a permutation of the next power of two, until one lies below `n`. At least half of
        // its numbers do, and the cycle comes back to `i` at the latest, so this ends.
        loop {
            for key in self.keys {
                // Each of the three can be undone: an odd factor, a shifted sum, a xor.
                x = x.wrapping_mul(key | 1) & self.mask;
                x ^= x >> self.shift;
                x = x.wrapping_add(key >> 7) & self.mask;
            }
            if x < self.n {
                return x;
            }
        }
    }
}

/// Ranks from 0, the k-th chosen in proportion to 1 / (k + 1)^theta (Gray and others, "Quickly generating
/// billion-record synthetic databases").
#[derive(Debug, Clone)]
pub struct Zipf {
    n: f64,
    theta: f64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

impl Zipf {
    /// Ranks below `n`; `theta` is between 0 and 1.
    pub fn new(n: u64, theta: f64) -> Self {
        let zeta = |n: u64| (1..=n).map(|k| (k as f64).powf(-theta)).sum::<f64>();
        let (all, two) = (zeta(n), zeta(2));
        let eta = (1.0 - (2.0 / n as f64).powf(1.0 - theta)) / (1.0 - two / all);
        Self { n: n as f64, theta, zeta: all, alpha: 1.0 / (1.0 - theta), eta }
    }

    /// A rank, from a number that is uniform in 0 to 1.
    pub fn rank(&self, uniform: f64) -> u64 {
        let scaled = uniform * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(self.theta) {
            return 1;
        }
        let rank = self.n * (self.eta * uniform - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.n as u64 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scatter_meets_every_number_once_and_keeps_no_neighbours() {
        for n in [1, 2, 3, 7, 1000, 1 << 12, (1 << 12) + 1] {
            let scatter = Scatter::new(n, 7);
            let mut seen: Vec<u64> = (0..n).map(|i| scatter.at(i)).collect();
            let together = seen.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count();
            assert!(n < 100 || together < n as usize / 50, "{together} neighbours of {n} stayed together");
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..n), "{n}");
        }
    }

    #[test]
    fn ranks_fall_as_the_law_says() {
        let (n, draws) = (1u64 << 16, 400_000);
        let zipf = Zipf::new(n, 0.99);
        let mut random = fastrand::Rng::with_seed(3);
        let mut counts = vec![0u32; n as usize];
        for _ in 0..draws {
            counts[zipf.rank(random.f64()) as usize] += 1;
        }
        let sum: f64 = (1..=n).map(|k| (k as f64).powf(-0.99)).sum();
        for (rank, slack) in [(0usize, 0.05), (1, 0.05), (9, 0.35)] {
            let expected = f64::from(draws) / sum / ((rank + 1) as f64).powf(0.99);
            let found = f64::from(counts[rank]);
            assert!((found / expected - 1.0).abs() < slack, "rank {rank}: {found}, not {expected}");
        }
    }
}
