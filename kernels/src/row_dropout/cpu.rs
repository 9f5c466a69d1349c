//! Embeddings are small matrices: one thread.

use crate::real::{Real, Stored};
use engine::{DType, Error, Result, Tensor, bf16, random};

pub fn forward(x: &Tensor, p: f64, seed: &Tensor) -> Result<Tensor> {
    let seed = seed.as_slice::<i32>()?.iter().rev().fold(0, |high, &word| high << 32 | u64::from(word.cast_unsigned()));
    match x.dtype() {
        DType::F32 => forward_typed::<f32>(x, p, seed),
        DType::BF16 => forward_typed::<bf16>(x, p, seed),
        DType::F64 => forward_typed::<f64>(x, p, seed),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

fn forward_typed<S: Stored>(x: &Tensor, p: f64, seed: u64) -> Result<Tensor> {
    let c = x.channels().max(1); // chunks of zero elements do not exist
    let keep = S::Real::of(1.0 / (1.0 - p));
    let mut y = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    let rows = y.as_mut_slice::<S>()?.chunks_exact_mut(c).zip(x.as_slice::<S>()?.chunks_exact(c));
    for (r, (y, x)) in rows.enumerate() {
        if random::uniform(seed, r as u64) < p {
            y.fill(S::zeroed());
        } else {
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = S::narrow(x.widen() * keep));
        }
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use crate::row_dropout;
    use crate::testing::{assert_bf16, assert_close, numeric_gradient, random};
    use engine::random::uniform;
    use engine::{DType, Device, Result, Tensor};

    fn forward(x: &Tensor, p: f64, seed: u64) -> Result<Tensor> {
        row_dropout::forward(x, p, &row_dropout::seed(seed, Device::Cpu)?)
    }

    #[test]
    fn rows_are_dropped_by_their_own_number_and_the_rest_is_scaled() {
        const SEED: u64 = 0xfedc_ba98_8765_4321;
        for (dims, dtype) in [(vec![200, 7], DType::F32), (vec![5, 40, 3], DType::F64), (vec![0, 3], DType::F32)] {
            let x = random(1, &dims, dtype);
            let c = x.channels();
            let dropped = |i: usize| uniform(SEED, (i / c) as u64) < 0.2;
            let values = x.to_f64_vec().expect("x");
            let want: Vec<f64> =
                values.iter().enumerate().map(|(i, v)| if dropped(i) { 0.0 } else { v / 0.8 }).collect();
            assert_close(&forward(&x, 0.2, SEED).expect("forward"), &want, 1e-7);
        }
    }

    #[test]
    fn zero_copies_and_the_rate_is_p() {
        let x = random(1, &[10_000, 1], DType::F32);
        assert_eq!(forward(&x, 0.0, 3).and_then(|y| y.to_vec::<f32>()), x.to_vec());
        let dropped =
            forward(&x, 0.2, 3).and_then(|y| y.to_vec::<f32>()).expect("y").iter().filter(|&&v| v == 0.0).count();
        // Four standard deviations of a binomial of 10000 draws at 0.2, which are 40 each.
        assert!(dropped.abs_diff(2000) <= 160, "{dropped}");
    }

    #[test]
    fn backward_is_the_same_map() {
        let (x, dy) = (random(1, &[20, 3], DType::F64), random(2, &[20, 3], DType::F64));
        let dx = forward(&dy, 0.3, 5).expect("backward");
        assert_close(&dx, &numeric_gradient(&x, &dy, |x| forward(x, 0.3, 5).expect("forward")), 1e-8);
    }

    #[test]
    fn bf16_is_f64_rounded() {
        for dims in [vec![200, 7], vec![5, 40, 3], vec![0, 3]] {
            let x = (random(1, &dims, DType::F64), DType::BF16);
            assert_bf16(&[x], 1.0, |t| Ok(vec![forward(&t[0], 0.2, 9)?]));
        }
    }

    #[test]
    fn wrong_input_is_an_error() {
        let x = random(1, &[2, 2], DType::F32);
        for p in [-0.1, 1.0, 2.0, f64::NAN] {
            assert!(forward(&x, p, 0).is_err(), "{p}");
        }
        let two = Tensor::zeros(&[2], DType::I32, Device::Cpu).expect("i32");
        assert!(forward(&two, 0.1, 0).is_err());
        for seed in [random(1, &[2], DType::F32), two.reshape(&[1, 2]).expect("seeds")] {
            assert!(row_dropout::forward(&x, 0.1, &seed).is_err(), "{seed:?}");
        }
    }
}
