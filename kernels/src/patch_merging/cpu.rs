//! One pass over the output, a line along W at a time.

use super::{Order, merged};
use crate::real::Stored;
use engine::parallel;

/// The (b, d, h) of a line along W, given its index in a tensor of these dims.
fn line_at(line: usize, [_, d, h, ..]: [usize; 5]) -> [usize; 3] {
    [line / (d * h), line / h % d, line % h]
}

pub(super) fn gather<T: Stored>(dims: [usize; 5], order: Order, x: &[T], y: &mut [T]) {
    let out = merged(dims);
    let [_, _, _, width, channels] = out;
    if y.is_empty() {
        return;
    }
    parallel::each(y.chunks_exact_mut(width * channels).enumerate(), |(line, y)| {
        let [b, d, h] = line_at(line, out);
        let slots = order.parities().map(|[pd, ph, pw]| (input_line(dims, x, [b, 2 * d + pd, 2 * h + ph]), pw));
        for (w, y) in y.chunks_exact_mut(channels).enumerate() {
            for (y, (line, pw)) in y.chunks_exact_mut(dims[4]).zip(slots) {
                match line.chunks_exact(dims[4]).nth(2 * w + pw) {
                    Some(x) => y.copy_from_slice(x),
                    None => y.fill(T::zeroed()),
                }
            }
        }
    });
}

/// The line along W at (b, d, h); empty when d or h is past the end.
fn input_line<T>([_, depth, height, width, c]: [usize; 5], x: &[T], [b, d, h]: [usize; 3]) -> &[T] {
    if d < depth && h < height { &x[((b * depth + d) * height + h) * width * c..][..width * c] } else { &[] }
}

pub(super) fn scatter<T: Stored>(dims: [usize; 5], order: Order, dy: &[T], dx: &mut [T]) {
    let [_, half_d, half_h, half_w, channels] = merged(dims);
    let [_, _, _, width, c] = dims;
    if dx.is_empty() {
        return;
    }
    parallel::each(dx.chunks_exact_mut(width * c).enumerate(), |(line, dx)| {
        let [b, d, h] = line_at(line, dims);
        let from = &dy[((b * half_d + d / 2) * half_h + h / 2) * half_w * channels..][..half_w * channels];
        let held = [0, 1].map(|pw| slots_of([d % 2, h % 2, pw], order));
        for (w, dx) in dx.chunks_exact_mut(c).enumerate() {
            let slot = |s: usize| &from[w / 2 * channels + s * c..][..c];
            match held[w % 2] {
                [None, _] => dx.fill(T::zeroed()),
                [Some(s), None] => dx.copy_from_slice(slot(s)),
                [Some(s), Some(t)] => {
                    for (dx, (a, b)) in dx.iter_mut().zip(slot(s).iter().zip(slot(t))) {
                        *dx = T::narrow(a.widen() + b.widen());
                    }
                }
            }
        }
    });
}

/// The slots that hold the voxels of a parity: none, one or two.
fn slots_of(parity: [usize; 3], order: Order) -> [Option<usize>; 2] {
    let mut slots = (0..8).filter(|&s| order.parities()[s] == parity);
    [slots.next(), slots.next()]
}
