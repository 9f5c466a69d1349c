//! Compiling kernels at run time, which takes NVIDIA's run-time compiler and no GPU: with the pinned compilers,
//! `LD_LIBRARY_PATH=$(echo target/cuda/lib/python3*/site-packages/nvidia/cu13/lib) cargo test --release --test cuda -- compile`.

use engine::cuda::compile;
use std::io::Write;
use std::path::Path;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/src");

/// What the compiler gives for a device of compute capability 9.0; None, and a line that says so, where there is no compiler, or
/// where the test was carried away from the sources.
fn compiled(folder: &Path, name: &str) -> Option<engine::Result<Vec<u8>>> {
    let done = compile(folder, name, (9, 0));
    let missing = done.as_ref().is_err_and(|e| e.to_string().contains("there is no run-time compiler"));
    if missing || !folder.exists() {
        writeln!(std::io::stderr(), "skipped: {name}.cu cannot be compiled here").expect("stderr");
        return None;
    }
    Some(done)
}

#[test]
fn sources_become_machine_code() {
    for name in ["row_dropout", "adamw"] {
        let Some(code) = compiled(Path::new(SOURCES), name) else { return };
        let code = code.expect("machine code");
        let kernel = format!("{name}_");
        assert!(code.starts_with(b"\x7fELF") && code.windows(kernel.len()).any(|w| w == kernel.as_bytes()));
    }
}

#[test]
fn what_is_wrong_is_said_with_its_file() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::create_dir(folder.path().join("broken")).expect("folder");
    std::fs::write(folder.path().join("broken/broken.cu"), "__global__ void f() { nothing(); }\n").expect("source");
    let Some(broken) = compiled(folder.path(), "broken") else { return };
    let error = broken.expect_err("not C++").to_string();
    assert!(error.starts_with("VOCOE_KERNELS: ") && error.contains("broken/broken.cu(1): error: "), "{error}");
    let error = compile(folder.path(), "absent", (9, 0)).expect_err("no such file").to_string();
    assert!(error.contains("absent/absent.cu: ") && error.lines().count() == 1, "{error}");
    let old = compile(folder.path(), "broken", (3, 0)).expect_err("too old a device").to_string();
    assert!(old.contains("broken.cu") && old.contains("sm_30"), "{old}");
}
