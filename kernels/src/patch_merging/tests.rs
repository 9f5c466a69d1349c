use super::*;
use crate::testing::{assert_bf16, random};
use engine::Element;

const SHAPES: [[usize; 5]; 6] =
    [[1, 1, 1, 1, 1], [2, 2, 2, 2, 3], [1, 5, 8, 13, 2], [2, 3, 1, 7, 5], [1, 4, 6, 1, 17], [1, 1, 2, 3, 48]];
/// As written in the description of the orders.
const MONAI13: [&str; 8] = ["000", "100", "010", "001", "101", "010", "001", "111"];
const MONAI15: [&str; 8] = ["000", "100", "010", "001", "110", "101", "011", "111"];
const STANDARD: [&str; 8] = ["000", "001", "010", "011", "100", "101", "110", "111"];

fn values(n: usize, seed: usize) -> Vec<f64> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f64 / 64.0 - 7.0).collect()
}

/// The source of output element `at`: an element of x, or None in the padding.
fn source([_, d, h, w, c]: [usize; 5], slots: [&str; 8], at: usize) -> Option<usize> {
    let (oh, ow) = (h.div_ceil(2), w.div_ceil(2));
    let (channel, slot) = (at % c, slots[at / c % 8].as_bytes());
    let voxel = at / (8 * c);
    let x = voxel % ow * 2 + usize::from(slot[2] - b'0');
    let y = voxel / ow % oh * 2 + usize::from(slot[1] - b'0');
    let z = voxel / (ow * oh) % d.div_ceil(2) * 2 + usize::from(slot[0] - b'0');
    let b = voxel / (ow * oh * d.div_ceil(2));
    (x < w && y < h && z < d).then(|| (((b * d + z) * h + y) * w + x) * c + channel)
}

fn gathers_and_scatters<T: Element>() {
    engine::memory::check(true);
    for dims in SHAPES {
        let orders = [(Order::Monai13, MONAI13), (Order::Monai15, MONAI15), (Order::Standard, STANDARD)];
        for (order, slots) in orders {
            let x = values(dims.iter().product(), 1);
            let dy = values(merged(dims).iter().product(), 2);
            let mut dx = vec![0.0; x.len()];
            let mut y = vec![0.0; dy.len()];
            for (at, dy) in dy.iter().enumerate() {
                if let Some(from) = source(dims, slots, at) {
                    y[at] = x[from];
                    dx[from] += dy;
                }
            }
            let tensor = |v: &[f64], dims: &[usize]| Tensor::from_slice(v, dims).and_then(|t| t.to_dtype(T::DTYPE));
            let got = gather(&tensor(&x, &dims).expect("x"), order).expect("gather");
            assert_eq!(got.dims(), merged(dims));
            assert_eq!(got.to_f64_vec().expect("y"), y, "{dims:?} {order:?}");
            let got = scatter(&tensor(&dy, &merged(dims)).expect("dy"), &dims, order).expect("scatter");
            assert_eq!(got.to_f64_vec().expect("dx"), dx, "{dims:?} {order:?}");
        }
    }
}

// The values are multiples of 1/64 below 16, so that sums of two are exact in f32 and all comparisons are for equality. scatter
// being linear and equal to the transpose of gather, it is its gradient.
#[test]
fn f32_gathers_and_scatters() {
    gathers_and_scatters::<f32>();
}

#[test]
fn f64_gathers_and_scatters() {
    gathers_and_scatters::<f64>();
}

#[test]
fn bf16_gathers_and_scatters() {
    for dims in SHAPES {
        for order in [Order::Monai13, Order::Monai15, Order::Standard] {
            let half = |seed, dims: &[usize]| (random(seed, dims, DType::F64), DType::BF16);
            let both = |t: &[Tensor]| Ok(vec![gather(&t[0], order)?, scatter(&t[1], &dims, order)?]);
            assert_bf16(&[half(1, &dims), half(2, &merged(dims))], 1.0, both);
        }
    }
}

#[test]
fn empty_is_empty_and_wrong_shapes_are_errors() {
    for dims in [[0, 2, 2, 2, 3], [1, 0, 2, 2, 3], [1, 2, 2, 0, 3], [1, 2, 2, 2, 0]] {
        let y = gather(&Tensor::zeros(&dims, DType::F32, Device::Cpu).expect("x"), Order::Standard).expect("gather");
        assert_eq!(y.dims(), merged(dims));
        assert_eq!(scatter(&y, &dims, Order::Standard).expect("scatter").dims(), dims);
    }
    let x = Tensor::zeros(&[1, 2, 2, 2, 3], DType::F32, Device::Cpu).expect("x");
    assert!(gather(&x.reshape(&[2, 2, 2, 3]).expect("rank 4"), Order::Standard).is_err());
    assert!(gather(&x.to_dtype(DType::I32).expect("i32"), Order::Standard).is_err());
    let dy = gather(&x, Order::Standard).expect("gather");
    assert!(scatter(&dy, &[1, 2, 2, 2], Order::Standard).is_err());
    assert!(scatter(&dy, &[1, 3, 2, 2, 3], Order::Standard).is_err());
}
