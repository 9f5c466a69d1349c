//! A contiguous, row-major array of runtime dtype.

use crate::memory::Buffer;
use crate::meta::Entry;
use crate::{DType, Device, Element, Error, Result, Shape, bf16, f16};
use crate::{cuda, trace};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A view of `shape` elements into shared storage. Cloning, reshaping and taking leading rows share the storage; writing needs
/// the storage to be unshared ([`Tensor::as_mut_slice`]), so no reader ever sees a change.
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    offset: usize, // in elements
    shape: Shape,
    dtype: DType,
}

enum Storage {
    Cpu(Buffer),
    Cuda(cuda::Buffer),
    Meta { _entry: Entry },
}

impl Tensor {
    /// Arbitrary contents, for outputs that a kernel writes in full.
    pub fn empty(dims: &[usize], dtype: DType, device: Device) -> Result<Tensor> {
        let shape = Shape::new(dims)?;
        let storage = match device {
            Device::Cpu => Storage::Cpu(Buffer::take("tensor", shape.numel() * dtype.size())?),
            Device::Cuda(_) => Storage::Cuda(cuda::Buffer::take(device, shape, dtype)?),
            Device::Meta => Storage::Meta { _entry: Entry::new(shape.numel() * dtype.size()) },
        };
        Ok(Tensor { storage: Arc::new(storage), offset: 0, shape, dtype })
    }

    pub fn zeros(dims: &[usize], dtype: DType, device: Device) -> Result<Tensor> {
        let mut t = Tensor::empty(dims, dtype, device)?;
        match Arc::get_mut(&mut t.storage) {
            Some(Storage::Cpu(buffer)) => buffer.bytes_mut().fill(0),
            Some(Storage::Cuda(buffer)) => buffer.fill(0)?,
            Some(Storage::Meta { .. }) | None => {}
        }
        Ok(t)
    }

    /// Arbitrary contents, with this tensor's dtype and device.
    pub fn new_empty(&self, dims: &[usize]) -> Result<Tensor> {
        Tensor::empty(dims, self.dtype, self.device())
    }

    /// Every element `value`, rounded to `dtype`.
    pub fn full(dims: &[usize], value: f64, dtype: DType, device: Device) -> Result<Tensor> {
        let mut t = Tensor::empty(dims, dtype, device)?;
        t.fill_with(0..t.numel(), |_| value)?;
        Ok(t)
    }

    /// Overwrites the elements of a range, row-major, with `value(i)`, i counted from the range's start, rounded to the dtype.
    /// Errors when another tensor shares the storage, and when the range is not inside.
    pub fn fill_with(&mut self, range: Range<usize>, value: impl Fn(usize) -> f64) -> Result<()> {
        fn fill<T: Element>(t: &mut Tensor, range: Range<usize>, value: impl Fn(usize) -> f64) -> Result<()> {
            if t.device() != Device::Cpu {
                let values: Vec<T> = range.clone().map(|i| T::from_f64(value(i - range.start))).collect();
                return t.write(range.start, &values);
            }
            for (i, to) in t.as_mut_slice::<T>()?[range].iter_mut().enumerate() {
                *to = T::from_f64(value(i));
            }
            Ok(())
        }
        if range.start > range.end || range.end > self.numel() {
            return Err(Error::shape("fill_with", format!("elements {range:?} of {:?}", self.shape)));
        }
        match (self.device(), self.dtype) {
            (Device::Meta, _) => Ok(()),
            (_, DType::F32) => fill::<f32>(self, range, value),
            (_, DType::F64) => fill::<f64>(self, range, value),
            (_, DType::BF16) => fill::<bf16>(self, range, value),
            (_, DType::F16) => fill::<f16>(self, range, value),
            (_, DType::I32) => fill::<i32>(self, range, value),
            (_, DType::U8) => fill::<u8>(self, range, value),
        }
    }

