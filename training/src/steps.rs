//! The steps of a run up to their gradients, repeated from a CUDA graph where there is a GPU.
//!
//! A graph holds forward, the teacher's update, backward and the norm of the gradients. The optimiser's update, which is one
//! kernel, stays outside, because the host decides on it by what the step gave.

use crate::Result;
use data::Sampling;
use engine::cuda::{Output, Repeats};
use engine::{Device, Tensor};
use kernels::l2_norm;
use models::voco::{Controls, Steering, Step};
use models::{Batch, Voco};

pub struct Steps {
    sampling: Sampling,
    device: Device,
    repeats: Repeats<Inputs, Done>,
}

struct Inputs {
    batch: Batch,
    controls: Controls,
}

/// What a step gave, on the device.
pub struct Done {
    pub step: Step,
    /// Of the gradients, a scalar in f64.
    pub grad_norm: Tensor,
}

impl Steps {
    /// Of batches that were cut by `sampling`, on `device`. Without `graphs` no step is captured.
    pub fn new(sampling: Sampling, device: Device, graphs: bool) -> Steps {
        Steps { sampling, device, repeats: Repeats::new(device, graphs) }
    }

    /// Forward and backward of one batch; `seed` draws what is dropped. Moves the teacher, and leaves the trained parameters to
    /// the optimiser.
    pub fn run(&mut self, model: &mut Voco, batch: &data::Batch, seed: u64) -> Result<Output<'_, Done>> {
        let (sampling, device) = (self.sampling, self.device);
        let (steering, masters) = (model.steering(seed), model.params.slab().dtype());
        let inputs = |before: Option<Inputs>| match before {
            Some(before) => before.overwritten(batch, steering),
            None => Ok(Inputs {
                batch: tensors(batch, sampling, device)?,
                controls: Controls::new(steering, masters, device)?,
            }),
        };
        self.repeats.run(batch.volumes, inputs, |inputs| compute(model, inputs))
    }
}

impl Inputs {
    fn overwritten(mut self, batch: &data::Batch, steering: Steering) -> Result<Inputs> {
        self.batch.crops.overwrite(&batch.crops)?;
        self.batch.bases.overwrite(&batch.bases)?;
        self.batch.labels.overwrite(&batch.labels)?;
        self.controls.set(steering)?;
        Ok(self)
    }
}

fn compute(model: &mut Voco, inputs: &Inputs) -> Result<Done> {
    let step = model.step_with(&inputs.batch, &inputs.controls)?;
    let grad_norm = l2_norm::forward(step.grads.slab())?;
    Ok(Done { step, grad_norm })
}

/// The loader's host arrays as tensors `[.., roi, roi, roi, 1]` on a device. The last batch of an epoch may hold fewer volumes.
fn tensors(batch: &data::Batch, sampling: Sampling, device: Device) -> Result<Batch> {
    let Sampling { crops: s, grid, roi: r, .. } = sampling;
    let (v, k) = (batch.volumes, grid * grid);
    Ok(Batch {
        crops: Tensor::from_slice(&batch.crops, &[v * s, r, r, r, 1])?.to_device(device)?,
        bases: Tensor::from_slice(&batch.bases, &[v * k, r, r, r, 1])?.to_device(device)?,
        labels: Tensor::from_slice(&batch.labels, &[v, s, k])?.to_device(device)?,
    })
}
