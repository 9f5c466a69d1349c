//! GELU on a GPU with nothing of ours but the image: found and launched by the cust crate, compared with the formula.

use cust::launch;
use cust::memory::{CopyDestination, DeviceBuffer, DeviceCopy};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};
use std::error::Error;

/// A fatbin, packed with zstd.
static GELU: &[u8] = include_bytes!("../../../kernels/images/gelu.fatbin.zst");

/// `GeluArgs` of gelu.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Args {
    x: u64,
    dy: u64,
    out: u64,
    n: i64,
}

// SAFETY: plain numbers; the addresses are of device memory.
unsafe impl DeviceCopy for Args {}

/// exp(-x²/2) integrated from 0 to x by Simpson's rule.
fn gelu(x: f64) -> f64 {
    let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let (steps, h) = (2000, x / 2000.0);
    let inner: f64 = (1..steps).map(|i| density(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    x * (0.5 + (density(0.0) + inner + density(x)) * h / 3.0)
}

fn main() -> Result<(), Box<dyn Error>> {
    cust::init(cust::CudaFlags::empty())?;
    let _context = cust::context::Context::new(cust::device::Device::get_device(0)?)?;
    let module = Module::from_fatbin(zstd::decode_all(GELU)?, &[])?;
    let kernel = module.get_function("gelu_forward_f32")?;
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;

    let x: Vec<f32> = (0..10_000).map(|i| -5.0 + i as f32 * 1e-3).collect();
    let (x_there, y_there) = (DeviceBuffer::from_slice(&x)?, DeviceBuffer::from_slice(&vec![f32::NAN; x.len()])?);
    let [x_at, y_at] = [&x_there, &y_there].map(|buffer| buffer.as_device_ptr().as_raw());
    let args = Args { x: x_at, dy: 0, out: y_at, n: x.len() as i64 };
    // SAFETY: x and y have n elements, and threads walk in strides of any grid.
    unsafe { launch!(kernel<<<8, 256, 0, stream>>>(args))? };
    stream.synchronize()?;

    let mut y = vec![0.0; x.len()];
    y_there.copy_to(&mut y)?;
    let off = |(x, y): (&f32, &f32)| (f64::from(*y) - gelu(f64::from(*x))).abs();
    let worst = x.iter().zip(&y).map(off).fold(0.0, |worst: f64, off| if off.is_nan() { off } else { worst.max(off) });
    println!("gelu_forward_f32 through cust: {} values, off by {worst:.1e} at most", x.len());
    // a few units in the last place of values up to 5
    if worst < 2e-6 { Ok(()) } else { Err("that is too much".into()) }
}
