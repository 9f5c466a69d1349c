//! The result is rows, one per index of the axes before the joined one; a row is the inputs' rows one after another.

use super::piece_dims;
use crate::elementwise::CHUNK;
use engine::{DType, Element, Error, Result, Tensor, bf16, parallel};

pub fn forward(xs: &[&Tensor], axis: usize, dims: &[usize]) -> Result<Tensor> {
    match xs[0].dtype() {
        DType::F32 => join::<f32>(xs, axis, dims),
        DType::BF16 => join::<bf16>(xs, axis, dims),
        DType::F64 => join::<f64>(xs, axis, dims),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: xs[0].device() }),
    }
}

pub fn split(dy: &Tensor, axis: usize, sizes: &[usize]) -> Result<Vec<Tensor>> {
    match dy.dtype() {
        DType::F32 => cut::<f32>(dy, axis, sizes),
        DType::BF16 => cut::<bf16>(dy, axis, sizes),
        DType::F64 => cut::<f64>(dy, axis, sizes),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: dy.device() }),
    }
}

/// `xs` is not empty, and `dims` is the shape of the result.
fn join<T: Element>(xs: &[&Tensor], axis: usize, dims: &[usize]) -> Result<Tensor> {
    let mut out = Tensor::empty(dims, xs[0].dtype(), xs[0].device())?;
    let mut parts = Vec::with_capacity(xs.len());
    for x in xs {
        parts.push((x.as_slice::<T>()?, x.dims()[axis..].iter().product::<usize>()));
    }
    let width: usize = dims[axis..].iter().product();
    let to = out.as_mut_slice::<T>()?;
    if to.is_empty() {
        return Ok(out);
    }
    let rows = (CHUNK / width).max(1);
    parallel::each(to.chunks_mut(rows * width).enumerate(), |(task, to)| {
        for (row, mut to) in to.chunks_exact_mut(width).enumerate() {
            for &(from, len) in &parts {
                let (here, rest) = std::mem::take(&mut to).split_at_mut(len);
                copy(&from[(task * rows + row) * len..][..len], here);
                to = rest;
            }
        }
    });
    Ok(out)
}

fn cut<T: Element>(dy: &Tensor, axis: usize, sizes: &[usize]) -> Result<Vec<Tensor>> {
    let inner: usize = dy.dims()[axis + 1..].iter().product();
    let width = dy.dims()[axis] * inner;
    let from = dy.as_slice::<T>()?;
    let mut start = 0;
    let mut pieces = Vec::with_capacity(sizes.len());
    for &size in sizes {
        let mut piece = dy.new_empty(&piece_dims(dy, axis, size))?;
        let len = size * inner;
        let rows = (CHUNK / len.max(1)).max(1);
        // `max(1)`: a piece without elements has no chunks, whatever their size.
        parallel::each(piece.as_mut_slice::<T>()?.chunks_mut((rows * len).max(1)).enumerate(), |(task, to)| {
            for (row, to) in to.chunks_exact_mut(len).enumerate() {
                copy(&from[(task * rows + row) * width + start..][..len], to);
            }
        });
        start += len;
        pieces.push(piece);
    }
    Ok(pieces)
}

/// Copies in parallel when there is much, as when whole tensors are joined along the first axis.
fn copy<T: Element>(from: &[T], to: &mut [T]) {
    if to.len() <= CHUNK {
        to.copy_from_slice(from);
    } else {
        parallel::each(to.chunks_mut(CHUNK).zip(from.chunks(CHUNK)), |(to, from)| to.copy_from_slice(from));
    }
}

#[cfg(test)]
mod tests {
    use crate::concat::{forward, split};
    use crate::testing::{assert_bf16, random};
    use engine::{DType, Device, Tensor};

    /// The element at `index` of a tensor of shape `dims`.
    fn at(values: &[f64], dims: &[usize], index: &[usize]) -> f64 {
        values[index.iter().zip(dims).fold(0, |flat, (i, d)| flat * d + i)]
    }

    #[test]
    fn every_element_comes_from_its_input_and_split_takes_it_back() {
        for dtype in [DType::F32, DType::F64] {
            for axis in 0..3 {
                let sizes = [3usize, 1, 0, 5];
                let shapes = sizes.map(|s| {
                    let mut dims = vec![4, 3, 7];
                    dims[axis] = s;
                    dims
                });
                let xs: Vec<Tensor> = (0..4).map(|i| random(i as u64, &shapes[i], dtype)).collect();
                let y = forward(&xs.iter().collect::<Vec<_>>(), axis).expect("forward");
                let values: Vec<Vec<f64>> = xs.iter().map(|x| x.to_f64_vec().expect("x")).collect();
                let joined = y.to_f64_vec().expect("y");
                for (i, &got) in joined.iter().enumerate() {
                    let (d1, d2) = (y.dims()[1], y.dims()[2]);
                    let mut index = [i / (d1 * d2), i / d2 % d1, i % d2];
                    let mut source = 0;
                    while index[axis] >= sizes[source] {
                        index[axis] -= sizes[source];
                        source += 1;
                    }
                    assert_eq!(got, at(&values[source], &shapes[source], &index));
                }
                for (piece, x) in split(&y, axis, &sizes).expect("split").iter().zip(&xs) {
                    assert_eq!((piece.dims(), piece.to_f64_vec()), (x.dims(), x.to_f64_vec()));
                }
            }
        }
    }

    #[test]
    fn large_tensors_join_at_either_end() {
        for (axis, dims) in [(0, [2, 50_021]), (1, [3001, 48])] {
            let (a, b) = (random(1, &dims, DType::F32), random(2, &dims, DType::F32));
            let y = forward(&[&a, &b], axis).expect("forward");
            let back = split(&y, axis, &[dims[axis]; 2]).expect("split");
            assert_eq!(back[0].to_vec::<f32>(), a.to_vec());
            assert_eq!(back[1].to_vec::<f32>(), b.to_vec());
        }
    }

    #[test]
    fn bf16_is_joined_and_cut_too() {
        let half = |seed, n: usize| (random(seed, &[4, n, 7], DType::F64), DType::BF16);
        assert_bf16(&[half(1, 3), half(2, 1), half(3, 0), half(4, 5)], 0.0, |t| {
            let y = forward(&t.iter().collect::<Vec<_>>(), 1)?;
            let mut all = split(&y, 1, &[2, 7])?;
            all.push(y);
            Ok(all)
        });
    }

    #[test]
    fn misfits_are_errors() {
        let x = random(1, &[2, 3], DType::F32);
        assert!(forward(&[], 0).is_err());
        assert!(forward(&[&x], 2).is_err());
        assert!(forward(&[&x, &random(1, &[2, 4], DType::F32)], 0).is_err());
        assert!(forward(&[&x, &random(1, &[2, 3, 1], DType::F32)], 0).is_err());
        assert!(forward(&[&x, &random(1, &[2, 3], DType::F64)], 0).is_err());
        assert!(split(&x, 1, &[1, 1]).is_err());
        assert!(split(&x, 1, &[usize::MAX, 4]).is_err());
        assert!(split(&x, 2, &[3]).is_err());
        assert!(forward(&[&Tensor::zeros(&[2], DType::I32, Device::Cpu).expect("i32")], 0).is_err());
        assert_eq!(forward(&[&random(1, &[0, 3], DType::F32)], 1).expect("empty").dims(), [0, 3]);
    }
}
