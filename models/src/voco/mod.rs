//! The VoCo pre-training model: encoder, student projector, and a teacher that follows the student.
//!
//! One forward embeds all random crops and all base crops together. The order of operations is the published code's: the
//! student sees the embedding after row dropout, then the teacher's parameters move towards the student's, then the teacher
//! sees the same embedding, or one of its own, without dropout and without gradient.

mod projector;

use crate::swin_unetr::{SwinUnetr, SwinUnetrConfig};
use crate::{Error, Result};
use autograd::{Gradients, ParamStore, ParamStoreBuilder, Sides, Tape, Var, ops};
use engine::{DType, Device, Tensor, random, trace};
use kernels::voco_loss::{self, Form};
use kernels::{cosine, ema, info_nce, row_dropout};
use projector::Projector;
use std::cell::RefCell;

/// What the first loss term is, and whether there is a second.
///
/// The two `Cvpr` losses are those of the method's first publication and of what its code became before it had a term across
/// volumes; [`voco_loss`] has their formulas. Two readings are ours, where descriptions leave it open: each cosine of the
/// symmetric prediction passes through the ReLU before the two are averaged, and means have the ε of the later code in their
/// denominators. Two more forms, one with symmetric terms within and across volumes and one on the decoder's features, are not
/// described well enough to be built. Encoders differed too (the last stage alone, pooled; projectors of width 2048): here only
/// the loss changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Position prediction: the overlap of a random crop with each base crop.
    Voco,
    /// Cosine InfoNCE of student crops against the teacher's bases, with the overlaps as soft targets.
    InfoNce { temperature: f64 },
    /// Position prediction against the student's own bases, held fixed, as dropout left them: no teacher, and no inter term.
    Cvpr1,
    /// Symmetric position prediction, student crops with teacher bases and the reverse, and no inter term. It was used with
    /// [`Teacher::Whole`].
    Cvpr3,
}

/// The key in the metadata of our weights under which the loss is named, as far as predictions depend on it.
pub const LOSS: &str = "loss";

impl Loss {
    fn form(self) -> Form {
        match self {
            Loss::Voco | Loss::InfoNce { .. } => Form::Voco,
            Loss::Cvpr1 => Form::Cvpr1,
            Loss::Cvpr3 => Form::Cvpr3,
        }
    }

    /// The same for all losses whose models predict alike.
    pub fn prediction(self) -> &'static str {
        match self.form() {
            Form::Voco => "voco",
            Form::Cvpr1 => "cvpr1",
            Form::Cvpr3 => "cvpr3",
        }
    }

    /// A loss with this prediction.
    pub fn predicting(name: &str) -> Result<Loss> {
        let all = [Loss::Voco, Loss::Cvpr1, Loss::Cvpr3];
        let found = all.into_iter().find(|loss| loss.prediction() == name);
        found.ok_or_else(|| Error::Config(format!("{LOSS} {name:?} is unknown: voco, cvpr1 or cvpr3")))
    }
}

/// What the teacher is a moving average of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teacher {
    /// The projector: it sees the student's embeddings. It starts from values of its own, as the published code's does.
    Projector,
    /// Backbone and projector: its embeddings come from a second forward. It starts as the student.
    Whole,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VocoConfig {
    pub network: SwinUnetrConfig,
    /// Width of the projectors' hidden layers, and of their output.
    pub hidden: usize,
    pub out: usize,
    pub teacher: Teacher,
    /// The teacher keeps this share of itself at every step; with 0 it is the student of this step, without dropout.
    pub momentum: f64,
    /// Probability that a crop's whole embedding is dropped on the student's side.
    pub row_dropout: f64,
    /// Probability that one value of an embedding is dropped on the student's side.
    pub element_dropout: f64,
    pub loss: Loss,
    /// How much intra, inter and reg count in the loss; 0 leaves a term out of the gradient.
    pub weights: [f64; 3],
    /// Embeds crops one by one and again in backward: the memory of one crop for a third more arithmetic.
    pub recompute: bool,
}

