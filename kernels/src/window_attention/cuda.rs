//! Window attention on a CUDA device: which kernels, over how many blocks, with how much shared memory. Nothing of it depends
//! on the device, so that results are the same bits on all.

use super::grid::Grid as Windows;
use super::{Grads, OP, Problem, Saved};
use crate::cuda::{THREADS, strided, suffix};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Grid, Image, launch};
use engine::{DType, Error, Result, Tensor};

static IMAGE: Image = Image::new("window_attention", include_bytes!("../../images/window_attention.fatbin.zst"));

/// Blocks that windows are dealt to, about: a few for each place on a large device.
const BLOCKS: usize = 2048;
/// Warps of the largest block.
const WARPS: usize = 8;
/// Bytes of shared memory that a block has on every device.
const SHARED: usize = 99 << 10;
/// The longest axis of a window: places in a window are packed into as many bits.
const LONGEST: usize = 1 << 10;
/// Outputs of a block of the kernel that puts sums together.
const OUTPUTS: usize = 32;

/// `WindowAttentionArgs` of window_attention.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    qkv: u64,
    pad: u64,
    table: u64,
    dy: u64,
    y: u64,
    lse: u64,
    delta: u64,
    dqkv: u64,
    table_parts: u64,
    pad_parts: u64,
    dtable: u64,
    dpad: u64,
    rows: i64,
    size: [i32; 3],
    window: [i32; 3],
    shift: [i32; 3],
    blocks: [i32; 3],
    nominal: [i32; 2],
    offsets: i32,
    span: i32,
    entries: i32,
    heads: i32,
    head_dim: i32,
    tokens: i32,
    slots: i32,
    windows: i32,
    groups: i32,
    chunks: i32,
    wide: i32,
    tables: i32,
    pads: i32,
    scale: f32,
}

#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Forward,
    Queries,
    Keys,
}

/// What both directions give every kernel.
struct Call<'a> {
    problem: &'a Problem,
    windows: &'a Windows,
    qkv: &'a Tensor,
    args: Args,
}

pub(super) fn forward(
    problem: &Problem,
    windows: &Windows,
    qkv: &Tensor,
    pad: &Tensor,
    table: &Tensor,
    y: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    let mut call = Call::new(problem, windows, qkv, pad, table)?;
    call.args.y = y.device_ptr_mut()?;
    call.args.lse = lse.device_ptr_mut()?;
    let plan = call.plan(Pass::Forward)?;
    // SAFETY: the tensors have the sizes that `args` was made from.
    unsafe { call.attention("forward", &plan) }
}

pub(super) fn backward(
    problem: &Problem,
    windows: &Windows,
    saved: Saved<'_>,
    qkv: &Tensor,
    pad: &Tensor,
    table: &Tensor,
) -> Result<Grads> {
    let mut call = Call::new(problem, windows, qkv, pad, table)?;
    let (queries, keys) = (call.plan(Pass::Queries)?, call.plan(Pass::Keys)?);
    let padded = (0..3).any(|axis| windows.blocks[axis] * windows.window[axis] != windows.size[axis]);
    let new = |dims: &[usize]| Tensor::empty(dims, DType::F32, qkv.device());
    let (tables, pads) = (queries.parts(), if padded { keys.parts() } else { 0 });
    let mut delta = new(saved.lse.dims())?;
    let mut table_parts = new(&[tables, problem.heads, call.entries()])?;
    let mut pad_parts = new(&[pads, 2, problem.channels])?;
    let mut g = Grads { dqkv: qkv.new_empty(qkv.dims())?, dpad: new(pad.dims())?, dtable: new(table.dims())? };
    call.args = Args {
        dy: saved.dy.device_ptr()?,
        y: saved.y.device_ptr()?,
        lse: saved.lse.device_ptr()?,
        delta: delta.device_ptr_mut()?,
        dqkv: g.dqkv.device_ptr_mut()?,
        table_parts: table_parts.device_ptr_mut()?,
        pad_parts: if padded { pad_parts.device_ptr_mut()? } else { 0 },
        dtable: g.dtable.device_ptr_mut()?,
        dpad: g.dpad.device_ptr_mut()?,
        wide: call.args.wide & i32::from(saved.dy.device_ptr()?.is_multiple_of(16)),
        tables: int(tables)?,
        pads: int(pads)?,
        ..call.args
    };
    // SAFETY: the tensors have the sizes that `args` was made from, and each part its block.
    unsafe {
        call.launch(&format!("delta_{}", suffix(OP, qkv)?), strided(qkv, saved.lse.numel())?)?;
        call.attention("queries", &queries)?;
        call.attention("keys", &keys)?;
        call.launch("sums_f32", call.sums()?)?;
    }
    Ok(g)
}

/// How one of the three attention kernels is launched.
struct Plan {
    warps: usize,
    /// Blocks that share the rows of a window.
    chunks: usize,
    /// Blocks that share the windows of a head.
    groups: usize,
    slots: usize,
    shared: usize,
}

impl Plan {
    /// Blocks of one head, each of which has its part of a sum.
    fn parts(&self) -> usize {
        self.groups * self.chunks
    }
}

