//! Captured work: it gives the bits of the same work done as it comes, keeps its memory to itself, and refuses what it cannot
//! repeat. Each test has the device for itself, as a capture has its memory.

use super::{device_alone, device_unchecked, random, same_bits};
use autograd::{Gradients, Init, ParamStore, ParamStoreBuilder, Role, Tape, ops};
use engine::cuda::{Graph, Output, Repeats, capture, properties, usage};
use engine::{DType, Device, Error, Result, Tensor, bf16};
use kernels::{add, gelu, l2_norm, row_dropout, sum_rows};
use training::optimizer::{AdamW, AdamWConfig};

fn values(seed: u64, dims: &[usize]) -> Vec<f32> {
    random(seed, dims, DType::F32).to_vec().expect("values")
}

/// Three kernels, a fill, and temporaries that are given back.
fn work(x: &Tensor) -> Result<Tensor> {
    let hidden = gelu::forward(&gelu::forward(x)?)?;
    let mut sum = Tensor::zeros(x.dims(), x.dtype(), x.device())?;
    add::accumulate(&mut sum, &hidden)?;
    add::forward(&sum, x)
}

fn captured(x: &Tensor, device: Device) -> (Graph, Tensor) {
    work(x).expect("work as it comes");
    capture(device, || work(x)).expect("capture")
}

#[test]
fn a_graph_repeats_its_work_on_what_its_inputs_hold() {
    let device = device_alone();
    let dims = [37, 11];
    let mut x = random(1, &dims, DType::F32).to_device(device).expect("x");
    let (graph, y) = captured(&x, device);
    for seed in [1, 2, 3] {
        x.overwrite(&values(seed, &dims)).expect("new values");
        graph.launch().expect("launch");
        same_bits(&[&y], &[&work(&x).expect("work")]);
    }
    // twice in a row, without a look between
    graph.launch().and_then(|()| graph.launch()).expect("launches");
    same_bits(&[&y], &[&work(&x).expect("work")]);
}

#[test]
fn its_memory_is_its_own_until_it_is_dropped() {
    let device = device_unchecked();
    let dims = [1013, 3];
    let x = random(1, &dims, DType::F32).to_device(device).expect("x");
    let used = |pointers: &mut Vec<u64>, t: Tensor| t.device_ptr().map(|pointer| pointers.push(pointer));
    let run = |x: &Tensor| {
        let mut pointers = Vec::new();
        let (a, b) = (gelu::forward(x)?, gelu::forward(x)?);
        let sum = add::forward(&a, &b)?;
        used(&mut pointers, a)?;
        used(&mut pointers, b)?;
        Ok::<_, Error>((sum, pointers))
    };
    run(&x).expect("as it comes");
    let (graph, (sum, temporary)) = capture(device, || run(&x)).expect("capture");
    let filled = |value| (0..6).map(move |_| Tensor::full(&dims, value, DType::F32, device).expect("tensor"));
    let others: Vec<Tensor> = filled(7.0).collect();
    assert!(others.iter().all(|t| !temporary.contains(&t.device_ptr().expect("pointer"))));
    graph.launch().expect("launch");
    assert!(others.iter().all(|t| t.to_vec::<f32>().expect("values").iter().all(|&v| v == 7.0)));
    same_bits(&[&sum], &[&run(&x).expect("as it comes").0]);
    drop((graph, others));
    let others: Vec<Tensor> = filled(8.0).chain(filled(9.0)).collect();
    let again: Vec<u64> = others.iter().map(|t| t.device_ptr().expect("pointer")).collect();
    assert!(temporary.iter().all(|pointer| again.contains(pointer)));
}

