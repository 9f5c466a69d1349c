//! Vectors of f32 in the width that this CPU has, chosen once at run time.
//!
//! A kernel is written once over [`Vector`] and run through [`dispatch`], which compiles it for AVX-512, for AVX2 with FMA, and
//! for neither. Results are bit-repeatable on one machine; between widths they differ in rounding only.
//!
//! Arithmetic is in f32. bf16 is widened where it is loaded and rounded where it is stored, see [`Lane`]; products of bf16 work on
//! pairs, see [`Vector::dot`]. Kernels that live on either run through [`Lane::dispatch`].

use crate::real::Stored;
use engine::bf16;
use std::sync::OnceLock;

/// Instruction sets, in order: a later one includes the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Portable = 1,
    Avx2 = 2,
    Avx512 = 3,
    /// With the dot product of pairs of bf16 as one instruction.
    Avx512Bf16 = 4,
    /// With tile registers, and products of bf16 tiles as one instruction.
    Amx = 5,
}

impl Level {
    pub const ALL: [Level; 5] = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx];
}

/// The widest level that this CPU has, or the one that a test runs at.
pub fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = testing::LEVEL.get() {
        return level;
    }
    static FOUND: OnceLock<Level> = OnceLock::new();
    *FOUND.get_or_init(detect)
}

/// Whether products of bf16 use tiles, see [`Level::Amx`].
pub fn uses_tiles() -> bool {
    level() >= Level::Amx
}

/// Whether the CPU has tiles, whatever level a test has set.
#[cfg(target_arch = "x86_64")]
pub fn has_tiles() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| detect() >= LEAST_WITH_TILES)
}

/// The lowest level whose vectors are those that tiles are gathered with; tests keep the tiles in memory where the CPU has none.
#[cfg(target_arch = "x86_64")]
const LEAST_WITH_TILES: Level = if cfg!(test) { Level::Avx512Bf16 } else { Level::Amx };

#[cfg(all(test, target_arch = "x86_64"))]
pub use x86::may_use_amx;

#[cfg(test)]
pub mod testing {
    use super::{Level, detect};
    use std::cell::Cell;

    thread_local! {
        pub static LEVEL: Cell<Option<Level>> = const { Cell::new(None) };
    }

    /// Runs `f` on so many threads of its own, which use at most one level: every version that the CPU has can be run, and tests
    /// beside this one go on with theirs.
    pub fn run_at<R: Send>(at_most: Level, threads: usize, f: impl FnOnce() -> R + Send) -> R {
        #[cfg(target_arch = "x86_64")]
        let most = if super::has_tiles() { Level::Amx } else { detect() };
        #[cfg(not(target_arch = "x86_64"))]
        let most = detect();
        let start = move |_| LEVEL.set(Some(most.min(at_most)));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).start_handler(start).build().expect("threads");
        pool.install(f)
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw") {
        if x86::may_use_amx() { Level::Amx } else { Level::Avx512Bf16 }
    } else if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
        Level::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Level::Avx2
    } else {
        Level::Portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// Work over vectors of any width. `run` must be `#[inline(always)]`, as must all that it calls per element, so that it is
/// compiled with the instruction set of its caller.
pub trait Kernel {
    type Output;
    fn run<V: Vector>(self) -> Self::Output;
}

/// Runs `kernel` with the widest vectors available.
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    match level() {
        // SAFETY: `level` returns only what the CPU was found to have.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 | Level::Amx => unsafe { x86::avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::avx2(kernel) },
        _ => kernel.run::<Portable>(),
    }
}

/// The same with the CPU's own instructions for bf16; kernels without it would only be compiled once more.
fn dispatch_bf16<K: Kernel>(kernel: K) -> K::Output {
    match level() {
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Bf16 | Level::Amx => unsafe { x86::avx512_bf16(kernel) },
        _ => dispatch(kernel),
    }
}

/// The same for kernels that use tiles, which are compiled for no other level.
///
/// # Safety
/// The CPU must have them: [`has_tiles`].
#[cfg(target_arch = "x86_64")]
pub unsafe fn dispatch_tiles<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller's.
    unsafe { x86::avx512_bf16(kernel) }
}

