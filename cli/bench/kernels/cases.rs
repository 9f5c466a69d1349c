//! Every operation at the shapes that it has in a network: what is timed, and how PyTorch is asked for the same.
//!
//! Floating-point operations and bytes are not written down here. A case runs on the meta device, where kernels count the first,
//! and tensors say the second: what a case is given and what it makes, each moved once.

use ::kernels::patch_merging::Order;
use ::kernels::{
    adamw, add, batch_norm, cast, concat, conv_transpose3d, conv3d, cosine, dice_ce, ema, gelu, global_avg_pool,
    info_nce, instance_norm, l2_norm, layer_norm, leaky_relu, linear, patch_merging, relu, resize, row_dropout,
    sum_rows, voco_loss, window_attention,
};
use engine::{DType, Device, Error, Result, Tensor, meta, random};
use serde::Serialize;
use serde_json::{Value, json};

type Save = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>>;
type Run = Box<dyn Fn(&mut [Tensor]) -> Result<Vec<Tensor>>>;

/// One call of a kernel.
pub struct Case {
    pub op: &'static str,
    pub direction: &'static str,
    pub shape: String,
    /// The same in PyTorch, where it has it.
    pub peer: Option<Peer>,
    /// Sizes of random tensors; `run` gets them, and after them what `save` makes of them.
    inputs: Vec<Vec<usize>>,
    save: Save,
    run: Run,
    /// How many of the first inputs are overwritten.
    updated: usize,
}

/// A differentiable function of random tensors in our layouts, and what is wanted of it.
#[derive(Clone, Serialize)]
pub struct Peer {
    pub op: &'static str,
    pub inputs: Vec<Vec<usize>>,
    pub params: Value,
    /// The inputs whose gradients are computed; none for the function itself.
    pub wrt: &'static [usize],
}

/// What a case does at least.
pub struct Work {
    pub flops: f64,
    pub bytes: f64,
}

impl Case {
    pub fn name(&self) -> String {
        format!("{} {} {}", self.op, self.direction, self.shape)
    }

    /// Everything that `run` is given.
    pub fn prepare(&self, dtype: DType, device: Device) -> Result<Vec<Tensor>> {
        let stored = |i| if self.is_for_sums(i) && dtype == DType::BF16 { DType::F32 } else { dtype };
        let tensors = self.inputs.iter().enumerate().map(|(i, dims)| values(i as u64, dims, stored(i), device));
        let mut tensors = tensors.collect::<Result<Vec<_>>>()?;
        tensors.extend((self.save)(&tensors)?);
        Ok(tensors)
    }

    /// Whether input i is a bias, a table or a norm's weight, which stay f32 beside bf16.
    fn is_for_sums(&self, i: usize) -> bool {
        matches!((self.op, i), ("layer_norm" | "window_attention", 1 | 2) | ("linear", 2))
    }

    pub fn run(&self, tensors: &mut [Tensor]) -> Result<()> {
        (self.run)(tensors).map(drop)
    }

    pub fn work(&self, dtype: DType) -> Result<Work> {
        let mut tensors = self.prepare(dtype, Device::Meta)?;
        let account = meta::open();
        let made = (self.run)(&mut tensors)?;
        let moved = tensors.iter().chain(&tensors[..self.updated]).chain(&made);
        Ok(Work { flops: account.flops() as f64, bytes: moved.map(|t| (t.numel() * t.dtype().size()) as f64).sum() })
    }
}

/// Random values in (-1, 1), a few thousand of them again and again.
fn values(seed: u64, dims: &[usize], dtype: DType, device: Device) -> Result<Tensor> {
    let table: Vec<f64> = (0..4099).map(|i| 2.0 * random::uniform(seed, i) - 1.0).collect();
    let mut t = Tensor::empty(dims, dtype, device)?;
    t.fill_with(0..t.numel(), |i| table[i % table.len()])?;
    Ok(t)
}

