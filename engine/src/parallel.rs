//! Work shared out among the threads of rayon's pool.
//!
//! Parallel iterators compile rayon's splitting and stealing anew for every loop, some 5 KB each; here it is compiled once, over
//! indices, and a loop brings only its body.

use rayon::prelude::*;
use std::sync::Mutex;

/// `f` on a thread of the pool. Loops inside it then begin at once: from any other thread each has the pool woken first, and the
/// thread itself after it, which together take longer than a small loop. What waits inside for other threads should
/// [`rayon::yield_now`] meanwhile, because one of the pool's threads waits with it.
pub fn inside<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// `body(i)` once for every i below `n`, on any thread and in any order.
pub fn run(n: usize, body: &(dyn Fn(usize) + Sync)) {
    match n {
        1 => body(0), // here: to hand it over and wait costs some microseconds
        n => (0..n).into_par_iter().for_each(body),
    }
}

/// `body` once for every item, on any thread and in any order. An item should be worth a microsecond or more: all of them are
/// listed first, and taken from the list under a lock of their own.
pub fn each<T: Send>(items: impl Iterator<Item = T>, body: impl Fn(T) + Sync) {
    let slots: Vec<Mutex<Option<T>>> = items.map(|item| Mutex::new(Some(item))).collect();
    run(slots.len(), &|i| {
        let item = slots[i].lock().expect("no body runs under the lock").take();
        body(item.expect("an index comes once"));
    });
}

/// What `body` makes of every item, in their order.
pub fn map<T: Send, R: Send>(items: impl ExactSizeIterator<Item = T>, body: impl Fn(T) -> R + Sync) -> Vec<R> {
    let mut results: Vec<Option<R>> = (0..items.len()).map(|_| None).collect();
    each(items.zip(&mut results), |(item, result)| *result = Some(body(item)));
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_handled_once() {
        for n in [0, 1, 2, 97, 1000] {
            let mut counts = vec![0; n];
            each(counts.iter_mut().enumerate(), |(i, count)| *count += i + 1);
            assert!(counts.into_iter().eq(1..=n), "{n}");
        }
    }

    #[test]
    fn results_keep_the_order_of_the_items() {
        assert_eq!(map(0..1000, |i| i * i), (0..1000).map(|i| i * i).collect::<Vec<_>>());
        assert!(map(0..0, |i: usize| i).is_empty());
    }
}
