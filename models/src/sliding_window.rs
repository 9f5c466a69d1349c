//! Inference on volumes larger than a network's input: overlapping windows, blended.
//!
//! A volume is covered by windows of `roi` voxels whose starts lie `interval = max(1, ⌊roi (1 - overlap)⌋)` apart on each axis
//! (one window where the volume is as long as the roi); the last one is moved back to end with the volume. Where the volume is
//! shorter than the roi, windows reach over its edge into zeros, ⌊missing / 2⌋ of them before it. The result is, per voxel,
//! `Σ weight · logits / Σ weight` over the windows that hold it: raw logits, before softmax or argmax. As MONAI's
//! `sliding_window_inference` with constant padding.

use engine::{DType, Device, Error, Result, Tensor};

const OP: &str = "sliding_window";
/// Standard deviation of [`Blend::Gaussian`], as a share of the roi.
const SIGMA: f64 = 0.125;
/// The least weight that [`Blend::Gaussian`] gives.
const LEAST_WEIGHT: f64 = 1e-3;

/// How much a window's logits count, by their place in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blend {
    /// All the same.
    Constant,
    /// `exp(-x² / (2 (roi / 8)²))` per axis, x from the window's centre, and at least 1e-3.
    Gaussian,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlidingWindow {
    /// Voxels of a window: D, H, W.
    pub roi: [usize; 3],
    /// The share of a window that it has in common with the next, in [0, 1). 0.75 looks at every voxel 64 times, 0.5 at 8.
    pub overlap: f64,
    pub blend: Blend,
}

impl SlidingWindow {
    /// The starts of the windows on each axis of a volume of `dims` voxels, in order. On an axis shorter than the roi the only
    /// start is 0, counted in the padded volume. Errors when the roi or the volume is empty, or the overlap outside [0, 1).
    pub fn windows(&self, dims: [usize; 3]) -> Result<[Vec<usize>; 3]> {
        if self.roi.contains(&0) || dims.contains(&0) {
            return Err(Error::shape(OP, format!("windows of {:?} voxels on a volume of {dims:?}", self.roi)));
        }
        if !(0.0..1.0).contains(&self.overlap) {
            return Err(Error::invalid(OP, format!("overlap {} must lie in [0, 1)", self.overlap)));
        }
        Ok(std::array::from_fn(|a| self.starts(self.roi[a], dims[a])))
    }

    fn starts(&self, roi: usize, len: usize) -> Vec<usize> {
        let last = len.saturating_sub(roi);
        let interval = ((roi as f64 * (1.0 - self.overlap)) as usize).max(1);
        (0..=last.div_ceil(interval)).map(|k| (k * interval).min(last)).collect()
    }

    /// Runs `predict` on every window of x `[N, D, H, W, C]`, sample by sample and row-major, and blends what it returns to
    /// `[N, D, H, W, K]`. `predict` takes `[1, roi, C]` and returns `[1, roi, K]`; K is up to it, but the same every time.
    /// Windows and result are f32, whatever the dtype of x and of the logits. Errors when x has no voxels, when a prediction
    /// does not have the shape above, and with `predict`'s own.
    pub fn run(&self, x: &Tensor, mut predict: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let [n, d, h, w, _] = x.ndhwc(OP)?;
        let [starts_d, starts_h, starts_w] = self.windows([d, h, w])?;
        let device = x.device();
        let x = x.to_device(Device::Cpu)?.to_dtype(DType::F32)?; // windows are cut and blended on the host
        let weights = self.weights()?;
        let weights = weights.as_slice::<f32>()?;
        let mut blended = None;
        for sample in 0..n {
            let image = x.rows_at(sample, 1)?;
            let mut total = vec![0.0; d * h * w];
            for &start_d in &starts_d {
                for &start_h in &starts_h {
                    for &start_w in &starts_w {
                        let place = self.place([start_d, start_h, start_w], [d, h, w]);
                        let logits = predict(&place.cut(&image)?.to_device(device)?)?;
                        let logits = logits.to_device(Device::Cpu)?.to_dtype(DType::F32)?;
                        let sum = match &mut blended {
                            Some(sum) => sum,
                            none => {
                                none.insert(Tensor::zeros(&[n, d, h, w, logits.channels()], DType::F32, x.device())?)
                            }
                        };
                        self.expect(&logits, sum.channels())?;
                        place.add(&logits, weights, sample, sum, &mut total)?;
                    }
                }
            }
            if let Some(sum) = &mut blended {
                divide(sum, sample, &total)?;
            }
        }
        let blended = blended.ok_or_else(|| Error::shape(OP, format!("{:?} holds no sample", x.shape())))?;
        blended.to_device(device)
    }