/// The cases of a network of one feature size on a number of crops of 64³.
pub fn cases(feature_size: usize, crops: usize) -> Vec<Case> {
    let mut list = List { n: crops, cases: Vec::new() };
    let f = feature_size;
    list.conv3d(1, f, 64, 3, 1);
    list.conv3d(f, f, 64, 3, 1);
    list.conv3d(1, f, 64, 1, 1);
    list.conv3d(1, f, 64, 2, 2);
    list.instance_norm(64, f);
    for (stage, heads) in [3, 6, 12, 24].into_iter().enumerate() {
        let (side, c) = (32 >> stage, f << stage);
        list.conv3d(c, c, side, 3, 1);
        list.instance_norm(side, c);
        list.block(side, c, heads);
        list.merging(side, c);
    }
    list.conv3d(16 * f, 16 * f, 2, 3, 1);
    list.instance_norm(2, 16 * f);
    list.decoder(f);
    list.projector(f);
    list.losses();
    list.update(27 * (16 * f) * (16 * f));
    list.cases
}

struct List {
    n: usize,
    cases: Vec<Case>,
}

/// The calls that belong to one function of `inputs`.
struct Function {
    op: &'static str,
    shape: String,
    inputs: Vec<Vec<usize>>,
    /// For PyTorch; null where it has no such function.
    params: Value,
}

impl Function {
    fn new<const N: usize>(op: &'static str, shape: String, inputs: [&[usize]; N], params: Value) -> Function {
        Function { op, shape, inputs: inputs.map(<[usize]>::to_vec).to_vec(), params }
    }

    /// A call that is given random `inputs`.
    fn call(
        &self,
        direction: &'static str,
        wrt: &'static [usize],
        inputs: Vec<Vec<usize>>,
        run: impl Fn(&mut [Tensor]) -> Result<Vec<Tensor>> + 'static,
    ) -> Case {
        let (op, shape, params) = (self.op, self.shape.clone(), self.params.clone());
        let peer = (!params.is_null()).then(|| Peer { op, inputs: self.inputs.clone(), params, wrt });
        Case { op, direction, shape, peer, inputs, save: Box::new(|_| Ok(Vec::new())), run: Box::new(run), updated: 0 }
    }

    fn forward(&self, run: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Case {
        self.call("forward", &[], self.inputs.clone(), move |t| Ok(vec![run(t)?]))
    }

    /// The backward call is given the function's inputs and then dy.
    fn backward(
        &self,
        wrt: &'static [usize],
        dy: &[usize],
        run: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'static,
    ) -> Case {
        let inputs = [&self.inputs[..], &[dy.to_vec()]].concat();
        self.call("backward", wrt, inputs, move |t| run(t))
    }
}

impl Case {
    fn saving(mut self, save: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'static) -> Case {
        self.save = Box::new(save);
        self
    }

    fn updating(mut self, inputs: usize) -> Case {
        self.updated = inputs;
        self
    }
}

impl List {
    fn volume(&self, side: usize, channels: usize) -> [usize; 5] {
        [self.n, side, side, side, channels]
    }

    fn conv3d(&mut self, from: usize, to: usize, side: usize, kernel: usize, stride: usize) {
        let padding = if stride == 1 { kernel / 2 } else { 0 };
        let p = conv3d::Params { stride: [stride; 3], padding: [padding; 3] };
        let (x, w, y) = (self.volume(side, from), [to, kernel, kernel, kernel, from], self.volume(side / stride, to));
        let shape = format!("{from} to {to}, {kernel}³ at {side}³");
        let f = Function::new("conv3d", shape, [&x, &w], json!({ "stride": stride, "padding": padding }));
        let forward = f.forward(move |t| conv3d::fprop(&t[0], &t[1], None, p));
        let dx = move |t: &mut [Tensor]| Ok(vec![conv3d::dgrad(&t[0], &t[1], &x, p)?]);
        let dw = move |t: &mut [Tensor]| Ok(vec![conv3d::wgrad(&t[0], &t[1], &w, p)?]);
        let dgrad = f.call("dgrad", &[0], vec![y.to_vec(), w.to_vec()], dx);
        let wgrad = f.call("wgrad", &[1], vec![x.to_vec(), y.to_vec()], dw);
        // nobody asks for the gradient of the image
        self.cases.extend([forward, wgrad]);
        self.cases.extend((from > 1).then_some(dgrad));
    }

