//! What the launch itself checks, tried on the kernels of GELU.

use super::device;
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Grid, Image, launch};
use engine::{DType, Device, Result, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};

static IMAGE: Image = Image::new("gelu for tests", include_bytes!("../../kernels/images/gelu.fatbin.zst"));

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    x: u64,
    dy: u64,
    out: u64,
    n: i64,
}

/// Launches over `n` elements of x.
fn forward<A: Pod>(device: Device, name: &str, blocks: u32, args: &A) -> Result<()> {
    let grid = Grid { grid: [blocks, 1, 1], block: [64, 1, 1], shared: 0 };
    // SAFETY: the tests below give arrays of that many elements, or as many in the buffer's guard, or a launch that is refused.
    unsafe { launch(device, &IMAGE, name, grid, args) }
}

fn arrays(device: Device, n: usize) -> (Tensor, Tensor, Args) {
    let x = Tensor::full(&[n], 1.0, DType::F32, device).expect("x");
    let mut y = Tensor::zeros(&[n], DType::F32, device).expect("y");
    let args = Args { x: x.device_ptr().expect("x"), dy: 0, out: y.device_ptr_mut().expect("y"), n: n as i64 };
    (x, y, args)
}

#[test]
fn wrong_launches_are_refused_and_name_the_kernel() {
    let device = device();
    let (_x, y, args) = arrays(device, 100);
    let unknown = forward(device, "gelu_sideways_f32", 1, &args).expect_err("no such kernel").to_string();
    assert!(unknown.contains("gelu_sideways_f32") && unknown.starts_with(&device.to_string()), "{unknown}");
    let size = forward(device, "gelu_forward_f32", 1, &[0u64; 3]).expect_err("too few arguments").to_string();
    assert_eq!(size, "launch: kernel gelu_forward_f32 takes 32 bytes, and 24 are given");
    forward(device, "gelu_forward_f32", 0, &args).expect("nothing to do");
    assert_eq!(y.to_vec::<f32>(), Ok(vec![0.0; 100]));
    forward(device, "gelu_forward_f32", 1, &args).expect("launch");
    assert!(y.to_vec::<f32>().expect("y").iter().all(|y| (y - 0.841_344_7).abs() < 1e-6));
    assert!(forward(Device::Cpu, "gelu_forward_f32", 1, &args).is_err());
}

#[test]
fn a_kernel_that_writes_past_the_end_is_caught() {
    let device = device();
    let (x, y, args) = arrays(device, 100);
    // x has a guard too: what is read there belongs to the buffer
    forward(device, "gelu_forward_f32", 1, &Args { n: 101, ..args }).expect("launch");
    drop(x);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(y))).is_err());
}