/// `LANES` values of f32.
///
/// # Safety
/// Every method needs the instruction set of its implementation (given inside [`dispatch`]); the pointers of `load*` and
/// `store*` must be valid for the number of elements they touch.
#[allow(clippy::missing_safety_doc)] // stated once, above, for all methods
pub trait Vector: Copy {
    const LANES: usize;

    unsafe fn splat(v: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// The first `n` lanes from memory, the rest zero; touches only `n` elements.
    unsafe fn load_first(p: *const f32, n: usize) -> Self;
    /// Writes the first `n` lanes only.
    unsafe fn store_first(self, p: *mut f32, n: usize);
    unsafe fn add(self, o: Self) -> Self;
    unsafe fn sub(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    unsafe fn div(self, o: Self) -> Self;
    unsafe fn max(self, o: Self) -> Self;
    unsafe fn min(self, o: Self) -> Self;
    /// `self * a + b`, rounded once where the CPU has FMA.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// `self * 2^n` for integral n in [-126, 127].
    unsafe fn scale(self, n: Self) -> Self;
    /// `LANES` values of bf16.
    unsafe fn widen(p: *const bf16) -> Self;
    /// Rounds to bf16, as [`Stored::narrow`] does; whether denormal numbers become zero is up to the CPU.
    unsafe fn narrow(self, p: *mut bf16);
    /// The bf16 in the low half of each lane.
    unsafe fn low(self) -> Self;
    /// The bf16 in the high half of each lane.
    unsafe fn high(self) -> Self;

    /// `sum + low a · low b + high a · high b` for lanes that hold two bf16 each. How often this is rounded, and whether denormal
    /// numbers count, is up to the CPU.
    #[inline(always)]
    unsafe fn dot(self, b: Self, sum: Self) -> Self {
        unsafe { self.low().fma(b.low(), self.high().fma(b.high(), sum)) }
    }

    /// Writes a block with its rows and columns exchanged; rows of `to` are `step` values apart.
    #[inline(always)]
    unsafe fn transpose(block: &[[f32; 8]; 8], to: *mut f32, step: usize) {
        for (j, row) in block.iter().enumerate() {
            for (i, &value) in row.iter().enumerate() {
                unsafe { to.add(i * step + j).write(value) };
            }
        }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { Self::splat(0.0) }
    }

    /// All lanes joined by halves.
    #[inline(always)]
    unsafe fn fold(self, join: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [0.0; MAX_LANES];
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut n = Self::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] = join(lanes[i], lanes[i + n]);
            }
        }
        lanes[0]
    }

    /// All lanes added, in a fixed order.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { self.fold(|a, b| a + b) }
    }

    /// The largest lane.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { self.fold(|a, b| if b > a { b } else { a }) }
    }

    /// e to the power of each lane, within 1.5 units in the last place for lanes in [-87, 88]; lanes below saturate near
    /// 1.2e-38, lanes above near 1.7e38.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        unsafe { self.max(Self::splat(-87.336)).min(Self::splat(88.0)).exp_inside() }
    }

    /// [`Vector::exp`] of lanes that are in its range, or NaN. With x = n ln 2 + r, |r| <= ln 2 / 2, it is 2^n e^r, and e^r a
    /// polynomial, 1 + r + .., whose other coefficients are fitted here for the smallest relative error, 3e-9.
    #[inline(always)]
    unsafe fn exp_inside(self) -> Self {
        unsafe {
            let n = self.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            // ln 2 in two parts: the first has few enough bits that n times it is exact.
            let r = n.fma(Self::splat(-0.693_359_4), self);
            let r = n.fma(Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.381_454e-3);
            for c in [8.368_745e-3, 4.166_839e-2, 1.666_652_1e-1, 4.999_999_4e-1, 1.0, 1.0] {
                p = p.fma(r, Self::splat(c));
            }
            p.scale(n)
        }
    }

    /// 2 to the power of a · b, for a · b in [-126, 127], or NaN. With a · b = n + f, |f| <= 1/2, it is 2^n 2^f, and 2^f a
    /// polynomial, 1 + .., whose other coefficients are fitted here for the smallest relative error, 2e-9.
    #[inline(always)]
    unsafe fn exp2_inside(a: Self, b: Self) -> Self {
        unsafe {
            let n = a.mul(b).round();
            let f = a.fma(b, Self::zero().sub(n));
            let mut p = Self::splat(1.535_336_2e-4);
            for c in [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0] {
                p = p.fma(f, Self::splat(c));
            }
            p.scale(n)
        }
    }
}