    fn conv_transpose3d(&mut self, from: usize, to: usize, side: usize) {
        let p = conv_transpose3d::Params { stride: [2; 3] };
        let (x, w, y) = (self.volume(side, from), [from, 2, 2, 2, to], self.volume(2 * side, to));
        let f = Function::new(
            "conv_transpose3d",
            format!("{from} to {to}, 2³ at {side}³"),
            [&x, &w],
            json!({ "stride": 2 }),
        );
        let dx = move |t: &mut [Tensor]| Ok(vec![conv_transpose3d::dgrad(&t[0], &t[1], p)?]);
        let dw = move |t: &mut [Tensor]| Ok(vec![conv_transpose3d::wgrad(&t[0], &t[1], &w, p)?]);
        self.cases.extend([
            f.forward(move |t| conv_transpose3d::fprop(&t[0], &t[1], None, p)),
            f.call("dgrad", &[0], vec![y.to_vec(), w.to_vec()], dx),
            f.call("wgrad", &[1], vec![x.to_vec(), y.to_vec()], dw),
        ]);
    }

    fn linear(&mut self, rows: usize, from: usize, to: usize) {
        let (x, w, b, y) = ([rows, from], [to, from], [to], [rows, to]);
        let f = Function::new("linear", format!("{rows} rows, {from} to {to}"), [&x, &w, &b], json!({}));
        self.cases.extend([
            f.forward(|t| linear::fprop(&t[0], &t[1], Some(&t[2]))),
            f.call("dgrad", &[0], vec![y.to_vec(), w.to_vec()], |t| Ok(vec![linear::dgrad(&t[0], &t[1])?])),
            f.call("wgrad", &[1], vec![x.to_vec(), y.to_vec()], |t| Ok(vec![linear::wgrad(&t[0], &t[1])?])),
            f.call("bias gradient", &[2], vec![y.to_vec()], |t| Ok(vec![sum_rows::forward(&t[0])?])),
        ]);
    }

    /// Layer norm, attention and the two linear layers of one stage.
    fn block(&mut self, side: usize, c: usize, heads: usize) {
        let rows = self.n * side.pow(3);
        self.layer_norm(rows, c);
        self.linear(rows, c, 3 * c);
        self.attention(side, c, heads);
        self.linear(rows, c, c);
        self.linear(rows, c, 4 * c);
        let hidden = [rows, 4 * c];
        let f = Function::new("gelu", format!("{rows} rows of {}", 4 * c), [&hidden], json!({}));
        let backward = f.backward(&[0], &hidden, |t| Ok(vec![gelu::backward(&t[1], &t[0])?]));
        self.cases.extend([f.forward(|t| gelu::forward(&t[0])), backward]);
        self.linear(rows, 4 * c, c);
        let x = [rows, c];
        let f = Function::new("add", format!("{rows} rows of {c}"), [&x, &x], json!({}));
        self.cases.push(f.forward(|t| add::forward(&t[0], &t[1])));
    }

    fn layer_norm(&mut self, rows: usize, c: usize) {
        let (x, w) = ([rows, c], [c]);
        let f = Function::new("layer_norm", format!("{rows} rows of {c}"), [&x, &w, &w], json!({}));
        let forward = |t: &[Tensor]| layer_norm::forward(&t[0], Some((&t[1], &t[2])), 1e-5);
        let backward = f.backward(&[0, 1, 2], &x, |t| {
            let g = layer_norm::backward(&t[3], &t[0], Some(&t[1]), &t[4], &t[5])?;
            Ok([Some(g.dx), g.dweight, g.dbias].into_iter().flatten().collect())
        });
        self.cases.extend([
            f.forward(move |t| Ok(forward(t)?.y)),
            backward.saving(move |t| forward(t).map(|o| vec![o.mean, o.rstd])),
        ]);
    }

