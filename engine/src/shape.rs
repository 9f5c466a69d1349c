//! Shapes of up to eight axes, without allocation.

use crate::{Error, Result};
use std::fmt;

pub const MAX_RANK: usize = 8;

/// Sizes of a tensor's axes, outermost first. Rank 0 is a scalar (one element).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: usize,
}

impl Shape {
    /// Errors when there are more than [`MAX_RANK`] axes, or too many elements: of rows too where there are no rows, so that a
    /// product of some of the axes never overflows.
    pub fn new(dims: &[usize]) -> Result<Self> {
        if dims.len() > MAX_RANK {
            return Err(Error::shape("shape", format!("{dims:?} has more than {MAX_RANK} axes")));
        }
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)));
        if count.is_none_or(|n| n > isize::MAX as usize / 16) {
            return Err(Error::shape("shape", format!("{dims:?} has too many elements")));
        }
        let mut out = Shape { dims: [1; MAX_RANK], rank: dims.len() };
        out.dims[..dims.len()].copy_from_slice(dims);
        Ok(out)
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn numel(&self) -> usize {
        self.dims().iter().product()
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_beside_one_of_no_size_are_counted_too() {
        assert!(Shape::new(&[0, 1 << 33, 1 << 33]).is_err());
        assert!(Shape::new(&[1 << 33, 1 << 33, 0]).is_err());
        assert_eq!(Shape::new(&[0, 1 << 20, 3]).map(|s| s.numel()), Ok(0));
    }
}
