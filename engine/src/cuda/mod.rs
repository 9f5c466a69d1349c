//! NVIDIA GPUs through the driver's own library, which is looked for when a program first asks for a GPU: the same binary runs
//! without one.
//!
//! Each device has one stream, in which copies, fills and kernels run in the order in which they were asked for. So a buffer may
//! be given back while a kernel still reads it: whoever takes it next comes later in the stream. Operations return before the
//! device is done; reading a tensor's values waits for it. The same work again and again can be captured as a [`Graph`].

mod book;
mod compile;
mod driver;
mod event;
mod graph;
mod image;
mod launch;
mod memory;
mod repeat;
mod space;
mod staging;
mod timeline;

pub use compile::compile;
pub use driver::{Driver, Properties, properties, survey};
pub use event::elapsed;
pub use graph::{Graph, capture, captures};
pub use image::Image;
pub use launch::{Grid, launch};
pub use memory::usage;
pub use repeat::{Output, Repeats};

pub(crate) use memory::Buffer;
pub(crate) use timeline::Timeline;
