//! The kernels' images: every `.cu` file compiled for all architectures and packed, and the table of what each kernel takes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sources::{self, Source};
use crate::{Result, process, toolchain};

/// Machine code is compiled for these.
const ARCHITECTURES: &[&str] = &["80", "86", "89", "90a", "100a"];
/// And PTX for this one, from which a driver compiles for what came later.
const PTX: &str = "80";
/// All images together, in bytes: they are committed and part of the binary.
const MOST_BYTES: usize = 3_000_000;
/// zstd's strongest. A version of the library, and Cargo.lock pins one, gives the same bytes everywhere.
const LEVEL: i32 = 22;

/// Compiles all kernels into `kernels/images`, or, with `check`, compares what is there with what would be written.
///
/// # Errors
/// When the compilers are not to be had, a file does not compile, a kernel spills registers, a compiler warns, the images are
/// too large, or, with `check`, anything differs.
pub fn kernels(root: &Path, check: bool) -> Result<()> {
    let sources = sources::of_operations(root)?;
    let nvcc = toolchain::nvcc(&root.join("target/cuda"))?;
    let built = root.join("target/images");
    recreate(&built)?;
    let commands = sources.iter().map(|s| compile(&nvcc, root, s, &built)).collect::<Result<Vec<_>>>()?;
    let logs = process::outputs(commands, process::width())?;
    let mut rows = BTreeMap::new();
    for (source, log) in sources.iter().zip(&logs) {
        rows.extend(read_log(log).map_err(|e| format!("{}: {e}", source.path.display()))?);
    }
    let packed = contents(&built)?.into_iter().map(|(name, fatbin)| Ok((name + ".zst", pack(&fatbin)?)));
    let mut files = packed.collect::<Result<BTreeMap<_, _>>>()?;
    let bytes: usize = files.values().map(Vec::len).sum();
    if bytes > MOST_BYTES {
        return Err(format!("the images take {bytes} bytes, and {MOST_BYTES} are allowed"));
    }
    files.insert("resources.txt".into(), table(&rows).into_bytes());
    let images = root.join("kernels/images");
    if check { compare(&contents(&images)?, &files) } else { install(&images, &files) }?;
    println!(
        "{} images, {} kernels, {bytes} bytes",
        sources.len(),
        sources.iter().map(|s| s.kernels.len()).sum::<usize>()
    );
    Ok(())
}

/// From the root and with relative paths, so that the image does not depend on where the project lies; not compressed, which
/// [`pack`] does better for all architectures at once.
fn compile(nvcc: &Path, root: &Path, source: &Source, out: &Path) -> Result<Command> {
    let relative = source.path.strip_prefix(root).map_err(|e| format!("{}: {e}", source.path.display()))?;
    let mut command = Command::new(nvcc);
    command.current_dir(root).args(["-std=c++17", "--fatbin", "--compress-mode=none", "-Xptxas", "-v"]);
    for architecture in ARCHITECTURES {
        command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    command.arg(format!("-gencode=arch=compute_{PTX},code=compute_{PTX}"));
    command.arg(relative).arg("-o").arg(out.join(&source.name).with_extension("fatbin"));
    Ok(command)
}

/// A fatbin as the binary holds it.
fn pack(fatbin: &[u8]) -> Result<Vec<u8>> {
    let mut packed = Vec::with_capacity(zstd_safe::compress_bound(fatbin.len()));
    let done = zstd_safe::compress(&mut packed, fatbin, LEVEL);
    done.map(|_| packed).map_err(|code| format!("zstd: {}", zstd_safe::get_error_name(code)))
}

/// What one kernel takes on one architecture.
#[derive(Debug, Default, Clone, PartialEq)]
struct Resources {
    /// For each thread.
    registers: u32,
    /// Bytes for each block, declared in the kernel.
    shared: u32,
    /// Bytes for each thread.
    stack: u32,
}

/// Reads the assembler's report. Spilled registers and all warnings are errors.
fn read_log(log: &str) -> Result<BTreeMap<(String, String), Resources>> {
    let mut rows = BTreeMap::new();
    let mut key = None;
    for line in log.lines() {
        if line.contains("warning") || line.contains("(C75") {
            return Err(format!("the compiler warns: {}", line.trim()));
        }
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut names = rest.split('\'');
            key = names.next().zip(names.nth(1)).map(|(kernel, arch)| (kernel.to_string(), arch.to_string()));
        }
        let Some((kernel, arch)) = &key else { continue };
        let row: &mut Resources = rows.entry((kernel.clone(), arch.clone())).or_default();
        if number_before(line, " bytes spill stores").unwrap_or(0)
            + number_before(line, " bytes spill loads").unwrap_or(0)
            > 0
        {
            return Err(format!("{kernel} spills registers on {arch}: {}", line.trim()));
        }
        row.stack = number_before(line, " bytes stack frame").unwrap_or(row.stack);
        row.registers = number_before(line, " registers").unwrap_or(row.registers);
        row.shared = number_before(line, " bytes smem").unwrap_or(row.shared);
    }
    Ok(rows)
}

