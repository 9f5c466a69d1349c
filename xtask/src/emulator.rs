//! Building the emulator's `libcuda.so.1` and running a command on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::SystemTime;

use clap::ValueEnum;

use crate::sources::Source;
use crate::{Result, process};

/// How the kernels are instrumented.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, ValueEnum)]
pub enum Sanitize {
    #[default]
    None,
    /// Accesses out of bounds and misaligned ones.
    Address,
    /// Races within a block and between blocks.
    Thread,
}

/// Which thread of a block runs next.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, ValueEnum)]
pub enum Schedule {
    #[default]
    Fifo,
    Reverse,
    Random,
    Priority,
}

/// When an asynchronous copy lands: at its issue, at the wait, or by lot.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, ValueEnum)]
pub enum Async {
    #[default]
    Eager,
    Lazy,
    Random,
}

/// The settings of one run.
#[derive(Clone, Copy, Default, Debug, clap::Args)]
pub struct Settings {
    /// Instrument the kernels.
    #[arg(long, value_enum, default_value_t)]
    pub sanitize: Sanitize,
    /// Which thread of a block runs next.
    #[arg(long, value_enum, default_value_t)]
    pub schedule: Schedule,
    /// When an asynchronous copy lands.
    #[arg(long = "async", value_enum, default_value_t)]
    pub async_: Async,
    /// Seed of what is drawn by lot.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Sanitize {
    /// For the kernels; the emulator's own files only know that they run under a sanitizer.
    fn kernel_flags(self) -> &'static [&'static str] {
        match self {
            Sanitize::None => &[],
            Sanitize::Address => {
                &["-fsanitize=address,alignment", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
            }
            Sanitize::Thread => &["-fsanitize=thread"],
        }
    }

    fn define(self) -> Option<&'static str> {
        match self {
            Sanitize::None => None,
            Sanitize::Address => Some("-DEMULATOR_ASAN"),
            Sanitize::Thread => Some("-DEMULATOR_TSAN"),
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Sanitize::None => "plain",
            Sanitize::Address => "address",
            Sanitize::Thread => "thread",
        }
    }

    fn runtime(self) -> Option<&'static str> {
        match self {
            Sanitize::None => None,
            Sanitize::Address => Some("libasan.so"),
            Sanitize::Thread => Some("libtsan.so"),
        }
    }
}

const COMPILER: &str = "g++";
/// AVX2, FMA and F16C: a multiplication and an addition are fused as nvcc does it.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O3",
    "-g",
    "-fPIC",
    "-fvisibility=hidden",
    "-march=x86-64-v3",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
];

/// A built emulator: a folder with its `libcuda.so.1`.
pub struct Emulator {
    folder: PathBuf,
    sanitize: Sanitize,
}

impl Emulator {
    /// Compiles what changed since the last time: the emulator's own files and every source, below `out`.
    ///
    /// # Errors
    /// When there is no `g++` or a file does not compile.
    pub fn build(root: &Path, sources: &[Source], sanitize: Sanitize, out: &Path) -> Result<Emulator> {
        let folder = out.join(sanitize.folder());
        fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let own = root.join("kernels/emulator");
        let (runtime_files, headers) =
            (files(&own, "cpp")?, [files(&own, "h")?, files(&root.join("kernels/cuda"), "cuh")?]);
        let headers_changed = headers.iter().flatten().map(|p| changed(p)).max().flatten();

        let mut objects = Vec::new();
        let (mut stale, mut commands) = (Vec::new(), Vec::new());
        let mut compile = |file: &Path, from: &Path, flags: &[&str]| {
            let object = folder
                .join(from.file_name().unwrap_or_default())
                .with_extension(from.extension().unwrap_or_default().to_string_lossy().into_owned() + ".o");
            let mut command = Command::new(COMPILER);
            command.args(FLAGS).args(sanitize.define()).args(flags).arg("-I").arg(&own).arg("-c").arg(file);
            let made = Made::new(object.clone(), format!("{command:?}"));
            if !made.is_of(&[changed(from), headers_changed]) {
                command.arg("-o").arg(made.unfinished());
                commands.push(command);
                stale.push(made);
            }
            objects.push(object);
        };
        for file in &runtime_files {
            compile(file, file, &[]);
        }
        for source in sources {
            let wrapper = folder.join(&source.name).with_extension("cpp");
            write_if_changed(&wrapper, &wrap(source, root))?;
            compile(&wrapper, &source.path, sanitize.kernel_flags());
        }
        let library = folder.join("libcuda.so.1");
        process::outputs(commands, process::width())?;
        stale.iter().try_for_each(Made::finish)?;
        let mut link = Command::new(COMPILER);
        link.args(["-shared", "-Wl,-soname,libcuda.so.1"]).args(sanitize.kernel_flags());
        link.args(&objects).arg("-lpthread");
        let made = Made::new(library, format!("{link:?}"));
        if !made.is_of(&objects.iter().map(|object| changed(object)).collect::<Vec<_>>()) {
            process::output(link.arg("-o").arg(made.unfinished()))?;
            made.finish()?;
        }
        Ok(Emulator { folder, sanitize })
    }

