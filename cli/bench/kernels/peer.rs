//! PyTorch, asked to time the same calls: a Python process that reads one case a line and answers with one line each.

use super::cases;
use crate::{Error, Result};
use engine::{DType, Device};
use serde::Deserialize;
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const SCRIPT: &str = include_str!("../../../benches/peers/torch_kernels.py");

pub struct Process {
    python: String,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// PyTorch's version.
    pub version: String,
}

#[derive(Deserialize)]
struct Answer {
    version: Option<String>,
    seconds: Option<f64>,
}

impl Process {
    /// Errors when there is no such Python, or it has no PyTorch for the device.
    pub fn start(python: &str, device: Device, dtype: DType) -> Result<Process> {
        let fail = |e: std::io::Error| Error::Message(format!("--peer {python}: {e}"));
        let mut command = Command::new(python);
        let started = command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.map_err(fail)?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::Message(format!("--peer {python}: no pipes to it")));
        };
        let (python, from) = (python.to_string(), BufReader::new(from));
        let mut process = Process { python, child, to, from, version: String::new() };
        let settings = json!({
            "device": device.to_string(),
            "dtype": dtype.to_string(),
            "threads": rayon::current_num_threads(),
        });
        process.version = process.ask(&settings.to_string())?.version.unwrap_or_default();
        Ok(process)
    }

    /// Seconds of the same call; None where PyTorch cannot do it.
    pub fn time(&mut self, case: &cases::Peer) -> Result<Option<f64>> {
        let case = serde_json::to_string(case).map_err(|e| Error::Message(e.to_string()))?;
        Ok(self.ask(&case)?.seconds)
    }

    fn ask(&mut self, line: &str) -> Result<Answer> {
        let ended = || Error::Message(format!("--peer {}: it ended; it needs PyTorch, for this device", self.python));
        writeln!(self.to, "{line}").and_then(|()| self.to.flush()).map_err(|_| ended())?;
        let mut answer = String::new();
        self.from.read_line(&mut answer).map_err(|_| ended())?;
        if answer.is_empty() {
            return Err(ended());
        }
        serde_json::from_str(&answer).map_err(|e| Error::Message(format!("--peer {}: {answer}: {e}", self.python)))
    }
}

impl Drop for Process {
    /// It may be in the middle of a case.
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            crate::verbosity::note(format!("note: --peer {}: {error}", self.python));
        }
    }
}
