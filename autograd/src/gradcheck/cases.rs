//! What is checked: every rule, on small and awkward shapes.

use super::{check, normal};
use crate::{Result, Tape, Var, ops};
use engine::Tensor;
use kernels::patch_merging::Order;
use kernels::{conv_transpose3d, conv3d, info_nce, instance_norm, row_dropout, voco_loss, window_attention};

/// One rule on one set of shapes; `run` gives the largest relative error.
pub struct Case {
    pub name: &'static str,
    pub run: fn() -> Result<f64>,
}

/// Normal inputs of these shapes, through `f`.
fn on(shapes: &[&[usize]], f: impl Fn(&Tape, &[Var]) -> Result<Var>) -> Result<f64> {
    let inputs: Vec<Tensor> = shapes.iter().zip(1..).map(|(dims, seed)| normal(dims, seed)).collect::<Result<_>>()?;
    check(&inputs, &f)
}

/// What goes into an operation without a gradient, on the device of what has one.
fn beside(x: &Var, other: &Tensor) -> Result<Tensor> {
    Ok(other.to_device(x.value().device())?)
}

/// All cases, by operation.
pub fn cases() -> Vec<Case> {
    fn case(name: &'static str, run: fn() -> Result<f64>) -> Case {
        Case { name, run }
    }
    vec![
        case("add", || on(&[&[3, 5], &[3, 5]], |t, v| ops::add(t, &v[0], &v[1]))),
        case("add_aliased", || on(&[&[3, 5]], |t, v| ops::add(t, &v[0], &v[0]))),
        case("batch_norm", || on(&[&[7, 5]], |t, v| ops::batch_norm(t, &v[0], 1e-5))),
        case("checkpoint", checkpointed_block),
        case("concat_channels", || on(&[&[2, 3, 1], &[2, 3, 4]], |t, v| ops::concat(t, &[&v[0], &v[1]], 2))),
        case("concat_rows", || on(&[&[2, 3], &[1, 3]], |t, v| ops::concat(t, &[&v[0], &v[1], &v[0]], 0))),
        case("conv3d", || conv(&[2, 4, 3, 5, 2], &[3, 3, 3, 3, 2], [1; 3], [1; 3])),
        case("conv3d_strided", || conv(&[1, 5, 4, 7, 3], &[2, 3, 2, 1, 3], [2, 1, 3], [1, 0, 2])),
        case("conv3d_patch", || conv(&[2, 4, 4, 2, 1], &[5, 2, 2, 2, 1], [2; 3], [0; 3])),
        case("conv_transpose3d", || conv_transpose(&[1, 2, 3, 2, 3], &[3, 2, 2, 2, 2], [2; 3])),
        case("conv_transpose3d_mixed", || conv_transpose(&[2, 2, 1, 3, 2], &[2, 1, 3, 2, 1], [1, 2, 3])),
        case("cosine", || on(&[&[3, 5], &[4, 5]], |t, v| ops::cosine(t, &v[0], &v[1]))),
        case("dice_ce", || {
            let labels = labels(2 * 2 * 3, 4, &[2, 1, 2, 3])?;
            on(&[&[2, 1, 2, 3, 4]], |t, v| ops::dice_ce(t, &v[0], &beside(&v[0], &labels)?))
        }),
        case("gelu", || on(&[&[31]], |t, v| ops::gelu(t, &v[0]))),
        case("global_avg_pool", || on(&[&[2, 3, 1, 2, 5]], |t, v| ops::global_avg_pool(t, &v[0]))),
        case("info_nce", || {
            let targets = soft_targets(6, 4)?;
            let p = info_nce::Params { temperature: 0.2, groups: 2 };
            on(&[&[6, 5], &[8, 5]], |t, v| ops::info_nce(t, &v[0], &v[1], &beside(&v[0], &targets)?, p))
        }),
        case("instance_norm", || {
            on(&[&[2, 3, 2, 2, 3]], |t, v| {
                ops::instance_norm(t, &v[0], None, instance_norm::Params { eps: 1e-5, slope: None })
            })
        }),
        // its input is computed from its output
        case("instance_norm_leaky", || {
            on(&[&[2, 3, 2, 2, 3]], |t, v| {
                ops::instance_norm(t, &v[0], None, instance_norm::Params { eps: 1e-5, slope: Some(0.01) })
            })
        }),
        // its input is kept
        case("instance_norm_relu", || {
            on(&[&[2, 3, 2, 2, 3]], |t, v| {
                ops::instance_norm(t, &v[0], None, instance_norm::Params { eps: 1e-5, slope: Some(0.0) })
            })
        }),
        case("instance_norm_residual_leaky", || {
            on(&[&[2, 3, 2, 2, 3], &[2, 3, 2, 2, 3]], |t, v| {
                ops::instance_norm(t, &v[0], Some(&v[1]), instance_norm::Params { eps: 1e-5, slope: Some(0.01) })
            })
        }),
        case("layer_norm", || on(&[&[4, 7]], |t, v| ops::layer_norm(t, &v[0], None, 1e-5))),
        case("layer_norm_affine", || {
            on(&[&[2, 3, 5], &[5], &[5]], |t, v| ops::layer_norm(t, &v[0], Some((&v[1], &v[2])), 1e-5))
        }),
        case("leaky_relu", || on(&[&[29]], |t, v| ops::leaky_relu(t, &v[0], 0.01))),
        case("linear", || on(&[&[2, 3, 5], &[4, 5], &[4]], |t, v| ops::linear(t, &v[0], &v[1], Some(&v[2])))),
        case("linear_add", || {
            on(&[&[2, 3, 5], &[4, 5], &[4], &[2, 3, 4]], |t, v| ops::linear_add(t, &v[0], &v[1], Some(&v[2]), &v[3]))
        }),
        case("linear_no_bias", || on(&[&[7, 1], &[1, 1]], |t, v| ops::linear(t, &v[0], &v[1], None))),
        case("mlp", || {
            on(&[&[2, 3, 5], &[7, 5], &[7], &[4, 7], &[4], &[2, 3, 4]], |t, v| {
                ops::mlp(t, &v[0], (&v[1], &v[2]), (&v[3], &v[4]), &v[5])
            })
        }),
        case("mlp_aliased", || {
            on(&[&[3, 5], &[7, 5], &[7], &[5, 7], &[5]], |t, v| {
                ops::mlp(t, &v[0], (&v[1], &v[2]), (&v[3], &v[4]), &v[0])
            })
        }),
        case("patch_merging_monai", || on(&[&[1, 3, 2, 5, 2]], |t, v| ops::patch_merging(t, &v[0], Order::Monai13))),
        case("patch_merging_monai15", || on(&[&[1, 3, 2, 5, 2]], |t, v| ops::patch_merging(t, &v[0], Order::Monai15))),
        case("patch_merging_standard", || {
            on(&[&[2, 2, 3, 4, 1]], |t, v| ops::patch_merging(t, &v[0], Order::Standard))
        }),
        case("relu", || on(&[&[29]], |t, v| ops::relu(t, &v[0]))),
        case("reshape", || on(&[&[4, 3]], |t, v| ops::reshape(t, &v[0], &[2, 6]))),
        case("resize_align", || on(&[&[1, 3, 4, 2, 2]], |t, v| ops::resize(t, &v[0], [5, 2, 3], true))),
        case("resize_half", || on(&[&[2, 3, 1, 2, 1]], |t, v| ops::resize(t, &v[0], [2, 3, 5], false))),
        case("row_dropout", || {
            on(&[&[11, 3]], |t, v| ops::row_dropout(t, &v[0], 0.4, &row_dropout::seed(7, v[0].value().device())?))
        }),
        case("rows_at", || on(&[&[5, 3]], |t, v| ops::rows_at(t, &v[0], 1, 3))),
        case("voco_loss", || voco_loss(voco_loss::Form::Voco)),
        case("voco_loss_cvpr1", || voco_loss(voco_loss::Form::Cvpr1)),
        case("voco_loss_cvpr3", || voco_loss(voco_loss::Form::Cvpr3)),
        case("window_attention", || attention(&[1, 4, 4, 4], 2, 2, [2; 3], [0; 3])),
        case("window_attention_shifted", || attention(&[1, 5, 3, 4], 2, 3, [2, 3, 2], [1, 1, 1])),
        case("window_attention_shrunken", || attention(&[2, 2, 3, 1], 1, 4, [3, 2, 3], [1, 1, 1])),
    ]
}

