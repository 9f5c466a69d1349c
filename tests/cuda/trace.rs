//! Recordings of what a device did.

use super::{device, random};
use engine::DType;
use engine::trace::{Work, record, scope};
use kernels::{gelu, linear};

#[test]
fn every_kernel_is_in_its_scope_with_the_bytes_of_its_tensors() {
    let device = device();
    let to_device = |seed, dims: &[usize]| random(seed, dims, DType::F32).to_device(device).expect("copy");
    let (x, w) = (to_device(1, &[100, 24]), to_device(2, &[48, 24]));
    let (trace, y) = record(device, || {
        let _outer = scope("outer");
        let hidden = linear::fprop(&x, &w, None)?;
        let y = gelu::forward(&hidden)?;
        Ok::<_, engine::Error>(y.to_vec::<f32>()?.len())
    })
    .expect("recording");
    assert_eq!(y, 4800);
    let spans: Vec<_> = trace.spans.iter().map(|s| (s.name.as_str(), s.flops)).collect();
    assert_eq!(spans, [("outer", 0), ("linear fprop", 2 * 100 * 24 * 48)]);
    // the pool's check mode fills what is taken
    let done: Vec<&Work> = trace.work.iter().filter(|work| work.name != "fill").collect();
    let names: Vec<_> = done.iter().map(|work| (work.name.as_str(), work.span, work.bytes)).collect();
    let (product, activation) = (4 * (100 * 24 + 48 * 24 + 100 * 48), 4 * 2 * 100 * 48);
    assert!(names[0].0.starts_with("gemm_") && names[0].0.ends_with("_f32"), "{names:?}");
    assert_eq!((names[0].1, names[0].2), (Some(1), product));
    let others = [("gelu_forward_f32", Some(0), activation), ("copy from the device", Some(0), 4 * 4800)];
    assert_eq!(names[names.len() - 2..], others);
    assert!(done[0].grid.is_some_and(|grid| grid.block[0] > 0) && done.last().is_some_and(|w| w.grid.is_none()));
    let times: Vec<f64> = trace.work.iter().flat_map(|work| [work.begin, work.end]).collect();
    assert!(times[0] >= 0.0 && times.is_sorted(), "{times:?}");
}
