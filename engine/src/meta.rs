//! The account of the shape-only device: what a computation on [`crate::Device::Meta`] would take.
//!
//! Its tensors have shapes and no values. Each has a place in the account of the thread that made it, as its buffer would have in
//! the host's arena, so that the account's marks are those of the same computation on the CPU.
//! Kernels add the floating-point operations that they would do.

use crate::arena::{Arena, Place, Usage};
use crate::memory::lines;
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard};

/// What was computed under one account.
#[derive(Clone, Debug, Default)]
pub struct Account(Arc<Mutex<Book>>);

#[derive(Debug, Default)]
struct Book {
    arena: Arena,
    /// Wider than any one product: tensors that are not made may be larger than a machine could multiply.
    flops: u128,
}

thread_local! {
    static CURRENT: RefCell<Account> = RefCell::default();
}

/// Opens an account: tensors that this thread makes from now on are entered in it, and stay in it.
pub fn open() -> Account {
    let account = Account::default();
    CURRENT.set(account.clone());
    account
}

/// Adds floating-point operations to this thread's account; a multiplication and the addition that follows are two.
pub fn count(flops: u128) {
    CURRENT.with_borrow(|account| account.book().flops += flops);
}

impl Account {
    pub fn usage(&self) -> Usage {
        self.book().arena.usage
    }

    pub fn flops(&self) -> u128 {
        self.book().flops
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Counting leaves a valid account behind at any time, so poisoning carries no information.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The entry of one tensor; leaves the account as live when dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    account: Account,
    place: Option<Place>,
}

impl Entry {
    pub(crate) fn new(bytes: usize) -> Entry {
        let account = CURRENT.with_borrow(Account::clone);
        let place = account.book().arena.take_or_grow(lines(bytes));
        Entry { account, place }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.account.book().arena.give(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Device, Error, Tensor};

    fn tensor(lines: usize) -> Tensor {
        Tensor::empty(&[lines, 16], DType::F32, Device::Meta).expect("tensor")
    }

    #[test]
    fn tensors_are_entered_where_they_were_made_and_sizes_are_recycled() {
        let first = open();
        let a = tensor(3);
        let second = open();
        let b = tensor(5);
        count(7);
        drop((a, b));
        let c = tensor(5);
        assert_eq!(first.usage(), Usage { live: 0, peak: 192, held: 192 });
        assert_eq!(second.usage(), Usage { live: 320, peak: 320, held: 320 });
        let d = tensor(4);
        assert_eq!(second.usage(), Usage { live: 576, peak: 576, held: 576 });
        assert_eq!((first.flops(), second.flops()), (0, 7));
        drop((c, d));
    }

    #[test]
    fn tensors_have_shapes_and_no_values() {
        let account = open();
        let huge = Tensor::zeros(&[1 << 20, 1 << 20], DType::F32, Device::Meta).expect("takes no memory");
        assert_eq!((account.usage().live, huge.device()), (1 << 42, Device::Meta));
        assert_eq!(huge.as_slice::<f32>().err(), Some(Error::NoValues { op: "as_slice" }));
        assert!(huge.item().is_err(), "without as many NaN as it has elements");
        let view = huge.rows_at(1, 2).and_then(|t| t.reshape(&[2 << 10, 1 << 10])).expect("view");
        assert_eq!(account.usage().live, 1 << 42);
        assert_eq!(
            view.permute(&[1, 0]).and_then(|t| t.to_dtype(DType::F64)).expect("copies").dims(),
            [1 << 10, 2 << 10]
        );
        let one = Tensor::full(&[], 3.0, DType::F32, Device::Meta).expect("scalar");
        assert!(one.item().expect("one element").is_nan());
    }
}
