//! The driver's library, the devices that it knows, and what is opened on each: a context, a stream, memory and kernels.

use super::{image::Modules, memory::DevicePool, staging::Staging};
use crate::{Device, Error, Result};
use cudarc::driver::{DriverError, result, sys};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt;
use std::sync::{LazyLock, Mutex, MutexGuard};
use sys::CUdevice_attribute as Attribute;

/// The version that a driver must support (CUDA 13.0, as major · 1000 + minor · 10): kernel images are compiled with it.
const NEEDED: i32 = 13_000;
/// The compute capability of the oldest kernel image.
const OLDEST: (i32, i32) = (8, 0);

/// What a device is.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties {
    pub device: Device,
    pub name: String,
    /// Bytes of device memory.
    pub memory: usize,
    /// Compute capability: 8.0 is Ampere, 9.0 Hopper.
    pub compute: (i32, i32),
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block can ask for.
    pub shared: u32,
}

impl Properties {
    /// Why no kernel image runs on the device, where that is so.
    pub fn problem(&self) -> Option<String> {
        let ((major, minor), (oldest, _)) = (self.compute, OLDEST);
        let unfit = || format!("{} has compute capability {major}.{minor}, and kernels need {oldest}.0", self.name);
        (self.compute < OLDEST).then(unfit)
    }
}

/// What this machine has.
#[derive(Clone, Debug, Default)]
pub struct Driver {
    /// The CUDA version that the driver supports; None without a driver.
    pub version: Option<(i32, i32)>,
    pub devices: Vec<Properties>,
    /// Why there is no device that can be used, where that is so.
    pub problem: Option<String>,
}

/// Looks for the driver and its devices.
pub fn survey() -> Driver {
    let version = LIBRARY.as_ref().ok().map(|v| (v / 1000, v % 1000 / 10));
    match STARTED.clone().and_then(|()| all()) {
        Ok(devices) if devices.is_empty() => {
            Driver { version, problem: Some("the driver finds no GPU".into()), ..Driver::default() }
        }
        Ok(devices) => Driver { version, devices, problem: None },
        Err(problem) => Driver { version, devices: Vec::new(), problem: Some(problem) },
    }
}

/// Of a CUDA device; opens it.
pub fn properties(device: Device) -> Result<&'static Properties> {
    Ok(&gpu(device)?.properties)
}

/// The version that the driver's library supports, or why there is none.
static LIBRARY: LazyLock<Result<i32, String>> = LazyLock::new(|| {
    // SAFETY: loads a system library by its name; its initialisers are the driver's.
    if !unsafe { sys::is_culib_present() } {
        return Err("no NVIDIA driver is installed (libcuda.so.1): install driver 580 or newer".into());
    }
    let mut version = 0;
    // SAFETY: the library is there, and this call needs nothing before it.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| describe(&e))?;
    Ok(version)
});

/// Whether the library is new enough and initialised. Other symbols of it may be looked up only after that: an older one may lack
/// them.
static STARTED: LazyLock<Result<(), String>> = LazyLock::new(|| {
    let version = LIBRARY.clone()?;
    if version < NEEDED {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(format!(
            "the NVIDIA driver knows CUDA {major}.{minor}, and 13.0 is needed: install driver 580 or newer"
        ));
    }
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err("the driver finds no GPU".into()),
        done => done.map_err(|e| describe(&e)),
    }
});

fn all() -> Result<Vec<Properties>, String> {
    let count = result::device::get_count().map_err(|e| describe(&e))?;
    let ordinals = 0..u8::try_from(count).unwrap_or(u8::MAX);
    ordinals.map(|i| query(i).map_err(|e| describe(&e))).collect()
}

fn query(ordinal: u8) -> Result<Properties, DriverError> {
    let device = result::device::get(ordinal.into())?;
    // SAFETY: `device` is one that the driver gave.
    let (memory, attribute) =
        unsafe { (result::device::total_mem(device)?, |a| result::device::get_attribute(device, a)) };
    Ok(Properties {
        device: Device::Cuda(ordinal),
        name: result::device::get_name(device)?,
        memory,
        compute: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.unsigned_abs(),
        shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.unsigned_abs(),
    })
}

/// An opened device. It stays open until the process ends.
pub(super) struct Gpu {
    pub properties: Properties,
    /// Work goes into [`Gpu::stream`].
    pub main_stream: sys::CUstream,
    context: sys::CUcontext,
    pool: Mutex<DevicePool>,
    captures: Mutex<()>,
    staging: Mutex<Staging>,
    modules: Mutex<Modules>,
}

