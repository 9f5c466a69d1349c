//! `report` on the files of a run: settings up to the first zero byte, then the lines of `metrics.jsonl`.
#![no_main]

use fuzz::{FIXED, bounded, file, folder, one_line};
use libfuzzer_sys::fuzz_target;
use vocoe_fuzz as fuzz;

fuzz_target!(|input: &[u8]| {
    let end = input.iter().position(|&b| b == 0).unwrap_or(input.len());
    let (settings, metrics) = input.split_at(end);
    file("config.toml", settings);
    file("metrics.jsonl", metrics.get(1..).unwrap_or_default());
    bounded(FIXED + 1024 * input.len(), || one_line(training::report::write(folder(), None), folder()));
});
