//! Running a compiler or another tool and reading its answer.

use std::process::Command;

use crate::Result;

/// Runs `command` to its end and returns what it wrote, standard output before standard error. Anything but success is an
/// error that shows the same.
pub fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command.output().map_err(|e| format!("cannot run {program}: {e}"))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    if done.status.success() {
        Ok(text)
    } else {
        Err(format!("{program} failed ({}):\n{}", done.status, text.trim_end()))
    }
}

/// Runs all `commands`, `width` at a time, and returns what each wrote, in order; the first failure is the error.
pub fn outputs(commands: Vec<Command>, width: usize) -> Result<Vec<String>> {
    let next = std::sync::Mutex::new(commands.into_iter().enumerate());
    let work = || {
        let mut done = Vec::new();
        loop {
            let taken = next.lock().expect("no worker panics").next();
            let Some((index, mut command)) = taken else { return Ok(done) };
            done.push((index, output(&mut command)?));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..width).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|w| w.join().expect("no worker panics")).collect::<Result<Vec<_>>>()
    })?
    .concat();
    all.sort_by_key(|(index, _)| *index);
    Ok(all.into_iter().map(|(_, text)| text).collect())
}

/// How many processes run side by side.
pub fn width() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