#[test]
fn what_cannot_be_repeated_is_refused_and_named() {
    let device = device_alone();
    let mut x = random(1, &[29, 5], DType::F32).to_device(device).expect("x");
    work(&x).expect("as it comes");
    let refused = |what: &str, try_it: &mut dyn FnMut() -> Result<()>| {
        let error = capture(device, &mut *try_it).err().expect("refused").to_string();
        let swallowed = capture(device, || try_it().or(Ok::<_, Error>(()))).err().expect("refused").to_string();
        assert!(error.contains(what) && error.contains("--no-graph") && swallowed == error, "{error}\n{swallowed}");
    };
    refused("copying from the device", &mut || work(&x)?.to_vec::<f32>().map(drop));
    refused("copying to the device", &mut || Tensor::full(&[29, 5], 1.0, DType::F32, device).map(drop));
    refused("capturing a step", &mut || capture(device, || work(&x)).map(drop));
    refused("timing", &mut || engine::cuda::elapsed(device, || Ok(())).map(drop));
    // afterwards everything is as before
    let (graph, y) = captured(&x, device);
    x.overwrite(&values(2, &[29, 5])).expect("new values");
    graph.launch().expect("launch");
    same_bits(&[&y], &[&work(&x).expect("work")]);
}

#[test]
fn what_it_takes_may_be_more_than_anybody_took_before() {
    let device = device_unchecked();
    let total = properties(device).expect("properties").memory;
    // what is larger than all addresses gives back what is free: other tests may have left most of the card held
    assert!(Tensor::empty(&[4 * total], DType::U8, device).is_err());
    let fresh = usage(device).expect("usage").held + 1;
    let cleared = || Tensor::zeros(&[fresh], DType::U8, device);
    let (graph, t) = capture(device, cleared).expect("capture");
    graph.launch().expect("launch");
    for at in [0, fresh / 2, fresh - 1] {
        assert_eq!(t.rows_at(at, 1).and_then(|one| one.item()), Ok(0.0));
    }
}

#[test]
fn a_flush_on_the_way_leaves_the_memory_that_the_work_has_given_back() {
    let device = device_unchecked();
    let total = properties(device).expect("properties").memory;
    let x = random(1, &[29, 5], DType::F32).to_device(device).expect("x");
    let want = work(&x).expect("work as it comes");
    // a hole before a small tensor, whose memory the last one can only have when it is taken away there
    let low = Tensor::empty(&[total / 2], DType::U8, device).expect("half of the memory");
    let _between = Tensor::empty(&[1 << 20], DType::U8, device).expect("a small tensor");
    drop(low);
    let run = || {
        Tensor::zeros(&[100_000_001], DType::U8, device)?;
        Tensor::empty(&[total / 4 * 3], DType::U8, device)?;
        work(&x)
    };
    let (graph, y) = capture(device, run).expect("capture");
    graph.launch().expect("launch");
    same_bits(&[&y], &[&want]);
}

#[test]
fn other_threads_go_on_while_one_captures() {
    let device = device_alone();
    let x = random(1, &[61, 7], DType::F32).to_device(device).expect("x");
    work(&x).expect("as it comes");
    let elsewhere = || {
        let there = random(2, &[61, 7], DType::F32).to_device(device)?;
        let read = sum_rows::forward(&there)?.to_vec::<f32>()?;
        Tensor::zeros(&[5_500_003], DType::U8, device)?;
        Ok::<_, Error>(read)
    };
    let beside = || std::thread::scope(|scope| scope.spawn(elsewhere).join().expect("thread"));
    let (graph, (y, read)) = capture(device, || Ok::<_, Error>((work(&x)?, beside()?))).expect("capture");
    assert_eq!(read, elsewhere().expect("values"));
    graph.launch().expect("launch");
    same_bits(&[&y], &[&work(&x).expect("work")]);
}

#[test]
fn a_graph_whose_input_is_gone_is_not_started() {
    let device = device_alone();
    let x = random(1, &[17, 13], DType::F32).to_device(device).expect("x");
    let (graph, _y) = captured(&x, device);
    graph.launch().expect("launch");
    drop(x);
    let _other = Tensor::zeros(&[17, 13], DType::F32, device).expect("another where x was");
    let error = graph.launch().expect_err("x is gone").to_string();
    assert!(error.contains("capture it again"), "{error}");
}

