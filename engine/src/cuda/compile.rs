//! For work on kernels: with VOCOE_KERNELS=DIR, where DIR is a copy of `kernels/src`, they are compiled when they are first
//! wanted, by NVIDIA's run-time compiler for this very device, and not taken out of the binary.

use crate::{Error, Result};
use cudarc::nvrtc::{result, sys};
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Where the sources are, if they are wanted.
pub(super) fn sources() -> Option<&'static Path> {
    static FOLDER: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(SETTING).map(PathBuf::from));
    FOLDER.as_deref()
}

const SETTING: &str = "VOCOE_KERNELS";

/// The machine code of `folder/name/name.cu` for devices of this compute capability. Errors without the compiler's library, and
/// with what the compiler says where the source is wrong.
pub fn compile(folder: &Path, name: &str, (major, minor): (i32, i32)) -> Result<Vec<u8>> {
    // SAFETY: loads a system library by its name.
    if !unsafe { sys::is_culib_present() } {
        let remedy = "put the folder of CUDA 13's libnvrtc.so.13 into LD_LIBRARY_PATH, or leave VOCOE_KERNELS out";
        return Err(Error::invalid(SETTING, format!("there is no run-time compiler: {remedy}")));
    }
    let path = folder.join(name).join(name).with_extension("cu");
    let wrong = |detail: String| Error::invalid(SETTING, format!("{}: {detail}", path.display()));
    let source = std::fs::read(&path).map_err(|e| wrong(e.to_string()))?;
    let source = CString::new(source).map_err(|e| wrong(e.to_string()))?;
    let title = CString::new(path.to_string_lossy().as_bytes()).map_err(|e| wrong(e.to_string()))?;
    // As the images: what comes after these is compiled for itself.
    let suffix = if matches!((major, minor), (9 | 10, 0)) { "a" } else { "" };
    let architecture = format!("sm_{major}{minor}{suffix}");
    let options = [
        "--std=c++17".to_string(),
        format!("--gpu-architecture={architecture}"),
        format!("--include-path={}", folder.join(name).display()),
        "--generate-line-info".to_string(),
    ];
    if options.iter().any(|option| option.contains('\0')) {
        return Err(wrong("its folder's name has a zero".into()));
    }
    let program = result::create_program(&source, Some(&title)).map_err(|e| wrong(e.to_string()))?;
    // SAFETY: the program was just created, and is destroyed after its last use.
    unsafe {
        let compiled = result::compile_program(program, &options);
        let code = match compiled {
            Ok(()) => code(program).map_err(|e| wrong(e.to_string())),
            Err(error) => Err(wrong(format!("not compiled for {architecture} ({:?})\n{}", error.0, log(program)))),
        };
        result::destroy_program(program).map_err(|e| wrong(e.to_string()))?;
        code
    }
}

/// # Safety
/// The program must be compiled.
unsafe fn code(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: the caller's; the second call writes as many bytes as the first asks for.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &mut size).result()?;
        let mut code = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result()?;
        Ok(code)
    }
}

/// What the compiler said.
///
/// # Safety
/// The program must be live.
unsafe fn log(program: sys::nvrtcProgram) -> String {
    // SAFETY: the caller's.
    let said = unsafe { result::get_program_log(program) }.unwrap_or_default();
    let said: Vec<u8> = said.into_iter().map(|c| c as u8).collect();
    CStr::from_bytes_until_nul(&said).map_or(String::new(), |text| text.to_string_lossy().trim_end().to_string())
}
