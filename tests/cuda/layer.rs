//! Tensors on a device: copies, views, memory and its errors; and what a machine without one says.

use super::{device, device_unchecked, random};
use engine::cuda::{properties, survey, usage};
use engine::memory::Usage;
use engine::{DType, Device, Error, Tensor};

#[test]
fn a_device_that_is_not_there_is_an_error_with_a_remedy() {
    let error = Device::Cuda(200).ready().expect_err("no machine has so many").to_string();
    assert!(error.starts_with("cuda:200: ") && error.ends_with("or use --device cpu"), "{error}");
    assert_eq!(Tensor::empty(&[1], DType::F32, Device::Cuda(200)).err().map(|e| e.to_string()), Some(error.clone()));
    assert_eq!(survey().version.is_none(), error.contains("no NVIDIA driver"), "{error}");
}

#[test]
fn values_come_back_as_they_went() {
    let device = device();
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64, DType::U8, DType::I32] {
        let here = random(1, &[5, 3], dtype);
        let there = here.to_device(device).expect("copy");
        assert_eq!((there.device(), there.dtype(), there.dims()), (device, dtype, here.dims()));
        assert_eq!(there.to_f64_vec(), here.to_f64_vec());
        let part = |t: &Tensor| t.rows_at(2, 2)?.reshape(&[3, 2])?.permute(&[1, 0])?.to_dtype(DType::F32);
        let ours = part(&there).expect("views");
        assert_eq!((ours.device(), ours.to_f64_vec()), (device, part(&here).and_then(|t| t.to_f64_vec())));
    }
    // several pieces of the staging memory, the last one not full
    let large = random(2, &[5 << 20], DType::F32);
    assert_eq!(large.to_device(device).and_then(|t| t.to_vec::<f32>()), large.to_vec());
}

#[test]
fn tensors_are_filled_on_the_device() {
    let device = device();
    let zeros = Tensor::zeros(&[1000], DType::F32, device).expect("zeros");
    assert!(zeros.to_vec::<f32>().expect("read").iter().all(|&v| v == 0.0));
    let mut t = Tensor::full(&[4], 2.5, DType::BF16, device).expect("full");
    t.fill_with(1..3, |i| i as f64 - 7.0).expect("fill");
    assert_eq!(t.to_f64_vec(), Ok(vec![2.5, -7.0, -6.0, 2.5]));
    assert_eq!(Tensor::full(&[], 3.0, DType::F32, device).and_then(|t| t.item()), Ok(3.0));
}

#[test]
fn the_host_cannot_reach_in_and_shared_storage_is_not_written() {
    let device = device();
    let mut t = Tensor::zeros(&[4, 2], DType::F32, device).expect("zeros");
    let elsewhere = t.as_slice::<f32>().err();
    assert_eq!(elsewhere, Some(Error::Elsewhere { op: "as_slice", device, want: "the host" }));
    assert!(t.as_mut_slice::<f32>().is_err());
    let view = t.rows_at(1, 2).expect("view");
    let start = t.device_ptr().expect("address");
    assert_eq!(view.device_ptr(), Ok(start + 8));
    assert_eq!(t.device_ptr_mut(), Err(Error::Shared { op: "write" }));
    assert_eq!(t.fill_with(0..1, |_| 1.0), Err(Error::Shared { op: "write" }));
    drop(view);
    assert_eq!(t.device_ptr_mut(), Ok(start));
    assert!(random(1, &[1], DType::F32).device_ptr().is_err());
}

#[test]
fn memory_is_recycled_and_what_does_not_fit_is_an_error_that_names_the_largest() {
    let device = device_unchecked();
    let kept = Tensor::zeros(&[3, 1 << 20], DType::F32, device).expect("kept");
    let error = Tensor::empty(&[1 << 20, 1 << 20], DType::F32, device).expect_err("a terabyte is too much");
    let text = error.to_string();
    assert!(matches!(error, Error::OutOfDeviceMemory { .. }) && text.contains("1 x [3, 1048576] f32"), "{text}");
    drop(kept);
    let first = Tensor::empty(&[777_777], DType::U8, device).expect("tensor");
    let Usage { live, peak, held } = usage(device).expect("usage");
    assert!(live >= 777_777 && peak >= 12 << 20 && held >= live, "{live} {peak} {held}");
    let address = first.device_ptr();
    drop(first);
    let again = Tensor::empty(&[777_778], DType::U8, device).expect("tensor");
    assert_eq!(again.device_ptr(), address);
}

/// Bytes of a tensor that takes several pieces of memory, and a part of one.
const LARGE: usize = 100_000_001;

fn large(value: f64, device: Device) -> Tensor {
    Tensor::full(&[LARGE], value, DType::U8, device).expect("a large tensor")
}

#[test]
fn what_neighbours_leave_serves_a_larger_one() {
    let device = device_unchecked();
    let [a, b, c] = [1.0, 2.0, 3.0].map(|value| large(value, device));
    let (start, held) = (a.device_ptr().expect("address"), usage(device).expect("usage").held);
    drop((b, a));
    let joined = Tensor::full(&[2 * LARGE], 4.0, DType::U8, device).expect("a larger tensor");
    assert_eq!(joined.device_ptr(), Ok(start));
    assert_eq!(usage(device).expect("usage").held, held);
    let all = |t: &Tensor, value: u8| t.to_vec::<u8>().expect("values").iter().all(|&v| v == value);
    assert!(all(&joined, 4) && all(&c, 3));
}

#[test]
fn free_memory_anywhere_serves_what_needs_all_of_it() {
    let device = device_unchecked();
    let total = properties(device).expect("properties").memory;
    // a live one between two holes, neither of which has room for the last
    let (most, kept) = (total / 2, 1 << 20);
    let low = Tensor::empty(&[most], DType::U8, device).expect("half of the memory");
    let between = Tensor::full(&[kept], 5.0, DType::U8, device).expect("a small tensor");
    drop(low);
    let high = Tensor::empty(&[most + most / 2], DType::U8, device).expect("three quarters of the memory");
    assert!(usage(device).expect("usage").held <= total);
    assert!(between.to_vec::<u8>().expect("values").iter().all(|&v| v == 5));
    drop((between, high));
    Tensor::empty(&[total / 16 * 15], DType::U8, device).expect("nearly all of the memory");
    // what is larger than all addresses gives back what is free, so that other tests find the device as this one did
    assert!(Tensor::empty(&[4 * total], DType::U8, device).is_err());
    assert!(usage(device).expect("usage").held < total / 2);
}
