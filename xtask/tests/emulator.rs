//! The emulator's own tests: right kernels give right results under every schedule and sanitizer, and every planted bug is
//! caught by the runs that the kernels of the operations go through.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::ValueEnum;
use xtask::emulator::{Async, Emulator, Sanitize, Schedule, Settings};
use xtask::{process, root, sources};

const RIGHT: &[&str] = &["gemm_bf16", "gemm_f16", "captures", "pieces"];

/// Bugs that some of the plain runs show, and a part of what is then said.
const BUGS: &[(&str, &str)] = &[
    ("bug_no_barrier", "is wrong"),
    ("bug_no_wait", "is wrong"),
    ("bug_wait_too_short", "is wrong"),
    ("bug_early_reuse", "is wrong"),
    ("bug_read_past_end", "0 bytes past the end of an allocation of 256 bytes"),
    ("bug_write_past_end", "past the end of an allocation of 256 bytes"),
    ("bug_write_before_start", "just before or after an allocation"),
    ("bug_shared_past_end", "illegal access"),
    ("bug_array_past_end", "beside its shared memory"),
    ("bug_unwritten_shared", "is wrong"),
    ("bug_too_much_shared", "arrays included, than a launch gets: 49408 bytes of 49152"),
    ("bug_divergent_barrier", "divergent barrier: other threads of the block wait at"),
    ("bug_deadlock", "16 threads (the first is 0) wait for __syncthreads at"),
    ("bug_lane_left", "ended"),
    ("bug_misaligned_copy", "not multiples"),
    ("wrong_argument_size", "an argument of another size"),
];

struct Tests {
    emulator: Emulator,
    sanitize: Sanitize,
    program: PathBuf,
}

impl Tests {
    fn build(sanitize: Sanitize) -> Tests {
        let (root, out) = (root(), root().join("target/emulator-tests"));
        let folder = root.join("kernels/emulator/tests");
        let sources = sources::in_folder(&folder).unwrap();
        let emulator = Emulator::build(&root, &sources, sanitize, &out).unwrap();
        let program = emulator.folder().join("selftest");
        compile(&folder.join("selftest.cpp"), &emulator.folder().join("libcuda.so.1"), &program);
        Tests { emulator, sanitize, program }
    }

    fn run(&self, name: &str, schedule: Schedule, async_: Async, seed: u64) -> Output {
        let settings = Settings { sanitize: self.sanitize, schedule, async_, seed };
        self.emulator.command(&self.program, &settings).unwrap().arg(name).output().unwrap()
    }

    fn assert_right(&self, schedule: Schedule, async_: Async) {
        for name in RIGHT {
            let done = self.run(name, schedule, async_, 1);
            assert!(done.status.success(), "{name} {schedule:?} {async_:?}: {}", stderr(&done));
        }
    }
}

fn compile(source: &Path, library: &Path, program: &Path) {
    let mut command = Command::new("g++");
    command.args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-pthread"]).arg(source).arg(library).arg("-o").arg(program);
    process::output(&mut command).unwrap();
}

fn stderr(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

fn modes() -> impl Iterator<Item = (Schedule, Async)> {
    let each = |schedule: &Schedule| Async::value_variants().iter().map(|a| (*schedule, *a)).collect::<Vec<_>>();
    Schedule::value_variants().iter().flat_map(each)
}

#[test]
fn plain_runs_are_right_and_show_every_bug() {
    let tests = Tests::build(Sanitize::None);
    for (schedule, async_) in modes() {
        tests.assert_right(schedule, async_);
    }
    for (name, message) in BUGS {
        let runs: Vec<_> = modes().map(|(schedule, async_)| tests.run(name, schedule, async_, 1)).collect();
        let caught = runs.iter().filter(|r| !r.status.success() && stderr(r).contains(message)).count();
        assert!(caught > 0, "{name} passed, or said something else: {}", stderr(&runs[0]));
    }
}

#[test]
fn the_address_sanitizer_sees_accesses_out_of_bounds() {
    let tests = Tests::build(Sanitize::Address);
    tests.assert_right(Schedule::Random, Async::Random);
    let bugs = [
        "bug_read_past_end",
        "bug_write_past_end",
        "bug_write_before_start",
        "bug_shared_past_end",
        "bug_array_past_end",
    ];
    for name in bugs {
        let done = tests.run(name, Schedule::Fifo, Async::Eager, 1);
        let text = stderr(&done);
        assert!(
            !done.status.success() && text.contains("AddressSanitizer") && text.contains("bugs.cu:"),
            "{name}: {text}"
        );
    }
}

#[test]
fn the_thread_sanitizer_sees_races() {
    let tests = Tests::build(Sanitize::Thread);
    tests.assert_right(Schedule::Random, Async::Eager);
    tests.assert_right(Schedule::Priority, Async::Lazy);
    let bugs = ["bug_no_barrier", "bug_early_reuse", "bug_race_in_block", "bug_race_between_blocks", "bug_no_fence"];
    for name in bugs {
        let done = tests.run(name, Schedule::Random, Async::Eager, 1);
        let text = stderr(&done);
        assert!(!done.status.success() && text.contains("ThreadSanitizer: data race"), "{name}: {text}");
    }
}