fn conv(x: &[usize], w: &[usize], stride: [usize; 3], padding: [usize; 3]) -> Result<f64> {
    let p = conv3d::Params { stride, padding };
    on(&[x, w, &w[..1]], |t, v| ops::conv3d(t, &v[0], &v[1], Some(&v[2]), p))
}

fn conv_transpose(x: &[usize], w: &[usize], stride: [usize; 3]) -> Result<f64> {
    let p = conv_transpose3d::Params { stride };
    on(&[x, w, &w[4..]], |t, v| ops::conv_transpose3d(t, &v[0], &v[1], Some(&v[2]), p))
}

fn attention(grid: &[usize; 4], heads: usize, head: usize, window: [usize; 3], shift: [usize; 3]) -> Result<f64> {
    let c = heads * head;
    let qkv: Vec<usize> = grid.iter().copied().chain([3 * c]).collect();
    let offsets: usize = window.iter().map(|w| 2 * w - 1).product();
    let p = window_attention::Params { heads, window, shift };
    on(&[&qkv, &[3 * c], &[offsets, heads]], |t, v| ops::window_attention(t, &v[0], &v[1], &v[2], p))
}

/// Two layers recomputed in backward, with an operand used inside and outside.
fn checkpointed_block() -> Result<f64> {
    on(&[&[3, 4], &[4, 4]], |t, v| {
        let inside = t.checkpoint(&[&v[0], &v[1]], |t, v| {
            let y = ops::gelu(t, &ops::linear(t, &v[0], &v[1], None)?)?;
            ops::add(t, &y, &v[0])
        })?;
        ops::add(t, &inside, &v[0])
    })
}

