//! Whatever the bytes are, reading them neither panics nor takes much more memory than they do.

use crate::build::{dict, legacy, one, parse, pickle, six, tensor, text, tuple, zip};
use models::weights::Weights;
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// More than the allowances for values and for copied tensors together; a length that is believed asks for far more.
const LIMIT: usize = 400 << 20;

/// More than this is not written again, so that the limit is that of reading.
const MOST_WRITTEN: usize = 1 << 20;

/// Reads the bytes, and what they hold once more as another file.
fn survives(bytes: &[u8]) {
    let held = |weights: &Weights| weights.tensors.values().map(|t| t.data.len()).sum::<usize>();
    if let Ok(weights) = parse(bytes)
        && held(&weights) <= MOST_WRITTEN
    {
        let mut again = Vec::new();
        models::torch_file::write(&weights, &mut again).expect("what was read can be written");
        let Weights { tensors, .. } = parse(&again).expect("and read");
        assert_eq!(tensors, weights.tensors);
    }
    assert!(MEMORY.peak_usage() < LIMIT, "{} bytes", MEMORY.peak_usage());
}

fn nested() -> Vec<u8> {
    let metadata = [b"}", text("_metadata").as_slice(), &dict(&[("", dict(&[("step", text("5"))]))]), b"sb"].concat();
    let t = || tensor("FloatStorage", "0", 6, 0, &[3, 2], &[1, 3]);
    let inner =
        [dict(&[("a", t()), ("b", t()), ("c", tuple(&[text("x"), b"q\x01h\x01".to_vec()]))]), metadata].concat();
    pickle(&dict(&[("state_dict", inner), ("epoch", b"K\x07".to_vec()), ("list", b"](NK\x01e".to_vec())]))
}

#[derive(Clone, Debug)]
enum Change {
    Set(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    Insert(prop::sample::Index, u8),
    Cut(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = || any::<prop::sample::Index>();
    // Opcodes more often than other bytes.
    let byte =
        || prop_oneof![any::<u8>(), prop::sample::select(&b"(.012GJKMNQRTUXabcehjqrstu)]}\x80\x85\x86\x8a\x8b"[..])];
    prop_oneof![
        8 => (at(), byte()).prop_map(|(i, b)| Change::Set(i, b)),
        4 => at().prop_map(Change::Remove),
        4 => (at(), byte()).prop_map(|(i, b)| Change::Insert(i, b)),
        1 => at().prop_map(Change::Cut),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        match change {
            Change::Set(i, b) => bytes[i.index(length)] = *b,
            Change::Remove(i) => drop(bytes.remove(i.index(length))),
            Change::Insert(i, b) => bytes.insert(i.index(length), *b),
            Change::Cut(i) => bytes.truncate(i.index(length)),
        }
    }
    bytes
}

/// Always the same files, so that one that fails can be had again.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 2000, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        survives(&bytes);
        survives(&[b"PK\x03\x04", bytes.as_slice()].concat());
        survives(&zip(&bytes, &[]));
    }

    #[test]
    fn changed_archives(changes in prop::collection::vec(change(), 1..6)) {
        survives(&changed(one(6, 0, &[3, 2], &[1, 3]), &changes));
    }

    #[test]
    fn changed_pickles(changes in prop::collection::vec(change(), 1..6)) {
        survives(&zip(&changed(nested(), &changes), &[("0", &six())]));
    }

    #[test]
    fn changed_old_files(changes in prop::collection::vec(change(), 1..6)) {
        survives(&changed(legacy(&nested(), &[("0", 6, &six())]), &changes));
    }
}

#[test]
fn unchanged_files_are_read() {
    for file in [zip(&nested(), &[("0", &six())]), legacy(&nested(), &[("0", 6, &six())])] {
        let weights = parse(&file).expect("readable");
        assert_eq!((weights.tensors.len(), weights.metadata["step"].as_str()), (2, "5"));
    }
}

#[test]
fn depth_and_numbers_of_values_are_no_danger() {
    let deep = |n: usize| [vec![b']'; n], vec![b'a'; n - 1]].concat();
    survives(&zip(&pickle(&dict(&[("deep", deep(100_000))])), &[]));
    let file = zip(&pickle(&[vec![b'('], vec![b'N'; 3_000_000], vec![b't']].concat()), &[]);
    assert!(parse(&file).is_err_and(|e| e.contains("more values")));
    let doubled = [b"]q\0".to_vec(), b"](h\0h\0eq\0".repeat(10_000)].concat();
    survives(&zip(&pickle(&dict(&[("doubled", doubled)])), &[]));
    survives(&zip(b"\x80\x02]q\x00h\x00a}h\x00h\x00s.", &[]));
}

#[test]
fn one_long_text_used_often_stays_one() {
    let long = [text(&"x".repeat(1 << 20)).as_slice(), b"q\0"].concat();
    let keys = [b"}(".to_vec(), long, b"N".to_vec(), b"h\0N".repeat(50_000), b"u".to_vec()].concat();
    survives(&zip(&pickle(&keys), &[]));
    let metadata: Vec<u8> = (0..20_000).flat_map(|i| [text(&i.to_string()).as_slice(), b"h\0"].concat()).collect();
    let entry = [text(&"x".repeat(1 << 20)).as_slice(), b"q\x000}}"].concat();
    let module = [&text("")[..], b"}(", &metadata, b"us"].concat();
    let state = [entry.as_slice(), &text("_metadata"), b"}", &module, b"sb"].concat();
    assert!(parse(&zip(&pickle(&state), &[])).is_err_and(|e| e.contains("metadata")));
}
