use super::{Form, Output, Params};
use crate::cuda::{THREADS, blocks};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Grid, Image, launch};
use engine::{DType, Result, Tensor};

static IMAGE: Image = Image::new("voco_loss", include_bytes!("../../images/voco_loss.fatbin.zst"));
/// f64 values that are kept of each volume.
const VOLUME: usize = 7;
/// Columns of a gradient that one block computes.
const SLAB: usize = 8 * THREADS as usize;

/// `VocoLossArgs` of voco_loss.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    student: u64,
    teacher: u64,
    labels: u64,
    dterms: u64,
    volumes: u64,
    logits: u64,
    terms: u64,
    dstudent: u64,
    volumes_count: i64,
    crops: i64,
    bases: i64,
    dim: i64,
    form: i64,
}

impl Args {
    fn new(student: &Tensor, teacher: &Tensor, labels: &Tensor, volumes: &mut Tensor, p: Params) -> Result<Args> {
        Ok(Args {
            student: student.device_ptr()?,
            teacher: teacher.device_ptr()?,
            labels: labels.device_ptr()?,
            dterms: 0,
            volumes: volumes.device_ptr_mut()?,
            logits: 0,
            terms: 0,
            dstudent: 0,
            volumes_count: p.volumes as i64,
            crops: p.crops as i64,
            bases: p.bases as i64,
            dim: student.channels() as i64,
            form: match p.form {
                Form::Voco => 0,
                Form::Cvpr1 => 1,
                Form::Cvpr3 => 2,
            },
        })
    }
}

pub fn forward(student: &Tensor, teacher: &Tensor, labels: &Tensor, p: Params) -> Result<Output> {
    let (mut terms, mut logits) = (student.new_empty(&[3])?, student.new_empty(labels.dims())?);
    let mut volumes = volumes(student, p)?;
    let args = Args::new(student, teacher, labels, &mut volumes, p)?;
    let args = Args { logits: logits.device_ptr_mut()?, terms: terms.device_ptr_mut()?, ..args };
    let warp = Grid { grid: [1, 1, 1], block: [32, 1, 1], shared: 0 };
    // SAFETY: the tensors have the shapes that check() asked for, logits that of labels, terms 3 elements, volumes VOLUME each.
    unsafe {
        launch(student.device(), &IMAGE, "voco_loss_volumes_f32", blocks(p.volumes), &args)?;
        launch(student.device(), &IMAGE, "voco_loss_terms_f32", warp, &args)?;
    }
    Ok(Output { terms, logits })
}

pub fn backward(dterms: &Tensor, student: &Tensor, teacher: &Tensor, labels: &Tensor, p: Params) -> Result<Tensor> {
    let mut dstudent = student.new_empty(student.dims())?;
    let mut volumes = volumes(student, p)?;
    let args = Args::new(student, teacher, labels, &mut volumes, p)?;
    let args = Args { dterms: dterms.device_ptr()?, dstudent: dstudent.device_ptr_mut()?, ..args };
    let grid = blocks(student.rows() * student.channels().div_ceil(SLAB));
    // SAFETY: as in forward; dstudent has the shape of student, dterms 3 elements.
    unsafe {
        launch(student.device(), &IMAGE, "voco_loss_volumes_f32", blocks(p.volumes), &args)?;
        launch(student.device(), &IMAGE, "voco_loss_backward_f32", grid, &args)?;
    }
    Ok(dstudent)
}

/// Room for what the kernels keep of each volume.
fn volumes(student: &Tensor, p: Params) -> Result<Tensor> {
    Tensor::empty(&[p.volumes, VOLUME], DType::F64, student.device())
}
