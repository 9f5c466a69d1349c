//! What `vocoe verify` prints.

use super::compare::Comparison;
use super::network::AsComputed;
use super::{Outcome, Verdict};
use crate::{Error, Result, verbosity};
use serde_json::json;
use std::path::Path;

pub struct Report {
    json: bool,
    ok: usize,
    failed: usize,
    weights: usize,
    not_judged: usize,
}

impl Report {
    pub fn new(json: bool) -> Self {
        Report { json, ok: 0, failed: 0, weights: 0, not_judged: 0 }
    }

    pub fn add(&mut self, outcome: &Outcome) -> Result<()> {
        let counter = match (outcome.failed(), &outcome.verdict) {
            (true, _) => &mut self.failed,
            (false, Verdict::Weights) => &mut self.weights,
            (false, Verdict::NotJudged) => &mut self.not_judged,
            (false, _) => &mut self.ok,
        };
        *counter += 1;
        match (self.json, outcome.failed()) {
            (true, _) => verbosity::print(json_line(outcome)),
            (false, true) => verbosity::print(text_line(outcome)),
            (false, false) => verbosity::say(text_line(outcome)),
        }?;
        details(outcome);
        Ok(())
    }

    /// The summary; whether all cases passed. Errors when there was none.
    pub fn finish(self, folder: &Path) -> Result<bool> {
        let Report { json, ok, failed, weights, not_judged } = self;
        if ok + failed == 0 {
            return Err(Error::file(folder, "only weights or whole networks in 16 bits, no reference case to compute"));
        }
        if json {
            let cases = ok + failed;
            let summary =
                json!({"cases": cases, "ok": ok, "failed": failed, "weights": weights, "not_judged": not_judged});
            verbosity::print(summary.to_string())?;
        } else {
            let left_out = if not_judged > 0 { format!(", {not_judged} not judged") } else { String::new() };
            let cases = ok + failed;
            verbosity::say(format!(
                "verify: {cases} cases, {ok} ok, {failed} failed, {weights} weight files{left_out}"
            ))?;
        }
        Ok(failed == 0)
    }
}

/// With `-v`, every tensor that was compared.
fn details(outcome: &Outcome) {
    if let Verdict::Compared(all) = &outcome.verdict {
        for Comparison { tensor, error, bound, .. } in all {
            verbosity::detail(format!("    {tensor:40} {error:9.2e}, bound {bound:.2e}"));
        }
    }
}

/// The comparison that comes closest to its bound, or breaks it.
fn worst(all: &[Comparison]) -> Option<&Comparison> {
    all.iter().max_by(|a, b| a.strain().total_cmp(&b.strain()))
}

fn text_line(outcome: &Outcome) -> String {
    let name = &outcome.name;
    match &outcome.verdict {
        Verdict::Compared(all) => {
            let verdict = if outcome.failed() { "FAILED" } else { "ok" };
            let failures = all.iter().filter(|c| !c.passed()).count();
            let count = if failures > 1 { format!(" ({failures} of {} tensors)", all.len()) } else { String::new() };
            let (tensor, error, bound) = worst(all).map_or(("", f64::NAN, 0.0), |c| (&c.tensor, c.error, c.bound));
            let relation = if error <= bound { "<=" } else { "> " };
            let before = outcome.as_computed.as_ref().map(before).unwrap_or_default();
            format!("{name:32} {tensor:24} {error:9.2e} {relation} {bound:.2e}  {verdict}{count}{before}")
        }
        Verdict::Failed(detail) => format!("{name:32} {detail}  FAILED"),
        Verdict::Weights => format!("{name:32} weights, readable"),
        Verdict::NotJudged => format!("{name:32} a whole network, not judged in 16 bits"),
    }
}

/// What a network gave before rectifier inputs were put on the sides of float64.
fn before(AsComputed { compared, moved }: &AsComputed) -> String {
    let over = compared.iter().filter(|c| !c.passed()).count();
    let worst = worst(compared).map_or(f64::NAN, |w| w.error);
    format!(
        "; on the sides of float64: {} of {} rectifier inputs moved, at most {:.1e} rms, {} too far; as computed {over} of {} tensors \
         over their bounds, worst {worst:.2e}",
        moved.moved,
        moved.inputs,
        moved.furthest,
        moved.left,
        compared.len()
    )
}

/// NaN becomes null.
fn json_line(outcome: &Outcome) -> String {
    let (status, worst, tensors, detail) = match &outcome.verdict {
        Verdict::Compared(all) => (if outcome.failed() { "failed" } else { "ok" }, worst(all), Some(all.len()), None),
        Verdict::Failed(detail) => ("failed", None, None, Some(detail)),
        Verdict::Weights => ("weights", None, None, None),
        Verdict::NotJudged => ("not judged", None, None, None),
    };
    let before = outcome.as_computed.as_ref().map(|AsComputed { compared, moved }| {
        json!({
            "tensors_over": compared.iter().filter(|c| !c.passed()).count(),
            "error": self::worst(compared).map(|w| w.error),
            "rectifier_inputs": moved.inputs,
            "moved": moved.moved,
            "furthest": moved.furthest,
            "left": moved.left,
        })
    });
    json!({
        "case": outcome.name,
        "status": status,
        "tensor": worst.map(|w| &w.tensor),
        "error": worst.map(|w| w.error),
        "bound": worst.map(|w| w.bound),
        "tensors": tensors,
        "detail": detail,
        "as_computed": before,
    })
    .to_string()
}