    /// The folder that holds `libcuda.so.1`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `program`, with the emulator as its CUDA driver.
    ///
    /// # Errors
    /// When the compiler does not name its sanitizer's library.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>, settings: &Settings) -> Result<Command> {
        let mut command = match self.sanitize.runtime() {
            Some(runtime) => {
                let path = process::output(Command::new(COMPILER).arg(format!("-print-file-name={runtime}")))?;
                let mut preloaded =
                    if self.sanitize == Sanitize::Thread { fixed_addresses() } else { Command::new("env") };
                preloaded.arg(format!("LD_PRELOAD={}", path.trim())).arg(program);
                preloaded
            }
            None => Command::new(program),
        };
        let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
            value().map(|v| v.get_name().to_string()).unwrap_or_default()
        };
        command
            .env("LD_LIBRARY_PATH", library_path(&self.folder))
            .env("EMULATOR_SCHEDULE", name(&|| settings.schedule.to_possible_value()))
            .env("EMULATOR_ASYNC", name(&|| settings.async_.to_possible_value()))
            .env("EMULATOR_SEED", settings.seed.to_string())
            .env("ASAN_OPTIONS", "detect_leaks=0:handle_segv=1")
            // Only the kernels are instrumented; what the program does in memcpy and free is its own business.
            .env("TSAN_OPTIONS", "ignore_interceptors_accesses=1:report_thread_leaks=0:exitcode=66");
        Ok(command)
    }
}

/// `env`, in a process whose addresses are not at random: TSan's library, which must be loaded after that is settled, looks for the
/// program where it expects it.
fn fixed_addresses() -> Command {
    let mut command = Command::new("setarch");
    command.args(["-R", "env"]);
    command
}

/// Runs a command line on the emulator with all operations' kernels.
///
/// # Errors
/// When the emulator cannot be built or the command cannot be started.
pub fn emulate(root: &Path, settings: &Settings, command_line: &[String]) -> Result<ExitStatus> {
    let sources = crate::sources::of_operations(root)?;
    let emulator = Emulator::build(root, &sources, settings.sanitize, &root.join("target/emulator"))?;
    let (program, arguments) = command_line.split_first().ok_or("no command given after --")?;
    let mut command = emulator.command(program, settings)?;
    command.args(arguments).status().map_err(|e| format!("cannot run {program}: {e}"))
}

/// A file that a command makes. It has its name only when it is whole, and the command's line lies beside it.
struct Made {
    path: PathBuf,
    line: String,
}

impl Made {
    fn new(path: PathBuf, line: String) -> Made {
        Made { path, line }
    }

    /// Whether it was made by this very command, after its sources were changed.
    fn is_of(&self, sources: &[Option<SystemTime>]) -> bool {
        let newest = sources.iter().max().copied().flatten();
        changed(&self.path) > newest && fs::read_to_string(self.beside("command")).is_ok_and(|line| line == self.line)
    }

    /// What the command is to write: another name for each process, of which there may be several.
    fn unfinished(&self) -> PathBuf {
        self.beside(&format!("{}.unfinished", std::process::id()))
    }

    fn finish(&self) -> Result<()> {
        let failed = |e| format!("{}: {e}", self.path.display());
        fs::rename(self.unfinished(), &self.path).map_err(failed)?;
        fs::write(self.beside("command"), &self.line).map_err(failed)
    }

    fn beside(&self, extension: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".");
        name.push(extension);
        name.into()
    }
}

/// A C++ file that defines a source's kernels in a namespace of its own and registers them by name.
fn wrap(source: &Source, root: &Path) -> String {
    let (device, path) = (root.join("kernels/cuda/device.cuh"), source.path.display());
    let mut text =
        format!("#include \"{}\"\nnamespace kernels_{} {{\n#include \"{path}\"\n", device.display(), source.name);
    for kernel in &source.kernels {
        let (name, threads) = (&kernel.name, &kernel.most_threads);
        text += &format!(
            "static const emulator::Kernel register_{name}(\"{name}\", emulator::Entry<&{name}>::call, \
             emulator::Entry<&{name}>::bytes, {threads});\n"
        );
    }
    text + "}\n"
}

/// The files of `folder` with this extension, by name.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut paths = crate::sources::entries(folder)?;
    paths.retain(|p| p.extension().is_some_and(|e| e == extension));
    Ok(paths)
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

fn library_path(folder: &Path) -> std::ffi::OsString {
    let mut path = folder.as_os_str().to_owned();
    if let Some(old) = std::env::var_os("LD_LIBRARY_PATH").filter(|old| !old.is_empty()) {
        path.push(":");
        path.push(old);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_command_made_or_what_is_not_finished_is_made_again() {
        let folder = tempfile::tempdir().expect("folder");
        let [one, other] = ["-O2", "-O3"].map(|line| Made::new(folder.path().join("a.o"), line.into()));
        fs::write(one.unfinished(), "half").expect("a file");
        assert!(!one.is_of(&[]));
        one.finish().expect("finished");
        assert!(one.is_of(&[]) && !other.is_of(&[]) && !one.is_of(&[Some(SystemTime::now())]));
    }
}