    /// Copies host data. Errors when `data` does not have as many elements as `dims`.
    pub fn from_slice<T: Element>(data: &[T], dims: &[usize]) -> Result<Tensor> {
        let mut t = Tensor::empty(dims, T::DTYPE, Device::Cpu)?;
        if data.len() != t.numel() {
            return Err(Error::shape("from_slice", format!("{} elements for shape {dims:?}", data.len())));
        }
        t.as_mut_slice()?.copy_from_slice(data);
        Ok(t)
    }

    /// Overwrites all elements with host data. Errors when the dtype or the number of elements differs, and when another tensor
    /// shares the storage.
    pub fn overwrite<T: Element>(&mut self, data: &[T]) -> Result<()> {
        self.expect_dtype::<T>("overwrite")?;
        if data.len() != self.numel() {
            return Err(Error::shape("overwrite", format!("{} elements for shape {:?}", data.len(), self.shape)));
        }
        self.write(0, data)
    }

    /// A scalar (rank 0).
    pub fn scalar<T: Element>(value: T) -> Result<Tensor> {
        Tensor::from_slice(&[value], &[])
    }

    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn rank(&self) -> usize {
        self.shape.rank()
    }

    pub fn numel(&self) -> usize {
        self.shape.numel()
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn device(&self) -> Device {
        match &*self.storage {
            Storage::Cpu(_) => Device::Cpu,
            Storage::Cuda(buffer) => buffer.device(),
            Storage::Meta { .. } => Device::Meta,
        }
    }

    /// Size of the last axis (channels); 1 for a scalar.
    pub fn channels(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// Elements per channel: the product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.dims().split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// Axes as `[N, D, H, W, C]`. Errors when the rank is not 5.
    pub fn ndhwc(&self, op: &'static str) -> Result<[usize; 5]> {
        self.dims().try_into().map_err(|_| Error::shape(op, format!("expected [N, D, H, W, C], got {:?}", self.shape)))
    }

    /// The elements, of a tensor on the host. Errors on other devices: [`Tensor::to_device`] and [`Tensor::to_vec`] copy.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.expect_dtype::<T>("as_slice")?;
        match &*self.storage {
            Storage::Cpu(buffer) => Ok(bytemuck::cast_slice(&buffer.bytes()[self.range()])),
            other => Err(other.not_on_host("as_slice")),
        }
    }

    /// The elements for writing, of a tensor on the host. Errors when another tensor shares the storage, and on other devices.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        self.expect_dtype::<T>("as_mut_slice")?;
        Ok(bytemuck::cast_slice_mut(self.bytes_mut()?))
    }

    /// Whether no other tensor shares the storage, so that it can be written to.
    pub fn is_unshared(&self) -> bool {
        Arc::strong_count(&self.storage) == 1
    }

    fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        let range = self.range();
        match Arc::get_mut(&mut self.storage).ok_or(Error::Shared { op: "write" })? {
            Storage::Cpu(buffer) => Ok(&mut buffer.bytes_mut()[range]),
            other => Err(other.not_on_host("write")),
        }
    }

    /// The view's bytes in the storage.
    fn range(&self) -> Range<usize> {
        let start = self.offset * self.dtype.size();
        start..start + self.numel() * self.dtype.size()
    }

    /// Copies host values to the elements from `start` on, on whatever device they are.
    fn write<T: Element>(&mut self, start: usize, values: &[T]) -> Result<()> {
        let start = self.range().start + start * self.dtype.size();
        let bytes: &[u8] = bytemuck::cast_slice(values);
        match Arc::get_mut(&mut self.storage).ok_or(Error::Shared { op: "write" })? {
            Storage::Cpu(buffer) => buffer.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes),
            Storage::Cuda(buffer) => buffer.write(start, bytes)?,
            Storage::Meta { .. } => {}
        }
        Ok(())
    }

    /// The same values on another device; shares the storage where they are there already. Reading from a device waits for its
    /// work. Errors when the meta device's values are wanted.
    pub fn to_device(&self, device: Device) -> Result<Tensor> {
        if device == self.device() {
            return Ok(self.clone());
        }
        let mut there = Tensor::empty(self.dims(), self.dtype, device)?;
        match (&*self.storage, Arc::get_mut(&mut there.storage)) {
            (Storage::Cpu(from), Some(Storage::Cuda(to))) => to.write(0, &from.bytes()[self.range()])?,
            (Storage::Cuda(from), Some(Storage::Cpu(to))) => from.read(self.range().start, to.bytes_mut())?,
            (Storage::Cuda(_), Some(Storage::Cuda(_))) => return self.to_device(Device::Cpu)?.to_device(device),
            (Storage::Meta { .. }, _) => return Err(Error::NoValues { op: "to_device" }),
            _ => {}
        }
        Ok(there)
    }

    /// The address of the first element on a CUDA device, for kernels that read it. Errors on other devices.
    pub fn device_ptr(&self) -> Result<u64> {
        match &*self.storage {
            Storage::Cuda(buffer) => {
                let pointer = buffer.pointer() + self.range().start as u64;
                trace::note_tensor(pointer, self.range().len());
                Ok(pointer)
            }
            other => Err(other.not_on_cuda("device_ptr")),
        }
    }

    /// As [`Tensor::device_ptr`], for kernels that write. Errors when another tensor shares the storage.
    pub fn device_ptr_mut(&mut self) -> Result<u64> {
        if !self.is_unshared() {
            return Err(Error::Shared { op: "write" });
        }
        self.device_ptr()
    }

    fn expect_dtype<T: Element>(&self, op: &'static str) -> Result<()> {
        let want = match T::DTYPE {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::F64 => "f64",
        };
        if self.dtype == T::DTYPE { Ok(()) } else { Err(Error::DType { op, got: self.dtype, want }) }
    }

    /// All elements, copied to the host.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        Ok(self.to_device(Device::Cpu)?.as_slice::<T>()?.to_vec())
    }

    /// The only element, as f64. Errors when there is not exactly one.
    pub fn item(&self) -> Result<f64> {
        // before the elements are read, which may be many and elsewhere
        if self.numel() != 1 {
            return Err(Error::shape("item", format!("needs one element, got {:?}", self.shape)));
        }
        Ok(self.to_f64_vec()?[0])
    }

    /// All elements as f64, whatever the dtype; NaN on the meta device, where they are unknown.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        fn widen<T: Element>(t: &Tensor) -> Result<Vec<f64>> {
            Ok(t.to_device(Device::Cpu)?.as_slice::<T>()?.iter().map(|v| v.to_f64()).collect())
        }
        match (self.device(), self.dtype) {
            (Device::Meta, _) => Ok(vec![f64::NAN; self.numel()]),
            (_, DType::F32) => widen::<f32>(self),
            (_, DType::F64) => widen::<f64>(self),
            (_, DType::BF16) => widen::<bf16>(self),
            (_, DType::F16) => widen::<f16>(self),
            (_, DType::I32) => widen::<i32>(self),
            (_, DType::U8) => widen::<u8>(self),
        }
    }

    /// Rounds every element to `dtype`, on the host. The same dtype shares the storage.
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        fn narrow<T: Element>(values: &[f64], dims: &[usize]) -> Result<Tensor> {
            Tensor::from_slice(&values.iter().map(|&v| T::from_f64(v)).collect::<Vec<_>>(), dims)
        }
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        if self.device() == Device::Meta {
            return Tensor::empty(self.dims(), dtype, Device::Meta);
        }
        let values = self.to_f64_vec()?;
        let rounded = match dtype {
            DType::F32 => narrow::<f32>(&values, self.dims()),
            DType::F64 => narrow::<f64>(&values, self.dims()),
            DType::BF16 => narrow::<bf16>(&values, self.dims()),
            DType::F16 => narrow::<f16>(&values, self.dims()),
            DType::I32 => narrow::<i32>(&values, self.dims()),
            DType::U8 => narrow::<u8>(&values, self.dims()),
        };
        rounded?.to_device(self.device())
    }

    /// The same elements under another shape; shares the storage.
    pub fn reshape(&self, dims: &[usize]) -> Result<Tensor> {
        let shape = Shape::new(dims)?;
        if shape.numel() != self.numel() {
            return Err(Error::shape(
                "reshape",
                format!("{:?} does not hold as many elements as {dims:?}", self.shape),
            ));
        }
        Ok(Tensor { shape, ..self.clone() })
    }

    /// Rows `start..start + len` of the outermost axis; shares the storage.
    pub fn rows_at(&self, start: usize, len: usize) -> Result<Tensor> {
        let Some((&outer, inner)) = self.dims().split_first() else {
            return Err(Error::shape("rows_at", "a scalar has no rows"));
        };
        if start.checked_add(len).is_none_or(|end| end > outer) {
            return Err(Error::shape("rows_at", format!("rows {start}..{start}+{len} of {:?}", self.shape)));
        }
        let row: usize = inner.iter().product();
        let dims: Vec<usize> = std::iter::once(len).chain(inner.iter().copied()).collect();
        Ok(Tensor { offset: self.offset + start * row, shape: Shape::new(&dims)?, ..self.clone() })
    }

    /// A copy with the axes in another order: axis `i` of the result is axis `order[i]` of this tensor. For the border
    /// (PyTorch's layouts in and out), not for the inside of a network: it works on the host.
    pub fn permute(&self, order: &[usize]) -> Result<Tensor> {
        let rank = self.rank();
        let mut seen = [false; crate::shape::MAX_RANK];
        if order.len() != rank || order.iter().any(|&a| a >= rank || std::mem::replace(&mut seen[a], true)) {
            return Err(Error::shape("permute", format!("{order:?} is no order of the axes of {:?}", self.shape)));
        }
        match (self.device(), self.dtype) {
            (Device::Meta, _) => self.new_empty(&order.iter().map(|&a| self.dims()[a]).collect::<Vec<_>>()),
            (_, DType::F32) => self.permuted::<f32>(order),
            (_, DType::F64) => self.permuted::<f64>(order),
            (_, DType::BF16) => self.permuted::<bf16>(order),
            (_, DType::F16) => self.permuted::<f16>(order),
            (_, DType::I32) => self.permuted::<i32>(order),
            (_, DType::U8) => self.permuted::<u8>(order),
        }
    }

    fn permuted<T: Element>(&self, order: &[usize]) -> Result<Tensor> {
        let dims: Vec<usize> = order.iter().map(|&a| self.dims()[a]).collect();
        let mut strides = vec![1; self.rank()];
        for a in (1..self.rank()).rev() {
            strides[a - 1] = strides[a] * self.dims()[a];
        }
        let steps: Vec<usize> = order.iter().map(|&a| strides[a]).collect();
        let mut out = Tensor::empty(&dims, self.dtype, Device::Cpu)?;
        let from = self.to_device(Device::Cpu)?;
        let from = from.as_slice::<T>()?;
        let mut index = vec![0; dims.len()];
        for v in out.as_mut_slice::<T>()? {
            *v = from[index.iter().zip(&steps).map(|(i, s)| i * s).sum::<usize>()];
            for a in (0..dims.len()).rev() {
                index[a] += 1;
                if index[a] < dims[a] {
                    break;
                }
                index[a] = 0;
            }
        }
        out.to_device(self.device())
    }
}