    fn expect(&self, logits: &Tensor, classes: usize) -> Result<()> {
        let [d, h, w] = self.roi;
        if classes > 0 && logits.dims() == [1, d, h, w, classes] {
            return Ok(());
        }
        let classes = classes.max(1);
        let detail = format!("a prediction of shape {:?}; expected [1, {d}, {h}, {w}, {classes}]", logits.shape());
        Err(Error::shape(OP, detail))
    }

    /// The weight of each voxel of a window `[roi]`. Errors when there is no memory for so many.
    fn weights(&self) -> Result<Tensor> {
        let mut weights = Tensor::empty(&self.roi, DType::F32, Device::Cpu)?;
        let [d, h, w] = self.roi.map(|len| self.weights_along(len));
        let weight = |i: usize| d[i / w.len() / h.len()] * h[i / w.len() % h.len()] * w[i % w.len()];
        weights.fill_with(0..weights.numel(), |i| weight(i).max(LEAST_WEIGHT))?;
        Ok(weights)
    }

    fn weights_along(&self, len: usize) -> Vec<f64> {
        let (centre, sigma) = ((len as f64 - 1.0) / 2.0, SIGMA * len as f64);
        let gaussian = |i| (-((i as f64 - centre) / sigma).powi(2) / 2.0).exp();
        match self.blend {
            Blend::Constant => vec![1.0; len],
            Blend::Gaussian => (0..len).map(gaussian).collect(),
        }
    }

    fn place(&self, starts: [usize; 3], dims: [usize; 3]) -> Place {
        let axes = std::array::from_fn(|a| Axis::new(starts[a], self.roi[a], dims[a]));
        Place { axes, roi: self.roi, dims }
    }
}

/// Where window and volume meet on one axis: `len` voxels from `window` on in the one and from `image` on in the other.
#[derive(Clone, Copy)]
struct Axis {
    window: usize,
    image: usize,
    len: usize,
}

impl Axis {
    fn new(start: usize, roi: usize, dim: usize) -> Self {
        Axis { window: roi.saturating_sub(dim) / 2, image: start, len: roi.min(dim) }
    }
}

/// One window's place in its volume.
struct Place {
    axes: [Axis; 3],
    roi: [usize; 3],
    dims: [usize; 3],
}

impl Place {
    /// The rows along W that window and volume share: the voxel at which each starts, in the window and in the volume.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        let [d, h, w] = self.axes;
        let voxel = |[_, dim_h, dim_w]: [usize; 3], at: [usize; 3]| (at[0] * dim_h + at[1]) * dim_w + at[2];
        (0..d.len).flat_map(move |i| (0..h.len).map(move |j| (i, j))).map(move |(i, j)| {
            let window = voxel(self.roi, [d.window + i, h.window + j, w.window]);
            (window, voxel(self.dims, [d.image + i, h.image + j, w.image]))
        })
    }

    /// The window `[1, roi, C]` of `image` `[1, D, H, W, C]`, zero where it reaches over the edge.
    fn cut(&self, image: &Tensor) -> Result<Tensor> {
        let ([d, h, w], c) = (self.roi, image.channels());
        let mut window = Tensor::zeros(&[1, d, h, w, c], DType::F32, image.device())?;
        let (from, to) = (image.as_slice::<f32>()?, window.as_mut_slice::<f32>()?);
        let len = self.axes[2].len * c;
        for (at, source) in self.rows() {
            to[at * c..][..len].copy_from_slice(&from[source * c..][..len]);
        }
        Ok(window)
    }

    /// Adds weighted logits to one sample of `sum` `[N, D, H, W, K]` and the weights to `total` `[D, H, W]`.
    fn add(&self, logits: &Tensor, weights: &[f32], sample: usize, sum: &mut Tensor, total: &mut [f32]) -> Result<()> {
        let k = logits.channels();
        let logits = logits.as_slice::<f32>()?;
        let sum = &mut sum.as_mut_slice::<f32>()?[sample * total.len() * k..];
        let len = self.axes[2].len;
        for (from, at) in self.rows() {
            let weights = &weights[from..][..len];
            for (t, w) in total[at..].iter_mut().zip(weights) {
                *t += w;
            }
            let voxels = sum[at * k..].chunks_exact_mut(k).zip(logits[from * k..].chunks_exact(k));
            for ((sum, logits), w) in voxels.zip(weights) {
                for (s, l) in sum.iter_mut().zip(logits) {
                    *s += w * l;
                }
            }
        }
        Ok(())
    }
}