/// The widest vector's lanes.
pub const MAX_LANES: usize = 16;
/// The high half of a lane.
const HIGH: u32 = 0xffff_0000;

/// What vectors of f32 are loaded from and stored to: f32 as it is, or bf16.
///
/// # Safety
/// As for [`Vector`].
#[allow(clippy::missing_safety_doc)] // stated once, above, for all methods
pub trait Lane: Stored<Real = f32> {
    unsafe fn load<V: Vector>(p: *const Self) -> V;
    unsafe fn store<V: Vector>(v: V, p: *mut Self);
    /// The first `n` lanes from memory, the rest zero; touches only `n` elements.
    unsafe fn load_first<V: Vector>(p: *const Self, n: usize) -> V;
    /// Writes the first `n` lanes only.
    unsafe fn store_first<V: Vector>(v: V, p: *mut Self, n: usize);
    /// Runs `kernel` with the vectors that do all this fastest.
    fn dispatch<K: Kernel>(kernel: K) -> K::Output;
}

impl Lane for f32 {
    fn dispatch<K: Kernel>(kernel: K) -> K::Output {
        dispatch(kernel)
    }
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const f32) -> V {
        unsafe { V::load(p) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, p: *mut f32) {
        unsafe { v.store(p) }
    }
    #[inline(always)]
    unsafe fn load_first<V: Vector>(p: *const f32, n: usize) -> V {
        unsafe { V::load_first(p, n) }
    }
    #[inline(always)]
    unsafe fn store_first<V: Vector>(v: V, p: *mut f32, n: usize) {
        unsafe { v.store_first(p, n) }
    }
}

impl Lane for bf16 {
    fn dispatch<K: Kernel>(kernel: K) -> K::Output {
        dispatch_bf16(kernel)
    }
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const bf16) -> V {
        unsafe { V::widen(p) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, p: *mut bf16) {
        unsafe { v.narrow(p) }
    }
    #[inline(always)]
    unsafe fn load_first<V: Vector>(p: *const bf16, n: usize) -> V {
        let mut lanes = [bf16::ZERO; MAX_LANES];
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n.min(V::LANES));
            V::widen(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_first<V: Vector>(v: V, p: *mut bf16, n: usize) {
        let mut lanes = [bf16::ZERO; MAX_LANES];
        unsafe {
            v.narrow(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n.min(V::LANES));
        }
    }
}

/// Every element of `from` in f32; the slices have one length.
#[inline(always)]
pub fn widen<S: Stored>(from: &[S], to: &mut [S::Real]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.widen();
    }
}

/// Values of f32 in a line of the caches.
pub const LINE: usize = 16;

/// Values from `p` to the next line of the caches. With so many more in a buffer there are enough, wherever it begins.
pub fn values_to_line(p: *const f32) -> usize {
    p.align_offset(LINE * size_of::<f32>()).min(LINE)
}

/// Values along each side of the blocks that are transposed.
pub const SIDE: usize = 8;

/// Writes up to SIDE rows of SIDE values, `step` apart in `from`, with rows and columns exchanged, zeros where rows are missing; rows of
/// `to` are `to_step` apart.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub unsafe fn transpose<S: Lane, V: Vector>(from: &[S], step: usize, rows: usize, to: &mut [f32], to_step: usize) {
    let to = &mut to[..(SIDE - 1) * to_step + SIDE];
    // SAFETY: the block's rows lie in `to`.
    unsafe { transpose_to::<S, V>(from, step, rows, to.as_mut_ptr(), to_step) }
}

