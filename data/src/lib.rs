//! CT volumes in, VoCo samples out: NIfTI, the deterministic chain, crops with their position labels, datasets and the loader.
//!
//! Volumes are `[x, y, z]` with z contiguous, x to the patient's right, y anterior, z superior once oriented. No axis is ever
//! transposed after that: x, y, z are the three spatial axes of every tensor, in this order.

pub mod affine;
pub mod cache;
pub mod dataset;
pub mod error;
pub mod geometry;
mod interpolate;
pub mod loader;
pub mod nifti;
mod order;
pub mod phantom;
pub mod prepare;
pub mod preprocess;
pub mod sample;
mod slices;
mod spacing;
pub mod transform;
pub mod volume;

pub use cache::{Bits, Cache};
pub use dataset::{Found, Origin, Region, Source};
pub use error::{Error, Result};
pub use geometry::Geometry;
pub use loader::{Batch, Loader, LoaderConfig};
pub use sample::{Place, Sample, Sampling};
pub use volume::Volume;
