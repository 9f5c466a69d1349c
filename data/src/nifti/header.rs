//! The two header versions, read into one structure.

use crate::affine::{self, Affine, IDENTITY};

/// Bytes of a NIfTI-1 header, of a NIfTI-2 header.
pub(super) const SIZES: [usize; 2] = [348, 540];

/// What a header that cannot be used is missing, and what to do about it.
pub(super) type Refusal = (String, &'static str);

#[derive(Debug)]
pub(super) struct Header {
    pub(super) big_endian: bool,
    /// The voxels follow in the same file (magic `n+`), or stand in an `.img` beside it (magic `ni`).
    pub(super) single_file: bool,
    /// Voxels along x (contiguous in the file), y and z.
    pub(super) dims: [usize; 3],
    pub(super) kind: Kind,
    /// Byte offset of the first voxel in its file.
    pub(super) offset: u64,
    /// Value = slope·stored + inter, or as stored.
    pub(super) scale: Option<(f64, f64)>,
    pub(super) affine: Affine,
}

/// Stored voxel types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Kind {
    pub(super) fn bytes(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 => 8,
        }
    }

    fn from_code(code: i16) -> Result<Kind, Refusal> {
        Ok(match code {
            2 => Kind::U8,
            4 => Kind::I16,
            8 => Kind::I32,
            16 => Kind::F32,
            64 => Kind::F64,
            256 => Kind::I8,
            512 => Kind::U16,
            768 => Kind::U32,
            1024 => Kind::I64,
            1280 => Kind::U64,
            128 | 2304 => {
                return Err(("holds RGB colours, not HU".into(), "convert the CT itself, not a picture of it"));
            }
            32 | 1792 | 2048 => return Err(("holds complex numbers".into(), "save the magnitude as float32")),
            code => return Err((format!("unknown voxel type {code}"), "save it as int16 or float32")),
        })
    }
}

/// Header fields at the byte positions of one version, in one byte order.
struct Fields<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    version2: bool,
}

impl Header {
    /// `bytes` begins with at least `SIZES[0]` bytes, `SIZES[1]` for NIfTI-2.
    pub(super) fn parse(bytes: &[u8]) -> Result<Header, Refusal> {
        let not_nifti = || ("is not a NIfTI file".to_string(), "convert the series to .nii.gz (for DICOM: dcm2niix)");
        let fields = Fields::new(bytes).ok_or_else(not_nifti)?;
        let single_file = match fields.magic() {
            b"n+1\0" | b"n+2\0" => true,
            b"ni1\0" | b"ni2\0" => false,
            _ => return Err(not_nifti()),
        };
        let dims = fields.dims()?;
        Ok(Header {
            big_endian: fields.big_endian,
            single_file,
            dims,
            kind: Kind::from_code(fields.datatype())?,
            offset: fields.offset(single_file)?,
            scale: fields.scale()?,
            affine: fields.affine(dims)?,
        })
    }

    /// Bytes that the voxels take in the file; `None` beyond what a machine can address.
    pub(super) fn voxel_bytes(&self) -> Option<u64> {
        let voxels = self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))?;
        voxels.checked_mul(self.kind.bytes() as u64).filter(|&n| n < 1 << 46)
    }
}

