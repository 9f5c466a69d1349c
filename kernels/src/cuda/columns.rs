//! Launches of the kernels that work by channel (columns.cuh).

use super::{THREADS, chunked, narrow, strided, version};
use bytemuck::{Pod, Zeroable};
use engine::cuda::Grid;
use engine::{DType, Error, Result, Tensor};

/// Blocks that a matrix is shared out to, about: as many as the largest cards hold at a time. A constant, so that results are the
/// same on all of them.
const BLOCKS: usize = 1024;
/// Rows of a thread that are worth a block of their own.
const THREAD_ROWS: usize = 8;

/// `Columns` of columns.cuh: matrices `[groups, rows, channels]`, the rows of a group cut into `pieces` of `piece` rows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Columns {
    groups: i64,
    rows: i64,
    piece: i64,
    channels: i32,
    pieces: i32,
}

/// How a matrix of at least one group and channel is worked on.
pub(crate) struct Plan {
    pub matrix: Columns,
    /// The ending of the kernels' names.
    pub version: String,
    /// Of kernels that work on pieces.
    pub grid: Grid,
}

impl Plan {
    /// For x, whose last axis are the channels, and others that are read and written along with it.
    pub fn new(op: &'static str, x: &Tensor, others: &[&Tensor], groups: usize) -> Result<Plan> {
        let (channels, rows) = (x.channels(), x.rows() / groups);
        let (version, chunk) = version(op, x, chunked(channels, x, others)?)?;
        let chunks = channels / chunk;
        let (piece, pieces) = cut(groups, rows, chunks);
        let blocks = u32::try_from(groups * pieces)
            .map_err(|_| Error::shape(op, format!("{groups} samples are too many for the device's kernels")))?;
        let across = chunks.div_ceil(THREADS as usize) as u32;
        let matrix = Columns {
            groups: groups as i64,
            rows: rows as i64,
            piece: piece as i64,
            channels: narrow(op, channels)?,
            pieces: pieces as i32,
        };
        Ok(Plan { matrix, version, grid: Grid { grid: [blocks, across, 1], block: [THREADS, 1, 1], shared: 0 } })
    }

    /// Room for what the pieces give, so many values for each channel.
    pub fn partial(&self, x: &Tensor, values: usize) -> Result<Tensor> {
        let Columns { groups, channels, pieces, .. } = self.matrix;
        Tensor::empty(&[groups as usize, pieces as usize, values, channels as usize], DType::F32, x.device())
    }

    /// Of kernels with a warp for each channel.
    pub fn totals(&self, x: &Tensor) -> Result<Grid> {
        strided(x, 32 * self.matrix.groups as usize * self.matrix.channels as usize)
    }
}

/// Rows of a piece and pieces of a group; no pieces where there are no rows.
fn cut(groups: usize, rows: usize, chunks: usize) -> (usize, usize) {
    let lines = (THREADS as usize / chunks).max(1);
    let wanted = BLOCKS / (groups * chunks.div_ceil(THREADS as usize));
    let most = rows.div_ceil(lines * THREAD_ROWS);
    let piece = rows.div_ceil(wanted.min(most).max(1)).max(1);
    (piece, rows.div_ceil(piece))
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn pieces_cover_the_rows_and_none_is_empty() {
        for groups in [1, 2, 22, 5000] {
            for rows in [0, 1, 2, 167, 1001, 884_736] {
                for chunks in [1, 12, 255, 257, 4096] {
                    let (piece, pieces) = cut(groups, rows, chunks);
                    assert!(pieces * piece >= rows && (pieces == 0 || (pieces - 1) * piece < rows));
                    assert!(groups * pieces * chunks.div_ceil(256) <= 1024.max(groups * chunks.div_ceil(256)));
                }
            }
        }
        assert_eq!(cut(2, 884_736, 12), (1728, 512));
        assert_eq!(cut(1, 22, 192), (8, 3));
    }
}
