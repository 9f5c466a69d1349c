//! Files built byte by byte in every version, byte order and voxel type, and files that lie.

use super::*;
use crate::affine::{Affine, IDENTITY};
use crate::volume::Volume;
use flate2::{Compression, write::GzEncoder};
use std::io::Write;
use std::path::PathBuf;

/// A header to be spoiled by a test, then laid out as bytes.
#[derive(Clone)]
struct Spec {
    version2: bool,
    big_endian: bool,
    single: bool,
    dim: Vec<i64>,
    code: i16,
    pixdim: [f64; 4],
    scale: [f64; 2],
    qform: Option<[f64; 6]>,
    sform: Option<Affine>,
    offset: f64,
}

impl Spec {
    fn new(dim: &[i64], code: i16) -> Spec {
        let sform = Some(IDENTITY);
        let (pixdim, scale) = ([1.0; 4], [0.0; 2]);
        Spec {
            version2: false,
            big_endian: false,
            single: true,
            dim: dim.to_vec(),
            code,
            pixdim,
            scale,
            qform: None,
            sform,
            offset: 0.0,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let v = self.version2 as usize;
        let mut h = vec![0; if self.single { [352, 544][v] } else { [348, 540][v] }];
        let mut put = |at: usize, mut field: Vec<u8>| {
            if self.big_endian {
                field.reverse();
            }
            h[at..at + field.len()].copy_from_slice(&field);
        };
        let short = |x: i64| (x as i16).to_le_bytes().to_vec();
        let float = |x: f64| if v == 0 { (x as f32).to_le_bytes().to_vec() } else { x.to_le_bytes().to_vec() };
        let wide = [4, 8][v];
        put(0, [348i32, 540][v].to_le_bytes().to_vec());
        for (i, &n) in [self.dim.len() as i64].iter().chain(&self.dim).enumerate() {
            put([40 + 2 * i, 16 + 8 * i][v], if v == 0 { short(n) } else { n.to_le_bytes().to_vec() });
        }
        put([70, 12][v], short(self.code as i64));
        (0..4).for_each(|i| put([76, 104][v] + wide * i, float(self.pixdim[i])));
        (0..2).for_each(|i| put([112, 176][v] + wide * i, float(self.scale[i])));
        put([108, 168][v], if v == 0 { float(self.offset) } else { (self.offset as i64).to_le_bytes().to_vec() });
        let code = |on: bool| if v == 0 { short(on as i64) } else { (on as i32).to_le_bytes().to_vec() };
        put([252, 344][v], code(self.qform.is_some()));
        put([254, 348][v], code(self.sform.is_some()));
        (0..6).for_each(|i| put([256, 352][v] + wide * i, float(self.qform.map_or(0.0, |q| q[i]))));
        (0..12).for_each(|i| put([280, 400][v] + wide * i, float(self.sform.map_or(0.0, |s| s[i / 4][i % 4]))));
        let magic: &[u8] = [[&b"ni1\0"[..], b"n+1\0"], [b"ni2\0", b"n+2\0"]][v][self.single as usize];
        h[[344, 4][v]..][..4].copy_from_slice(magic);
        h
    }
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn save(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    if name.ends_with(".gz") {
        let mut out = GzEncoder::new(std::fs::File::create(&path).unwrap(), Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap();
    } else {
        std::fs::write(&path, bytes).unwrap();
    }
    path
}

/// The numbers 0..n of a voxel type, little-endian.
fn ramp(code: i16, n: usize) -> Vec<Vec<u8>> {
    let one = |i: usize| match code {
        2 | 256 => vec![i as u8],
        4 | 512 => (i as u16).to_le_bytes().to_vec(),
        8 | 768 => (i as u32).to_le_bytes().to_vec(),
        16 => (i as f32).to_le_bytes().to_vec(),
        64 => (i as f64).to_le_bytes().to_vec(),
        _ => (i as u64).to_le_bytes().to_vec(),
    };
    (0..n).map(one).collect()
}

fn error(path: &std::path::Path) -> String {
    let text = read(path).unwrap_err().to_string();
    assert!(!text.contains('\n') && text.starts_with(&*path.to_string_lossy()), "{text}");
    text
}

#[test]
fn every_type_order_version_and_container_reads_the_same() {
    let folder = temp();
    let codes = [2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280];
    for (code, flags) in codes.into_iter().flat_map(|code| (0..16).map(move |flags| (code, flags))) {
        let [version2, big_endian, single, zipped] = [0, 1, 2, 3].map(|bit| flags >> bit & 1 == 1);
        let header = Spec { version2, big_endian, single, ..Spec::new(&[2, 3, 20], code) };
        let mut voxels = ramp(code, 120);
        if big_endian {
            voxels.iter_mut().for_each(|v| v.reverse());
        }
        let gz = if zipped { ".gz" } else { "" };
        let path = if single {
            save(&folder, &format!("a.nii{gz}"), &[header.bytes(), voxels.concat()].concat())
        } else {
            save(&folder, &format!("a.img{gz}"), &voxels.concat());
            save(&folder, &format!("a.hdr{gz}"), &header.bytes())
        };
        let volume = read(&path).unwrap();
        assert_eq!((volume.dims, volume.affine), ([2, 3, 20], IDENTITY));
        for (i, &value) in volume.data.iter().enumerate() {
            let [x, y, z] = [i / 60, i / 20 % 3, i % 20];
            assert_eq!(value as usize, x + 2 * y + 6 * z, "code {code} flags {flags:04b}");
        }
    }
}

#[test]
fn negative_and_wide_values_keep_their_sign() {
    let folder = temp();
    let cases: [(i16, Vec<u8>, f32); 5] = [
        (256, vec![0xff], -1.0),
        (4, (-1024i16).to_le_bytes().to_vec(), -1024.0),
        (8, (-70000i32).to_le_bytes().to_vec(), -70000.0),
        (1024, (-5i64).to_le_bytes().to_vec(), -5.0),
        (1280, u64::MAX.to_le_bytes().to_vec(), u64::MAX as f32),
    ];
    for (code, voxel, want) in cases {
        let path = save(&folder, "v.nii", &[Spec::new(&[1, 1, 1], code).bytes(), voxel].concat());
        assert_eq!(read(&path).unwrap().data, [want]);
    }
}

#[test]
fn scaling_applies_unless_the_slope_says_none() {
    let folder = temp();
    let cases = [([0.5, -1000.0], -998.5), ([0.0, 7.0], 3.0), ([f64::NAN, 7.0], 3.0), ([1.0, -3.0], 0.0)];
    for (scale, want) in cases {
        let header = Spec { scale, ..Spec::new(&[1, 1, 1], 2) };
        assert_eq!(read(&save(&folder, "s.nii", &[header.bytes(), vec![3]].concat())).unwrap().data, [want]);
    }
    let header = Spec { scale: [1.0, f64::NAN], ..Spec::new(&[1, 1, 1], 2) };
    assert!(error(&save(&folder, "s.nii", &[header.bytes(), vec![3]].concat())).contains("scl_inter"));
}

#[test]
fn the_affine_is_sform_then_qform_then_voxel_sizes() {
    let folder = temp();
    let affine = |header: &Spec| read(&save(&folder, "a.nii", &[header.bytes(), vec![0; 24]].concat())).unwrap().affine;
    let mut sform = IDENTITY;
    (sform[0][0], sform[0][3]) = (-2.0, 9.0);
    // half a turn about z, and pixdim[0] = -1 mirrors z
    let qform = Some([0.0, 0.0, 1.0, 10.0, 20.0, 30.0]);
    let mut header = Spec { sform: Some(sform), qform, pixdim: [-1.0, 2.0, 1.0, 1.0], ..Spec::new(&[2, 3, 4], 2) };
    assert_eq!(affine(&header), sform);
    (header.sform, header.pixdim) = (None, [-1.0, 2.0, 3.0, 4.0]);
    let want = [[-2.0, 0.0, 0.0, 10.0], [0.0, -3.0, 0.0, 20.0], [0.0, 0.0, -4.0, 30.0], [0.0, 0.0, 0.0, 1.0]];
    assert_eq!(affine(&header), want);
    header.qform = None;
    let want = [[-2.0, 0.0, 0.0, 1.0], [0.0, 3.0, 0.0, -3.0], [0.0, 0.0, 4.0, -6.0], [0.0, 0.0, 0.0, 1.0]];
    assert_eq!(affine(&header), want);
    header.pixdim = [1.0, 0.0, -3.0, 4.0];
    assert_eq!(affine(&header)[0][0], -1.0);
    assert_eq!(affine(&header)[1][1], 3.0);
}

#[test]
fn an_sform_of_other_voxel_sizes_gives_way_to_the_qform() {
    let folder = temp();
    let affine = |header: &Spec| read(&save(&folder, "a.nii", &[header.bytes(), vec![0; 24]].concat())).unwrap().affine;
    let qform = Some([0.0, 0.0, 1.0, 10.0, 20.0, 30.0]);
    let header = Spec { qform, pixdim: [1.0, 0.7, 3.0, 4.0], ..Spec::new(&[2, 3, 4], 2) };
    let turned = affine(&header);
    let size = 0.7f32 as f64;
    assert_eq!(turned, [[-size, 0.0, 0.0, 10.0], [0.0, -3.0, 0.0, 20.0], [0.0, 0.0, 4.0, 30.0], [0.0, 0.0, 0.0, 1.0]]);
    let flat = Spec { sform: Some([[0.0; 4]; 4]), ..header.clone() };
    assert_eq!(affine(&flat), turned, "an sform of zeros");
    let plain = Spec { qform: None, ..header.clone() };
    assert_eq!(affine(&plain)[1], [0.0, 3.0, 0.0, 0.0], "the quaternion counts without its code");
    let near = Spec { pixdim: [1.0, 1.000_009, 1.0, 1.0], ..header.clone() };
    assert_eq!(affine(&near), IDENTITY, "sizes that are the same but for rounding");
    let unknown = Spec { pixdim: [1.0, f64::NAN, 3.0, 4.0], ..header.clone() };
    assert_eq!(affine(&unknown), IDENTITY, "no sizes to compare with");
    let unset = Spec { pixdim: [1.0, 0.0, 0.0, 0.0], ..header.clone() };
    assert_eq!(affine(&unset), IDENTITY, "sizes that were never set");
    let skewed = Spec { qform: Some([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), ..header.clone() };
    assert_eq!(affine(&skewed), IDENTITY, "no rotation");
    let four = Spec { dim: vec![2, 3, 4, 1], ..header };
    assert_eq!(affine(&four), IDENTITY, "MONAI compares other sizes with four axes");
}

#[test]
fn what_follows_a_gzip_file_is_left_alone() {
    let folder = temp();
    let path = save(&folder, "t.nii.gz", &[Spec::new(&[1, 1, 2], 2).bytes(), vec![5, 6]].concat());
    let whole = std::fs::read(&path).unwrap();
    for tail in [&[0; 512][..], b"signature", b""] {
        std::fs::write(&path, [&whole, tail].concat()).unwrap();
        assert_eq!(read(&path).unwrap().data, [5.0, 6.0], "{tail:?}");
    }
    std::fs::write(&path, [&whole[..], &whole[..20]].concat()).unwrap();
    assert!(error(&path).contains("cut short"), "another member begins and does not end");
    let damaged = [&whole[..whole.len() - 8], &[0; 8]].concat();
    std::fs::write(&path, [&damaged[..], &[0; 512]].concat()).unwrap();
    assert!(error(&path).contains("damaged"), "its checksum still counts");
}

#[test]
fn pairs_are_found_whatever_the_case_of_their_endings() {
    let folder = temp();
    let header = Spec { single: false, ..Spec::new(&[1, 1, 2], 2) }.bytes();
    for [head, image] in [["A.HDR", "A.IMG"], ["b.hdr", "b.IMG"], ["C.HDR.GZ", "C.img"], ["d.hdr", "d.IMG.gz"]] {
        for (name, bytes) in [(head, &header[..]), (image, &[5, 6])] {
            let written = save(&folder, &format!("new{}", name.to_lowercase()), bytes);
            std::fs::rename(written, folder.path().join(name)).unwrap();
        }
        for name in [head, image] {
            assert_eq!(read(&folder.path().join(name)).unwrap().data, [5.0, 6.0], "{name}");
        }
        assert_eq!(files(&folder.path().join(head)).len(), 2, "{head}");
    }
}

#[test]
fn one_frame_of_four_is_a_volume_and_missing_axes_are_single() {
    let folder = temp();
    for (dim, want) in [(&[2, 3, 4, 1][..], [2, 3, 4]), (&[24], [24, 1, 1]), (&[4, 6], [4, 6, 1])] {
        let path = save(&folder, "d.nii", &[Spec::new(dim, 2).bytes(), vec![0; 24]].concat());
        assert_eq!(read(&path).unwrap().dims, want);
    }
}

#[test]
fn header_extensions_are_skipped() {
    let folder = temp();
    let header = Spec { offset: 384.0, ..Spec::new(&[1, 1, 2], 2) };
    let path = save(&folder, "e.nii.gz", &[header.bytes(), vec![99; 32], vec![5, 6]].concat());
    assert_eq!(read(&path).unwrap().data, [5.0, 6.0]);
}

#[test]
fn what_is_no_scalar_volume_is_refused_by_name() {
    let folder = temp();
    let refuse =
        |dim: &[i64], code| error(&save(&folder, "r.nii", &[Spec::new(dim, code).bytes(), vec![0; 512]].concat()));
    assert!(refuse(&[2, 2, 2, 5], 4).contains("several volumes"));
    assert!(refuse(&[2, 2, 2], 128).contains("RGB"));
    assert!(refuse(&[2, 2, 2], 32).contains("complex"));
    assert!(refuse(&[2, 2, 2], 99).contains("voxel type 99"));
    assert!(refuse(&[2, 0, 2], 4).contains("axis of 0"));
    assert!(refuse(&[2, -5, 2], 4).contains("axis of -5"));
    assert!(refuse(&[], 4).contains("0 axes"));
    let mut skewed = Spec { sform: None, qform: Some([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), ..Spec::new(&[1, 1, 1], 2) };
    assert!(error(&save(&folder, "q.nii", &skewed.bytes())).contains("no rotation"));
    skewed.offset = -8.0;
    assert!(error(&save(&folder, "q.nii", &skewed.bytes())).contains("at byte -8"));
}

#[test]
fn lying_and_broken_files_are_errors() {
    let folder = temp();
    let small = [Spec::new(&[4, 4, 4], 4).bytes(), vec![1; 100]].concat();
    assert!(error(&save(&folder, "short.nii", &small)).contains("more than the file can hold"));
    assert!(error(&save(&folder, "short.nii.gz", &small)).contains("cut short"));
    let huge = Spec { version2: true, ..Spec::new(&[1 << 40, 1 << 40, 1 << 40], 64) };
    assert!(error(&save(&folder, "huge.nii.gz", &huge.bytes())).contains("more than the file can hold"));
    let wide = Spec::new(&[32767, 32767, 32767], 64);
    assert!(error(&save(&folder, "wide.nii.gz", &wide.bytes())).contains("more than the file can hold"));
    for (name, bytes) in
        [("empty.nii", vec![]), ("text.nii", vec![b'x'; 400]), ("half.nii", wide.bytes()[..200].to_vec())]
    {
        error(&save(&folder, name, &bytes));
    }
    error(&folder.path().join("absent.nii.gz"));
    error(folder.path());
}

#[test]
fn damage_inside_a_gzip_file_is_noticed() {
    let folder = temp();
    let voxels: Vec<u8> = (0..4096).map(|i| engine::random::bits(1, i) as u8).collect();
    let path = save(&folder, "d.nii.gz", &[Spec::new(&[16, 16, 16], 2).bytes(), voxels].concat());
    let good = std::fs::read(&path).unwrap();
    read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 4;
    for damaged in [&flipped[..], &good[..good.len() / 2], &good[..good.len() - 4], &good[..12]] {
        std::fs::write(&path, damaged).unwrap();
        assert!(error(&path).contains("cut short or damaged"));
    }
}

#[test]
fn gzip_members_one_after_the_other_are_one_file() {
    let folder = temp();
    let voxels: Vec<u8> = (0..120).collect();
    let whole = [Spec::new(&[5, 4, 6], 2).bytes(), voxels].concat();
    let part = |bytes: &[u8]| std::fs::read(save(&folder, "part.nii.gz", bytes)).unwrap();
    let (first, second) = whole.split_at(400);
    let path = folder.path().join("m.nii.gz");
    std::fs::write(&path, [part(first), part(second)].concat()).unwrap();
    let volume = read(&path).unwrap();
    assert!(volume.data.iter().enumerate().all(|(i, &v)| v as usize == i / 24 + 5 * (i / 6 % 4) + 20 * (i % 6)));
    // the second is missing, or damaged in its checksum
    let mut damaged = [part(first), part(second)].concat();
    let end = damaged.len() - 6;
    damaged[end] ^= 1;
    for bytes in [part(first), damaged] {
        std::fs::write(&path, bytes).unwrap();
        assert!(error(&path).contains("cut short or damaged"));
    }
}

#[test]
fn a_pair_opens_by_either_name() {
    let folder = temp();
    let header = Spec { single: false, ..Spec::new(&[1, 1, 2], 2) };
    let hdr = save(&folder, "p.hdr", &header.bytes());
    assert!(read(&hdr).unwrap_err().to_string().contains("p.img"));
    save(&folder, "p.img.gz", &[7, 8]);
    assert_eq!(read(&hdr).unwrap().data, [7.0, 8.0]);
    let img = save(&folder, "p.img", &[7, 9]);
    assert_eq!(read(&img).unwrap().data, [7.0, 9.0]);
}

#[test]
fn labels_must_be_whole_numbers() {
    let folder = temp();
    let file = |v: f32| save(&folder, "l.nii", &[Spec::new(&[1, 1, 1], 16).bytes(), v.to_le_bytes().to_vec()].concat());
    assert_eq!(read_label(&file(3.0)).unwrap().data, [3]);
    for bad in [0.5, f32::NAN, f32::INFINITY, 1e9] {
        assert!(read_label(&file(bad)).unwrap_err().to_string().contains("no label"));
    }
}

#[test]
fn infinite_and_missing_values_survive_reading() {
    let folder = temp();
    let voxels = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(f32::to_le_bytes).concat();
    let data = read(&save(&folder, "n.nii", &[Spec::new(&[3, 1, 1], 16).bytes(), voxels].concat())).unwrap().data;
    assert!(data[0].is_nan() && data[1] == f32::INFINITY && data[2] == f32::NEG_INFINITY);
}

#[test]
fn what_is_written_reads_back() {
    let folder = temp();
    let mut affine = IDENTITY;
    (affine[0][0], affine[1][1], affine[2][2], affine[0][3]) = (-1.5, 0.75, 4.0, 120.5);
    let dims = [3, 5, 7];
    let hu = Volume { data: (0..105).map(|i| i * 30 - 1024).collect::<Vec<i16>>(), dims, affine };
    let label = Volume { data: (0..105).collect::<Vec<u8>>(), dims, affine };
    let path = folder.path().join("w.nii.gz");
    write_image(&path, &hu).unwrap();
    let back = read(&path).unwrap();
    assert_eq!((back.dims, back.affine), (dims, affine));
    assert!(back.data.iter().zip(&hu.data).all(|(&a, &b)| a == b as f32));
    write_label(&path, &label).unwrap();
    assert!(read_label(&path).unwrap().data.iter().zip(&label.data).all(|(&a, &b)| a == b as i32));
    assert!(write_label(&folder.path().join("no/such.nii.gz"), &label).is_err());
    let long = Volume { data: vec![0u8; 40000], dims: [40000, 1, 1], affine };
    assert!(write_label(&path, &long).unwrap_err().to_string().contains("too many"));
}

#[test]
fn volumes_are_known_by_name() {
    let volumes = ["a.nii", "A.NII.GZ", "a.hdr", ".a.nii"];
    let others = ["a.img", "a.txt", "nii", "._a.nii.gz", "ct/._a.hdr"];
    assert!(volumes.iter().all(|name| is_volume(name.as_ref())));
    assert!(!others.iter().any(|name| is_volume(name.as_ref())));
}
