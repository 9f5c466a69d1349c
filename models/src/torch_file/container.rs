//! The two files that `torch.save` has written: a zip archive, and before PyTorch 1.6 pickles and storages one after another.

use super::Parsed;
use super::pickle::{Pickle, Value};
use rawzip::{CompressionMethod, ZipArchive, ZipSliceArchive};
use std::collections::HashMap;

const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
/// The pickle of 0x1950a86a20f9469cfc6c, with which the old format starts.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const LEGACY_VERSION: i64 = 1001;

/// Bytes that reading may take beyond the file's own size.
const ALLOWANCE: usize = 64 << 20;

/// A container's pickle, and the bytes of its storages by key.
pub struct Container<'a> {
    pub pickle: Pickle<'a>,
    storages: HashMap<String, &'a [u8]>,
}

impl<'a> Container<'a> {
    pub fn open(bytes: &'a [u8]) -> Parsed<Self> {
        if bytes.starts_with(ZIP_MAGIC) {
            open_zip(bytes)
        } else if bytes.starts_with(LEGACY_MAGIC) {
            open_legacy(bytes)
        } else {
            Err("not a PyTorch file: neither torch.save's zip archive nor its older format".into())
        }
    }

    pub fn storage(&self, key: &str) -> Parsed<&'a [u8]> {
        self.storages.get(key).copied().ok_or_else(|| format!("lacks storage {key:?}; the file is cut off or damaged"))
    }
}

/// Bytes that reading a file of this size may allocate, for values and for copied tensors alike.
pub fn budget(file: &[u8]) -> usize {
    file.len().saturating_add(ALLOWANCE)
}

fn open_zip(bytes: &[u8]) -> Parsed<Container<'_>> {
    let mut records = records(bytes)?;
    let root = records.keys().filter_map(|name| name.strip_suffix("data.pkl")).min().map(str::to_string);
    let root = root.ok_or("a zip archive without data.pkl: not a PyTorch file")?;
    if records.get(&format!("{root}byteorder")).is_some_and(|order| *order != b"little") {
        return Err("written on a big-endian machine; save it again on a little-endian one".into());
    }
    let pickle = Pickle::read(records[&format!("{root}data.pkl")], budget(bytes))?;
    let data = format!("{root}data/");
    let storages = records.drain().filter_map(|(name, record)| Some((name.strip_prefix(&data)?.to_string(), record)));
    Ok(Container { pickle, storages: storages.collect() })
}

/// All records of the archive, their checksums checked.
fn records(bytes: &[u8]) -> Parsed<HashMap<String, &[u8]>> {
    let archive = ZipArchive::from_slice(bytes).map_err(damaged)?;
    let (mut records, mut total) = (HashMap::new(), 0);
    let mut entries = archive.entries();
    while let Some(header) = entries.next_entry().map_err(damaged)? {
        let name = String::from_utf8_lossy(header.file_path().as_bytes()).into_owned();
        if header.compression_method() != CompressionMethod::STORE || header.flags().is_encrypted() {
            return Err(format!(
                "record {name:?} is compressed, as in TorchScript; save the state_dict with torch.save"
            ));
        }
        let record = record(bytes, &archive, &header).map_err(|detail| format!("record {name:?}: {detail}"))?;
        // Archives whose records overlap make a small file look large.
        total += record.len();
        if total > bytes.len() {
            return Err("its records overlap; the file is damaged".into());
        }
        if rawzip::crc32(record) != header.crc32() {
            return Err(format!(
                "record {name:?} does not match its checksum; the file is damaged, or was written without checksums \
                 (set_crc32_options(False)): save it again with them"
            ));
        }
        records.insert(name, record);
    }
    Ok(records)
}

fn record<'a>(
    bytes: &'a [u8],
    archive: &ZipSliceArchive<&'a [u8]>,
    header: &rawzip::ZipFileHeaderRecord,
) -> Parsed<&'a [u8]> {
    let (start, end) = archive.get_entry(header.wayfinder()).map_err(damaged)?.compressed_data_range();
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    range.and_then(|(start, end)| bytes.get(start..end)).ok_or_else(|| "the file is cut off".into())
}

fn damaged(error: rawzip::Error) -> String {
    format!("cut off or damaged: {error}")
}

/// Magic, version, machine, the value, the list of storage keys, then per key a count of elements and the elements.
fn open_legacy(bytes: &[u8]) -> Parsed<Container<'_>> {
    let mut rest = &bytes[LEGACY_MAGIC.len()..];
    let mut next = || {
        let pickle = Pickle::read(rest, budget(bytes))?;
        rest = &rest[pickle.length..];
        Parsed::Ok(pickle)
    };
    let (version, machine, pickle, keys) = (next()?, next()?, next()?, next()?);
    if version.root != Value::Int(LEGACY_VERSION) {
        return Err(format!("version {:?} of the old format; only {LEGACY_VERSION} is known", version.root));
    }
    if machine.heap.get(machine.root, "little_endian") != Some(Value::Bool(true)) {
        return Err("written on a big-endian machine; save it again on a little-endian one".into());
    }
    let sizes: HashMap<&str, usize> = pickle.heap.storages().iter().map(|s| (s.key, s.dtype.bitsize() / 8)).collect();
    let mut storages = HashMap::new();
    for key in keys.heap.sequence(keys.root).ok_or("its list of storages is damaged")? {
        let Value::Text(key) = *key else { return Err("its list of storages is damaged".into()) };
        let size =
            sizes.get(key).ok_or_else(|| format!("storage {key:?} belongs to no tensor; the file is damaged"))?;
        let data = legacy_storage(&mut rest, *size);
        storages.insert(key.to_string(), data.ok_or_else(|| format!("cut off in storage {key:?}"))?);
    }
    Ok(Container { pickle, storages })
}

fn legacy_storage<'a>(rest: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    let (count, tail) = rest.split_first_chunk()?;
    let length = usize::try_from(i64::from_le_bytes(*count)).ok()?.checked_mul(size)?;
    let (data, tail) = tail.split_at_checked(length)?;
    *rest = tail;
    Some(data)
}
