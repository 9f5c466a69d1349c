//! Inference in overlapping windows, with a fixed 3³ convolution as the network, in f32 as ever.

use super::case::Case;
use super::ops::Layout;
use super::{Computed, Context};
use crate::{Error, Result};
use engine::DType;
use kernels::conv3d::{self, Params};
use models::sliding_window::{Blend, SlidingWindow};
use serde::Deserialize;

#[derive(Deserialize)]
struct Attrs {
    roi: [usize; 3],
    overlap: f64,
    mode: Mode,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Constant,
    Gaussian,
}

pub fn run(case: &Case, context: &Context) -> Result<Computed> {
    let Attrs { roi, overlap, mode } = case.attrs()?;
    let blend = match mode {
        Mode::Constant => Blend::Constant,
        Mode::Gaussian => Blend::Gaussian,
    };
    let layout = Layout::ChannelsFirst;
    let input =
        |name| Ok::<_, Error>(layout.inward(&case.tensor(name)?.to_dtype(DType::F32)?)?.to_device(context.device)?);
    let (x, weight) = (input("in.x")?, input("in.weight")?);
    let p = Params { stride: [1; 3], padding: [1; 3] };
    let y = SlidingWindow { roi, overlap, blend }.run(&x, |window| conv3d::fprop(window, &weight, None, p))?;
    Ok(Computed::from([("out.y".into(), layout.outward(&y)?)]))
}
