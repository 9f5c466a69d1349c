//! Ranges for profilers that listen to NVTX, such as Nsight Systems.
//!
//! NVTX 3 has no library to link: a profiler names its own in the environment variable NVTX_INJECTION64_PATH of the process that
//! it starts. The process loads it and calls its `InitializeInjectionNvtx2` with a function through which the profiler finds
//! tables of slots, and puts the functions into them that want to be called. That is all of it here, with the two functions
//! that are used; without the variable nothing is loaded. The numbers are those of NVIDIA's nvtxTypes.h.

use std::ffi::{CString, OsString, c_char, c_int, c_uint, c_void};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicPtr, Ordering::Acquire};

/// `NVTX_CBID_CORE_RangePushA` and `NVTX_CBID_CORE_RangePop`.
const PUSH: usize = 9;
const POP: usize = 11;
/// `NVTX_CB_MODULE_CORE`, and the number of slots of each module from `NVTX_CB_MODULE_INVALID` to `NVTX_CB_MODULE_SYNC`.
const CORE: usize = 1;
const SLOTS: [usize; 7] = [0, 16, 9, 15, 7, 16, 7];
const MOST_SLOTS: usize = 16;
/// `NVTX_ETID_CALLBACKS` and `NVTX_ETID_VERSIONINFO`.
const CALLBACKS: c_uint = 1;
const VERSION_INFO: c_uint = 3;

type Slot = AtomicPtr<c_void>;
static FUNCTIONS: [[Slot; MOST_SLOTS]; SLOTS.len()] =
    [const { [const { Slot::new(std::ptr::null_mut()) }; MOST_SLOTS] }; SLOTS.len()];
static TABLES: LazyLock<[[&Slot; MOST_SLOTS]; SLOTS.len()]> =
    LazyLock::new(|| FUNCTIONS.each_ref().map(|module| module.each_ref()));

/// `NvtxExportTableCallbacks`
#[repr(C)]
struct Callbacks {
    size: usize,
    table: extern "C" fn(c_uint, *mut *const &'static Slot, *mut c_uint) -> c_int,
}
static EXPORTED: Callbacks = Callbacks { size: size_of::<Callbacks>(), table };

/// `NvtxExportTableVersionInfo`
#[repr(C)]
struct VersionInfo {
    size: usize,
    version: u32,
    reserved: u32,
    set: extern "C" fn(u32),
}
static VERSION: VersionInfo =
    VersionInfo { size: size_of::<VersionInfo>(), version: 3, reserved: 0, set: ignore_version };

/// The functions of the profiler that is attached, if one is and wants ranges.
static PROFILER: LazyLock<Option<Profiler>> = LazyLock::new(attach);

struct Profiler {
    push: Push,
    pop: Pop,
}

type Push = extern "C" fn(*const c_char) -> c_int;
type Pop = extern "C" fn() -> c_int;
type Initialize = extern "C" fn(extern "C" fn(c_uint) -> *const c_void) -> c_int;

/// Opens a range on this thread; false where nobody listens.
pub(crate) fn push(name: &str) -> bool {
    let Some(profiler) = &*PROFILER else { return false };
    let Ok(name) = CString::new(name) else { return false };
    (profiler.push)(name.as_ptr());
    true
}

/// Closes the range that was opened last.
pub(crate) fn pop() {
    if let Some(profiler) = &*PROFILER {
        (profiler.pop)();
    }
}

fn attach() -> Option<Profiler> {
    let path: OsString = std::env::var_os("NVTX_INJECTION64_PATH")?;
    // SAFETY: whoever started this process has asked for the library, and the function has had this type since NVTX 2.
    let attached = unsafe {
        let library = libloading::Library::new(path).ok()?;
        let initialize = *library.get::<Initialize>(c"InitializeInjectionNvtx2").ok()?;
        std::mem::forget(library); // its functions are called until the process ends
        initialize(export)
    };
    let function = |id: usize| Some(FUNCTIONS[CORE][id].load(Acquire)).filter(|f| attached != 0 && !f.is_null());
    let (push, pop) = (function(PUSH)?, function(POP)?);
    // SAFETY: the profiler has put functions of these types into these slots.
    unsafe {
        let push = std::mem::transmute::<*mut c_void, Push>(push);
        let pop = std::mem::transmute::<*mut c_void, Pop>(pop);
        Some(Profiler { push, pop })
    }
}

extern "C" fn export(id: c_uint) -> *const c_void {
    match id {
        CALLBACKS => (&raw const EXPORTED).cast(),
        VERSION_INFO => (&raw const VERSION).cast(),
        _ => std::ptr::null(),
    }
}

/// Gives a module's table and its number of slots; 0 when there is no such module.
extern "C" fn table(module: c_uint, out: *mut *const &'static Slot, count: *mut c_uint) -> c_int {
    let Some((slots, &used)) = TABLES.get(module as usize).zip(SLOTS.get(module as usize)) else { return 0 };
    if used == 0 {
        return 0;
    }
    // SAFETY: the profiler gives places for both, or null for one that it does not want.
    unsafe {
        if !out.is_null() {
            *out = slots.as_ptr();
        }
        if !count.is_null() {
            *count = used as c_uint;
        }
    }
    1
}

extern "C" fn ignore_version(_: u32) {}
