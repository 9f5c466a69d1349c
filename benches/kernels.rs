//! Single kernels at shapes of VoCo-B, one crop: for whoever rewrites one.
//!
//!     cargo bench --bench kernels -- conv3d
//!
//! Throughput counts floating-point operations (a multiply-add is two), or bytes where a kernel only moves them.

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use engine::{DType, Device, Tensor, random::uniform};
use kernels::{conv3d, gelu, instance_norm, layer_norm, linear, window_attention};
use std::hint::black_box;

const CUBE: conv3d::Params = conv3d::Params { stride: [1; 3], padding: [1; 3] };

fn values(seed: u64, dims: &[usize]) -> Tensor {
    let n: usize = dims.iter().product();
    let data: Vec<f32> = (0..n as u64).map(|i| 2.0 * uniform(seed, i) as f32 - 1.0).collect();
    Tensor::from_slice(&data, dims).expect("values")
}

fn group<'c>(c: &'c mut Criterion, name: &str, work: Throughput) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(name);
    group.throughput(work).sample_size(10);
    group
}

/// Channels and the side of the volume, for 3³ convolutions.
fn convolutions(c: &mut Criterion) {
    for (channels, side) in [(1, 64), (48, 64), (48, 32), (96, 16), (192, 8), (384, 4), (768, 2)] {
        let out = channels.max(48);
        let (x, w) = (values(1, &[1, side, side, side, channels]), values(2, &[out, 3, 3, 3, channels]));
        let dy = values(3, &[1, side, side, side, out]);
        let flop = 2 * 27 * (channels * out * side.pow(3)) as u64;
        let mut g = group(c, &format!("conv3d/{channels}-{out}/{side}"), Throughput::Elements(flop));
        g.bench_function("fprop", |b| b.iter(|| conv3d::fprop(black_box(&x), &w, None, CUBE).expect("fprop")));
        g.bench_function("dgrad", |b| b.iter(|| conv3d::dgrad(black_box(&dy), &w, x.dims(), CUBE).expect("dgrad")));
        g.bench_function("wgrad", |b| b.iter(|| conv3d::wgrad(black_box(&x), &dy, w.dims(), CUBE).expect("wgrad")));
    }
}

/// The second linear layer's shapes: rows, channels in, channels out.
fn linears(c: &mut Criterion) {
    for (rows, from, to) in [(32_768, 192, 48), (4096, 384, 96), (512, 768, 192), (64, 1536, 384), (22, 1152, 1024)] {
        let (x, w, dy) = (values(1, &[rows, from]), values(2, &[to, from]), values(3, &[rows, to]));
        let mut g =
            group(c, &format!("linear/{rows}/{from}-{to}"), Throughput::Elements((2 * rows * from * to) as u64));
        g.bench_function("fprop", |b| b.iter(|| linear::fprop(black_box(&x), &w, None).expect("fprop")));
        g.bench_function("dgrad", |b| b.iter(|| linear::dgrad(black_box(&dy), &w).expect("dgrad")));
        g.bench_function("wgrad", |b| b.iter(|| linear::wgrad(black_box(&x), &dy).expect("wgrad")));
    }
}

/// Side of the grid and heads of 16 channels.
fn attention(c: &mut Criterion) {
    for (side, heads) in [(32, 3), (16, 6), (8, 12), (4, 24)] {
        let channels = 16 * heads;
        let shift = if side > 7 { [3; 3] } else { [0; 3] };
        let p = window_attention::Params { heads, window: [7; 3], shift };
        let qkv = values(1, &[1, side, side, side, 3 * channels]);
        let (pad, table) = (values(2, &[3 * channels]), values(3, &[2197, heads]));
        let dy = values(4, &[1, side, side, side, channels]);
        let saved = window_attention::forward(&qkv, &pad, &table, p).expect("forward");
        let window = side.min(7);
        let flop = 4 * side.div_ceil(window).pow(3) * window.pow(6) * channels;
        let mut g = group(c, &format!("window_attention/{side}/{heads}"), Throughput::Elements(flop as u64));
        g.bench_function("forward", |b| {
            b.iter(|| window_attention::forward(black_box(&qkv), &pad, &table, p).expect("forward"));
        });
        let (y, lse) = (&saved.y, &saved.lse);
        g.bench_function("backward", |b| {
            b.iter(|| window_attention::backward(black_box(&dy), y, lse, &qkv, &pad, &table, p).expect("backward"));
        });
    }
}

fn rowwise(c: &mut Criterion) {
    let x = values(1, &[1, 32, 32, 32, 48]);
    let (weight, bias) = (Tensor::full(&[48], 1.0, DType::F32, Device::Cpu).expect("ones"), values(2, &[48]));
    let mut g = group(c, "rows/32/48", Throughput::Bytes(2 * 4 * x.numel() as u64));
    g.bench_function("layer_norm", |b| {
        b.iter(|| layer_norm::forward(black_box(&x), Some((&weight, &bias)), 1e-5).expect("forward"));
    });
    let p = instance_norm::Params { eps: 1e-5, slope: Some(0.01) };
    g.bench_function("instance_norm", |b| b.iter(|| instance_norm::forward(black_box(&x), None, p).expect("forward")));
    g.bench_function("gelu", |b| b.iter(|| gelu::forward(black_box(&x)).expect("forward")));
}

criterion_group!(benches, convolutions, linears, attention, rowwise);
criterion_main!(benches);
