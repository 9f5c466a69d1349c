//! A chunk as it is stored. In the words of Zarr: `numcodecs.delta`, `bytes`, with 16 bits `numcodecs.shuffle`, `zstd`, `crc32c`.
//!
//! Neighbours along z differ by less than they are, which takes a twentieth to a fifth off what zstd leaves. Of 16 bits the low ones are
//! noise: they stand in a block of their own, of which zstd stores most as it is.

use super::Bits;
use super::entry::{Problem, text};
use super::sums;
use crc32c::crc32c;
use serde_json::{Value, json};
use zstd::bulk::Decompressor;
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective::{self, ZSTD_e_end, ZSTD_e_flush};
use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, ResetDirective, compress_bound, get_error_name};

/// Bytes of a CRC-32C.
const SUM: usize = size_of::<u32>();

/// Of zstd. Higher levels look for repetitions in what is mostly noise: at most a twentieth of the bytes, for half the time again to
/// read. Below 1 what does not repeat is stored as it is. Of 16 bits that is most of it: a twelfth to a sixth more bytes, of which zstd
/// makes a chunk in half the time.
fn zstd_level(bits: Bits) -> i32 {
    match bits {
        Bits::Eight => 1,
        Bits::Sixteen => -1,
    }
}

/// The codecs of a chunk, as an array's description lists them.
pub(super) fn codecs(bits: Bits) -> Value {
    let delta = |dtype| json!({"name": "numcodecs.delta", "configuration": {"dtype": dtype}});
    let zstd = json!({"name": "zstd", "configuration": {"level": zstd_level(bits), "checksum": false}});
    let crc = json!({"name": "crc32c"});
    match bits {
        Bits::Eight => json!([delta("|u1"), {"name": "bytes"}, zstd, crc]),
        Bits::Sixteen => {
            let bytes = json!({"name": "bytes", "configuration": {"endian": "little"}});
            let shuffle = json!({"name": "numcodecs.shuffle", "configuration": {"elementsize": 2}});
            json!([delta("<u2"), bytes, shuffle, zstd, crc])
        }
    }
}

/// Packs one chunk after the other.
pub(super) struct Packer {
    zstd: CCtx<'static>,
    bits: Bits,
    packed: Vec<u8>,
}

impl Packer {
    pub(super) fn new(bits: Bits) -> Result<Packer, Problem> {
        let mut zstd = CCtx::try_create().ok_or("zstd has no memory")?;
        zstd.set_parameter(CParameter::CompressionLevel(zstd_level(bits))).map_err(refused)?;
        Ok(Packer { zstd, bits, packed: Vec::new() })
    }

    /// The chunk of these levels, until the next one.
    pub(super) fn pack(&mut self, levels: &[u16]) -> Result<&[u8], Problem> {
        let before = std::iter::once(&0).chain(levels);
        let differences: Vec<u16> = levels.iter().zip(before).map(|(l, before)| l.wrapping_sub(*before)).collect();
        let low = differences.iter().map(|d| *d as u8).collect::<Vec<u8>>();
        self.packed.clear();
        self.packed.reserve(compress_bound(levels.len() * self.bits.bytes()) + SUM);
        self.zstd.reset(ResetDirective::SessionOnly).map_err(refused)?;
        self.zstd.set_pledged_src_size(Some((levels.len() * self.bits.bytes()) as u64)).map_err(refused)?;
        match self.bits {
            Bits::Eight => self.add(&low, ZSTD_e_end)?,
            Bits::Sixteen => {
                self.add(&low, ZSTD_e_flush)?;
                self.add(&differences.iter().map(|d| (d >> 8) as u8).collect::<Vec<u8>>(), ZSTD_e_end)?;
            }
        }
        self.packed.extend(crc32c(&self.packed).to_le_bytes());
        Ok(&self.packed)
    }

    fn add(&mut self, bytes: &[u8], then: ZSTD_EndDirective) -> Result<(), Problem> {
        let length = self.packed.len();
        let mut to = OutBuffer::around_pos(&mut self.packed, length);
        let left = self.zstd.compress_stream2(&mut to, &mut InBuffer::around(bytes), then).map_err(refused)?;
        if left == 0 { Ok(()) } else { Err("zstd had no room".into()) }
    }
}

/// Unpacks one chunk after the other, all of the same size.
pub(super) struct Unpacker {
    zstd: Decompressor<'static>,
    /// Low bytes, then high ones.
    planes: Vec<u8>,
    levels: Vec<u16>,
}

impl Unpacker {
    /// For chunks of so many voxels.
    pub(super) fn new(bits: Bits, voxels: usize) -> Result<Unpacker, Problem> {
        let planes = vec![0; voxels * bits.bytes()];
        Ok(Unpacker { zstd: Decompressor::new().map_err(text)?, planes, levels: vec![0; voxels] })
    }

    /// The levels of a chunk, until the next one.
    ///
    /// Errors: bytes that are not what [`Packer::pack`] made.
    pub(super) fn unpack(&mut self, packed: &[u8]) -> Result<&[u16], Problem> {
        let (frame, sum) = packed.split_last_chunk::<SUM>().ok_or("a chunk is cut short")?;
        if crc32c(frame) != u32::from_le_bytes(*sum) {
            return Err("the checksum of a chunk is wrong".into());
        }
        if self.zstd.decompress_to_buffer(frame, &mut self.planes[..]).map_err(text)? != self.planes.len() {
            return Err("a chunk is cut short".into());
        }
        let (low, high) = self.planes.split_at(self.levels.len());
        match high {
            [] => sums::of_bytes(low, &mut self.levels),
            high => sums::of_words(low, high, &mut self.levels),
        }
        Ok(&self.levels)
    }
}

fn refused(code: usize) -> Problem {
    get_error_name(code).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(bits: Bits, range: u64) -> Vec<u16> {
        let most = bits.most() as u64;
        (0..3000).map(|i| (engine::random::bits(2, i) % range).min(most) as u16).collect()
    }

    #[test]
    fn chunks_come_back_one_after_the_other() {
        for bits in [Bits::Eight, Bits::Sixteen] {
            let (mut packer, mut unpacker) = (Packer::new(bits).unwrap(), Unpacker::new(bits, 3000).unwrap());
            for range in [1 << 16, 20, 1, 256, 1 << 16] {
                let levels = levels(bits, range);
                let packed = packer.pack(&levels).unwrap();
                assert!(packed.len() < 3000 * bits.bytes() + 64);
                assert_eq!(unpacker.unpack(packed).unwrap(), levels);
            }
        }
    }

    #[test]
    fn no_damaged_chunk_is_taken_for_another() {
        for bits in [Bits::Eight, Bits::Sixteen] {
            let levels = levels(bits, 30);
            let packed = Packer::new(bits).unwrap().pack(&levels).unwrap().to_vec();
            let mut unpacker = Unpacker::new(bits, 3000).unwrap();
            for i in 0..packed.len() {
                let mut damaged = packed.clone();
                damaged[i] ^= 1 << (i % 8);
                assert!(unpacker.unpack(&damaged).is_err() && unpacker.unpack(&packed[..i]).is_err(), "byte {i}");
            }
            // whole, but of another size
            assert!(Unpacker::new(bits, 2999).unwrap().unpack(&packed).is_err());
            assert!(Unpacker::new(bits, 3001).unwrap().unpack(&packed).is_err());
            assert_eq!(unpacker.unpack(&packed).unwrap(), levels);
        }
    }
}
