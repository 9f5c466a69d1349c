use super::cpu::Scalars;
use super::{OP, Params, State};
use crate::cuda::{strided, suffix};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{Result, Tensor};

static IMAGE: Image = Image::new("adamw", include_bytes!("../../images/adamw.fatbin.zst"));

/// `AdamwArgs` of adamw.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    x: u64,
    m: u64,
    v: u64,
    vmax: u64,
    g: u64,
    copy: u64,
    n: i64,
    keep: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    root_correction: f32,
    eps: f32,
    unscale: f32,
    reserved: i32,
}

pub fn update(param: &mut Tensor, copy: Option<&mut Tensor>, grad: &Tensor, state: State<'_>, p: Params) -> Result<()> {
    let s = Scalars::<f32>::new(p);
    let mut kernel = format!("adamw_update_{}", suffix(OP, grad)?);
    let mut address = 0;
    if let Some(copy) = copy {
        kernel += &format!("_{}", suffix(OP, copy)?);
        address = copy.device_ptr_mut()?;
    }
    let args = Args {
        x: param.device_ptr_mut()?,
        m: state.m.device_ptr_mut()?,
        v: state.v.device_ptr_mut()?,
        vmax: state.vmax.device_ptr_mut()?,
        g: grad.device_ptr()?,
        copy: address,
        n: param.numel() as i64,
        keep: s.keep,
        beta1: s.beta1,
        one_minus_beta1: s.one_minus_beta1,
        beta2: s.beta2,
        one_minus_beta2: s.one_minus_beta2,
        step_size: s.step_size,
        root_correction: s.root_correction,
        eps: s.eps,
        unscale: s.unscale,
        reserved: 0,
    };
    // SAFETY: all have n elements, gradient and copy of the kernel's dtypes, the others f32.
    unsafe { launch(param.device(), &IMAGE, &kernel, strided(param, param.numel())?, &args) }
}
