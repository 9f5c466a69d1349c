//! PyTorch's files, right, wrong and hostile.

mod build;
mod hostile;

use build::{archive, dict, flagged, integer, legacy, one, parse, pickle, refusal, six, tensor, text, tuple, zip};
use models::weights::{RawTensor, Weights};
use models::{state_dict, torch_file};
use safetensors::Dtype;

fn floats(t: &RawTensor) -> Vec<f32> {
    t.data.as_chunks().0.iter().map(|&w| f32::from_le_bytes(w)).collect()
}

/// The values that tensor `t` of a file holds.
fn values(file: &[u8]) -> Vec<f32> {
    floats(&parse(file).expect("readable").tensors["t"])
}

#[test]
fn strides_and_offsets_choose_elements() {
    assert_eq!(values(&one(6, 0, &[2, 3], &[3, 1])), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(values(&one(6, 0, &[3, 2], &[1, 3])), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(values(&one(6, 1, &[2, 1, 2], &[3, 7, 1])), [1.0, 2.0, 4.0, 5.0]);
    assert_eq!(values(&one(6, 5, &[], &[])), [5.0]);
    assert_eq!(values(&one(6, 2, &[2, 2], &[0, 1])), [2.0, 3.0, 2.0, 3.0]);
    assert_eq!(values(&one(6, 2, &[1, 2], &[i64::MAX, 2])), [2.0, 4.0]);
    assert!(values(&one(6, 99, &[3, 0], &[1, 1])).is_empty());
}

#[test]
fn tensors_beyond_their_storage_are_refused() {
    for (numel, offset, shape, strides) in [
        (6, 1, &[6][..], &[1][..]),
        (6, 6, &[], &[]),
        (6, 0, &[2, 3], &[4, 1]),
        (5, 0, &[6], &[1]),
        (7, 0, &[6], &[1]),
        (6, 0, &[6, 1], &[1]),
        (6, -1, &[1], &[1]),
        (6, 0, &[-1], &[1]),
        (6, 0, &[2], &[-1]),
        (6, 0, &[1 << 40], &[0]),
        (6, 0, &[1 << 40, 1 << 40], &[0, 0]),
        (6, 0, &[3], &[i64::MAX]),
        (6, 0, &[1 << 62, 1 << 62, 0], &[0, 0, 1]),
        (6, 0, &[0, 1 << 62, 2], &[0, 2, 1]),
        (6, i64::MAX, &[1], &[1]),
        (i64::MAX, 0, &[6], &[1]),
        (6, 0, &[1; 33], &[1; 33]),
    ] {
        refusal(&one(numel, offset, shape, strides));
    }
}

/// `torch.tensor([1 + 2j]).conj().imag` is saved as 2 with its negative bit set.
#[test]
fn tensors_whose_values_are_not_those_of_their_storage_are_refused() {
    let file = |flags: &[Vec<u8>]| {
        let t = flagged("FloatStorage", "0", 6, 0, &[6], &[1], flags);
        zip(&pickle(&dict(&[("t", t)])), &[("0", &six())])
    };
    for none in [vec![], vec![b"N".to_vec()], vec![b"}".to_vec()]] {
        assert_eq!(values(&file(&none)).len(), 6);
    }
    let negative = dict(&[("neg", b"\x88".to_vec())]);
    for some in [vec![negative], vec![integer(1)], vec![b"N".to_vec(), b"N".to_vec()]] {
        assert!(refusal(&file(&some)).contains("resolve_neg()"));
    }
    let three = b"(NNNt".to_vec();
    assert!(
        refusal(&zip(&pickle(&[b"ctorch._utils\n_rebuild_tensor_v2\n", &three[..], b"R"].concat()), &[]))
            .contains("call")
    );
}

#[test]
fn only_copies_of_shared_storages_count_against_the_files_size() {
    let (rows, columns) = (1 << 10, 5 << 10);
    let storage = vec![1; 4 * (rows * columns) as usize];
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let t = tensor("FloatStorage", "0", rows * columns, 0, &[rows, columns], &[columns, 1]);
    let file = zip(&pickle(&dict(&names.map(|name| (name, t.clone())))), &[("0", &storage)]);
    let weights = parse(&file).expect("nine names for one tensor of 20 MiB");
    assert_eq!(weights.size(), 9 * storage.len());
    assert!(refusal(&one(6, 0, &[1 << 40], &[0])).contains("t.clone()"));
}

#[test]
fn the_old_format_holds_the_same() {
    let two = dict(&[
        ("t", tensor("FloatStorage", "77", 6, 0, &[3, 2], &[1, 3])),
        ("n", tensor("LongStorage", "78", 1, 0, &[], &[])),
    ]);
    let file = legacy(&pickle(&two), &[("78", 1, &7i64.to_le_bytes()), ("77", 6, &six())]);
    assert_eq!(values(&file), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(*parse(&file).expect("readable").tensors["n"].data, 7i64.to_le_bytes());
    for cut in 0..file.len() {
        refusal(&file[..cut]);
    }
    assert!(refusal(&legacy(&pickle(&two), &[("77", i64::MAX, &six())])).contains("cut off"));
    assert!(refusal(&legacy(&pickle(&two), &[("77", -1, &six())])).contains("cut off"));
    assert!(refusal(&legacy(&pickle(&two), &[("5", 6, &six())])).contains("\"5\""));
}

#[test]
fn wrappers_are_opened_and_what_lies_beside_is_named() {
    let inner = |value: f32| {
        let t = tensor("FloatStorage", if value == 0.0 { "0" } else { "1" }, 1, 0, &[1], &[1]);
        dict(&[("t", t), ("epoch", integer(3))])
    };
    let wrapped = dict(&[("student", inner(1.0)), ("net", inner(0.0)), ("lr", b"G\x3f\xf0\0\0\0\0\0\0".to_vec())]);
    let file = zip(&pickle(&wrapped), &[("0", &0f32.to_le_bytes()), ("1", &1f32.to_le_bytes())]);
    let weights = parse(&file).expect("readable");
    assert_eq!((weights.wrapper, floats(&weights.tensors["t"])), (Some("net"), vec![0.0]));
    assert_eq!(weights.ignored.iter().collect::<Vec<_>>(), ["epoch", "lr", "student"]);
}

#[test]
fn names_lose_what_wrappers_of_modules_put_before_them() {
    let t = || tensor("FloatStorage", "0", 1, 0, &[1], &[1]);
    let file = |names: &[&str]| {
        let entries: Vec<_> = names.iter().map(|name| (*name, t())).collect();
        zip(&pickle(&dict(&entries)), &[("0", &six())])
    };
    let bytes = file(&["module.backbone.swin_vit.x", "module.a", "b.module.c"]);
    let mut weights = parse(&bytes).expect("readable");
    assert_eq!(weights.rename(), Ok(2));
    assert_eq!(weights.tensors.keys().collect::<Vec<_>>(), ["a", "b.module.c", "swinViT.x"]);
    let bytes = file(&["module.a", "a"]);
    assert!(parse(&bytes).expect("readable").rename().is_err_and(|e| e.contains("\"a\"")));
}

#[test]
fn what_a_pickle_calls_is_refused_by_name() {
    let call = |global: &str| pickle(&[format!("c{global}\n").as_bytes(), &tuple(&[text("id")]), b"R"].concat());
    for (global, name) in [
        ("posix\nsystem", "posix.system"),
        ("builtins\neval", "builtins.eval"),
        ("torch\nload", "torch.load"),
        ("collections\nCounter", "collections.Counter"),
        ("evil\nFloatStorage", "evil.FloatStorage"),
        ("torch\nComplexFloatStorage", "torch.ComplexFloatStorage"),
        ("numpy.core.multiarray\nscalar", "numpy.core.multiarray.scalar"),
    ] {
        assert!(refusal(&zip(&call(global), &[])).contains(name));
        assert!(refusal(&legacy(&call(global), &[])).contains(name));
    }
    assert!(refusal(&zip(&call("a\x1b[2Jb\rc\nd"), &[])).chars().all(|c| !c.is_control()));
}

#[test]
fn odd_pickles_are_refused() {
    let odd: [&[u8]; 18] = [
        b"",
        b".",
        b"\x80\x04}.",
        b"\x80\x02}",
        b"N.",
        b"].",
        b"}.",
        b"t.",
        b"u.",
        b"a.",
        b"h\x05.",
        b"(1.",
        b"}(Nu.",
        b"NNb.",
        b")Q.",
        b"ctorch\nSize\n)R.",
        b"X\xff\xff\xff\xffabc.",
        b"X\x01\0\0\0\xff.",
    ];
    for pickle in odd {
        refusal(&zip(pickle, &[]));
        refusal(&legacy(pickle, &[]));
    }
}

#[test]
fn containers_that_are_none_are_refused() {
    for bytes in [&b""[..], b"PK", b"junk", b"PK\x03\x04", &[0; 100], &[0xff; 100]] {
        refusal(bytes);
    }
    let whole = one(6, 0, &[6], &[1]);
    for cut in 0..whole.len() {
        refusal(&whole[..cut]);
    }
    let mut damaged = whole.clone();
    let at = damaged.windows(24).position(|w| w == six()).expect("the storage");
    damaged[at] ^= 1;
    assert!(
        refusal(&damaged).contains("does not match its checksum") && refusal(&damaged).contains("set_crc32_options")
    );
    assert!(refusal(&archive([("a/b".to_string(), &b""[..])])).contains("data.pkl"));
    let pickle = pickle(&dict(&[("t", tensor("FloatStorage", "0", 1, 0, &[1], &[1]))]));
    let big = [("a/byteorder", &b"big"[..]), ("a/data.pkl", &pickle), ("a/data/0", &[0; 4])];
    assert!(refusal(&archive(big.map(|(n, d)| (n.to_string(), d)))).contains("big-endian"));
    assert!(refusal(&zip(&pickle, &[])).contains("storage \"0\""));
}

/// One tensor of every dtype, and the extremes of shape.
fn every_dtype() -> Weights<'static> {
    let all = [
        (Dtype::F64, 8),
        (Dtype::F32, 4),
        (Dtype::F16, 2),
        (Dtype::BF16, 2),
        (Dtype::I64, 8),
        (Dtype::I32, 4),
        (Dtype::I16, 2),
        (Dtype::I8, 1),
        (Dtype::U8, 1),
        (Dtype::BOOL, 1),
    ];
    let raw = |dtype, shape: &[usize], length: usize| RawTensor {
        dtype,
        shape: shape.to_vec(),
        data: (0..length).map(|i| (i % 2) as u8).collect::<Vec<_>>().into(),
    };
    let mut weights = Weights::default();
    for (dtype, size) in all {
        weights.tensors.insert(format!("{dtype:?}"), raw(dtype, &[2, 3], 6 * size));
    }
    weights.tensors.insert("scalar".into(), raw(Dtype::F32, &[], 4));
    weights.tensors.insert("empty".into(), raw(Dtype::F32, &[0, 5], 0));
    weights.metadata.insert("patch_merging".into(), "standard".into());
    weights
}

#[test]
fn every_dtype_survives_both_formats() {
    let folder = tempfile::tempdir().expect("folder");
    let weights = every_dtype();
    for name in ["w.pt", "w.safetensors"] {
        let path = folder.path().join(name);
        weights.save(&path).expect("saved");
        let bytes = std::fs::read(&path).expect("file");
        assert_eq!(Weights::parse(&path, &bytes).expect("readable"), weights);
        let floats = state_dict::load(&path).expect("loaded");
        assert_eq!(floats.keys().collect::<Vec<_>>(), ["BF16", "F16", "F32", "F64", "empty", "scalar"]);
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 2);
}

#[test]
fn nothing_is_left_of_a_file_that_cannot_be_written() {
    let folder = tempfile::tempdir().expect("folder");
    let mut weights = every_dtype();
    let eight = RawTensor { dtype: Dtype::F8_E4M3, shape: vec![1], data: vec![0].into() };
    weights.tensors.insert("eight".into(), eight);
    let error = weights.save(&folder.path().join("w.pt")).expect_err("PyTorch has no such storage").to_string();
    assert!(error.contains("\"eight\"") && error.contains("F8_E4M3"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0);
}

#[test]
fn contents_that_were_changed_under_our_checksum_are_refused_with_what_to_drop() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("w.safetensors");
    every_dtype().save(&path).expect("saved");
    let mut bytes = std::fs::read(&path).expect("file");
    *bytes.last_mut().expect("data") ^= 1;
    let error = Weights::parse(&path, &bytes).expect_err("changed").to_string();
    assert!(error.contains("damaged, or changed") && error.contains("drop the metadata's \"checksum\""), "{error}");
    assert_eq!(error.lines().count(), 1);
}

#[test]
fn no_tensor_takes_the_place_of_the_metadata() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("w.safetensors");
    let mut weights = every_dtype();
    let t = weights.tensors["scalar"].clone();
    weights.tensors.insert("__metadata__".into(), t);
    let error = weights.save(&file).expect_err("its header would be unreadable").to_string();
    assert!(error.contains("w.safetensors: ") && error.contains("\"__metadata__\""), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0);
}

#[test]
fn storages_are_aligned() {
    let mut file = Vec::new();
    torch_file::write(&every_dtype(), &mut file).expect("written");
    let archive = rawzip::ZipArchive::from_slice(&file).expect("zip");
    let mut entries = archive.entries();
    while let Some(header) = entries.next_entry().expect("entry") {
        let (start, _) = archive.get_entry(header.wayfinder()).expect("entry").compressed_data_range();
        assert!(start.is_multiple_of(64));
    }
}