/// One step's input. Crops `[V·S, r, r, r, 1]` and bases `[V·K, r, r, r, 1]` are volume-major; labels `[V, S, K]` are the
/// share of each random crop that lies in each base crop.
#[derive(Clone, Debug)]
pub struct Batch {
    pub crops: Tensor,
    pub bases: Tensor,
    pub labels: Tensor,
}

/// What steers one step beside its batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steering {
    /// Of dropped rows, and of dropped values.
    seeds: [u64; 2],
    /// The gradient of each term.
    weights: [f64; 3],
}

/// The same on the model's device, where a captured step finds what was last set.
pub struct Controls {
    /// i32 `[2, 2]`
    seeds: Tensor,
    /// `[3]`
    weights: Tensor,
}

impl Controls {
    /// `masters` is the dtype of the parameters.
    pub fn new(steering: Steering, masters: DType, device: Device) -> Result<Controls> {
        let seeds = Tensor::empty(&[2, 2], DType::I32, device)?;
        let mut controls = Controls { seeds, weights: Tensor::empty(&[3], masters, device)? };
        controls.set(steering)?;
        Ok(controls)
    }

    /// For the next step.
    pub fn set(&mut self, steering: Steering) -> Result<()> {
        let words = steering.seeds.map(row_dropout::words);
        self.seeds.fill_with(0..4, |i| f64::from(words.as_flattened()[i]))?;
        Ok(self.weights.fill_with(0..3, |i| steering.weights[i])?)
    }
}

/// What one step computed, before the update, on the model's device: reading it waits for that.
pub struct Step {
    /// intra, inter and reg, `[3]`.
    terms: Tensor,
    /// Of each volume, the cosines between the student's projections of its bases, `[K, K]`.
    cosines: Vec<Tensor>,
    /// Predicted overlaps `[V, S, K]`.
    pub logits: Tensor,
    /// Multiplied by [`Voco::loss_scale`].
    pub grads: Gradients,
}

/// Numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Values {
    /// Mean over volumes of each term, without its weight.
    pub intra: f64,
    pub inter: f64,
    pub reg: f64,
    /// Mean over volumes, and over a volume's pairs of bases a < b, of the cosine of the student's projections, with its sign.
    /// The pairs are those of `reg`, which squares what is positive; 1 when all bases look alike.
    pub base_cosine: f64,
}

impl Step {
    /// Waits for the device.
    pub fn values(&self) -> Result<Values> {
        let terms = self.terms.to_f64_vec()?;
        let base_cosine = base_cosine(&self.cosines)?;
        Ok(Values { intra: terms[0], inter: terms[1], reg: terms[2], base_cosine })
    }
}

pub struct Voco {
    networks: Networks,
    /// `backbone.*`, then `student.*`.
    pub params: ParamStore,
    /// `teacher.*`, after `teacher.backbone.*` where the teacher is [`Teacher::Whole`]: never trained, laid out as what they
    /// follow.
    pub teacher_params: ParamStore,
    /// Gradients come multiplied by this, 1 at first: in low precision small ones would be lost otherwise.
    pub loss_scale: f64,
}

/// The architecture, without its numbers.
struct Networks {
    config: VocoConfig,
    backbone: SwinUnetr,
    student: Projector,
    teacher_backbone: Option<SwinUnetr>,
    teacher: Projector,
}

impl Voco {
    /// Draws all parameters from `seed`; a teacher projector's independently of the student's. Computed in `dtype` as far as
    /// [`autograd::precision`] lets it.
    pub fn new(config: VocoConfig, dtype: DType, device: Device, seed: u64) -> Result<Self> {
        let inputs = 24 * config.network.feature_size;
        let mut trained = ParamStoreBuilder::default();
        let backbone = SwinUnetr::new(&mut trained, "backbone.", config.network)?;
        let student = Projector::new(&mut trained, "student.", inputs, config.hidden, config.out);
        let mut followed = ParamStoreBuilder::default();
        let teacher_backbone = match config.teacher {
            Teacher::Projector => None,
            Teacher::Whole => Some(SwinUnetr::new(&mut followed, "teacher.backbone.", config.network)?),
        };
        let teacher = Projector::new(&mut followed, "teacher.", inputs, config.hidden, config.out);
        let params = trained.build(dtype, device, seed)?;
        let teacher_params = followed.build(dtype, device, seed)?;
        let networks = Networks { config, backbone, student, teacher_backbone, teacher };
        let mut voco = Voco { networks, params, teacher_params, loss_scale: 1.0 };
        voco.start_teacher()?;
        Ok(voco)
    }

