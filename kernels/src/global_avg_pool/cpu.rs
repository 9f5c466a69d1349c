//! Every sample's rows are summed in f64 in fixed chunks, and the chunks in order.

use crate::elementwise;
use crate::real::{Real, Stored};
use crate::simd::dispatch;
use crate::sum_rows::cpu::{CHUNK, SumChunk};
use engine::{DType, Error, Result, Tensor, bf16, parallel};

pub fn forward(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F32 => forward_typed::<f32>(x),
        DType::BF16 => forward_typed::<bf16>(x),
        DType::F64 => forward_typed::<f64>(x),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

pub fn backward(dy: &Tensor, x_dims: &[usize]) -> Result<Tensor> {
    match dy.dtype() {
        DType::F32 => backward_typed::<f32>(dy, x_dims),
        DType::BF16 => backward_typed::<bf16>(dy, x_dims),
        DType::F64 => backward_typed::<f64>(dy, x_dims),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: dy.device() }),
    }
}

fn forward_typed<S: Stored>(x: &Tensor) -> Result<Tensor> {
    let (n, c) = (x.dims()[0], x.channels());
    let mut y = Tensor::empty(&[n, c], x.dtype(), x.device())?;
    if y.numel() == 0 {
        return Ok(y);
    }
    let sample = x.numel() / n;
    let chunk = (CHUNK / c).max(1) * c;
    parallel::each(y.as_mut_slice::<S>()?.chunks_mut(c).zip(x.as_slice::<S>()?.chunks(sample)), |(y, x)| {
        let parts = parallel::map(x.chunks(chunk), |rows| dispatch(SumChunk { rows, channels: c }));
        for (i, y) in y.iter_mut().enumerate() {
            *y = S::narrow(S::Real::of(parts.iter().map(|part| part[i]).sum::<f64>() / (sample / c) as f64));
        }
    });
    Ok(y)
}

fn backward_typed<S: Stored>(dy: &Tensor, x_dims: &[usize]) -> Result<Tensor> {
    let mut dx = Tensor::empty(x_dims, dy.dtype(), dy.device())?;
    if dx.numel() == 0 {
        return Ok(dx);
    }
    let c = dy.channels();
    let sample = dx.numel() / x_dims[0];
    let voxels = S::Real::of((sample / c) as f64);
    let chunk = (elementwise::CHUNK / c).max(1) * c;
    parallel::each(dx.as_mut_slice::<S>()?.chunks_mut(sample).zip(dy.as_slice::<S>()?.chunks(c)), |(dx, dy)| {
        let share: Vec<S> = dy.iter().map(|v| S::narrow(v.widen() / voxels)).collect();
        let fill = |rows: &mut [S]| rows.chunks_exact_mut(c).for_each(|row| row.copy_from_slice(&share));
        parallel::each(dx.chunks_mut(chunk), fill);
    });
    Ok(dx)
}

#[cfg(test)]
mod tests {
    use crate::global_avg_pool::{backward, forward};
    use crate::testing::{assert_bf16, assert_close, numeric_gradient, random};
    use engine::{DType, Device, Tensor};

    #[test]
    fn matches_the_formula_on_awkward_shapes() {
        for dims in [[1, 1, 1, 1, 1], [3, 2, 2, 2, 768], [2, 3, 5, 7, 11], [1, 33, 31, 37, 3]] {
            let x = random(1, &dims, DType::F32);
            let (values, c) = (x.to_f64_vec().expect("x"), dims[4]);
            let voxels = dims[1] * dims[2] * dims[3];
            let mut want = vec![0.0; dims[0] * c];
            for (i, v) in values.iter().enumerate() {
                want[i / (voxels * c) * c + i % c] += v / voxels as f64;
            }
            assert_close(&forward(&x).expect("forward"), &want, 1e-7);
            let dy = random(2, &[dims[0], c], DType::F32);
            let g = dy.to_f64_vec().expect("dy");
            let want: Vec<f64> = (0..values.len()).map(|i| g[i / (voxels * c) * c + i % c] / voxels as f64).collect();
            assert_close(&backward(&dy, &dims).expect("backward"), &want, 1e-7);
        }
    }

    #[test]
    fn gradient_matches_central_differences() {
        let (x, dy) = (random(1, &[2, 2, 3, 1, 2], DType::F64), random(2, &[2, 2], DType::F64));
        let dx = backward(&dy, x.dims()).expect("backward");
        assert_close(&dx, &numeric_gradient(&x, &dy, |x| forward(x).expect("forward")), 1e-8);
    }

    #[test]
    fn bf16_is_f64_rounded() {
        let half = |seed, dims: &[usize]| (random(seed, dims, DType::F64), DType::BF16);
        for dims in [[1, 1, 1, 1, 1], [3, 2, 2, 2, 768], [2, 3, 5, 7, 11], [1, 33, 31, 37, 3]] {
            let both = |t: &[Tensor]| Ok(vec![forward(&t[0])?, backward(&t[1], &dims)?]);
            assert_bf16(&[half(1, &dims), half(2, &[dims[0], dims[4]])], 1.0, both);
        }
    }

    #[test]
    fn empty_is_empty_and_misfits_are_errors() {
        assert_eq!(forward(&random(1, &[0, 1, 2, 3, 4], DType::F32)).expect("no samples").dims(), [0, 4]);
        assert_eq!(forward(&random(1, &[2, 1, 2, 3, 0], DType::F32)).expect("no channels").dims(), [2, 0]);
        assert!(forward(&random(1, &[2, 1, 0, 3, 4], DType::F32)).is_err());
        assert!(forward(&random(1, &[2, 4], DType::F32)).is_err());
        let dy = random(1, &[2, 4], DType::F32);
        assert_eq!(backward(&random(1, &[2, 0], DType::F32), &[2, 1, 1, 1, 0]).expect("empty").numel(), 0);
        assert!(backward(&dy, &[2, 1, 1, 1, 3]).is_err());
        assert!(backward(&dy, &[2, 4]).is_err());
        assert!(forward(&Tensor::zeros(&[1, 1, 1, 1, 1], DType::U8, Device::Cpu).expect("u8")).is_err());
    }
}
