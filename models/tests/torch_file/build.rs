//! Checkpoint files assembled by hand, right and wrong ones.

use models::weights::Weights;
use std::io::Write;
use std::path::Path;

/// How `torch.save` opens the old format, then its version and what it says of the machine.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";
const LITTLE_ENDIAN: &[u8] = b"\x80\x02}X\x0d\0\0\0little_endian\x88s.";

pub fn parse(bytes: &[u8]) -> Result<Weights<'_>, String> {
    Weights::parse(Path::new("x.pt"), bytes).map_err(|e| e.to_string())
}

/// The error of a file that must have one, which is one line and names the file.
pub fn refusal(bytes: &[u8]) -> String {
    let error = parse(bytes).expect_err("refused");
    assert!(error.starts_with("x.pt: ") && error.lines().count() == 1, "{error}");
    error
}

pub fn zip(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let named = storages.iter().map(|(key, data)| (format!("a/data/{key}"), *data));
    archive([("a/data.pkl".to_string(), pickle)].into_iter().chain(named))
}

pub fn archive<'d>(records: impl IntoIterator<Item = (String, &'d [u8])>) -> Vec<u8> {
    let mut writer = rawzip::ZipArchiveWriter::new(Vec::new());
    for (name, data) in records {
        let (mut entry, config) = writer.new_file(name.as_str()).start().expect("entry");
        let mut out = config.wrap(&mut entry);
        out.write_all(data).expect("data");
        let (_, descriptor) = out.finish().expect("data");
        entry.finish(descriptor).expect("entry");
    }
    writer.finish().expect("archive")
}

/// The old format: storages are key, count of elements, bytes.
pub fn legacy(pickle: &[u8], storages: &[(&str, i64, &[u8])]) -> Vec<u8> {
    let mut out = [LEGACY, LITTLE_ENDIAN, pickle, b"\x80\x02](" as &[u8]].concat();
    storages.iter().for_each(|(key, ..)| out.extend(text(key)));
    out.extend(b"e.");
    storages.iter().for_each(|(_, count, data)| out.extend([&count.to_le_bytes()[..], data].concat()));
    out
}

/// A whole pickle of one value.
pub fn pickle(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02", value, b"."].concat()
}

pub fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

pub fn integer(n: i64) -> Vec<u8> {
    [b"\x8a\x08", &n.to_le_bytes()[..]].concat()
}

pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", items.concat().as_slice(), b"t"].concat()
}

pub fn integers(numbers: &[i64]) -> Vec<u8> {
    tuple(&numbers.iter().map(|&n| integer(n)).collect::<Vec<_>>())
}

pub fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = entries.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"}(", items.as_slice(), b"u"].concat()
}

/// The call that `torch.save` writes for a tensor.
pub fn tensor(class: &str, key: &str, numel: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    flagged(class, key, numel, offset, shape, strides, &[])
}

/// The same with what may follow the six arguments that every tensor has.
pub fn flagged(
    class: &str,
    key: &str,
    numel: i64,
    offset: i64,
    shape: &[i64],
    strides: &[i64],
    flags: &[Vec<u8>],
) -> Vec<u8> {
    let class = format!("ctorch\n{class}\n").into_bytes();
    let storage = [tuple(&[text("storage"), class, text(key), text("cuda:0"), integer(numel)]), b"Q".to_vec()].concat();
    let hooks = b"ccollections\nOrderedDict\n)R".to_vec();
    let six = [storage, integer(offset), integers(shape), integers(strides), b"\x89".to_vec(), hooks];
    let arguments = tuple(&[&six[..], flags].concat());
    [b"ctorch._utils\n_rebuild_tensor_v2\n", arguments.as_slice(), b"R"].concat()
}

/// A file with one tensor of these places in a storage of six f32, 0 to 5.
pub fn one(numel: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let t = tensor("FloatStorage", "0", numel, offset, shape, strides);
    zip(&pickle(&dict(&[("t", t)])), &[("0", &six())])
}

pub fn six() -> Vec<u8> {
    (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect()
}
