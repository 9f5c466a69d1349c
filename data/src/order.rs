//! The order in which an epoch draws its volumes, and the batches it is drawn in.

use engine::random::derive;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;
use std::collections::BTreeMap;
use std::ops::Range;

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

/// The draws of `order` in batches of `volumes` from one group each, as positions in the new order returned beside them. Every
/// batch takes its group's next draws, and comes when it is full; those that never are, at most one of each group, come last.
/// How many batches there are depends on the groups' sizes alone.
pub fn grouped<G: Ord>(order: &[usize], group: impl Fn(usize) -> G, volumes: usize) -> (Vec<usize>, Vec<Range<usize>>) {
    let mut open: BTreeMap<G, Vec<usize>> = BTreeMap::new();
    let mut closed = Vec::new();
    for &source in order {
        let batch = open.entry(group(source)).or_default();
        batch.push(source);
        if batch.len() == volumes {
            closed.push(std::mem::take(batch));
        }
    }
    closed.extend(open.into_values().filter(|batch| !batch.is_empty()));
    let mut end = 0;
    let ranges = closed.iter().map(|batch| {
        end += batch.len();
        end - batch.len()..end
    });
    let ranges = ranges.collect();
    (closed.concat(), ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grouped_batches_hold_one_group_and_every_draw_once() {
        let group = |source: usize| source % 3;
        for (seed, volumes) in (0..20).zip((1..6).cycle()) {
            let before = epoch_order(&[2, 1, 3, 1, 1, 0, 4, 1, 1, 2], seed, 0);
            let (order, batches) = grouped(&before, group, volumes);
            assert_eq!(batches.iter().cloned().flatten().collect::<Vec<_>>(), (0..order.len()).collect::<Vec<_>>());
            for batch in &batches {
                assert!(order[batch.clone()].iter().all(|&s| group(s) == group(order[batch.start])));
            }
            let drawn =
                |g: usize, order: &[usize]| order.iter().copied().filter(|&s| group(s) == g).collect::<Vec<_>>();
            (0..3).for_each(|g| assert_eq!(drawn(g, &order), drawn(g, &before)));
            let full = batches.iter().take_while(|b| b.len() == volumes).count();
            let count = (0..3).map(|g| drawn(g, &order).len().div_ceil(volumes)).sum::<usize>();
            assert!(batches.len() == count && batches.len() - full <= 3);
            assert!(batches[full..].iter().all(|b| b.len() < volumes));
        }
    }

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
