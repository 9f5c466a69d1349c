//! How far a long command is: a bar with rate and time left on a terminal, elsewhere a line now and then.

use crate::verbosity::{self, Verbosity};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between lines when standard error is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

pub struct Progress {
    bar: ProgressBar,
    unit: &'static str,
    /// Units that were done before.
    first: u64,
    total: u64,
    terminal: bool,
    started: Instant,
    /// Nothing is shown before.
    patience: Duration,
    last_line: Option<Instant>,
}

impl Progress {
    /// Of `total` units, shown from the start.
    pub fn new(total: u64, unit: &'static str) -> Self {
        Progress::going_on(0, total, unit)
    }

    /// Of `total` units, the `first` of which were done at another time and say nothing about the rate.
    pub fn going_on(first: u64, total: u64, unit: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{bar:20} {pos}/{len} {per_sec} [{elapsed} < {eta}]  {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(first);
        bar.reset_eta();
        let (terminal, started) = (std::io::stderr().is_terminal(), Instant::now());
        Progress { bar, unit, first, total, terminal, started, patience: Duration::ZERO, last_line: None }
    }

    /// Shown only once it has taken two seconds.
    pub fn patient(total: u64, unit: &'static str) -> Self {
        Progress { patience: Duration::from_secs(2), ..Progress::new(total, unit) }
    }

    pub fn show(&mut self, done: u64, message: &str) {
        self.bar.set_position(done);
        self.bar.set_message(message.to_string());
        let quiet = Verbosity::chosen() == Verbosity::Quiet;
        if quiet || self.started.elapsed() < self.patience {
            return;
        }
        if self.terminal {
            self.reveal();
        } else if self.is_line_due(done) {
            self.last_line = Some(Instant::now());
            let parts = [
                format!("{} {done}/{}", self.unit, self.total),
                message.to_string(),
                self.time_left(done, self.started.elapsed()),
            ];
            verbosity::note(parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  "));
        }
    }

    /// Runs `print` with the bar out of the way.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    pub fn finish(&self) {
        self.bar.finish();
    }

    fn reveal(&self) {
        if self.bar.is_hidden() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    fn is_line_due(&self, done: u64) -> bool {
        let waited = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        waited || done == self.total || Verbosity::chosen() == Verbosity::Verbose
    }

    /// At the mean rate since the start, which was `elapsed` ago.
    fn time_left(&self, done: u64, elapsed: Duration) -> String {
        let (since, left) = (done.saturating_sub(self.first), self.total.saturating_sub(done));
        if since == 0 || left == 0 {
            return String::new();
        }
        let seconds = elapsed.as_secs_f64() * left as f64 / since as f64;
        format!("{} left", clock(seconds.round() as u64))
    }
}

/// `h:mm:ss`.
fn clock(seconds: u64) -> String {
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_a_clock() {
        assert_eq!([0, 61, 3599, 360_000].map(clock), ["0:00:00", "0:01:01", "0:59:59", "100:00:00"]);
    }

    #[test]
    fn time_left_is_by_the_units_since_the_start() {
        let minute = Duration::from_secs(60);
        let progress = Progress::going_on(900, 1000, "step");
        assert_eq!([900, 910, 1000].map(|done| progress.time_left(done, minute)), ["", "0:09:00 left", ""]);
        assert_eq!(Progress::new(20, "step").time_left(10, minute), "0:01:00 left");
    }

    #[test]
    fn the_bars_rate_is_by_the_units_since_the_start() {
        let progress = Progress::going_on(1_000_000, 2_000_000, "step");
        std::thread::sleep(Duration::from_millis(10));
        progress.bar.set_position(1_000_001);
        assert!(progress.bar.per_sec() < 1000.0, "{}", progress.bar.per_sec());
    }

    #[test]
    fn lines_come_first_last_and_now_and_then() {
        let mut progress = Progress::new(3, "step");
        assert!(progress.is_line_due(1));
        progress.last_line = Some(Instant::now());
        assert!(!progress.is_line_due(2) && progress.is_line_due(3));
    }
}
