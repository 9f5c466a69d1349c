//! The two scalar types that CPU kernels compute in: f32, and f64 for gradient checks.

use engine::Element;

/// f32 or f64.
pub trait Real: Element + num_traits::Float + num_traits::FloatConst + std::iter::Sum + std::ops::AddAssign {
    fn of(v: f64) -> Self {
        <Self as Element>::from_f64(v)
    }
}

impl Real for f32 {}
impl Real for f64 {}
