//! Only the student gets a gradient: the teacher and the labels are given as plain tensors.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::voco_loss::{self, Params};

/// The terms `[3]` (intra, inter, reg), and the logits `[V, S, K]` for metrics.
pub fn voco_loss(tape: &Tape, student: &Var, teacher: &Tensor, labels: &Tensor, p: Params) -> Result<(Var, Tensor)> {
    let _scope = trace::scope("voco_loss");
    let out = voco_loss::forward(student.value(), teacher, labels, p)?;
    let rule = VocoLoss { student: student.value().clone(), teacher: teacher.clone(), labels: labels.clone(), p };
    Ok((tape.record(&[student], out.terms, rule)?, out.logits))
}

struct VocoLoss {
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    p: Params,
}

impl Rule for VocoLoss {
    fn name(&self) -> &'static str {
        "voco_loss"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(voco_loss::backward(&dy, &self.student, &self.teacher, &self.labels, self.p)?)])
    }
}
