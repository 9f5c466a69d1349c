//! Mixed precision: what is kept and computed in which dtype, for all networks.
//!
//! A network is computed in one dtype, which the store of its parameters knows: f32, f64 for gradient checks, or one that is lower
//! and faster. In a lower one not everything follows:
//!
//! | | f32 | bf16, f16 | f64 |
//! |---|---|---|---|
//! | operands of products: weights of convolutions and linear layers, what they are multiplied with, queries, keys, values | f32 | the same | f64 |
//! | results of layers, and the gradients of all these but the weights | f32 | the same | f64 |
//! | sums inside a product, statistics of norms, softmax | f32 | f32 | f64 |
//! | biases, parameters of norms, tables of positions | f32 | f32 | f64 |
//! | masters of all parameters, their gradients, the optimiser's moments, averages over steps | f32 | f32 | f64 |
//! | what a network takes and gives (crops, embeddings, projections, logits), cosines and losses of it | f32 | f32 | f64 |
//! | a factor on the loss | | f16 | |
//!
//! The two dtypes of a column are the network's and what [`sum_dtype`] says of it. The kernels keep to the third row by themselves,
//! and refuse other combinations; parameters say their [`Role`], a network casts at its borders ([`enter`], [`leave`]), and an
//! optimiser asks for the factor ([`is_scaled`]).

use crate::{Result, Tape, Var, ops};
use engine::DType;
use kernels::sum_dtype;

/// What a parameter is in the computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A factor of products: the weight of a convolution or of a linear layer.
    Operand,
    /// Added, or multiplied with single elements: biases, parameters of norms, tables of positions.
    Term,
}

impl Role {
    /// What operations of a network in `dtype` are given such a parameter in.
    pub fn dtype(self, dtype: DType) -> DType {
        match self {
            Role::Operand => dtype,
            Role::Term => sum_dtype(dtype),
        }
    }
}

/// What the values, gradients and moments of a network's parameters are kept in.
pub fn master(dtype: DType) -> DType {
    sum_dtype(dtype)
}

/// Whether small gradients of a network in this dtype are lost unless its loss is multiplied by a large number.
pub fn is_scaled(dtype: DType) -> bool {
    dtype == DType::F16
}

/// A network's input, in what the network is computed in.
pub fn enter(tape: &Tape, x: &Var) -> Result<Var> {
    ops::cast(tape, x, tape.store().dtype())
}

/// A network's output, in what losses are computed in.
pub fn leave(tape: &Tape, x: &Var) -> Result<Var> {
    ops::cast(tape, x, sum_dtype(tape.store().dtype()))
}
