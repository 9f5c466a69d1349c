//! The `.cu` files and the kernels that they define.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

/// One `.cu` file.
pub struct Source {
    /// The file's stem, which is the operation's name.
    pub name: String,
    pub path: PathBuf,
    pub kernels: Vec<Kernel>,
}

/// A kernel as its definition announces it.
#[derive(Debug, PartialEq)]
pub struct Kernel {
    pub name: String,
    /// The expression in `__launch_bounds__(..)` up to the first comma.
    pub most_threads: String,
}

/// All `.cu` files in the folders of `kernels/src`, by name.
///
/// # Errors
/// When a folder or file cannot be read or a kernel is not defined as [`kernels_of`] wants it.
pub fn of_operations(root: &Path) -> Result<Vec<Source>> {
    let operations = root.join("kernels/src");
    let mut sources = Vec::new();
    for folder in entries(&operations)?.iter().filter(|p| p.is_dir()) {
        sources.extend(in_folder(folder)?);
    }
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    let mut names: Vec<_> = sources.iter().flat_map(|s| &s.kernels).map(|k| &k.name).collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("two kernels have the name {}", pair[0])),
        None => Ok(sources),
    }
}

/// The `.cu` files that stand in `folder` itself, by name.
///
/// # Errors
/// As [`of_operations`].
pub fn in_folder(folder: &Path) -> Result<Vec<Source>> {
    let files = entries(folder)?.into_iter().filter(|p| p.extension().is_some_and(|e| e == "cu"));
    files.map(read).collect()
}

fn read(path: PathBuf) -> Result<Source> {
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let kernels = kernels_of(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Source { name, path, kernels })
}

/// What stands in `folder`, by name.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed =
        fs::read_dir(folder).and_then(|all| all.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>());
    let mut paths = listed.map_err(|e| format!("{}: {e}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

/// The kernels in the text of a `.cu` file, each `extern "C" __global__ void __launch_bounds__(N) name(const Args args)`.
///
/// # Errors
/// When a `__global__` function is written otherwise; says which line.
pub fn kernels_of(text: &str) -> Result<Vec<Kernel>> {
    let mut kernels = Vec::new();
    let code = without_comments(text);
    for (at, _) in code.match_indices("__global__") {
        let line = code[..at].matches('\n').count() + 1;
        let kernel = code[..at].trim_end().strip_suffix("extern \"C\"").and_then(|_| parse(&code[at..]));
        kernels.push(kernel.ok_or(format!(
            "line {line}: a kernel is written extern \"C\" __global__ void __launch_bounds__(N) name(const Args args)"
        ))?);
    }
    Ok(kernels)
}

/// Reads on from `__global__`.
fn parse(definition: &str) -> Option<Kernel> {
    let rest = definition.strip_prefix("__global__")?.trim_start().strip_prefix("void")?.trim_start();
    let rest = rest.strip_prefix("__launch_bounds__")?.trim_start();
    let bounds_end = matching_parenthesis(rest)?;
    let bounds = rest.get(1..bounds_end)?;
    let (name, parameters) = rest[bounds_end + 1..].split_once('(')?;
    let (parameters, _) = parameters.split_once(')')?;
    let one_struct = !parameters.trim().is_empty() && !parameters.contains([',', '*', '&']);
    one_struct.then(|| Kernel {
        name: name.trim().to_string(),
        most_threads: bounds.split(',').next().unwrap_or_default().trim().to_string(),
    })
}

/// Where the parenthesis closes that `text` begins with.
fn matching_parenthesis(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (c == ')').then_some(at);
        }
    }
    None
}

/// The text with `//` and `/* */` comments blanked, so that lines stay where they are.
fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        let (before, comment) = rest.split_at(start);
        let end = if comment.starts_with("//") { comment.find('\n') } else { comment.find("*/").map(|e| e + 2) };
        let (comment, after) = comment.split_at(end.unwrap_or(comment.len()));
        code.push_str(before);
        code.extend(comment.chars().filter(|&c| c == '\n'));
        rest = after;
    }
    code + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_with_their_launch_bounds() {
        let text = "// extern \"C\" __global__ void old(int x)\nconstexpr int THREADS = 128;\n\
                    extern \"C\" __global__ void __launch_bounds__(THREADS, 2)\n    gelu_forward_f32(const GeluArgs args) {\n}\n\
                    /* __global__\n */ extern \"C\" __global__ void __launch_bounds__((4 * 32)) b(B args) {}\n";
        let kernel = |name: &str, most: &str| Kernel { name: name.into(), most_threads: most.into() };
        assert_eq!(kernels_of(text).unwrap(), [kernel("gelu_forward_f32", "THREADS"), kernel("b", "(4 * 32)")]);
    }

    #[test]
    fn a_kernel_in_another_form_is_named_by_its_line() {
        for bad in [
            "\n__global__ void __launch_bounds__(32) k(const A a) {}",
            "\nextern \"C\" __global__ void k(const A a) {}",
            "\nextern \"C\" __global__ void __launch_bounds__(32) k(const float* a, int n) {}",
            "\nextern \"C\" __global__ void __launch_bounds__(32) k() {}",
        ] {
            assert!(kernels_of(bad).unwrap_err().starts_with("line 2"), "{bad}");
        }
    }
}
