//! Pairwise cosine similarity.
use engine::{Result, Tensor};

/// a `[N, D]`, b `[M, D]` -> `[N, M]`.
pub fn forward(_a: &Tensor, _b: &Tensor) -> Result<Tensor> {
    Err(engine::Error::invalid("kernel", "not written"))
}
/// (da, db).
pub fn backward(_dy: &Tensor, _a: &Tensor, _b: &Tensor) -> Result<(Tensor, Tensor)> {
    Err(engine::Error::invalid("kernel", "not written"))
}
