//! A recorded step as a file for Perfetto or Chrome's tracing: what the host did, and what the GPU did for it.

use crate::{Error, Result, file};
use engine::trace::{Span, Trace, Work};
use engine::{Device, trace};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Processes of the file, and their threads.
const HOST: u32 = 1;
const GPU: u32 = 2;
const MAIN: u32 = 1;
const KERNELS: u32 = 1;
const OPERATIONS: u32 = 2;

/// Errors unless the file can be written, before anything is done for it. What is there stays until there is a recording.
pub fn prepare(path: &Path) -> Result<()> {
    if path.exists() && !path.is_file() {
        return Err(Error::Config(format!("{}: is no regular file; name one", path.display())));
    }
    file::try_replacing(path)
}

/// Does `work`, records it with what `device` does of it, and writes the recording.
pub fn record<T>(path: &Path, device: Device, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (trace, done) = trace::record(device, work)?;
    file::replace(path, document(&trace, device).to_string())?;
    Ok(done)
}

/// In the format of Chrome's trace events: complete events, times in microseconds.
fn document(trace: &Trace, device: Device) -> Value {
    let mut events = vec![name("process_name", HOST, 0, "host"), name("thread_name", HOST, MAIN, "scopes")];
    events.extend(trace.spans.iter().map(|span| host_event(span, device)));
    if !trace.work.is_empty() {
        events.push(name("process_name", GPU, 0, &device.to_string()));
        events.push(name("thread_name", GPU, KERNELS, "kernels"));
        events.push(name("thread_name", GPU, OPERATIONS, "operations"));
    }
    events.extend(trace.work.iter().map(|work| device_event(work, &trace.spans)));
    events.extend(operations(trace));
    json!({ "displayTimeUnit": "ms", "traceEvents": events })
}

fn name(what: &str, process: u32, thread: u32, name: &str) -> Value {
    json!({ "ph": "M", "name": what, "pid": process, "tid": thread, "args": { "name": name } })
}

fn event(name: &str, (process, thread): (u32, u32), begin: f64, end: f64, arguments: Map<String, Value>) -> Value {
    json!({
        "ph": "X", "name": name, "pid": process, "tid": thread, "ts": 1e6 * begin, "dur": 1e6 * (end - begin), "args": arguments
    })
}

fn host_event(span: &Span, device: Device) -> Value {
    let mut arguments = Map::new();
    // On a GPU the host's time says nothing about how fast it computes.
    if span.flops > 0 && device == Device::Cpu {
        arguments.extend(rates(span.flops, span.end - span.begin));
    }
    if let Some(forward) = &span.forward {
        arguments.insert("forward".into(), json!(**forward));
    }
    event(&span.name, (HOST, MAIN), span.begin, span.end, arguments)
}

fn device_event(work: &Work, spans: &[Span]) -> Value {
    let mut arguments = Map::new();
    arguments.insert("bytes".into(), json!(work.bytes));
    arguments.insert("GB/s".into(), json!(rate(work.bytes, work.end - work.begin)));
    if let Some(grid) = work.grid {
        arguments.insert("grid".into(), json!(grid.grid));
        arguments.insert("block".into(), json!(grid.block));
        arguments.insert("shared".into(), json!(grid.shared));
    }
    arguments.insert("in".into(), json!(path(work.span, spans)));
    event(&work.name, (GPU, KERNELS), work.begin, work.end, arguments)
}

/// What the device did for one span, from its first kernel to the end of its last.
fn operations(trace: &Trace) -> Vec<Value> {
    let mut events = Vec::new();
    for of_span in trace.work.chunk_by(|a, b| a.span == b.span) {
        let (Some(first), Some(last), Some(span)) = (of_span.first(), of_span.last(), of_span[0].span) else {
            continue;
        };
        let (span, mut arguments) = (&trace.spans[span], Map::new());
        if span.flops > 0 {
            arguments.extend(rates(span.flops, last.end - first.begin));
        }
        arguments.insert("in".into(), json!(path(span.parent, &trace.spans)));
        events.push(event(&span.name, (GPU, OPERATIONS), first.begin, last.end, arguments));
    }
    events
}

fn rates(flops: usize, seconds: f64) -> [(String, Value); 2] {
    [("FLOP".into(), json!(flops)), ("GFLOP/s".into(), json!(rate(flops, seconds)))]
}

/// In 10⁹ a second; None, which is null, for what took no time.
fn rate(amount: usize, seconds: f64) -> Option<f64> {
    (seconds > 0.0).then(|| amount as f64 / seconds / 1e9)
}

/// The names of a span and of those around it, from the outermost on.
fn path(span: Option<usize>, spans: &[Span]) -> String {
    let mut names: Vec<&str> =
        std::iter::successors(span, |&i| spans[i].parent).map(|i| spans[i].name.as_str()).collect();
    names.reverse();
    names.join(" > ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::cuda::Grid;

    fn span(name: &str, parent: Option<usize>, flops: usize) -> Span {
        Span { name: name.into(), begin: 0.0, end: 1.0, parent, flops, forward: None }
    }

    fn work(name: &str, begin: f64, span: usize) -> Work {
        let grid = Some(Grid { grid: [3, 1, 1], block: [64, 1, 1], shared: 0 });
        Work { name: name.into(), begin, end: begin + 0.001, span: Some(span), bytes: 4_000_000, grid }
    }

    #[test]
    fn kernels_and_their_operations_have_rates_and_places() {
        let trace = Trace {
            spans: vec![span("forward", None, 0), span("conv3d fprop", Some(0), 6_000_000)],
            work: vec![work("gemm_fprop_f32", 0.5, 1), work("gemm_sum_f32", 0.502, 1), work("fill", 0.6, 0)],
        };
        let document = document(&trace, Device::Cuda(0));
        let events = document["traceEvents"].as_array().expect("events");
        let find = |name: &str, thread| {
            let is = |e: &&Value| e["name"] == name && e["pid"] == GPU && e["tid"] == thread;
            events.iter().find(is).unwrap_or_else(|| panic!("{name}"))
        };
        let kernel = find("gemm_fprop_f32", KERNELS);
        assert_eq!(kernel["args"]["in"], "forward > conv3d fprop");
        assert_eq!((&kernel["args"]["bytes"], &kernel["args"]["grid"]), (&json!(4_000_000), &json!([3, 1, 1])));
        assert!((kernel["args"]["GB/s"].as_f64().expect("rate") - 4.0).abs() < 1e-9);
        let operation = find("conv3d fprop", OPERATIONS);
        assert!((operation["dur"].as_f64().expect("µs") - 3000.0).abs() < 1e-6);
        assert!((operation["args"]["GFLOP/s"].as_f64().expect("rate") - 2.0).abs() < 1e-9);
        assert_eq!(find("fill", KERNELS)["ts"], json!(6e5));
        // the host's event has no rate: the host only launched
        let host = events.iter().find(|e| e["pid"] == HOST && e["name"] == "conv3d fprop").expect("host");
        assert_eq!(host["args"], json!({}));
    }
}