    fn attention(&mut self, side: usize, c: usize, heads: usize) {
        for shift in if side > 7 { vec![0, 3] } else { vec![0] } {
            let p = window_attention::Params { heads, window: [7; 3], shift: [shift; 3] };
            let (qkv, pad, table) = (self.volume(side, 3 * c), [3 * c], [13 * 13 * 13, heads]);
            let shape = format!("{heads} heads of {} at {side}³, shift {shift}", c / heads);
            let params = json!({ "heads": heads, "window": 7, "shift": shift });
            let f = Function::new("window_attention", shape, [&qkv, &pad, &table], params);
            let forward = move |t: &[Tensor]| window_attention::forward(&t[0], &t[1], &t[2], p);
            let backward = f.backward(&[0, 1, 2], &self.volume(side, c), move |t| {
                let g = window_attention::backward(&t[3], &t[4], &t[5], &t[0], &t[1], &t[2], p)?;
                Ok(vec![g.dqkv, g.dpad, g.dtable])
            });
            self.cases.extend([
                f.forward(move |t| Ok(forward(t)?.y)),
                backward.saving(move |t| forward(t).map(|o| vec![o.y, o.lse])),
            ]);
        }
    }

    fn merging(&mut self, side: usize, c: usize) {
        let x = self.volume(side, c);
        let y = self.volume(side / 2, 8 * c);
        let f = Function::new("patch_merging", format!("{c} at {side}³"), [&x], json!({}));
        let forward = f.forward(|t| patch_merging::gather(&t[0], Order::Standard));
        let backward = move |t: &mut [Tensor]| Ok(vec![patch_merging::scatter(&t[0], &x, Order::Standard)?]);
        self.cases.extend([forward, f.call("backward", &[0], vec![y.to_vec()], backward)]);
        let rows = self.n * (side / 2).pow(3);
        self.layer_norm(rows, 8 * c);
        // higher up it has the shape of the next stage's last
        if side == 4 {
            self.linear(rows, 8 * c, 2 * c);
        }
    }

    /// With LeakyReLU, and with a residual before it too.
    fn instance_norm(&mut self, side: usize, c: usize) {
        let x = self.volume(side, c);
        let p = instance_norm::Params { eps: 1e-5, slope: Some(0.01) };
        for residual in [false, true] {
            let shape = format!("{c} at {side}³, leaky{}", if residual { ", residual" } else { "" });
            let inputs = vec![x.to_vec(); 1 + usize::from(residual)];
            let f = Function { op: "instance_norm", shape, inputs, params: json!({ "slope": 0.01 }) };
            let forward = move |t: &[Tensor]| instance_norm::forward(&t[0], residual.then(|| &t[1]), p);
            let run = move |t: &mut [Tensor]| {
                let g = instance_norm::backward(&t[0], &t[1], &t[2], &t[3], &t[4], residual, p)?;
                Ok([Some(g.dx), g.dresidual].into_iter().flatten().collect())
            };
            let wrt: &[usize] = if residual { &[0, 1] } else { &[0] };
            // the second input stands for the residual while y is made
            let saved = move |t: &[Tensor]| {
                let o = instance_norm::forward(&t[1], residual.then(|| &t[0]), p)?;
                Ok(vec![o.y, o.mean, o.rstd])
            };
            self.cases.extend([
                f.forward(move |t| Ok(forward(t)?.y)),
                f.call("backward", wrt, vec![x.to_vec(), x.to_vec()], run).saving(saved),
            ]);
        }
    }

    /// What only decoders and embeddings have.
    fn decoder(&mut self, f: usize) {
        self.conv_transpose3d(16 * f, 8 * f, 2);
        self.conv_transpose3d(f, f, 32);
        let (half, whole, pooled) = (self.volume(32, f), self.volume(64, f), [self.n, f]);
        let params = json!({ "size": 64 });
        let function = Function::new("resize", format!("{f} at 32³ to 64³"), [&half], params);
        let backward = move |t: &mut [Tensor]| Ok(vec![resize::backward(&t[0], &half, false)?]);
        self.cases.extend([
            function.forward(|t| resize::forward(&t[0], [64; 3], false)),
            function.call("backward", &[0], vec![whole.to_vec()], backward),
        ]);
        let function = Function::new("global_avg_pool", format!("{f} at 64³"), [&whole], json!({}));
        let backward = move |t: &mut [Tensor]| Ok(vec![global_avg_pool::backward(&t[0], &whole)?]);
        self.cases.extend([
            function.forward(|t| global_avg_pool::forward(&t[0])),
            function.call("backward", &[0], vec![pooled.to_vec()], backward),
        ]);
        let function = Function::new("leaky_relu", format!("{f} at 64³"), [&whole], json!({ "slope": 0.01 }));
        let backward = function.backward(&[0], &whole, |t| Ok(vec![leaky_relu::backward(&t[1], &t[0], 0.01)?]));
        self.cases.extend([function.forward(|t| leaky_relu::forward(&t[0], 0.01)), backward]);
        let function = Function::new("concat", format!("{f} and {f} at 64³"), [&whole, &whole], json!({}));
        let backward = move |t: &mut [Tensor]| concat::split(&t[0], 4, &[f, f]);
        self.cases.extend([
            function.forward(|t| concat::forward(&[&t[0], &t[1]], 4)),
            function.call("backward", &[0, 1], vec![self.volume(64, 2 * f).to_vec()], backward),
        ]);
        self.dice_ce(14);
    }

