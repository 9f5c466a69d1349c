//! The emulator does what the wrappers of device.cuh promise, whatever the order of threads and of copies, and no sanitizer objects.

use clap::ValueEnum;
use std::process::Output;
use xtask::emulator::{Async, Emulator, Sanitize, Schedule, Settings};
use xtask::{root, sources};

fn build(sanitize: Sanitize) -> Emulator {
    let sources = sources::in_folder(&root().join("kernels/src/conformance")).expect("sources");
    Emulator::build(&root(), &sources, sanitize, &root().join("target/emulator-conformance")).expect("emulator")
}

fn conformance(emulator: &Emulator, settings: Settings, arguments: &[&str]) -> Output {
    let mut command = emulator.command(env!("CARGO_BIN_EXE_vocoe"), &settings).expect("command");
    command.arg("conformance").args(arguments).output().expect("vocoe starts")
}

#[track_caller]
fn assert_passes(emulator: &Emulator, settings: Settings) {
    let done = conformance(emulator, settings, &["--seed", "7"]);
    let text = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && text.matches("pass  ").count() == 11, "{settings:?}:\n{text}");
}

#[test]
fn every_order_of_threads_and_copies_gives_the_same() {
    let emulator = build(Sanitize::None);
    for schedule in Schedule::value_variants() {
        for async_ in Async::value_variants() {
            assert_passes(&emulator, Settings { schedule: *schedule, async_: *async_, ..Settings::default() });
        }
    }
    let done = conformance(&emulator, Settings::default(), &["--json"]);
    let first = String::from_utf8_lossy(&done.stdout).lines().next().map(str::to_string).expect("a line");
    assert!(first.contains(r#""wrong":0"#) && first.contains(r#""check":"to_bf16"#), "{first}");
    let cpu = conformance(&emulator, Settings::default(), &["--device", "cpu"]);
    assert!(!cpu.status.success() && String::from_utf8_lossy(&cpu.stderr).contains("cuda:N"));
}

#[test]
fn the_sanitizers_see_nothing() {
    for sanitize in [Sanitize::Address, Sanitize::Thread] {
        let settings = Settings { sanitize, schedule: Schedule::Random, ..Settings::default() };
        assert_passes(&build(sanitize), settings);
    }
}