    /// Makes a whole teacher a copy of the student, whose initial weights may have been read meanwhile; leaves a teacher
    /// projector as it is.
    pub fn start_teacher(&mut self) -> Result<()> {
        match self.networks.config.teacher {
            Teacher::Projector => Ok(()),
            Teacher::Whole => {
                Ok(self.teacher_params.update(|teacher| ema::update(teacher, self.params.slab(), 0.0))?)
            }
        }
    }

    pub fn config(&self) -> VocoConfig {
        self.networks.config
    }

    /// Forward and backward of one batch. Moves the teacher; leaves the trained parameters to the optimiser. `seed` draws the
    /// dropped rows.
    pub fn step(&mut self, batch: &Batch, seed: u64) -> Result<Step> {
        let controls = self.controls(seed)?;
        self.step_with(batch, &controls)
    }

    /// As [`Voco::step`]. Copies nothing from or to the host, so that it can be captured and repeated.
    pub fn step_with(&mut self, batch: &Batch, controls: &Controls) -> Result<Step> {
        self.step_on(batch, controls, None)
    }

    /// As [`Voco::step`], with the student's rectifiers on the sides that another forward recorded.
    pub fn step_on_sides(&mut self, batch: &Batch, seed: u64, sides: &RefCell<Sides>) -> Result<Step> {
        let controls = self.controls(seed)?;
        self.step_on(batch, &controls, Some(sides))
    }

    /// What a step with this seed is steered by.
    pub fn steering(&self, seed: u64) -> Steering {
        let weights = self.networks.config.weights.map(|weight| weight * self.loss_scale);
        Steering { seeds: [seed, random::derive(seed, &[1])], weights }
    }

    fn controls(&self, seed: u64) -> Result<Controls> {
        Controls::new(self.steering(seed), self.params.slab().dtype(), self.params.device())
    }

    fn step_on(&mut self, batch: &Batch, controls: &Controls, sides: Option<&RefCell<Sides>>) -> Result<Step> {
        let p = sizes(batch, self.networks.config.loss)?;
        let Voco { networks, params, teacher_params, .. } = self;
        let config = networks.config;
        let tape = match sides {
            Some(sides) => Tape::new(params).with_sides(sides),
            None => Tape::new(params),
        };
        let forward = trace::scope("forward");
        let embedding = networks.embed(&networks.backbone, &tape, batch)?;
        let kept = dropout(&tape, &embedding, config, &controls.seeds)?;
        let student = networks.student.forward(&tape, &kept)?;

        networks.follow(params, teacher_params)?;
        let teacher = networks.teach(teacher_params, embedding.value(), student.value(), batch)?;

        let (mut terms, logits) = ops::voco_loss(&tape, &student, &teacher, &batch.labels, p)?;
        if let Loss::InfoNce { temperature } = config.loss {
            let first = info_nce_term(&tape, &student, &teacher, &batch.labels, p, temperature)?;
            let others = ops::rows_at(&tape, &terms, 1, 2)?;
            terms = ops::concat(&tape, &[&first, &others], 0)?;
        }
        let student = student.into_value();
        drop((embedding, kept));
        drop(forward);
        let _backward = trace::scope("backward");
        let grads = tape.backward(&terms, controls.weights.clone())?;
        let cosines = base_cosines(&student, p)?;
        Ok(Step { terms: terms.into_value(), cosines, logits, grads })
    }

    /// The weighted sum of a step's terms.
    pub fn loss(&self, values: &Values) -> f64 {
        let terms = [values.intra, values.inter, values.reg];
        terms.iter().zip(self.networks.config.weights).map(|(v, w)| v * w).sum()
    }

