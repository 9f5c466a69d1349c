//! Ranges for profilers: a library that a profiler names in the environment hears of them.

use std::process::Command;

#[test]
fn a_profiler_hears_of_the_scopes_and_nobody_else_does() {
    let folder = tempfile::tempdir().expect("folder");
    let library = folder.path().join("profiler.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nvtx.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-Wall", "-Wextra", source, "-o"]).arg(&library).status();
    assert!(built.expect("a C compiler").success());
    let run = |profiler: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vocoe"));
        command.args(["bench", "step", "--size", "tiny", "--crops", "1", "--steps", "1"]);
        let output = command.env("NVTX_INJECTION64_PATH", profiler).output().expect("the binary starts");
        assert!(output.status.success());
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    let heard = run(&library);
    // the first operation of a residual block, its phase, and an operation of the backward, deep as they are nested
    for range in [
        "range encoder1.layer\n",
        "range  conv3d\n",
        "range   conv3d fprop\n",
        "range instance_norm\n",
        "range  conv3d wgrad\n",
    ] {
        assert!(heard.contains(range), "{range}{heard}");
    }
    assert_eq!(run(&folder.path().join("absent.so")), "");
}