/// The same, where other threads may write between the rows of `to`.
///
/// # Safety
/// As for [`Vector`]; there must be SIDE rows of SIDE values at `to`.
#[inline(always)]
pub unsafe fn transpose_to<S: Lane, V: Vector>(from: &[S], step: usize, rows: usize, to: *mut f32, to_step: usize) {
    let mut block = [[0.0; SIDE]; SIDE];
    for (i, row) in block.iter_mut().enumerate().take(rows) {
        widen(&from[i * step..][..SIDE], row);
    }
    // SAFETY: the caller's.
    unsafe { V::transpose(&block, to, to_step) }
}

/// Every element of `from` rounded to S; the slices have one length.
#[inline(always)]
pub fn narrow<S: Stored>(from: &[S::Real], to: &mut [S]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = S::narrow(from);
    }
}

/// Asks for the line of `p` to be in the first-level cache. A hint: any address will do.
#[inline(always)]
pub fn will_read<T>(p: *const T) {
    ask::<T, false>(p);
}

/// As [`will_read`], for a line of this CPU's own.
#[inline(always)]
pub fn will_write<T>(p: *const T) {
    ask::<T, true>(p);
}

#[inline(always)]
fn ask<T, const WRITES: bool>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: nothing is read or written.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        if WRITES { _mm_prefetch::<_MM_HINT_ET0>(p.cast()) } else { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Eight lanes in plain Rust, for CPUs with neither AVX2 nor AVX-512.
#[derive(Clone, Copy)]
pub struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut r = self.0;
        for (a, b) in r.iter_mut().zip(o.0) {
            *a = f(*a, b);
        }
        Portable(r)
    }
}