    /// The sides of the student's rectifiers in a forward of `batch` that drops nothing.
    pub fn sides(&self, batch: &Batch) -> Result<Sides> {
        let sides = RefCell::new(Sides::record());
        let tape = Tape::inference(&self.params).with_sides(&sides);
        let embedding = self.networks.embed(&self.networks.backbone, &tape, batch)?;
        self.networks.student.forward(&tape, &embedding)?;
        drop(tape);
        Ok(sides.into_inner())
    }

    /// Predicted overlaps `[V, S, K]` of a batch, with the teacher as it stands and nothing dropped. Batch norm takes the
    /// statistics of this batch, as in training, so a crop's row depends on what else is in it.
    pub fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let p = sizes(batch, self.networks.config.loss)?;
        let tape = Tape::inference(&self.params);
        let embedding = self.networks.embed(&self.networks.backbone, &tape, batch)?;
        let student = self.networks.student.forward(&tape, &embedding)?;
        let teacher = self.networks.teach(&self.teacher_params, embedding.value(), student.value(), batch)?;
        Ok(voco_loss::forward(student.value(), &teacher, &batch.labels, p)?.logits)
    }
}

/// What the student sees of the embedding: without some rows, and without some values of the rest.
fn dropout(tape: &Tape, embedding: &Var, config: VocoConfig, seeds: &Tensor) -> Result<Var> {
    let seed = |i| seeds.rows_at(i, 1)?.reshape(&[2]);
    let rows = ops::row_dropout(tape, embedding, config.row_dropout, &seed(0)?)?;
    if config.element_dropout == 0.0 {
        return Ok(rows);
    }
    let dims = rows.dims().to_vec();
    let values = ops::reshape(tape, &rows, &[dims.iter().product(), 1])?;
    let kept = ops::row_dropout(tape, &values, config.element_dropout, &seed(1)?)?;
    Ok(ops::reshape(tape, &kept, &dims)?)
}

impl Networks {
    /// Moves the teacher towards the student.
    fn follow(&self, params: &ParamStore, teacher: &mut ParamStore) -> Result<()> {
        let _scope = trace::scope("teacher's update");
        let followed = match self.config.teacher {
            Teacher::Projector => params.section("student.")?,
            Teacher::Whole => params.slab().clone(),
        };
        Ok(teacher.update(|teacher| ema::update(teacher, &followed, self.config.momentum))?)
    }

    /// What the student's projections are compared with, `[V·S + V·K, out]`: the teacher's, given the student's embedding, or the
    /// student's own where the loss has no teacher.
    fn teach(&self, params: &ParamStore, embedding: &Tensor, student: &Tensor, batch: &Batch) -> Result<Tensor> {
        if self.config.loss == Loss::Cvpr1 {
            return Ok(student.clone());
        }
        let tape = Tape::inference(params);
        let embedding = match &self.teacher_backbone {
            Some(backbone) => self.embed(backbone, &tape, batch)?,
            None => tape.constant(embedding.clone()),
        };
        Ok(self.teacher.forward(&tape, &embedding)?.into_value())
    }

    /// Embeddings of all random crops, then of all bases: `[V·S + V·K, 24f]`.
    fn embed<'a>(&self, backbone: &'a SwinUnetr, tape: &Tape<'a>, batch: &Batch) -> Result<Var> {
        let crops = tape.constant(batch.crops.clone());
        let bases = tape.constant(batch.bases.clone());
        let all = ops::concat(tape, &[&crops, &bases], 0)?;
        if !self.config.recompute {
            return backbone.embed(tape, &all);
        }
        // Every normalisation of the backbone is per crop, so crops can be embedded one at a time.
        let mut rows = Vec::new();
        for i in 0..all.dims()[0] {
            let crop = ops::rows_at(tape, &all, i, 1)?;
            rows.push(tape.checkpoint(&[&crop], |t, v| backbone.embed(t, &v[0]).map_err(as_autograd))?);
        }
        Ok(ops::concat(tape, &rows.iter().collect::<Vec<_>>(), 0)?)
    }
}