impl<'a> Call<'a> {
    fn new(
        problem: &'a Problem,
        windows: &'a Windows,
        qkv: &'a Tensor,
        pad: &Tensor,
        table: &Tensor,
    ) -> Result<Call<'a>> {
        if problem.head_dim() > 64 || windows.window.iter().any(|&w| w >= LONGEST) {
            let (dim, window) = (problem.head_dim(), windows.window);
            let detail = format!("on {} heads have up to 64 channels and windows axes below {LONGEST}", qkv.device());
            return Err(Error::invalid(OP, format!("{detail}; got {dim} channels, window {window:?}")));
        }
        let ints = |values: [usize; 3]| Ok::<_, Error>([int(values[0])?, int(values[1])?, int(values[2])?]);
        let rows = problem.batch * windows.size.iter().product::<usize>();
        int(rows)?;
        let bytes = problem.head_dim() * qkv.dtype().size();
        let span = windows.code(windows.tokens() - 1);
        let args = Args {
            qkv: qkv.device_ptr()?,
            pad: pad.device_ptr()?,
            table: table.device_ptr()?,
            rows: rows as i64,
            size: ints(windows.size)?,
            window: ints(windows.window)?,
            shift: ints(windows.shift)?,
            blocks: ints(windows.blocks)?,
            nominal: [int(windows.nominal[1])?, int(windows.nominal[2])?],
            offsets: int(windows.offsets())?,
            span: int(span)?,
            entries: int(2 * span + 1)?,
            heads: int(problem.heads)?,
            head_dim: int(problem.head_dim())?,
            tokens: int(windows.tokens())?,
            windows: int(problem.batch * windows.windows())?,
            wide: i32::from(bytes.is_multiple_of(16) && qkv.device_ptr()?.is_multiple_of(16)),
            scale: (problem.head_dim() as f64).powf(-0.5) as f32,
            ..Args::zeroed()
        };
        int(3 * problem.channels)?;
        Ok(Call { problem, windows, qkv, args })
    }

    /// Of the part of the table that a window meets.
    fn entries(&self) -> usize {
        2 * self.windows.code(self.windows.tokens() - 1) + 1
    }

    /// The head_dim that the kernel is made for.
    fn wide_head(&self) -> usize {
        self.problem.head_dim().next_power_of_two().max(16)
    }

    /// Rows of a warp, columns of a tile, and bytes of an element.
    fn tile(&self) -> (usize, usize, usize) {
        if self.qkv.dtype().is_half() { (16, 64, 2) } else { (32 / (self.wide_head() / 16), 32, 4) }
    }

    /// With as many warps as fit. Errors when not even one does.
    fn plan(&self, pass: Pass) -> Result<Plan> {
        let fitting = (1..=WARPS).rev().map(|most| self.plan_with(pass, most)).find(|plan| plan.shared <= SHARED);
        fitting.ok_or_else(|| {
            let (window, device) = (self.windows.window, self.qkv.device());
            Error::invalid(OP, format!("windows of {window:?} are too large for a block on {device}"))
        })
    }

    fn plan_with(&self, pass: Pass, most_warps: usize) -> Plan {
        let (rows, columns, bytes) = self.tile();
        let tokens = self.windows.tokens();
        let tiles = tokens.div_ceil(rows);
        let chunks = tiles.div_ceil(most_warps);
        let warps = tiles.div_ceil(chunks);
        let slots = (chunks * warps * rows).max(tokens.next_multiple_of(columns));
        let own = match pass {
            Pass::Forward => 0,
            Pass::Queries => self.entries(),
            Pass::Keys => 2 * self.wide_head(),
        };
        let ring = 4 * columns * self.wide_head() * bytes;
        let shared = ring + 4 * (4 * columns + 3 * slots + self.entries() + warps * own);
        let windows = self.problem.batch * self.windows.windows();
        let groups = BLOCKS.div_ceil(self.problem.heads * chunks).min(windows);
        Plan { warps, chunks, groups, slots, shared }
    }

    /// # Safety
    /// As [`launch`].
    unsafe fn attention(&self, name: &str, plan: &Plan) -> Result<()> {
        let args = Args { slots: int(plan.slots)?, groups: int(plan.groups)?, chunks: int(plan.chunks)?, ..self.args };
        let blocks = int(plan.parts() * self.problem.heads)?.unsigned_abs();
        let kernel = format!("window_attention_{name}_{}_{}", self.wide_head(), suffix(OP, self.qkv)?);
        let grid = Grid { grid: [blocks, 1, 1], block: [32 * plan.warps as u32, 1, 1], shared: plan.shared as u32 };
        // SAFETY: the caller's.
        unsafe { launch(self.qkv.device(), &IMAGE, &kernel, grid, &args) }
    }

    /// # Safety
    /// As [`launch`].
    unsafe fn launch(&self, name: &str, grid: Grid) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { launch(self.qkv.device(), &IMAGE, &format!("window_attention_{name}"), grid, &self.args) }
    }

    /// The grid of the kernel that puts dtable and dpad together.
    fn sums(&self) -> Result<Grid> {
        let table = (self.windows.offsets() * self.problem.heads).div_ceil(OUTPUTS);
        let blocks = int(table + (3 * self.problem.channels).div_ceil(OUTPUTS))?.unsigned_abs();
        Ok(Grid { grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared: 0 })
    }
}

/// A size as kernels take it.
fn int(value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::invalid(OP, format!("a size of {value} is beyond the kernels' 31 bits")))
}
