//! The driver layer and the kernels on a CUDA device: `cargo test --release --test cuda` where there is one, or
//! `cargo xtask emulate -- cargo test --release --test cuda` anywhere. Not part of a plain `cargo test`, where there may be none.

mod adamw;
mod cast;
mod compile;
mod cosine;
mod dice_ce;
mod elementwise;
mod gelu;
mod graph;
mod info_nce;
mod launch;
mod layer;
mod movement;
mod norms;
mod precision;
mod products;
mod trace;
mod training;
mod voco_loss;
mod window_attention;

use engine::cuda::survey;
use engine::{DType, Device, Tensor, random::normal};
use std::cell::RefCell;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Which tests have the device: many at a time, or one that counts memory.
static TURNS: RwLock<()> = RwLock::new(());

enum Turn {
    Shared { _turn: RwLockReadGuard<'static, ()> },
    Alone { _turn: RwLockWriteGuard<'static, ()> },
}

thread_local! {
    /// Of this thread's test, until its end.
    static TURN: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

/// The first device. Turns on the check mode of the memory pools.
fn device() -> Device {
    TURN.take();
    TURN.set(Some(Turn::Shared { _turn: TURNS.read().unwrap_or_else(|e| e.into_inner()) }));
    find()
}

/// The same, while no other test has it.
fn device_alone() -> Device {
    TURN.take();
    TURN.set(Some(Turn::Alone { _turn: TURNS.write().unwrap_or_else(|e| e.into_inner()) }));
    find()
}

/// The same, and without the check mode: buffers lie next to one another, as in a run.
fn device_unchecked() -> Device {
    let device = device_alone();
    engine::memory::check(false);
    device
}

fn find() -> Device {
    if let Some(problem) = survey().problem {
        panic!("{problem}; there is an emulated one: cargo xtask emulate -- cargo test --release --test cuda");
    }
    engine::memory::check(true);
    Device::Cuda(0).ready().expect("the first device is usable")
}

/// Standard normal values on the host, rounded to `dtype`.
fn random(seed: u64, dims: &[usize], dtype: DType) -> Tensor {
    let n: usize = dims.iter().product();
    let values: Vec<f64> = (0..n).map(|i| normal(seed, i as u64)).collect();
    Tensor::from_slice(&values, dims).and_then(|t| t.to_dtype(dtype)).expect("random tensor")
}

/// The CPU's answer in f64, for inputs that were rounded to another dtype.
fn exact(t: &Tensor) -> Tensor {
    t.to_device(Device::Cpu).and_then(|t| t.to_dtype(DType::F64)).expect("f64 copy")
}

/// Fails unless ‖ours − want‖ / ‖want‖ is at most `bound`, and ours is on a device.
#[track_caller]
fn assert_close(ours: &Tensor, want: &Tensor, bound: f64) {
    assert!(ours.device_ptr().is_ok() && ours.dims() == want.dims(), "{ours:?} for {want:?}");
    let (ours, want) = (ours.to_f64_vec().expect("ours"), want.to_f64_vec().expect("want"));
    let off: f64 = ours.iter().zip(&want).map(|(a, b)| (a - b) * (a - b)).sum();
    let norm: f64 = want.iter().map(|b| b * b).sum();
    let error = if off == 0.0 { 0.0 } else { (off / norm).sqrt() };
    assert!(error <= bound, "error {error:e}, at most {bound:e} allowed");
}

/// What f gives, which must be the same bits when it is asked again.
#[track_caller]
fn twice(f: impl Fn() -> engine::Result<Tensor>) -> Tensor {
    let (first, second) = (f().expect("first run"), f().expect("second run"));
    same_bits(&[&first], &[&second]);
    first
}

/// What the kernels of networks compute in.
const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Rounding to f32, bf16 or f16 moves a value by at most this share: half of the distance to the next.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-24),
    }
}

/// Fails unless two runs gave the same bits.
#[track_caller]
fn same_bits(once: &[&Tensor], again: &[&Tensor]) {
    let bits = |t: &&Tensor| t.to_f64_vec().expect("values").iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let (once, again): (Vec<_>, Vec<_>) = (once.iter().map(bits).collect(), again.iter().map(bits).collect());
    assert!(once == again, "two runs differ");
}
