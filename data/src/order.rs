//! The order in which an epoch draws its volumes.

use engine::random::derive;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;

/// A permutation of the sources, each repeated as often as its weight says. Every epoch has its own.
pub fn epoch_order(weights: &[usize], seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = weights.iter().enumerate().flat_map(|(i, &w)| std::iter::repeat_n(i, w)).collect();
    order.shuffle(&mut Pcg64::seed_from_u64(derive(seed, &[epoch])));
    order
}

/// How many positions of an epoch of `draws` one of `ranks` takes: padded so that all take equally many.
pub fn draws_per_rank(draws: usize, ranks: usize) -> usize {
    draws.div_ceil(ranks)
}

/// The `i`-th position that `rank` takes: rank, rank + ranks, …; positions past the end wrap to the head of the order.
pub fn position(i: usize, rank: usize, ranks: usize) -> usize {
    rank + i * ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_repeats_each_source_by_its_weight_in_an_order_of_its_own() {
        let order = epoch_order(&[8, 1, 0, 3], 1, 0);
        let count = |i| order.iter().filter(|&&s| s == i).count();
        assert_eq!([0, 1, 2, 3].map(count), [8, 1, 0, 3]);
        assert_eq!(order, epoch_order(&[8, 1, 0, 3], 1, 0));
        assert_ne!(order, epoch_order(&[8, 1, 0, 3], 1, 1));
        assert_ne!(order, epoch_order(&[8, 1, 0, 3], 2, 0));
    }

    #[test]
    fn ranks_share_an_epoch_evenly() {
        let (draws, ranks) = (10, 4);
        let mut all: Vec<usize> = (0..ranks)
            .flat_map(|rank| (0..draws_per_rank(draws, ranks)).map(move |i| position(i, rank, ranks) % draws))
            .collect();
        assert_eq!(all[..3], [0, 4, 8]);
        all.sort();
        assert_eq!(all, [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
}
