//! TensorBoard's event files: a record for each step, one scalar per metric, under the names of `metrics.jsonl`.
//!
//! A record is `length: u64, masked crc of these 8 bytes: u32, data, masked crc of data: u32`, little-endian. The crc is
//! CRC-32C, and masked means turned right by 15 bits plus a constant, so that a crc over data that holds crcs stays sound. The
//! data is a protobuf `Event`; the few fields that a scalar needs are encoded here by hand.

use crate::metrics::Metrics;
use crate::{Error, Result};
use crc::{CRC_32_ISCSI, Crc};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Field numbers of the protobuf messages `Event`, `Summary`, `Summary.Value` and `SessionLog`.
mod field {
    pub const WALL_TIME: u64 = 1;
    pub const STEP: u64 = 2;
    pub const FILE_VERSION: u64 = 3;
    pub const SUMMARY: u64 = 5;
    pub const SESSION_LOG: u64 = 7;
    pub const SUMMARY_VALUE: u64 = 1;
    pub const VALUE_TAG: u64 = 1;
    pub const VALUE_SIMPLE: u64 = 2;
    pub const SESSION_STATUS: u64 = 1;
}

/// The status of a `SessionLog` that opens a file.
const START: u64 = 1;

/// An event file that grows by a record a step.
pub struct Events {
    path: PathBuf,
    /// None once a write failed: half a record in the middle would make the rest unreadable.
    file: Option<File>,
}

impl Events {
    /// A new file in `folder` for a run that goes on after `steps` steps. It sorts behind those of earlier starts and says where
    /// it begins, upon which TensorBoard forgets what they hold of later steps.
    pub fn create(folder: &Path, steps: u64) -> Result<Self> {
        let path = folder.join(format!("events.out.tfevents.{:010}.{steps:07}.vocoe", now() as u64));
        let mut file = File::create(&path).map_err(Error::io(&path))?;
        let mut start = record(&event(0, field::FILE_VERSION, b"brain.Event:2"));
        let mut session = Vec::new();
        varint(&mut session, field::SESSION_STATUS, START);
        start.extend(record(&event(steps + 1, field::SESSION_LOG, &session)));
        file.write_all(&start).map_err(Error::io(&path))?;
        Ok(Events { path, file: Some(file) })
    }

    /// Appends a step. A disk that has no room ends the file, not the run, since `metrics.jsonl` holds the same numbers.
    pub fn write(&mut self, metrics: &Metrics, note: &mut dyn FnMut(String)) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = file.write_all(&record(&event(metrics.step, field::SUMMARY, &summary(metrics)))) {
            let (path, step) = (self.path.display(), metrics.step);
            note(format!(
                "{path}: {error}; TensorBoard will see nothing from step {step} on, metrics.jsonl has it all"
            ));
            self.file = None;
        }
    }
}

fn summary(metrics: &Metrics) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, scalar) in metrics.scalars() {
        let mut value = Vec::new();
        bytes(&mut value, field::VALUE_TAG, tag.as_bytes());
        key(&mut value, field::VALUE_SIMPLE, Wire::Fixed32);
        value.extend((scalar as f32).to_le_bytes());
        bytes(&mut summary, field::SUMMARY_VALUE, &value);
    }
    summary
}

/// An `Event` of now, with `content` in the field that says what it is.
fn event(step: u64, what: u64, content: &[u8]) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, field::WALL_TIME, Wire::Fixed64);
    event.extend(now().to_le_bytes());
    varint(&mut event, field::STEP, step);
    bytes(&mut event, what, content);
    event
}

/// Seconds since 1970; 0 on a clock that stands before that.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), data, &masked_crc(data)].concat()
}

fn masked_crc(data: &[u8]) -> [u8; 4] {
    CRC32C.checksum(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// How a protobuf field's value is laid out.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

fn key(out: &mut Vec<u8>, field: u64, wire: Wire) {
    number(out, field << 3 | wire as u64);
}

fn varint(out: &mut Vec<u8>, field: u64, value: u64) {
    key(out, field, Wire::Varint);
    number(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    key(out, field, Wire::Bytes);
    number(out, content.len() as u64);
    out.extend(content);
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::metrics;

    /// The records of a file, their lengths and crcs checked.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
            let data = &file[12..12 + length];
            assert_eq!(file[8..12], naive_crc(&file[..8]), "crc of the length");
            assert_eq!(file[12 + length..16 + length], naive_crc(data), "crc of the data");
            records.push(data.to_vec());
            file = &file[16 + length..];
        }
        records
    }

    /// The masked crc, computed bit by bit.
    fn naive_crc(data: &[u8]) -> [u8; 4] {
        let mut crc = !0u32;
        for byte in data {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            }
        }
        (!crc).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
    }

    /// Field number and raw content of each field of a message.
    fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn take_number(message: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = message[0];
                *message = &message[1..];
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        }
        let mut found = Vec::new();
        while !message.is_empty() {
            let key = take_number(&mut message);
            let length = match key & 7 {
                0 => {
                    found.push((key >> 3, take_number(&mut message).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => take_number(&mut message) as usize,
                5 => 4,
                wire => panic!("wire type {wire}"),
            };
            found.push((key >> 3, message[..length].to_vec()));
            message = &message[length..];
        }
        found
    }

    #[test]
    fn crc_has_the_published_check_value() {
        assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_file_decodes_to_the_scalars_that_went_in() {
        let folder = tempfile::tempdir().expect("folder");
        let mut events = Events::create(folder.path(), 299).expect("file");
        let written = [metrics(300, 1.25), metrics(301, 0.75)];
        written.iter().for_each(|m| events.write(m, &mut |line| panic!("{line}")));
        let records = records(&std::fs::read(&events.path).expect("file"));
        assert_eq!(records.len(), 4);
        let (version, start) = (fields(&records[0]), fields(&records[1]));
        assert_eq!(version[2], (3, b"brain.Event:2".to_vec()));
        assert_eq!((&start[1], &start[2]), (&(2, 300u64.to_le_bytes().to_vec()), &(7, vec![8, 1])));
        for (record, metrics) in records[2..].iter().zip(&written) {
            let event = fields(record);
            let time = f64::from_le_bytes(event[0].1[..].try_into().expect("8 bytes"));
            assert!(event[0].0 == 1 && (now() - time).abs() < 60.0);
            assert_eq!(event[1], (2, metrics.step.to_le_bytes().to_vec()));
            let values: Vec<(String, f32)> = fields(&event[2].1).iter().map(|(_, value)| scalar(value)).collect();
            let want: Vec<_> = metrics.scalars().map(|(tag, v)| (tag.to_string(), v as f32)).collect();
            assert_eq!(values, want);
        }
    }

    fn scalar(value: &[u8]) -> (String, f32) {
        let value = fields(value);
        let number = f32::from_le_bytes(value[1].1[..].try_into().expect("4 bytes"));
        (String::from_utf8(value[0].1.clone()).expect("UTF-8"), number)
    }
}