#[test]
fn launches_take_no_memory() {
    let device = device_unchecked();
    let x = random(1, &[4099], DType::BF16).to_device(device).expect("x");
    let (graph, y) = captured(&x, device);
    graph.launch().expect("launch");
    let before = usage(device).expect("usage");
    for _ in 0..5 {
        graph.launch().expect("launch");
    }
    assert_eq!(usage(device).expect("usage"), before);
    let kept = y.to_vec::<bf16>().expect("values");
    drop((graph, y));
    assert!(usage(device).expect("usage").live < before.live && kept.len() == 4099);
}

const CHANNELS: usize = 24;

fn layers(device: Device) -> ParamStore {
    let mut builder = ParamStoreBuilder::default();
    builder.add("hidden", &[2 * CHANNELS, CHANNELS], Role::Operand, Init::Uniform(0.5));
    builder.add("out", &[CHANNELS, 2 * CHANNELS], Role::Operand, Init::Uniform(0.5));
    builder.build(DType::F32, device, 5).expect("parameters")
}

/// Two layers, of which some rows are dropped: the gradients, and their norm.
fn gradients(params: &ParamStore, [x, seed]: &[Tensor; 2]) -> autograd::Result<(Gradients, Tensor)> {
    let tape = Tape::new(params);
    let hidden = ops::linear(&tape, &tape.constant(x.clone()), &tape.param(params.find("hidden")?)?, None)?;
    let kept = ops::row_dropout(&tape, &ops::gelu(&tape, &hidden)?, 0.3, seed)?;
    let y = ops::linear(&tape, &kept, &tape.param(params.find("out")?)?, None)?;
    let grads = tape.backward(&y, x.clone())?;
    let norm = l2_norm::forward(grads.slab())?;
    Ok((grads, norm))
}

/// Updates on inputs of so many rows each: the norms and the parameters, and which steps came from a graph.
fn train(device: Device, graphs: bool, rows: &[usize]) -> (Vec<f64>, Tensor, Vec<bool>) {
    let mut params = layers(device);
    let mut optimizer = AdamW::new(&params, AdamWConfig::default()).expect("optimiser");
    let mut repeats = Repeats::new(device, graphs);
    let (mut norms, mut repeated, mut held) = (Vec::new(), Vec::new(), Vec::new());
    for (&n, step) in rows.iter().zip(1..) {
        let (dims, words) = ([n, CHANNELS], row_dropout::words(step));
        let inputs = |before: Option<[Tensor; 2]>| match before {
            Some([mut x, mut seed]) => {
                x.overwrite(&values(step, &dims))?;
                seed.overwrite(&words)?;
                Ok([x, seed])
            }
            None => Ok([random(step, &dims, DType::F32).to_device(device)?, row_dropout::seed(step, device)?]),
        };
        let done = repeats.run(n, inputs, |inputs| gradients(&params, inputs)).expect("gradients");
        let (grads, norm) = &*done;
        optimizer.step(&mut params, grads, 0.01).expect("update");
        norms.push(norm.item().expect("norm"));
        repeated.push(matches!(done, Output::Repeated(_)));
        held.push(usage(device).expect("usage"));
    }
    assert!(held[2..4] == [held[2]; 2], "a step takes memory: {held:?}");
    (norms, params.slab().to_device(Device::Cpu).expect("values"), repeated)
}

#[test]
fn repeated_steps_give_the_bits_of_steps_as_they_come_whatever_comes_between() {
    let device = device_unchecked();
    let rows = [34, 34, 34, 34, 21, 34, 34, 34, 50, 50];
    let (norms, params, repeated) = train(device, true, &rows);
    let (want, wanted, never) = train(device, false, &rows);
    same_bits(&[&params], &[&wanted]);
    assert_eq!(norms, want);
    assert_eq!(repeated, [false, true, true, true, false, false, true, true, false, true]);
    assert!(!never.contains(&true));
}
