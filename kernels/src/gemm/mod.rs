//! The matrix product under convolutions, transposed convolutions and linear layers: rows that are gathered through a [`Map`],
//! times weights, and its counterpart, the gradient of the weights.

mod along_w;
#[cfg(target_arch = "x86_64")]
mod amx;
mod columns;
pub mod cuda;
mod gradient;
mod lines;
mod map;
mod naive;
mod operand;
mod pack;
mod product;
mod rows;
#[cfg(test)]
pub mod testing;
mod tile;
mod winograd;

#[cfg(target_arch = "x86_64")]
pub use amx::multiply_tiles;
pub use map::{Geometry, MAX_STEP, Map};

use crate::check::sum_dtype;
use engine::{DType, Element, Error, Result, Tensor, bf16};
use gradient::Gradient;
use operand::Operand;
use pack::Weight;
use product::Product;

/// Where a weight element (tap, k, n) lies: its distances along each, in elements.
#[derive(Clone, Copy, Debug)]
pub struct Strides {
    pub tap: usize,
    pub k: usize,
    pub n: usize,
}

/// `target[row][n] = bias[n] + sum over tap, k of source[pixel(row, tap)][k] * weight[tap][k][n]` for the rows of all maps.
/// The last axis of `source` is k, of `target` n. The maps must name pixels of both, and each target pixel once.
pub fn multiply(
    op: &'static str,
    maps: &[Map],
    source: &Tensor,
    weight: (&Tensor, Strides),
    bias: Option<&Tensor>,
    target: &mut Tensor,
) -> Result<()> {
    match source.dtype() {
        DType::F32 => multiply_lanes(multiply_f32, maps, source, weight, bias, target),
        #[cfg(target_arch = "x86_64")]
        DType::BF16 if amx::suits(maps, source.channels()) => {
            multiply_lanes::<bf16>(amx::run, maps, source, weight, bias, target)
        }
        DType::BF16 => multiply_lanes(multiply_bf16, maps, source, weight, bias, target),
        DType::F64 => {
            let (k, n) = (source.channels(), target.channels());
            let (source, weight) = (source.as_slice::<f64>()?, view(weight)?);
            let bias = bias.map(|b| b.as_slice()).transpose()?;
            for map in maps {
                naive::product(map, source, k, weight, bias, target.as_mut_slice()?, n);
            }
            Ok(())
        }
        dtype => Err(Error::Unsupported { op, dtype, device: source.device() }),
    }
}

fn multiply_f32(products: &[Product<f32>], target: &mut [f32]) -> Result<()> {
    winograd::run(products, target, along_w::run)
}

fn multiply_bf16(products: &[Product<bf16>], target: &mut [bf16]) -> Result<()> {
    winograd::run(products, target, product::run)
}

fn multiply_lanes<S: Operand>(
    run: fn(&[Product<S>], &mut [S]) -> Result<()>,
    maps: &[Map],
    source: &Tensor,
    weight: (&Tensor, Strides),
    bias: Option<&Tensor>,
    target: &mut Tensor,
) -> Result<()> {
    let (channels, n) = (source.channels(), target.channels());
    let (source, weight) = (source.as_slice::<S>()?, view(weight)?);
    let bias = bias.map(|b| b.as_slice()).transpose()?;
    let products: Vec<_> = maps.iter().map(|map| Product { map, source, channels, weight, bias, n }).collect();
    run(&products, target.as_mut_slice()?)
}

fn view<T: Element>((weight, s): (&Tensor, Strides)) -> Result<Weight<'_, T>> {
    Ok(Weight { data: weight.as_slice()?, tap: s.tap, k: s.k, n: s.n })
}

/// `target[i][tap][j] = sum over rows of y[row][i] * x[pixel(row, tap)][j]`, for a map whose rows are the rows of `y` in order.
/// `target` is f32 where `x` and `y` are bf16.
pub fn weight_gradient(op: &'static str, map: &Map, y: &Tensor, x: &Tensor, target: &mut Tensor) -> Result<()> {
    let (m, n) = (y.channels(), x.channels());
    match y.dtype() {
        DType::F32 => {
            let (gradient, dw) = (Gradient { map, y: y.as_slice()?, m, x: x.as_slice()?, n }, target.as_mut_slice()?);
            match winograd::for_gradient::<f32>(map, n, m) {
                Some(tiles) => winograd::weight_gradient(&gradient, &tiles, dw),
                None if along_w::fits_gradient(&gradient) => along_w::weight_gradient(&gradient, dw),
                None => gradient.run(dw),
            }
        }
        DType::BF16 => {
            let (gradient, dw) = (Gradient { map, y: y.as_slice()?, m, x: x.as_slice()?, n }, target.as_mut_slice()?);
            match () {
                #[cfg(target_arch = "x86_64")]
                () if amx::suits_gradient(map, n) => amx::weight_gradient(&gradient, dw),
                () => match winograd::for_gradient::<bf16>(map, n, m) {
                    Some(tiles) => winograd::weight_gradient(&gradient, &tiles, dw),
                    None => gradient.run(dw),
                },
            }
        }
        DType::F64 => naive::weight_gradient::<f64>(map, y.as_slice()?, m, x.as_slice()?, n, target.as_mut_slice()?),
        dtype => return Err(Error::Unsupported { op, dtype, device: y.device() }),
    }
    Ok(())
}

/// Errors unless a bias is `[channels]`, of the dtype that goes with operands of `dtype`.
pub fn check_bias(op: &'static str, bias: Option<&Tensor>, channels: usize, dtype: DType) -> Result<()> {
    let Some(bias) = bias else { return Ok(()) };
    if bias.dims() != [channels] {
        return Err(Error::shape(op, format!("bias must be [{channels}], got {:?}", bias.dims())));
    }
    let want = sum_dtype(dtype);
    if bias.dtype() != want {
        return Err(Error::invalid(op, format!("with {dtype} inputs the bias must be {want}, got {}", bias.dtype())));
    }
    Ok(())
}

/// Errors unless all tensors have the dtype of the first.
pub fn same_dtype(op: &'static str, tensors: &[&Tensor]) -> Result<()> {
    let first = tensors[0].dtype();
    match tensors.iter().find(|t| t.dtype() != first) {
        Some(other) => {
            Err(Error::invalid(op, format!("needs one dtype for all inputs, got {first} and {}", other.dtype())))
        }
        None => Ok(()),
    }
}
