//! Weights and checkpoints in safetensors, as files and as headers whose length is right.
#![no_main]

use fuzz::{FIXED, bounded, file, one_line};
use libfuzzer_sys::fuzz_target;
use models::state_dict;
use models::weights::Weights;
use training::checkpoint::Saved;
use vocoe_fuzz as fuzz;

fuzz_target!(|input: &[u8]| {
    let Some((form, bytes)) = input.split_first() else { return };
    match form % 2 {
        0 => read(bytes),
        _ => read(&framed(bytes)),
    }
});

fn read(bytes: &[u8]) {
    let path = file("x.safetensors", bytes);
    bounded(FIXED + 256 * bytes.len(), || {
        if let Some(weights) = one_line(Weights::parse(&path, bytes), &path) {
            one_line(state_dict::tensors(&path, &weights), &path);
        }
        one_line(Saved::read(&path), &path);
    });
}

/// Text up to the first zero byte is the header, the rest are the tensors.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let (header, rest) = bytes.split_at(end);
    [&(header.len() as u64).to_le_bytes()[..], header, rest.get(1..).unwrap_or_default()].concat()
}