fn number_before(line: &str, unit: &str) -> Option<u32> {
    let (before, _) = line.split_once(unit)?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn table(rows: &BTreeMap<(String, String), Resources>) -> String {
    let width = rows.keys().map(|(kernel, _)| kernel.len()).max().unwrap_or(0).max("kernel".len());
    let mut text = format!("{:width$}  arch     registers  shared  stack\n", "kernel");
    for ((kernel, arch), Resources { registers, shared, stack }) in rows {
        writeln!(text, "{kernel:width$}  {arch:7}  {registers:9}  {shared:6}  {stack:5}").expect("a string takes all");
    }
    text
}

/// The files of a folder, by name.
fn contents(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    if !folder.exists() {
        return Ok(BTreeMap::new());
    }
    let paths = crate::sources::entries(folder)?;
    let read = |path: &PathBuf| fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    paths.iter().map(|path| Ok((name(path), read(path)?))).collect()
}

fn compare(committed: &BTreeMap<String, Vec<u8>>, built: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let names = committed.keys().chain(built.keys());
    let mut different: Vec<&str> = names.filter(|n| committed.get(*n) != built.get(*n)).map(String::as_str).collect();
    different.sort_unstable();
    different.dedup();
    if different.is_empty() {
        return Ok(());
    }
    Err(format!(
        "kernels/images is not what the sources give ({}): run cargo xtask kernels, read the changes of resources.txt, commit",
        different.join(", ")
    ))
}

fn install(images: &Path, built: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    recreate(images)?;
    for (name, data) in built {
        let path = images.join(name);
        fs::write(&path, data).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

fn recreate(folder: &Path) -> Result<()> {
    let fail = |e| format!("{}: {e}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(fail)?;
    }
    fs::create_dir_all(folder).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'gelu_forward_f32' for 'sm_80'\n\
        ptxas info    : Function properties for gelu_forward_f32\n\
        \x20   16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 29 registers, used 1 barriers, 768 bytes smem, 376 bytes cmem[0]\n\
        ptxas info    : Compiling entry function 'gelu_forward_f32' for 'sm_90a'\n\
        ptxas info    : Used 31 registers\n";

    #[test]
    fn the_assemblers_report_becomes_a_table() {
        let rows = read_log(LOG).unwrap();
        let key = |arch: &str| ("gelu_forward_f32".to_string(), arch.to_string());
        assert_eq!(rows[&key("sm_80")], Resources { registers: 29, shared: 768, stack: 16 });
        assert_eq!(rows[&key("sm_90a")], Resources { registers: 31, shared: 0, stack: 0 });
        assert_eq!(rows.len(), 2);
        assert!(table(&rows).contains("gelu_forward_f32  sm_80           29     768     16\n"), "{}", table(&rows));
    }

    #[test]
    fn spills_and_warnings_are_errors() {
        let spilling = LOG.replace(" 0 bytes spill loads", " 8 bytes spill loads");
        assert!(read_log(&spilling).unwrap_err().contains("gelu_forward_f32 spills registers on sm_80"));
        let linted = LOG.to_string() + "ptxas info    : (C7515) Potential Performance Loss: wgmma is serialized\n";
        assert!(read_log(&linted).unwrap_err().contains("C7515"));
    }

    #[test]
    fn a_changed_a_missing_and_a_stale_image_are_named() {
        let files =
            |names: &[(&str, u8)]| names.iter().map(|(n, b)| (n.to_string(), vec![*b])).collect::<BTreeMap<_, _>>();
        let committed = files(&[("same", 1), ("changed", 1), ("stale", 1)]);
        let built = files(&[("same", 1), ("changed", 2), ("missing", 1)]);
        assert!(compare(&committed, &committed).is_ok());
        assert!(compare(&committed, &built).unwrap_err().contains("(changed, missing, stale)"));
    }
}
