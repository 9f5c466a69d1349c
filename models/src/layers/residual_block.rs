use super::{Conv3d, NORM_EPS, Scope};
use autograd::{Result, Tape, Var, ops};
use engine::trace;
use kernels::instance_norm;

/// MONAI's `UnetResBlock`: LReLU(IN(conv2(LReLU(IN(conv1(x))))) + r), with r = x, or IN(conv3(x)) when the channels change.
/// The 3³ convolutions have no bias, the instance norms no parameters.
pub struct ResidualBlock {
    name: String,
    conv1: Conv3d,
    conv2: Conv3d,
    conv3: Option<Conv3d>,
}

const NORM: instance_norm::Params = instance_norm::Params { eps: NORM_EPS, slope: None };
const NORM_ACT: instance_norm::Params = instance_norm::Params { eps: NORM_EPS, slope: Some(0.01) };

impl ResidualBlock {
    pub fn new(mut scope: Scope, inputs: usize, outputs: usize) -> Self {
        let conv1 = Conv3d::same(scope.child("conv1").child("conv"), inputs, outputs, 3);
        let conv2 = Conv3d::same(scope.child("conv2").child("conv"), outputs, outputs, 3);
        let conv3 = (inputs != outputs).then(|| Conv3d::same(scope.child("conv3").child("conv"), inputs, outputs, 1));
        ResidualBlock { name: scope.name(), conv1, conv2, conv3 }
    }

    pub fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let _scope = trace::scope(&self.name);
        let y = ops::instance_norm(tape, &self.conv1.forward(tape, x)?, None, NORM_ACT)?;
        let y = self.conv2.forward(tape, &y)?;
        match self.conv3 {
            None => ops::instance_norm(tape, &y, Some(x), NORM_ACT),
            // Two tensors of the output's size less to keep, at full resolution the largest of all, for a few passes over them.
            Some(conv3) => tape.checkpoint(&[&y, x], move |tape, inputs| {
                let r = ops::instance_norm(tape, &conv3.forward(tape, &inputs[1])?, None, NORM)?;
                ops::instance_norm(tape, &inputs[0], Some(&r), NORM_ACT)
            }),
        }
    }
}
