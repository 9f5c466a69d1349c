//! PyTorch's checkpoints: whole files, and pickles in an archive whose checksums are right.
#![no_main]

use fuzz::{FIXED, bounded, one_line, zip};
use libfuzzer_sys::fuzz_target;
use models::weights::Weights;
use models::{state_dict, torch_file};
use std::path::Path;
use vocoe_fuzz as fuzz;

/// What the reader allows itself for copies of tensors that share their storages, above the file's size, and once more for the
/// archive that tensors are written to here.
const SHARED: usize = 128 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((form, bytes)) = input.split_first() else { return };
    match form % 2 {
        0 => read(bytes),
        _ => read(&zip(&[("a/data.pkl", bytes), ("a/data/0", &[7; 24]), ("a/data/1", &[9; 16])])),
    }
});

fn read(bytes: &[u8]) {
    let path = Path::new("x.pt");
    let limit = FIXED + 3 * SHARED + 256 * bytes.len();
    bounded(limit, || {
        let Some(weights) = one_line(Weights::parse(path, bytes), path) else { return };
        // tensors that lie in one place in this file lie apart in the next
        if weights.size() > SHARED + 2 * bytes.len() {
            return;
        }
        let mut again = Vec::new();
        torch_file::write(&weights, &mut again).expect("what was read can be written");
        let read = Weights::parse(path, &again).expect("and read");
        assert_eq!(read.tensors, weights.tensors);
    });
    let small = |weights: &Weights| weights.size() <= FIXED;
    if let Some(weights) = Weights::parse(path, bytes).ok().filter(small) {
        bounded(FIXED + 10 * weights.size(), || one_line(state_dict::tensors(path, &weights), path));
    }
}
