use bytemuck::{Pod, Zeroable};
use engine::cuda::{Grid, Image, launch};
use engine::{Device, Result, Tensor};

static IMAGE: Image = Image::new("conformance", include_bytes!("../../images/conformance.fatbin.zst"));

/// `ConformanceArgs` of conformance.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    a: u64,
    b: u64,
    out: u64,
    n: i64,
}

/// What one kernel is given: 32-bit words of any meaning.
pub struct Launch<'a> {
    pub kernel: &'a str,
    pub blocks: usize,
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    pub a: &'a [u32],
    pub b: &'a [u32],
    /// What `out` holds at first.
    pub out: Vec<u32>,
    pub n: usize,
}

impl Launch<'_> {
    /// What `out` holds at the end.
    ///
    /// # Safety
    /// a, b and out must be as long as the kernel takes them to be under this grid and n.
    pub unsafe fn run(self, device: Device) -> Result<Vec<u32>> {
        let (a, b, mut out) = (words(self.a, device)?, words(self.b, device)?, words(&self.out, device)?);
        let args = Args { a: a.device_ptr()?, b: b.device_ptr()?, out: out.device_ptr_mut()?, n: self.n as i64 };
        let grid = Grid { grid: [self.blocks as u32, 1, 1], block: [self.threads, 1, 1], shared: self.shared };
        // SAFETY: the tensors are live and unshared; their lengths are the caller's promise.
        unsafe { launch(device, &IMAGE, self.kernel, grid, &args)? };
        Ok(bytemuck::cast_slice(&out.to_vec::<i32>()?).to_vec())
    }
}

fn words(words: &[u32], device: Device) -> Result<Tensor> {
    Tensor::from_slice::<i32>(bytemuck::cast_slice(words), &[words.len()])?.to_device(device)
}