fn voco_loss(form: voco_loss::Form) -> Result<f64> {
    let p = voco_loss::Params { volumes: 2, crops: 2, bases: 4, form };
    let (teacher, labels) = (normal(&[12, 6], 8)?, voco_labels(16)?.reshape(&[2, 2, 4])?);
    // Without the third term: its gradient stops at one of the two bases of each pair, which differences cannot.
    on(&[&[12, 6]], |t, v| {
        let (teacher, labels) = (beside(&v[0], &teacher)?, beside(&v[0], &labels)?);
        ops::rows_at(t, &ops::voco_loss(t, &v[0], &teacher, &labels, p)?.0, 0, 2)
    })
}

fn labels(n: usize, classes: i32, dims: &[usize]) -> Result<Tensor> {
    let values: Vec<i32> = (0..n as i32).map(|i| (i * 7 + i / 3) % classes).collect();
    Ok(Tensor::from_slice(&values, dims)?)
}

/// Overlaps as VoCo's labels are: some zero, the others between 0 and 1.
fn voco_labels(n: usize) -> Result<Tensor> {
    let values: Vec<f64> = (0..n).map(|i| if i % 3 == 0 { 0.0 } else { 0.1 + 0.05 * (i % 7) as f64 }).collect();
    Ok(Tensor::from_slice(&values, &[n])?)
}

/// Rows that sum to one.
fn soft_targets(rows: usize, columns: usize) -> Result<Tensor> {
    let total = (columns * (columns + 1) / 2) as f64;
    let values: Vec<f64> = (0..rows * columns).map(|i| ((i / columns + i) % columns + 1) as f64 / total).collect();
    Ok(Tensor::from_slice(&values, &[rows, columns])?)
}