/// 540 in the first four bytes, in whichever byte order, means NIfTI-2.
pub(super) fn is_version2(start: &[u8]) -> bool {
    start.starts_with(&540i32.to_le_bytes()) || start.starts_with(&540i32.to_be_bytes())
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Option<Fields<'a>> {
        let version2 = is_version2(bytes);
        let size = SIZES[version2 as usize];
        let big_endian = bytes.starts_with(&(size as i32).to_be_bytes());
        let known = big_endian || bytes.starts_with(&(size as i32).to_le_bytes());
        (known && bytes.len() >= size).then_some(Fields { bytes, big_endian, version2 })
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[at..at + N]);
        if self.big_endian {
            field.reverse();
        }
        field
    }

    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.array(at))
    }

    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.array(at))
    }

    /// Element `i` of a float field: f32 in version 1, f64 in version 2.
    fn float(&self, at: [usize; 2], i: usize) -> f64 {
        match self.version2 {
            false => f32::from_le_bytes(self.array(at[0] + 4 * i)) as f64,
            true => f64::from_le_bytes(self.array(at[1] + 8 * i)),
        }
    }

    fn magic(&self) -> &'a [u8] {
        let at = if self.version2 { 4 } else { 344 };
        &self.bytes[at..at + 4]
    }

    fn datatype(&self) -> i16 {
        self.i16(if self.version2 { 12 } else { 70 })
    }

    fn dim(&self, i: usize) -> i64 {
        if self.version2 { self.i64(16 + 8 * i) } else { self.i16(40 + 2 * i) as i64 }
    }

    fn dims(&self) -> Result<[usize; 3], Refusal> {
        const REMEDY: &str = "the header is damaged: export the volume again";
        let axes = self.dim(0);
        if !(1..=7).contains(&axes) {
            return Err((format!("claims {axes} axes"), REMEDY));
        }
        let sizes: Vec<i64> = (1..=axes as usize).map(|i| self.dim(i)).collect();
        if let Some(size) = sizes.iter().find(|&&n| n < 1) {
            return Err((format!("claims an axis of {size} voxels in {sizes:?}"), REMEDY));
        }
        if sizes.iter().skip(3).any(|&n| n != 1) {
            return Err((format!("holds several volumes, {sizes:?}"), "split it into one file per volume"));
        }
        Ok([0, 1, 2].map(|i| sizes.get(i).map_or(1, |&n| n as usize)))
    }

    fn offset(&self, single_file: bool) -> Result<u64, Refusal> {
        let stored = if self.version2 { self.i64(168) as f64 } else { self.float([108, 0], 0) };
        if !(0.0..1e12).contains(&stored) {
            return Err((
                format!("claims its voxels at byte {stored}"),
                "the header is damaged: export the volume again",
            ));
        }
        // four bytes after the header say whether extensions follow; older writers leave the offset at 0
        let smallest = if single_file { SIZES[self.version2 as usize] as u64 + 4 } else { 0 };
        Ok((stored as u64).max(smallest))
    }

    fn scale(&self) -> Result<Option<(f64, f64)>, Refusal> {
        let (slope, inter) = (self.float([112, 176], 0), self.float([116, 184], 0));
        if slope == 0.0 || !slope.is_finite() {
            return Ok(None);
        }
        if !inter.is_finite() {
            return Err((format!("scales by {slope} but adds {inter}"), "set scl_inter in the header"));
        }
        Ok((slope != 1.0 || inter != 0.0).then_some((slope, inter)))
    }

    fn affine(&self, dims: [usize; 3]) -> Result<Affine, Refusal> {
        let code = |at: [usize; 2]| match self.version2 {
            false => self.i16(at[0]) as i32,
            true => i32::from_le_bytes(self.array(at[1])),
        };
        let known = |code: i32| (1..=5).contains(&code);
        if known(code([254, 348])) {
            return Ok(self.sform_or_qform());
        }
        if known(code([252, 344])) { self.qform() } else { Ok(self.base(dims)) }
    }

    /// The sform; but where its voxel sizes are not the header's, as after resampling by a tool that knew the qform alone, the qform,
    /// whatever its code. MONAI does so for volumes of three axes, and writes the qform as an sform, which rounds it. Sizes of 0, which
    /// it takes for 1, are none to compare with.
    fn sform_or_qform(&self) -> Affine {
        let (sform, wanted) = (self.sform(), self.zooms());
        let near = |a: [f64; 3], b: [f64; 3]| (0..3).all(|i| (a[i] - b[i]).abs() <= 1e-8 + 1e-5 * b[i].abs());
        let zooms = affine::zooms(&sform);
        let unset = (1..=3).any(|i| self.float([76, 104], i) == 0.0);
        if self.dim(0) != 3 || unset || near(zooms, wanted) || near(wanted, zooms) {
            return sform;
        }
        match self.qform() {
            Ok(qform) if near(affine::zooms(&qform), wanted) => qform.map(|row| row.map(|v| self.stored(v))),
            _ => sform,
        }
    }

    /// A float as a field holds it.
    fn stored(&self, value: f64) -> f64 {
        if self.version2 { value } else { value as f32 as f64 }
    }

    fn sform(&self) -> Affine {
        let mut a = IDENTITY;
        (0..12).for_each(|i| a[i / 4][i % 4] = self.float([280, 400], i));
        a
    }

    /// Voxel sizes in mm, repaired as nibabel does: 0 becomes 1, negative becomes positive.
    fn zooms(&self) -> [f64; 3] {
        [1, 2, 3].map(|i| match self.float([76, 104], i) {
            0.0 => 1.0,
            zoom => zoom.abs(),
        })
    }

    /// Rotation from the quaternion (a, b, c, d) with a = √(1−b²−c²−d²); `pixdim[0]` of −1 mirrors z.
    fn qform(&self) -> Result<Affine, Refusal> {
        let [b, c, d] = [0, 1, 2].map(|i| self.float([256, 352], i));
        let rest = 1.0 - (b * b + c * c + d * d);
        let rounding = 3.0 * if self.version2 { f64::EPSILON } else { f32::EPSILON as f64 };
        if rest.is_nan() || rest < -rounding {
            return Err((format!("its quaternion [{b}, {c}, {d}] is no rotation"), "set the sform or the qform"));
        }
        let a = rest.max(0.0).sqrt();
        let norm = a * a + b * b + c * c + d * d;
        let s = 2.0 / norm;
        let rotation = [
            [1.0 - s * (c * c + d * d), s * (b * c - a * d), s * (b * d + a * c)],
            [s * (b * c + a * d), 1.0 - s * (b * b + d * d), s * (c * d - a * b)],
            [s * (b * d - a * c), s * (c * d + a * b), 1.0 - s * (b * b + c * c)],
        ];
        let mut zoom = self.zooms();
        if self.float([76, 104], 0) == -1.0 {
            zoom[2] = -zoom[2];
        }
        let mut out = IDENTITY;
        for i in 0..3 {
            (0..3).for_each(|j| out[i][j] = rotation[i][j] * zoom[j]);
            out[i][3] = self.float([268, 376], i);
        }
        Ok(out)
    }

    fn base(&self, dims: [usize; 3]) -> Affine {
        let mut out = IDENTITY;
        for (i, zoom) in self.zooms().into_iter().enumerate() {
            out[i][i] = if i == 0 { -zoom } else { zoom };
            out[i][3] = -out[i][i] * (dims[i] as f64 - 1.0) / 2.0;
        }
        out
    }
}
