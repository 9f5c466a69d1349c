//! Work shared out among the threads of rayon's pool.
//!
//! A loop is cut into one range of neighbouring indices for each thread, and a thread that is done with its own takes single
//! indices from the others': memory is walked through in order, and no thread is idle for longer than one index takes. (Parallel
//! iterators hand over whole parts of ranges, which with few indices leaves a thread idle for a tenth of the loop, and are compiled
//! anew for every loop, some 5 KB each.)

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `f` on a thread of the pool. Loops inside it then begin at once: from any other thread each has the pool woken first, and the
/// thread itself after it, which together take longer than a small loop. What waits inside for other threads should
/// [`rayon::yield_now`] meanwhile, because one of the pool's threads waits with it.
pub fn inside<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// `body(i)` once for every i below `n`, on any thread and in any order.
pub fn run(n: usize, body: &(dyn Fn(usize) + Sync)) {
    share_out(n, &|indices| indices.for_each(body));
}

/// [`run`] with something that each thread makes once and keeps from index to index.
pub fn run_with<S>(n: usize, make: impl Fn() -> S + Sync, body: impl Fn(&mut S, usize) + Sync) {
    share_out(n, &|indices| {
        let mut kept = make();
        indices.for_each(|i| body(&mut kept, i));
    });
}

/// Calls `work` on every thread that takes part, with the indices that fall to it.
fn share_out(n: usize, work: &(dyn Fn(&mut dyn Iterator<Item = usize>) + Sync)) {
    if n < 2 {
        return work(&mut (0..n)); // here: to hand it over and wait costs some microseconds
    }
    let workers = rayon::current_num_threads().min(n);
    let ranges: Vec<_> = (0..workers).map(|w| (AtomicUsize::new(w * n / workers), (w + 1) * n / workers)).collect();
    let take = |w: usize| {
        let (next, end) = &ranges[w];
        Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| i < end)
    };
    on_each(0, workers, &|worker| {
        let owners = (worker..workers).chain(0..worker);
        work(&mut owners.flat_map(|owner| std::iter::from_fn(move || take(owner))));
    });
}

/// `work(worker)` for all of them, each on a thread of its own where one is free.
fn on_each(first: usize, end: usize, work: &(dyn Fn(usize) + Sync)) {
    if first + 1 == end {
        return work(first);
    }
    let middle = first.midpoint(end);
    rayon::join(|| on_each(first, middle, work), || on_each(middle, end, work));
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
    fn what_is_kept_is_one_threads_own() {
        let (made, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let make = || made.fetch_add(1, Ordering::Relaxed);
        run_with(1000, make, |_, i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 999 * 1000 / 2);
        assert!(made.into_inner() <= rayon::current_num_threads());
    }

    #[test]
    fn results_keep_the_order_of_the_items() {
        assert_eq!(map(0..1000, |i| i * i), (0..1000).map(|i| i * i).collect::<Vec<_>>());
        assert!(map(0..0, |i: usize| i).is_empty());
    }
}
