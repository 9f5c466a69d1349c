use crate::cuda::{by_chunks, suffix};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{Result, Tensor};

static IMAGE: Image = Image::new("ema", include_bytes!("../../images/ema.fatbin.zst"));

/// `EmaArgs` of ema.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    teacher: u64,
    student: u64,
    n: i64,
    keep: f32,
    take: f32,
}

pub(super) fn update(teacher: &mut Tensor, student: &Tensor, momentum: f64) -> Result<()> {
    let args = Args {
        teacher: teacher.device_ptr_mut()?,
        student: student.device_ptr()?,
        n: student.numel() as i64,
        keep: momentum as f32,
        take: (1.0 - momentum) as f32,
    };
    let kernel = format!("ema_update_{}", suffix(super::OP, student)?);
    // SAFETY: both have n elements of the kernel's dtype.
    unsafe { launch(student.device(), &IMAGE, &kernel, by_chunks(student)?, &args) }
}