impl Storage {
    fn not_on_host(&self, op: &'static str) -> Error {
        match self {
            Storage::Cuda(buffer) => Error::Elsewhere { op, device: buffer.device(), want: "the host" },
            Storage::Cpu(_) | Storage::Meta { .. } => Error::NoValues { op },
        }
    }

    fn not_on_cuda(&self, op: &'static str) -> Error {
        match self {
            Storage::Cpu(_) => Error::Elsewhere { op, device: Device::Cpu, want: "a CUDA device" },
            Storage::Cuda(_) | Storage::Meta { .. } => Error::NoValues { op },
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?}, {}, {})", self.shape, self.dtype, self.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(dims: &[usize]) -> Tensor {
        let n: usize = dims.iter().product();
        Tensor::from_slice(&(0..n).map(|v| v as f32).collect::<Vec<_>>(), dims).expect("ramp")
    }

    #[test]
    fn views_share_storage_and_forbid_writing() {
        let mut t = ramp(&[4, 3]);
        let view = t.rows_at(1, 2).expect("rows").reshape(&[6]).expect("reshape");
        assert_eq!(view.to_vec::<f32>().expect("read"), [3., 4., 5., 6., 7., 8.]);
        assert_eq!(t.as_mut_slice::<f32>().err(), Some(Error::Shared { op: "write" }));
        drop(view);
        assert!(t.as_mut_slice::<f32>().is_ok());
    }

    #[test]
    fn permute_moves_channels_last() {
        let t = ramp(&[1, 2, 2, 1, 3]).permute(&[0, 2, 3, 4, 1]).expect("permute");
        assert_eq!(t.dims(), [1, 2, 1, 3, 2]);
        assert_eq!(t.to_vec::<f32>().expect("read"), [0., 6., 1., 7., 2., 8., 3., 9., 4., 10., 5., 11.]);
        assert!(t.permute(&[0, 0, 1, 2, 3]).is_err());
    }

    #[test]
    fn wrong_sizes_and_dtypes_are_errors() {
        assert!(Tensor::from_slice(&[1f32], &[2]).is_err());
        assert!(ramp(&[2]).reshape(&[3]).is_err());
        assert!(ramp(&[2]).rows_at(1, 2).is_err());
        assert!(ramp(&[2]).as_slice::<f64>().is_err());
        assert!(Tensor::zeros(&[1; 9], DType::F32, Device::Cpu).is_err());
        assert!(Tensor::zeros(&[usize::MAX, 2], DType::F32, Device::Cpu).is_err());
        assert!(ramp(&[2]).item().is_err());
    }

    #[test]
    fn dtypes_convert() {
        let t = Tensor::from_slice(&[0.0f32, 1.5, -2.25, 300.0], &[4]).expect("tensor");
        let back = |d| t.to_dtype(d).and_then(|t| t.to_f64_vec()).expect("convert");
        assert_eq!(back(DType::BF16), [0.0, 1.5, -2.25, 300.0]);
        assert_eq!(back(DType::F16), [0.0, 1.5, -2.25, 300.0]);
        assert_eq!(back(DType::I32), [0.0, 1.0, -2.0, 300.0]);
        assert_eq!(back(DType::U8), [0.0, 1.0, 0.0, 255.0]);
    }

    #[test]
    fn f16_rounds_to_even_has_subnormals_and_ends_at_65504() {
        let values = [1.0 + 2f64.powi(-11), 1.0 + 3.0 * 2f64.powi(-11), 2f64.powi(-24), 1e-8, 65_519.0, -65_520.0];
        let t = Tensor::from_slice(&values, &[6]).and_then(|t| t.to_dtype(DType::F16)).expect("tensor");
        let want = [1.0, 1.0 + 2f64.powi(-9), 2f64.powi(-24), 0.0, 65_504.0, f64::NEG_INFINITY];
        assert_eq!(t.to_f64_vec().expect("values"), want);
    }

    #[test]
    fn sixteen_bits_are_rounded_through_f32_on_every_machine() {
        // just above the middle of two values, and in f32 at it: to the even one
        let rounded = |v: f64, dtype| {
            let t = Tensor::scalar(v).and_then(|t| t.to_dtype(dtype)?.item());
            t.expect("value")
        };
        assert_eq!(rounded(1.0 + 2f64.powi(-11) + 2f64.powi(-40), DType::F16), 1.0);
        assert_eq!(rounded(1.0 + 2f64.powi(-8) + 2f64.powi(-40), DType::BF16), 1.0);
    }
}