fn divide(sum: &mut Tensor, sample: usize, total: &[f32]) -> Result<()> {
    let k = sum.channels();
    let sum = &mut sum.as_mut_slice::<f32>()?[sample * total.len() * k..][..total.len() * k];
    for (voxel, t) in sum.chunks_exact_mut(k).zip(total) {
        for s in voxel {
            *s /= t;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::random;

    fn sliding(roi: [usize; 3], overlap: f64, blend: Blend) -> SlidingWindow {
        SlidingWindow { roi, overlap, blend }
    }

    fn volume(dims: &[usize]) -> Tensor {
        engine::memory::check(true);
        let values: Vec<f32> =
            (0..dims.iter().product::<usize>() as u64).map(|i| random::normal(1, i) as f32).collect();
        Tensor::from_slice(&values, dims).expect("volume")
    }

    #[test]
    fn starts_follow_the_golden_values() {
        let starts = |dims, overlap| sliding([96; 3], overlap, Blend::Constant).windows(dims).expect("windows");
        assert_eq!(starts([150, 97, 96], 0.75), [vec![0, 24, 48, 54], vec![0, 1], vec![0]]);
        assert_eq!(starts([96, 100, 200], 0.75), [vec![0], vec![0, 4], vec![0, 24, 48, 72, 96, 104]]);
        assert_eq!(starts([231, 180, 130], 0.5), [vec![0, 48, 96, 135], vec![0, 48, 84], vec![0, 34]]);
        assert_eq!(starts([20, 96, 97], 0.0), [vec![0], vec![0], vec![0, 1]]);
        let dense = sliding([4, 1, 2], 0.99, Blend::Constant).windows([6, 3, 2]).expect("windows");
        assert_eq!(dense, [vec![0, 1, 2], vec![0, 1, 2], vec![0]]);
    }

    #[test]
    fn a_voxelwise_prediction_comes_back_whatever_the_windows() {
        let x = volume(&[2, 9, 5, 11, 2]);
        for blend in [Blend::Constant, Blend::Gaussian] {
            for roi in [[4, 4, 4], [9, 5, 11], [12, 3, 16], [1, 1, 1]] {
                let predict = |w: &Tensor| {
                    let y: Vec<f32> = w.as_slice::<f32>()?.iter().map(|v| 3.0 * v).collect();
                    Tensor::from_slice(&y, w.dims())
                };
                let y = sliding(roi, 0.5, blend).run(&x, predict).expect("run");
                assert_eq!(y.dims(), x.dims());
                for (y, x) in y.as_slice::<f32>().expect("y").iter().zip(x.as_slice::<f32>().expect("x")) {
                    assert!((y - 3.0 * x).abs() <= 1e-6 * (1.0 + x.abs()), "{roi:?} {blend:?} {y} {x}");
                }
            }
        }
    }

    /// A prediction of one class that depends on the place in the window: `sum of channels + index in the window`.
    fn placed(window: &Tensor) -> Result<Tensor> {
        let (x, c) = (window.as_slice::<f32>()?, window.channels());
        let y: Vec<f32> = x.chunks(c).enumerate().map(|(i, v)| v.iter().sum::<f32>() + i as f32 / 100.0).collect();
        let dims = window.dims();
        Tensor::from_slice(&y, &[1, dims[1], dims[2], dims[3], 1])
    }

    #[test]
    fn blending_matches_a_voxel_by_voxel_sum() {
        let dims = [7, 3, 10];
        let roi = [4, 5, 6];
        let x = volume(&[1, 7, 3, 10, 2]);
        let values = x.as_slice::<f32>().expect("x").to_vec();
        for blend in [Blend::Constant, Blend::Gaussian] {
            let s = sliding(roi, 0.6, blend);
            let got = s.run(&x, placed).expect("run");
            let starts = s.windows(dims).expect("windows");
            let bell = |i: usize, n: usize| {
                (-(i as f64 - (n as f64 - 1.0) / 2.0).powi(2) / 2.0 / (n as f64 / 8.0).powi(2)).exp()
            };
            for voxel in 0..7 * 3 * 10 {
                let at: [usize; 3] = [voxel / 30, voxel / 10 % 3 + 1, voxel % 10]; // H is padded by one voxel before and one after
                let (mut sum, mut total) = (0.0, 0.0);
                for z in &starts[0] {
                    for x in &starts[2] {
                        let place = [at[0].wrapping_sub(*z), at[1], at[2].wrapping_sub(*x)];
                        if place.iter().zip(roi).any(|(p, r)| *p >= r) {
                            continue;
                        }
                        let bell = (0..3).map(|a| bell(place[a], roi[a])).product::<f64>().max(1e-3);
                        let weight = if blend == Blend::Constant { 1.0 } else { bell };
                        let index = (place[0] * roi[1] + place[1]) * roi[2] + place[2];
                        let logit =
                            f64::from(values[2 * voxel]) + f64::from(values[2 * voxel + 1]) + index as f64 / 100.0;
                        sum += weight * logit;
                        total += weight;
                    }
                }
                let got = f64::from(got.as_slice::<f32>().expect("y")[voxel]);
                assert!((got - sum / total).abs() < 2e-6 * (1.0 + (sum / total).abs()), "{blend:?} {voxel}: {got}");
            }
        }
    }

    #[test]
    fn windows_come_in_order_and_reach_into_zeros() {
        let x = Tensor::full(&[1, 2, 5, 3, 1], 1.0, DType::BF16, Device::Cpu).expect("ones");
        let mut seen = Vec::new();
        let y = sliding([5, 5, 2], 0.5, Blend::Constant).run(&x, |w| {
            seen.push(w.to_vec::<f32>()?.chunks(10).map(|plane| plane.iter().sum::<f32>()).collect::<Vec<_>>());
            w.to_dtype(DType::F64)
        });
        assert_eq!(seen, [[0.0, 10.0, 10.0, 0.0, 0.0], [0.0, 10.0, 10.0, 0.0, 0.0]]); // one before, two after
        assert_eq!(y.expect("run").to_vec::<f32>().expect("read"), [1.0; 30]);
    }

    #[test]
    fn wrong_input_is_an_error() {
        let x = volume(&[1, 4, 4, 4, 1]);
        let s = sliding([2; 3], 0.5, Blend::Constant);
        assert!(sliding([2, 0, 2], 0.5, Blend::Constant).run(&x, placed).is_err());
        assert!(sliding([2; 3], 1.0, Blend::Constant).run(&x, placed).is_err());
        assert!(sliding([2; 3], f64::NAN, Blend::Constant).run(&x, placed).is_err());
        assert!(s.run(&volume(&[4, 4, 4, 1]), placed).is_err());
        assert!(s.run(&volume(&[0, 4, 4, 4, 1]), placed).is_err());
        assert!(s.run(&volume(&[1, 4, 0, 4, 1]), placed).is_err());
        assert!(s.run(&x, |w| w.reshape(&[1, 1, 2, 4, 1])).is_err());
        let none = s.run(&x, |_| Tensor::zeros(&[1, 2, 2, 2, 0], DType::F32, Device::Cpu));
        assert!(none.expect_err("no classes").to_string().contains("expected [1, 2, 2, 2, 1]"));
        for roi in [[1 << 21; 3], [1 << 57, 1, 1], [usize::MAX; 3]] {
            assert!(sliding(roi, 0.5, Blend::Gaussian).run(&x, placed).is_err());
        }
        let mut calls = 0;
        let changing = |w: &Tensor| {
            calls += 1;
            w.reshape(if calls > 1 { &[1, 2, 2, 1, 2] } else { &[1, 2, 2, 2, 1] })
        };
        assert!(s.run(&x, changing).is_err());
    }
}