    fn dice_ce(&mut self, classes: usize) {
        let logits = self.volume(64, classes);
        let labels = [self.n, 64, 64, 64];
        let class_zero = move |t: &[Tensor]| Tensor::zeros(&labels, DType::I32, t[0].device());
        let f = Function::new("dice_ce", format!("{classes} classes at 64³"), [&logits], Value::Null);
        let backward = f.backward(&[0], &[], |t| Ok(vec![dice_ce::backward(&t[1], &t[0], &t[2], &t[3])?]));
        self.cases.extend([
            f.forward(|t| Ok(dice_ce::forward(&t[0], &t[1])?.loss)).saving(move |t| Ok(vec![class_zero(t)?])),
            backward.saving(move |t| {
                let labels = class_zero(t)?;
                let sums = dice_ce::forward(&t[0], &labels)?.sums;
                Ok(vec![labels, sums])
            }),
        ]);
    }

    fn projector(&mut self, f: usize) {
        // a batch norm needs two
        let (n, width) = (self.n.max(2), 1024);
        self.linear(n, 24 * f, width);
        self.linear(n, width, width);
        let x = [n, width];
        let of = |op, params| Function::new(op, format!("{n} rows of {width}"), [&x], params);
        let f = of("batch_norm", json!({}));
        let backward = f.backward(&[0], &x, |t| Ok(vec![batch_norm::backward(&t[1], &t[0], &t[2], &t[3])?]));
        self.cases.extend([
            f.forward(|t| Ok(batch_norm::forward(&t[0], 1e-5)?.y)),
            backward.saving(|t| batch_norm::forward(&t[0], 1e-5).map(|o| vec![o.mean, o.rstd])),
        ]);
        let f = of("relu", json!({}));
        let backward = f.backward(&[0], &x, |t| Ok(vec![relu::backward(&t[1], &t[0])?]));
        self.cases.extend([f.forward(|t| relu::forward(&t[0])), backward]);
        let dropped = |t: &[Tensor]| row_dropout::forward(&t[0], 0.2, &row_dropout::seed(1, t[0].device())?);
        self.cases.push(of("row_dropout", Value::Null).forward(dropped));
    }

    fn losses(&mut self) {
        let (volumes, width) = (self.n.div_ceil(11).max(2), 1024);
        let p = voco_loss::Params { volumes, crops: 2, bases: 9, form: voco_loss::Form::Voco };
        let (x, labels) = ([11 * volumes, width], [volumes, 2, 9]);
        let f = Function::new("voco_loss", format!("{volumes} volumes"), [&x, &x, &labels], Value::Null);
        let backward = f.backward(&[0], &[3], move |t| Ok(vec![voco_loss::backward(&t[3], &t[0], &t[1], &t[2], p)?]));
        self.cases.extend([f.forward(move |t| Ok(voco_loss::forward(&t[0], &t[1], &t[2], p)?.terms)), backward]);

        let (rows, y) = ([11 * volumes, width], [11 * volumes, 11 * volumes]);
        let f = Function::new("cosine", format!("{0} by {0} rows of {width}", rows[0]), [&rows, &rows], json!({}));
        let backward = f.backward(&[0, 1], &y, |t| cosine::backward(&t[2], &t[0], &t[1]).map(|(da, db)| vec![da, db]));
        self.cases.extend([f.forward(|t| cosine::forward(&t[0], &t[1])), backward]);

        let p = info_nce::Params { temperature: 0.1, groups: 1 };
        let (q, targets) = ([1024, width], [1024, 1024]);
        let f = Function::new(
            "info_nce",
            format!("1024 by 1024 rows of {width}"),
            [&q, &q, &targets],
            json!({ "temperature": 0.1 }),
        );
        let backward = f.backward(&[0, 1], &[], move |t| {
            let (dq, dk) = info_nce::backward(&t[3], &t[0], &t[1], &t[2], &t[4], p, true)?;
            Ok([Some(dq), dk].into_iter().flatten().collect())
        });
        let forward = move |t: &[Tensor]| info_nce::forward(&t[0], &t[1], &t[2], p);
        self.cases.extend([
            f.forward(move |t| Ok(forward(t)?.loss)),
            backward.saving(move |t| forward(t).map(|o| vec![o.lse])),
        ]);
    }

