//! Operations that move voxels: concatenation, patch merging, resize.

use super::{DTYPES, assert_close, device, exact, random, twice, unit};
use engine::{DType, Tensor};
use kernels::patch_merging::{Order, gather, scatter};
use kernels::{concat, resize};

#[test]
fn joined_tensors_hold_the_same_bits_and_are_cut_again() {
    let device = device();
    for dtype in DTYPES {
        // rows in whole units of 16 bytes, and not
        for inner in [8, 5] {
            for axis in 0..3 {
                let sizes = [3, 1, 0, 5];
                let shape = |size| {
                    let mut dims = vec![4, 3, inner];
                    dims[axis] = size * if axis == 2 { inner } else { 1 };
                    dims
                };
                let pieces: Vec<Tensor> = (0..4).map(|i| random(i as u64, &shape(sizes[i]), dtype)).collect();
                let wide: Vec<Tensor> = pieces.iter().map(exact).collect();
                let want = concat::forward(&wide.iter().collect::<Vec<_>>(), axis).expect("f64");
                let there: Vec<Tensor> = pieces.iter().map(|p| p.to_device(device).expect("copy")).collect();
                let joined = twice(|| concat::forward(&there.iter().collect::<Vec<_>>(), axis));
                assert_close(&joined, &want, 0.0);
                let lengths: Vec<usize> = pieces.iter().map(|p| p.dims()[axis]).collect();
                for (piece, want) in concat::split(&joined, axis, &lengths).expect("split").iter().zip(&wide) {
                    assert_close(piece, want, 0.0);
                }
            }
        }
    }
    let x = random(1, &[2], DType::F32);
    let there = x.to_device(device).expect("copy");
    assert!(concat::forward(&[&there, &x], 0).is_err_and(|e| e.to_string().contains("cpu")));
    assert!(concat::forward(&[&exact(&x).to_device(device).expect("copy")], 0).is_err());
}

#[test]
fn neighbours_are_gathered_and_scattered_in_every_order() {
    let device = device();
    for dtype in DTYPES {
        for order in [Order::Monai13, Order::Monai15, Order::Standard] {
            for dims in [[1, 1, 1, 1, 1], [2, 3, 4, 5, 3], [1, 5, 2, 3, 48], [1, 2, 2, 2, 768], [0, 2, 2, 2, 8]] {
                let x = random(1, &dims, dtype);
                let there = x.to_device(device).expect("copy");
                let want = gather(&exact(&x), order).expect("f64");
                let y = twice(|| gather(&there, order));
                assert_close(&y, &want, 0.0);
                let dy = random(2, want.dims(), dtype);
                let there = dy.to_device(device).expect("copy");
                // a sum of at most two
                let want = scatter(&exact(&dy), &dims, order).expect("f64");
                assert_close(&twice(|| scatter(&there, &dims, order)), &want, unit(dtype) + unit(DType::F32));
            }
        }
    }
}

/// Three weights of two roundings each, their two products and a product with the voxel are rounded, and up to 64 of these are
/// added, most with next to no weight: twice as much. Of the values' norm an average of eight keeps at least a third.
fn resize_bound(dtype: DType) -> f64 {
    unit(dtype) + 3.0 * 18.0 * unit(DType::F32)
}

#[test]
fn resizing_agrees_with_f64_up_down_and_to_one() {
    let device = device();
    for dtype in DTYPES {
        for (dims, size) in [
            ([1, 5, 4, 3, 1], [4, 3, 2]),
            ([2, 3, 5, 2, 3], [7, 11, 1]),
            ([1, 1, 7, 6, 17], [3, 7, 12]),
            ([1, 2, 2, 2, 48], [4, 4, 4]),
            ([1, 9, 1, 10, 8], [1, 5, 5]),
            ([1, 1, 1, 1, 768], [2, 1, 3]),
            ([0, 2, 2, 2, 3], [1, 4, 1]),
        ] {
            for align in [false, true] {
                let x = random(1, &dims, dtype);
                let there = x.to_device(device).expect("copy");
                let want = resize::forward(&exact(&x), size, align).expect("f64");
                let y = twice(|| resize::forward(&there, size, align));
                assert_close(&y, &want, resize_bound(dtype));
                let dy = random(2, want.dims(), dtype);
                let there = dy.to_device(device).expect("copy");
                let want = resize::backward(&exact(&dy), &dims, align).expect("f64");
                assert_close(&twice(|| resize::backward(&there, &dims, align)), &want, resize_bound(dtype));
            }
        }
    }
}

#[test]
fn an_axis_too_long_for_positions_in_32_bits_is_refused() {
    let device = device();
    let x = Tensor::zeros(&[1, 1, 1, 40_000, 1], DType::F32, device).expect("x");
    let error = resize::forward(&x, [1, 1, 40_000], false).expect_err("too long").to_string();
    assert_eq!(error, "resize: 40000 to 40000 voxels is too much for the device's kernels");
    assert!(resize::forward(&x, [1, 1, 20_000], false).is_ok());
}