/// V, S and K of a batch whose crops and bases fit its labels.
fn sizes(batch: &Batch, loss: Loss) -> Result<voco_loss::Params> {
    let (crops, bases) = (batch.crops.dims(), batch.bases.dims());
    match *batch.labels.dims() {
        [volumes, s, k] if crops.first() == Some(&(volumes * s)) && bases.first() == Some(&(volumes * k)) => {
            Ok(voco_loss::Params { volumes, crops: s, bases: k, form: loss.form() })
        }
        _ => Err(Error::Config(format!(
            "crops {crops:?} and bases {bases:?} do not fit labels {:?} of [volumes, crops, bases]",
            batch.labels.dims()
        ))),
    }
}

/// [`Step::cosines`] of projections `[V·S + V·K, D]`, all crops first.
fn base_cosines(student: &Tensor, p: voco_loss::Params) -> Result<Vec<Tensor>> {
    let voco_loss::Params { volumes, crops, bases, .. } = p;
    let of_volume = |volume| {
        let rows = student.rows_at(volumes * crops + volume * bases, bases)?;
        Ok(cosine::forward(&rows, &rows)?)
    };
    (0..volumes).map(of_volume).collect()
}

/// [`Values::base_cosine`].
fn base_cosine(cosines: &[Tensor]) -> Result<f64> {
    let (mut sum, mut pairs) = (0.0, 0);
    for of_volume in cosines {
        let (bases, values) = (of_volume.channels(), of_volume.to_f64_vec()?);
        sum += (0..bases).flat_map(|a| values[a * bases..][..bases].iter().skip(a + 1)).sum::<f64>();
        pairs += bases * (bases - 1) / 2;
    }
    Ok(sum / pairs as f64)
}

/// The checkpoint speaks autograd's errors.
fn as_autograd(error: Error) -> autograd::Error {
    match error {
        Error::Autograd(e) => e,
        Error::Engine(e) => e.into(),
        other => engine::Error::invalid("embed", other.to_string()).into(),
    }
}