impl Vector for Portable {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        Portable([v; 8])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Portable(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        let mut r = [0.0; 8];
        unsafe { std::ptr::copy_nonoverlapping(p, r.as_mut_ptr(), n.min(8)) };
        Portable(r)
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), p, n.min(8)) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        self.zip(o, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        self.zip(o, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        self.zip(o, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        self.zip(o, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        self.zip(o, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        self.zip(o, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        let mut r = self.0;
        for ((r, a), b) in r.iter_mut().zip(a.0).zip(b.0) {
            *r = *r * a + b;
        }
        Portable(r)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Portable(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    unsafe fn scale(self, n: Self) -> Self {
        self.zip(n, |v, n| v * f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn widen(p: *const bf16) -> Self {
        Portable(unsafe { p.cast::<[bf16; 8]>().read_unaligned() }.map(Stored::widen))
    }
    #[inline(always)]
    unsafe fn narrow(self, p: *mut bf16) {
        unsafe { p.cast::<[bf16; 8]>().write_unaligned(self.0.map(Stored::narrow)) }
    }
    #[inline(always)]
    unsafe fn low(self) -> Self {
        Portable(self.0.map(|pair| f32::from_bits(pair.to_bits() << 16)))
    }
    #[inline(always)]
    unsafe fn high(self) -> Self {
        Portable(self.0.map(|pair| f32::from_bits(pair.to_bits() & HIGH)))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{HIGH, Kernel, Vector};
    use engine::bf16;
    use std::arch::x86_64::*;

    /// Whether the CPU has tiles of bf16 and the system lets this process use them: it has to be asked, because tile registers make
    /// each thread's saved state 8 KB larger.
    pub fn may_use_amx() -> bool {
        const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        // By the manual's number; every CPU with AVX-512 has this leaf.
        __cpuid_count(7, 0).edx & AMX_BF16_AND_TILE == AMX_BF16_AND_TILE && permit_amx()
    }

    #[cfg(target_os = "linux")]
    fn permit_amx() -> bool {
        // Of asm/prctl.h, and the number of the tiles' data among the parts of a thread's state.
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const TILE_DATA: libc::c_ulong = 18;
        // SAFETY: touches no memory. From now on stacks for signals must have room for the tiles; where one has not, or the system
        // does not know the request, it refuses.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn permit_amx() -> bool {
        false
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<F32x8>()
    }

    #[target_feature(enable = "avx512f,avx2,fma")]
    pub unsafe fn avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<F32x16<false>>()
    }

    #[target_feature(enable = "avx512bf16,avx512bw,avx512f,avx2,fma")]
    pub unsafe fn avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<F32x16<true>>()
    }

    #[derive(Clone, Copy)]
    pub struct F32x8(__m256);

    /// Eight lanes, the first `n` of them set (all when `n` is 8 or more).
    #[inline(always)]
    unsafe fn mask8(n: usize) -> __m256i {
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), lane)
        }
    }

    /// See [`Vector::transpose`]: pairs of rows are interleaved, then pairs of those, then halves change places. Without closures,
    /// in which these functions would not be inlined.
    #[inline(always)]
    unsafe fn transpose8(block: &[[f32; 8]; 8], to: *mut f32, step: usize) {
        unsafe {
            let mut fours = [_mm256_setzero_ps(); 8];
            for half in [0, 4] {
                let (r0, r1) = (_mm256_loadu_ps(block[half].as_ptr()), _mm256_loadu_ps(block[half + 1].as_ptr()));
                let (r2, r3) = (_mm256_loadu_ps(block[half + 2].as_ptr()), _mm256_loadu_ps(block[half + 3].as_ptr()));
                let (low01, high01) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
                let (low23, high23) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
                fours[half] = _mm256_shuffle_ps::<0b01_00_01_00>(low01, low23);
                fours[half + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(low01, low23);
                fours[half + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(high01, high23);
                fours[half + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(high01, high23);
            }
            for i in 0..4 {
                let (top, bottom) = (fours[i], fours[i + 4]);
                _mm256_storeu_ps(to.add(i * step), _mm256_permute2f128_ps::<0x20>(top, bottom));
                _mm256_storeu_ps(to.add((i + 4) * step), _mm256_permute2f128_ps::<0x31>(top, bottom));
            }
        }
    }

    impl Vector for F32x8 {
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn transpose(block: &[[f32; 8]; 8], to: *mut f32, step: usize) {
            unsafe { transpose8(block, to, step) }
        }
        #[inline(always)]
        unsafe fn splat(v: f32) -> Self {
            F32x8(unsafe { _mm256_set1_ps(v) })
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            F32x8(unsafe { _mm256_loadu_ps(p) })
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm256_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> Self {
            F32x8(unsafe { _mm256_maskload_ps(p, mask8(n)) })
        }
        #[inline(always)]
        unsafe fn store_first(self, p: *mut f32, n: usize) {
            unsafe { _mm256_maskstore_ps(p, mask8(n), self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            F32x8(unsafe { _mm256_add_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn sub(self, o: Self) -> Self {
            F32x8(unsafe { _mm256_sub_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn mul(self, o: Self) -> Self {
            F32x8(unsafe { _mm256_mul_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn div(self, o: Self) -> Self {
            F32x8(unsafe { _mm256_div_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn max(self, o: Self) -> Self {
            F32x8(unsafe { _mm256_max_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn min(self, o: Self) -> Self {
            F32x8(unsafe { _mm256_min_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            F32x8(unsafe { _mm256_fmadd_ps(self.0, a.0, b.0) })
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            F32x8(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
        }
        #[inline(always)]
        unsafe fn scale(self, n: Self) -> Self {
            unsafe {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.0), _mm256_set1_epi32(127));
                self.mul(F32x8(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))))
            }
        }
        #[inline(always)]
        unsafe fn widen(p: *const bf16) -> Self {
            unsafe { F32x8(_mm256_castsi256_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))).low() }
        }
        #[inline(always)]
        unsafe fn narrow(self, p: *mut bf16) {
            unsafe {
                let bits = _mm256_castps_si256(self.0);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0));
                let halves = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
                // Packing works within each half of the vector: the low quarters of the two go together.
                let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(halves, halves));
                _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
            }
        }
        #[inline(always)]
        unsafe fn low(self) -> Self {
            F32x8(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(self.0))) })
        }
        #[inline(always)]
        unsafe fn high(self) -> Self {
            unsafe {
                let high = _mm256_set1_epi32(HIGH as i32);
                F32x8(_mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(self.0), high)))
            }
        }
    }

    /// DOT: the CPU has AVX512-BF16.
    #[derive(Clone, Copy)]
    pub struct F32x16<const DOT: bool>(__m512);

    /// A mask of the first `n` of 16 lanes (all when `n` is 16 or more).
    #[inline(always)]
    fn mask16(n: usize) -> __mmask16 {
        ((1u32 << n.min(16)) - 1) as __mmask16
    }

    impl<const DOT: bool> Vector for F32x16<DOT> {
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn transpose(block: &[[f32; 8]; 8], to: *mut f32, step: usize) {
            unsafe { transpose8(block, to, step) }
        }
        #[inline(always)]
        unsafe fn splat(v: f32) -> Self {
            F32x16(unsafe { _mm512_set1_ps(v) })
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            F32x16(unsafe { _mm512_loadu_ps(p) })
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm512_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> Self {
            F32x16(unsafe { _mm512_maskz_loadu_ps(mask16(n), p) })
        }
        #[inline(always)]
        unsafe fn store_first(self, p: *mut f32, n: usize) {
            unsafe { _mm512_mask_storeu_ps(p, mask16(n), self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            F32x16(unsafe { _mm512_add_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn sub(self, o: Self) -> Self {
            F32x16(unsafe { _mm512_sub_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn mul(self, o: Self) -> Self {
            F32x16(unsafe { _mm512_mul_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn div(self, o: Self) -> Self {
            F32x16(unsafe { _mm512_div_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn max(self, o: Self) -> Self {
            F32x16(unsafe { _mm512_max_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn min(self, o: Self) -> Self {
            F32x16(unsafe { _mm512_min_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            F32x16(unsafe { _mm512_fmadd_ps(self.0, a.0, b.0) })
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            F32x16(unsafe { _mm512_roundscale_ps::<0>(self.0) })
        }
        #[inline(always)]
        unsafe fn scale(self, n: Self) -> Self {
            F32x16(unsafe { _mm512_scalef_ps(self.0, n.0) })
        }
        #[inline(always)]
        unsafe fn widen(p: *const bf16) -> Self {
            unsafe { F32x16(_mm512_castsi512_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))).low() }
        }
        #[inline(always)]
        unsafe fn narrow(self, p: *mut bf16) {
            unsafe {
                if DOT {
                    return p.cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(self.0));
                }
                let bits = _mm512_castps_si512(self.0);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
                let rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
                _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded)));
            }
        }
        #[inline(always)]
        unsafe fn low(self) -> Self {
            F32x16(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(self.0))) })
        }
        #[inline(always)]
        unsafe fn high(self) -> Self {
            unsafe {
                let high = _mm512_set1_epi32(HIGH as i32);
                F32x16(_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(self.0), high)))
            }
        }
        #[inline(always)]
        unsafe fn dot(self, b: Self, sum: Self) -> Self {
            unsafe {
                if DOT {
                    let [a, b] = [self.0, b.0].map(|v| std::mem::transmute::<__m512, __m512bh>(v));
                    F32x16(_mm512_dpbf16_ps(sum.0, a, b))
                } else {
                    self.low().fma(b.low(), self.high().fma(b.high(), sum))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::run_at;
    use super::*;

    struct Exp<'a>(&'a mut [f32]);
    impl Kernel for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Vector>(self) {
            for chunk in self.0.chunks_mut(V::LANES) {
                // SAFETY: the chunk has `len` elements, and `dispatch` gave the instruction set.
                unsafe { V::load_first(chunk.as_ptr(), chunk.len()).exp().store_first(chunk.as_mut_ptr(), chunk.len()) }
            }
        }
    }

    #[test]
    fn exp_is_within_units_in_the_last_place() {
        for at_most in Level::ALL {
            let x: Vec<f32> = (0..10_007).map(|i| -87.0 + 175.0 * i as f32 / 10_006.0).collect();
            let mut y = x.clone();
            run_at(at_most, 1, || dispatch(Exp(&mut y)));
            for (x, y) in x.iter().zip(&y) {
                let want = f64::from(*x).exp();
                let error = (f64::from(*y) - want).abs() / want;
                assert!(error <= 1.5 * f64::from(f32::EPSILON), "{at_most:?}: exp({x}) = {y}, want {want}");
            }
        }
    }

    /// Narrowed, and widened again.
    struct Round<'a>(&'a [f32], &'a mut [bf16], &'a mut [f32]);
    impl Kernel for Round<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Vector>(self) {
            let all = self.0.chunks(V::LANES).zip(self.1.chunks_mut(V::LANES)).zip(self.2.chunks_mut(V::LANES));
            for ((from, half), back) in all {
                // SAFETY: the chunks are equally long, and `dispatch` gave the instruction set.
                unsafe {
                    let v = V::load_first(from.as_ptr(), from.len());
                    if from.len() == V::LANES {
                        v.narrow(half.as_mut_ptr());
                        V::widen(half.as_ptr()).store(back.as_mut_ptr());
                    } else {
                        bf16::store_first(v, half.as_mut_ptr(), from.len());
                        bf16::load_first::<V>(half.as_ptr(), from.len()).store_first(back.as_mut_ptr(), from.len());
                    }
                }
            }
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_ties_to_even_at_every_width() {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN];
        let ties = (0..1000u32).map(|i| f32::from_bits(0x3f80_8000 + (i << 15)));
        let any = (0..10_000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)));
        let any = any.filter(|v| v.is_normal());
        let x: Vec<f32> = special.into_iter().chain(ties).chain(any).collect();
        let want: Vec<bf16> = x.iter().map(|&v| bf16::from_f32(v)).collect();
        let bits = |v: &[bf16]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for at_most in Level::ALL {
            for len in [x.len(), 1, 7, 13] {
                let (mut half, mut back) = (vec![bf16::NAN; len], vec![f32::NAN; len]);
                run_at(at_most, 1, || dispatch_bf16(Round(&x[..len], &mut half, &mut back)));
                assert_eq!(bits(&half), bits(&want[..len]), "{at_most:?}");
                assert!(back.iter().zip(&half).all(|(b, h)| b.to_bits() == h.to_f32().to_bits()), "{at_most:?}");
            }
            let (mut half, mut back) = ([bf16::ZERO; 16], [0.0; 16]);
            run_at(at_most, 1, || dispatch_bf16(Round(&[f32::from_bits(0x7f80_0001); 16], &mut half, &mut back)));
            assert!(half.iter().all(|v| v.is_nan()) && back.iter().all(|v| v.is_nan()), "{at_most:?}");
        }
        let x: Vec<f32> = x.into_iter().chain([1e-40, -1e-45]).collect();
        let mut half = vec![bf16::NAN; x.len()];
        narrow(&x, &mut half);
        assert_eq!(bits(&half), x.iter().map(|&v| bf16::from_f32(v).to_bits()).collect::<Vec<_>>(), "one by one");
    }

    struct Dots<'a>([&'a [f32; 16]; 3], &'a mut [f32; 16]);
    impl Kernel for Dots<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Vector>(self) {
            for at in (0..16).step_by(V::LANES) {
                // SAFETY: 16 is a multiple of every width, and `dispatch_bf16` gave the instruction set.
                unsafe {
                    let [a, b, sum] = self.0.map(|v| V::load(v.as_ptr().add(at)));
                    a.dot(b, sum).store(self.1.as_mut_ptr().add(at));
                }
            }
        }
    }

    #[test]
    fn dots_of_pairs_are_exact_where_f32_is() {
        let value = |i: usize, seed: usize| ((i * 37 + seed * 11) % 31) as f32 - 15.0;
        let pair = |i: usize, seed: usize| {
            let [low, high] = [0, 1].map(|j| u32::from(bf16::from_f32(value(2 * i + j, seed)).to_bits()));
            f32::from_bits(low | high << 16)
        };
        let (a, b) = (std::array::from_fn(|i| pair(i, 1)), std::array::from_fn(|i| pair(i, 2)));
        let sum = std::array::from_fn(|i| 0.25 * i as f32);
        let want =
            std::array::from_fn(|i| sum[i] + (0..2).map(|j| value(2 * i + j, 1) * value(2 * i + j, 2)).sum::<f32>());
        for at_most in Level::ALL {
            let mut got = [f32::NAN; 16];
            run_at(at_most, 1, || dispatch_bf16(Dots([&a, &b, &sum], &mut got)));
            assert_eq!(got, want, "{at_most:?}");
        }
    }
}