// SAFETY: the driver takes its handles from every thread; what is not a handle is behind a lock.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// Opens a CUDA device, or finds it open.
pub(super) fn gpu(device: Device) -> Result<&'static Gpu> {
    static OPEN: Mutex<BTreeMap<u8, &'static Gpu>> = Mutex::new(BTreeMap::new());
    let Device::Cuda(ordinal) = device else {
        return Err(Error::NoDevice { device, detail: "it is no CUDA device".into() });
    };
    let mut open = lock(&OPEN);
    if let Some(gpu) = open.get(&ordinal) {
        return Ok(gpu);
    }
    let gpu: &'static Gpu = Box::leak(Box::new(Gpu::open(ordinal)?));
    open.insert(ordinal, gpu);
    Ok(gpu)
}

impl Gpu {
    fn open(ordinal: u8) -> Result<Gpu> {
        let device = Device::Cuda(ordinal);
        let refuse = |detail| Error::NoDevice { device, detail };
        let mut found = survey();
        if let Some(problem) = found.problem {
            return Err(refuse(problem));
        }
        let count = found.devices.len();
        if usize::from(ordinal) >= count {
            return Err(refuse(format!("no such device: this machine has {count} (vocoe devices lists them)")));
        }
        let properties = found.devices.swap_remove(ordinal.into());
        if let Some(problem) = properties.problem() {
            return Err(refuse(problem));
        }
        Gpu::start(properties, ordinal).map_err(|e| refuse(format!("it does not start: {}", describe(&e))))
    }

    fn start(properties: Properties, ordinal: u8) -> Result<Gpu, DriverError> {
        let device = result::device::get(ordinal.into())?;
        // SAFETY: the device is the driver's; its primary context is retained for good.
        let context = unsafe { result::primary_ctx::retain(device)? };
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context)? };
        let main_stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        let pool = DevicePool::open(ordinal, properties.memory)?;
        Ok(Gpu {
            properties,
            main_stream,
            context,
            pool: Mutex::new(pool),
            captures: Mutex::default(),
            staging: Mutex::new(Staging::new()?),
            modules: Mutex::default(),
        })
    }

    pub fn device(&self) -> Device {
        self.properties.device
    }

    pub fn pool(&self) -> MutexGuard<'_, DevicePool> {
        lock(&self.pool)
    }

    /// The turn to capture a graph.
    pub fn capture_turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.captures)
    }

    pub fn staging(&self) -> MutexGuard<'_, Staging> {
        lock(&self.staging)
    }

    pub fn modules(&self) -> MutexGuard<'_, Modules> {
        lock(&self.modules)
    }

    /// Makes driver calls in this device's context; `what` says in an error which ones.
    pub fn call<T>(&self, what: fmt::Arguments, calls: impl FnOnce() -> Result<T, DriverError>) -> Result<T> {
        // SAFETY: the context is retained for good.
        let done = unsafe { result::ctx::set_current(self.context) }.and_then(|()| calls());
        done.map_err(|e| Error::Driver { device: self.device(), call: what.to_string(), detail: describe(&e) })
    }

    /// Waits until the device has done all that was asked of it.
    pub fn synchronize(&self, what: fmt::Arguments) -> Result<()> {
        self.outside_capture("waiting for the device")?;
        // SAFETY: the stream is this device's.
        self.call(what, || unsafe { result::stream::synchronize(self.main_stream) })
    }
}

/// A panic while one of these locks is held leaves valid data behind, so poisoning carries no information.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// The driver's name for an error and its explanation. The driver reports a kernel's fault at a later call.
fn describe(error: &DriverError) -> String {
    use sys::CUresult::{CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_LAUNCH_FAILED, CUDA_ERROR_MISALIGNED_ADDRESS};
    let text = |text: Result<&CStr, DriverError>| match text {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => "unknown".into(),
    };
    let described = format!("{} ({})", text(error.error_name()), text(error.error_string()));
    match error.0 {
        CUDA_ERROR_ILLEGAL_ADDRESS | CUDA_ERROR_LAUNCH_FAILED | CUDA_ERROR_MISALIGNED_ADDRESS => {
            described + "; with VOCOE_SYNC=1 the kernel at fault is named"
        }
        _ => described,
    }
}