/// InfoNCE `[1]` of student crops against the teacher's bases of the same volume.
fn info_nce_term(
    tape: &Tape,
    student: &Var,
    teacher: &Tensor,
    labels: &Tensor,
    p: voco_loss::Params,
    temperature: f64,
) -> Result<Var> {
    let crops = p.volumes * p.crops;
    let q = ops::rows_at(tape, student, 0, crops)?;
    let k = tape.constant(teacher.rows_at(crops, p.volumes * p.bases)?);
    // Overlaps of one crop sum to 1 over the bases: they are targets as they are.
    let targets = labels.reshape(&[crops, p.bases])?;
    let loss = ops::info_nce(tape, &q, &k, &targets, info_nce::Params { temperature, groups: p.volumes })?;
    Ok(ops::reshape(tape, &loss, &[1])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::patch_merging::Order;

    /// A tiny model without dropout.
    fn model(teacher: Teacher, momentum: f64, loss: Loss) -> Voco {
        let network =
            SwinUnetrConfig { in_channels: 1, feature_size: 12, out_channels: None, patch_merging: Order::Monai13 };
        let config = VocoConfig {
            network,
            hidden: 16,
            out: 16,
            teacher,
            momentum,
            element_dropout: 0.0,
            weights: [1.0; 3],
            row_dropout: 0.0,
            loss,
            recompute: true,
        };
        Voco::new(config, DType::F32, Device::Cpu, 3).expect("model")
    }

    /// One volume of two crops and two bases, of noise in [0, 1).
    fn batch() -> Batch {
        let cubes = |seed: u64, n: usize| {
            let value = |i: usize| (engine::random::bits(seed, i as u64) % 1000) as f32 / 1000.0;
            let values: Vec<f32> = (0..n << 18).map(value).collect();
            Tensor::from_slice(&values, &[n, 64, 64, 64, 1]).expect("cubes")
        };
        let labels = Tensor::from_slice(&[0.5f32; 4], &[1, 2, 2]).expect("labels");
        Batch { crops: cubes(1, 2), bases: cubes(2, 2), labels }
    }

    fn values(t: &Tensor) -> Vec<f64> {
        t.to_f64_vec().expect("values")
    }

    /// Moves the trained parameters, as an optimiser would.
    fn shake(model: &mut Voco) {
        let shake = |slab: &mut Tensor| {
            let values = slab.as_mut_slice::<f32>()?.iter_mut().zip(0..);
            values.for_each(|(v, i)| *v *= 1.0 + 0.5 * engine::random::uniform(9, i) as f32);
            Ok(())
        };
        model.params.update(shake).expect("update");
    }

    #[test]
    fn a_prediction_is_what_a_step_without_dropout_and_with_a_resting_teacher_computes() {
        let whole = [Loss::Voco, Loss::Cvpr1, Loss::Cvpr3].map(|loss| (Teacher::Whole, loss));
        for (teacher, loss) in whole.into_iter().chain([(Teacher::Projector, Loss::Voco)]) {
            let mut model = model(teacher, 1.0, loss);
            shake(&mut model);
            let predicted = values(&model.predict(&batch()).expect("prediction"));
            let step = values(&model.step(&batch(), 0).expect("step").logits);
            assert!(predicted.iter().zip(&step).all(|(a, b)| (a - b).abs() < 1e-6), "{predicted:?} {step:?}");
            assert!(predicted.iter().any(|&v| v > 0.0), "{predicted:?}");
        }
    }

    #[test]
    fn a_teacher_follows_what_it_is_the_average_of() {
        for (teacher, section) in [(Teacher::Projector, "student."), (Teacher::Whole, "")] {
            let mut model = model(teacher, 0.75, Loss::Voco);
            let before = values(model.teacher_params.slab());
            let started = values(&model.params.section(section).expect("section"));
            assert_eq!(before == started, teacher == Teacher::Whole);
            shake(&mut model);
            let student = values(&model.params.section(section).expect("section"));
            model.step(&batch(), 0).expect("step");
            let after = values(model.teacher_params.slab());
            let moved = before.iter().zip(&student).map(|(t, s)| 0.75 * t + 0.25 * s);
            assert!(after.len() == student.len() && after.iter().zip(moved).all(|(a, b)| (a - b).abs() < 1e-6));
            assert_ne!(after, before);
        }
    }

    #[test]
    fn without_momentum_or_dropout_the_teacher_computes_what_the_student_does() {
        let mut logits = Vec::new();
        // The last has no teacher, and one that is the student predicts the same.
        for (teacher, loss) in
            [(Teacher::Projector, Loss::Voco), (Teacher::Whole, Loss::Voco), (Teacher::Projector, Loss::Cvpr1)]
        {
            let mut model = model(teacher, 0.0, loss);
            shake(&mut model);
            logits.push(values(&model.step(&batch(), 0).expect("step").logits));
            let student = values(&model.params.section("student.").expect("section"));
            let projector = model.teacher_params.section("teacher.layer").expect("section");
            assert_eq!(values(&projector), student);
        }
        assert!(logits[0] == logits[1] && logits[0] == logits[2], "{logits:?}");
    }

    #[test]
    fn base_cosine_is_of_pairs_of_bases_within_a_volume() {
        let crop = [5.0, -5.0];
        let alike = [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]];
        // Cosines 0, -1 and 0.
        let apart = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]];
        let rows: Vec<f64> = [&[crop, crop][..], &alike, &apart].concat().into_iter().flatten().collect();
        let student = Tensor::from_slice(&rows, &[8, 2]).expect("tensor");
        let p = voco_loss::Params { volumes: 2, crops: 1, bases: 3, form: Form::Voco };
        let got = base_cosines(&student, p).and_then(|cosines| base_cosine(&cosines)).expect("cosine");
        assert!((got - (1.0 - 1.0 / 3.0) / 2.0).abs() < 1e-12, "{got}");
    }
}
