//! Weights go into their parameters without copies on the way.

use autograd::{Init, ParamStoreBuilder, Role};
use engine::{DType, Device, memory};
use models::state_dict::import_weights;
use models::weights::{RawTensor, Weights};
use peak_alloc::PeakAlloc;
use safetensors::Dtype;
use std::path::Path;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

#[test]
fn an_import_takes_less_memory_than_its_largest_tensor() {
    let (n, dims, shape) = (64 * 64 * 27, [64, 3, 3, 3, 64], vec![64, 64, 3, 3, 3]);
    let mut builder = ParamStoreBuilder::default();
    builder.add("conv.weight", &dims, Role::Operand, Init::Zeros);
    let mut store = builder.build(DType::BF16, Device::Cpu, 0).expect("store");
    let raw = RawTensor { dtype: Dtype::F32, shape, data: vec![0; 4 * n].into() };
    let weights = Weights { tensors: [("conv.weight".to_string(), raw)].into(), ..Weights::default() };
    // the threads that do it allocate where they begin
    import_weights([&mut store], "", Path::new("w.pt"), &weights).expect("import");
    // tensors have memory of their own
    let (before, tensors) = (MEMORY.current_usage(), memory::usage().live);
    MEMORY.reset_peak_usage();
    memory::reset_peak();
    let report = import_weights([&mut store], "", Path::new("w.pt"), &weights).expect("import");
    let taken = MEMORY.peak_usage() - before + memory::usage().peak - tensors;
    assert_eq!(report.loaded.len(), 1);
    assert!(taken < n, "{taken} bytes for a tensor of {}", 4 * n);
}
