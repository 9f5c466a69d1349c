use super::scope::{Scope, uniform};
use autograd::{ParamId, Result, Tape, Var, ops};
use kernels::{conv_transpose3d, conv3d};

/// A cubic convolution.
#[derive(Clone, Copy)]
pub struct Conv3d {
    weight: ParamId,
    bias: Option<ParamId>,
    params: conv3d::Params,
}

impl Conv3d {
    /// Stride 1, padded so that the grid stays as it is (`kernel` is odd), no bias.
    pub fn same(scope: Scope, inputs: usize, outputs: usize, kernel: usize) -> Self {
        let params = conv3d::Params { stride: [1; 3], padding: [kernel / 2; 3] };
        Self::new(scope, inputs, outputs, kernel, params, false)
    }

    /// Non-overlapping patches, with bias.
    pub fn patches(scope: Scope, inputs: usize, outputs: usize, patch: usize) -> Self {
        let params = conv3d::Params { stride: [patch; 3], padding: [0; 3] };
        Self::new(scope, inputs, outputs, patch, params, true)
    }

    /// One voxel at a time, with bias.
    pub fn pointwise(scope: Scope, inputs: usize, outputs: usize) -> Self {
        Self::patches(scope, inputs, outputs, 1)
    }

    fn new(mut scope: Scope, ci: usize, co: usize, k: usize, params: conv3d::Params, bias: bool) -> Self {
        let init = uniform(ci * k * k * k);
        let weight = scope.operand("weight", &[co, k, k, k, ci], init);
        let bias = bias.then(|| scope.term("bias", &[co], init));
        Conv3d { weight, bias, params }
    }

    pub fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let bias = self.bias.map(|b| tape.param(b)).transpose()?;
        ops::conv3d(tape, x, &tape.param(self.weight)?, bias.as_ref(), self.params)
    }
}

/// Doubles every side of the grid, no bias.
pub struct ConvTranspose3d {
    weight: ParamId,
}

impl ConvTranspose3d {
    pub fn doubling(mut scope: Scope, inputs: usize, outputs: usize) -> Self {
        // PyTorch takes fan_in from the second axis of its [in, out, k, k, k].
        let weight = scope.operand("weight", &[inputs, 2, 2, 2, outputs], uniform(outputs * 8));
        ConvTranspose3d { weight }
    }

    pub fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let params = conv_transpose3d::Params { stride: [2; 3] };
        ops::conv_transpose3d(tape, x, &tape.param(self.weight)?, None, params)
    }
}