    /// What is done with the largest parameter after backward.
    fn update(&mut self, numel: usize) {
        let (x, shape) = ([numel], format!("{numel} values"));
        let f = Function::new("adamw", shape.clone(), [&x, &x, &x, &x, &x], json!({}));
        let (lr, eps) = (1e-4, 1e-8);
        let p = adamw::Params { lr, beta1: 0.9, beta2: 0.999, eps, weight_decay: 0.01, step: 1, scale: 1.0 };
        let run = move |t: &mut [Tensor]| {
            let [x, m, v, vmax, grad] = t else { return Err(Error::shape("adamw", "five tensors are needed")) };
            adamw::update(x, None, grad, adamw::State { m, v, vmax }, p).map(|()| Vec::new())
        };
        self.cases.push(f.call("update", &[], f.inputs.clone(), run).updating(4));
        let f = Function::new("ema", shape.clone(), [&x, &x], json!({}));
        let run = |t: &mut [Tensor]| {
            let [teacher, student] = t else { return Err(Error::shape("ema", "two tensors are needed")) };
            ema::update(teacher, student, 0.9).map(|()| Vec::new())
        };
        self.cases.push(f.call("update", &[], f.inputs.clone(), run).updating(1));
        let f = Function::new("cast", shape.clone(), [&x], Value::Null);
        let run = |t: &mut [Tensor]| {
            let to = if t[0].dtype() == DType::F32 { DType::BF16 } else { DType::F32 };
            cast::forward(&t[0], to).map(|y| vec![y])
        };
        self.cases.push(f.call("forward", &[], f.inputs.clone(), run));
        let f = Function::new("l2_norm", shape, [&x], json!({}));
        self.cases.push(f.call("forward", &[], f.inputs.clone(), |t| l2_norm::forward(&t[0]).map(|_| Vec::new())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_case_has_its_own_name_and_some_work() {
        let cases = cases(12, 1);
        let names: BTreeSet<String> = cases.iter().map(Case::name).collect();
        assert_eq!(names.len(), cases.len());
        for (case, dtype) in cases.iter().flat_map(|case| [(case, DType::F32), (case, DType::BF16)]) {
            let work = case.work(dtype).unwrap_or_else(|e| panic!("{} in {dtype}: {e}", case.name()));
            assert!(work.bytes > 0.0, "{}", case.name());
            let products = ["conv3d", "conv_transpose3d", "linear", "window_attention"].contains(&case.op);
            assert!(!products || case.direction == "bias gradient" || work.flops > 0.0, "{}", case.name());
        }
    }

    #[test]
    fn work_is_what_can_be_counted_by_hand() {
        let find = |name: &str| cases(12, 2).into_iter().find(|c| c.name() == name).expect("the case");
        let work = find("conv3d dgrad 12 to 12, 3³ at 64³").work(DType::F32).expect("work");
        let (voxels, weights) = (2.0 * 64f64.powi(3), 27.0 * 144.0);
        assert_eq!(work.bytes, 4.0 * (2.0 * 12.0 * voxels + weights));
        // borders have fewer taps
        assert!(work.flops > 0.9 * 2.0 * voxels * weights && work.flops <= 2.0 * voxels * weights, "{}", work.flops);
        let values = 27.0 * 192.0 * 192.0;
        let work = find("adamw update 995328 values").work(DType::F32).expect("work");
        assert_eq!((work.flops, work.bytes), (0.0, 9.0 * 4.0 * values));
    }
}
