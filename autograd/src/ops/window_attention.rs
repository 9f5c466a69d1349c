//! Saves q, k, v, the output and the log-sum-exp of the scores; backward recomputes the scores window by window.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{Tensor, trace};
use kernels::window_attention::{self, Params};

/// qkv `[B, D, H, W, 3C]`, pad `[3C]`, table `[offsets, heads]` -> `[B, D, H, W, C]`.
pub fn window_attention(tape: &Tape, qkv: &Var, pad: &Var, table: &Var, p: Params) -> Result<Var> {
    let _scope = trace::scope("window_attention");
    let out = window_attention::forward(qkv.value(), pad.value(), table.value(), p)?;
    let rule = WindowAttention {
        qkv: qkv.value().clone(),
        pad: pad.value().clone(),
        table: table.value().clone(),
        y: out.y.clone(),
        lse: out.lse,
        p,
    };
    tape.record(&[qkv, pad, table], out.y, rule)
}

struct WindowAttention {
    qkv: Tensor,
    pad: Tensor,
    table: Tensor,
    y: Tensor,
    lse: Tensor,
    p: Params,
}

impl Rule for WindowAttention {
    fn name(&self) -> &'static str {
        "window_attention"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let WindowAttention { qkv, pad, table, y, lse, p } = *self;
        let g = window_attention::backward(&dy, &y, &lse, &qkv, &pad, &table, p)?;
        Ok(vec![Some(g.dqkv), Some(g.dpad), Some(g.dtable)])
    }
}
