//! Where windows lie: padding, roll and partition as index arithmetic.

use super::Params;

/// The row of a token that is padding.
pub(super) const PADDING: usize = usize::MAX;

/// The cut of a `[D, H, W]` grid into windows. `window` and `shift` are the effective ones: an axis no longer than the
/// nominal window is one window of its own size, without shift.
pub(super) struct Grid {
    pub size: [usize; 3],
    pub window: [usize; 3],
    pub shift: [usize; 3],
    /// Windows along each axis; `blocks * window` is the padded size.
    pub blocks: [usize; 3],
    /// The window that the table of biases was made for.
    pub nominal: [usize; 3],
}

impl Grid {
    /// `size` without a zero; `p` checked by [`Params::check`].
    pub fn new(size: [usize; 3], p: Params) -> Grid {
        let whole = |axis: usize| size[axis] <= p.window[axis];
        let window = std::array::from_fn(|axis| if whole(axis) { size[axis] } else { p.window[axis] });
        let shift = std::array::from_fn(|axis| if whole(axis) { 0 } else { p.shift[axis] });
        let blocks = std::array::from_fn(|axis| size[axis].div_ceil(window[axis]));
        Grid { size, window, shift, blocks, nominal: p.window }
    }

    /// Windows of one batch element.
    pub fn windows(&self) -> usize {
        self.blocks.iter().product()
    }

    /// Tokens of one window.
    pub fn tokens(&self) -> usize {
        self.window.iter().product()
    }

    /// Rows of the table: offsets between two tokens of the nominal window.
    pub fn offsets(&self) -> usize {
        self.nominal.iter().map(|w| 2 * w - 1).product()
    }

    /// The table's row for query token `i` and key token `j` is `code(i) - code(j) + (offsets() - 1) / 2`. Token `t` of a
    /// smaller window takes the place of token `t` of the nominal one (MONAI's `index[:n, :n]`).
    pub fn code(&self, t: usize) -> usize {
        let w = self.nominal[2];
        self.line_code(t / w) * (2 * w - 1) + t % w
    }

    /// Offsets between two lines along W of the nominal window.
    pub fn line_offsets(&self) -> usize {
        let [d, h, _] = self.nominal;
        (2 * d - 1) * (2 * h - 1)
    }

    /// The same as [`Grid::code`] for lines: that of i from j is `line_code(i) - line_code(j) + (line_offsets() - 1) / 2`.
    pub fn line_code(&self, line: usize) -> usize {
        let h = self.nominal[1];
        line / h * (2 * h - 1) + line % h
    }

    /// The coordinate in the grid at `at` of the rolled and padded axis (None in the padding), and whether the roll brought
    /// it round from the other end.
    fn place(&self, axis: usize, at: usize) -> (Option<usize>, bool) {
        let padded = self.blocks[axis] * self.window[axis];
        let from = at + self.shift[axis];
        let wrapped = from >= padded;
        let from = if wrapped { from - padded } else { from };
        ((from < self.size[axis]).then_some(from), wrapped)
    }
}

/// The tokens of one window.
#[derive(Default)]
pub(super) struct Window {
    /// Row of each token in the `[B * D * H * W]` grid, or [`PADDING`].
    pub rows: Vec<usize>,
    /// Region of each token, below [`REGIONS`]: one bit per axis, set where the roll brought the token round. Attention
    /// between two regions is masked. MONAI cuts each axis at `-window` too, which never divides a window.
    pub regions: Vec<u8>,
    /// Tokens that are in the grid.
    pub queries: Vec<usize>,
    /// More than one region.
    pub divided: bool,
}

pub(super) const REGIONS: usize = 8;

impl Window {
    /// Tokens of window `index` (row-major) of batch element `batch`.
    pub fn fill(&mut self, grid: &Grid, batch: usize, index: usize) {
        let [_, bh, bw] = grid.blocks;
        let block = [index / (bh * bw), index / bw % bh, index % bw];
        let start: [usize; 3] = std::array::from_fn(|axis| block[axis] * grid.window[axis]);
        let [_, h, w] = grid.size;
        self.rows.clear();
        self.regions.clear();
        for i in 0..grid.window[0] {
            let (z, wrapped_z) = grid.place(0, start[0] + i);
            for j in 0..grid.window[1] {
                let (y, wrapped_y) = grid.place(1, start[1] + j);
                let line = z.zip(y).map(|(z, y)| ((batch * grid.size[0] + z) * h + y) * w);
                for k in 0..grid.window[2] {
                    let (x, wrapped_x) = grid.place(2, start[2] + k);
                    self.rows.push(line.zip(x).map_or(PADDING, |(line, x)| line + x));
                    self.regions.push(u8::from(wrapped_z) << 2 | u8::from(wrapped_y) << 1 | u8::from(wrapped_x));
                }
            }
        }
        self.queries.clear();
        self.queries.extend((0..self.rows.len()).filter(|&t| self.rows[t] != PADDING));
        self.divided = self.regions.iter().any(|&r| r != self.regions[0]);
    }
}
