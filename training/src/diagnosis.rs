//! Watches a run's numbers and names what they look like when something is wrong, with what to look at first.
//!
//! Each kind is said once a run. The levels are those of the published recipe: with random weights the loss is about 1.2, and a
//! loss that stays there is what a network shows that learns no position.

use crate::Config;
use crate::metrics::Metrics;
use crate::recent::Recent;
use serde::Deserialize;
use std::collections::VecDeque;

/// Steps after warm-up until "does not fall" is said, as a share of the run and in steps. Two hundred are the fewest over which
/// the means of two windows differ by less than [`FALL`] when nothing is learned; by five thousand a published run has fallen.
const PATIENCE: (f64, u64, u64) = (0.1, 200, 5000);
/// The loss counts as fallen when the newest window's mean is this share below the first one's: that is the noise of a mean of
/// fifty steps, as single steps scatter by a fifth. A run that learns has fallen by several times this.
const FALL: f64 = 0.03;
/// Windows of "does not fall" and "top-1 at chance", as a share of the patience.
const WINDOWS: u64 = 4;
/// Newest steps that spikes and collapses are judged by, and the fewest that there must be of them.
const NEAR: usize = 50;
const NEAR_LEAST: usize = 20;
/// A loss beyond this many times the median of the steps before it. Unlucky batches of small runs come near twice.
const SPIKE: f64 = 3.0;
/// Mean of `reg`, a squared cosine: bases that share nine tenths of their direction. It starts near 0.1.
const COLLAPSE: f64 = 0.8;
/// The inter term starts at a tenth of the intra term and stays below it.
const INTER_OVER_INTRA: f64 = 3.0;

/// The settings that decide which numbers are to be expected, read from a `config.toml` of any version.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Plan {
    pub steps: u64,
    pub warmup: u64,
    pub volumes: usize,
    pub crops: usize,
    pub grid: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Plan { steps: 2_000_000, warmup: 5000, volumes: 2, crops: 2, grid: 3 }
    }
}

impl From<&Config> for Plan {
    fn from(c: &Config) -> Self {
        Plan { steps: c.steps, warmup: c.warmup, volumes: c.volumes, crops: c.crops, grid: c.grid }
    }
}

impl Plan {
    /// Top-1 of always guessing the most frequent base. Centres are uniform from half a crop inside the first base's edge to
    /// half a crop inside the last one's, so along an axis an inner base is nearest to 1 in grid - 1 of them; of two bases, each
    /// to half.
    pub fn chance(&self) -> f64 {
        1.0 / (self.grid.saturating_sub(1).max(2) as f64).powi(2)
    }

    fn patience(&self) -> u64 {
        let (share, least, most) = PATIENCE;
        ((self.steps as f64 * share) as u64).clamp(least, most)
    }

    fn window(&self) -> usize {
        (self.patience() / WINDOWS) as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NotANumber,
    RateZero,
    Flat,
    Chance,
    Spike,
    Collapse,
    InterDominates,
}

impl Kind {
    /// What the numbers look like, and what to look at.
    fn signature(self) -> &'static str {
        match self {
            Kind::NotANumber => {
                "NaN or infinite: look for constant or corrupt volumes in this batch, for similarities without positives or \
                 without zeros, and try a lower learning rate"
            }
            Kind::RateZero => {
                "the learning rate is still zero, so nothing is learned: check lr and warmup (only the first step of a \
                 warm-up has rate 0)"
            }
            Kind::Flat => {
                "the loss does not fall, so the network is not learning position: check that lr has left warm-up, that \
                 volumes are oriented and windowed as their region says, that row_dropout is not too high, that the teacher \
                 follows (momentum below 1), and the order of crops and labels if the loader was changed"
            }
            Kind::Chance => {
                "position top-1 is at chance, no better than always guessing the most frequent base: check the order of \
                 bases and labels if the loader was changed, the share of empty crops, and lr"
            }
            Kind::Spike => {
                "the loss spikes: look at the gradient norm around this step, lower the learning rate or lengthen the \
                 warm-up, and try another momentum of the teacher"
            }
            Kind::Collapse => {
                "all bases look alike to the network (reg near 1): look for empty or constant crops, check that the teacher \
                 follows, and lower the learning rate"
            }
            Kind::InterDominates => {
                "the inter term outgrows the intra term: the teacher's similarities across volumes hold hardly any positives \
                 or zeros; check that volumes show the same region, and try more volumes a step or a lower learning rate"
            }
        }
    }
}

/// What a step that cannot be updated with looks like, by its numbers; part of the error that ends the run.
pub fn not_a_number(numbers: &[(&str, f64)]) -> String {
    let broken: Vec<&str> = numbers.iter().filter(|(_, v)| !v.is_finite()).map(|(name, _)| *name).collect();
    format!("{} {}", broken.join(", "), Kind::NotANumber.signature())
}

/// Sums over the first window and over the newest one, and its values.
#[derive(Debug)]
struct Window {
    size: usize,
    first: (usize, f64),
    newest: VecDeque<f64>,
    recent: Recent,
}

impl Window {
    fn new(size: usize) -> Self {
        Window { size, first: (0, 0.0), newest: VecDeque::new(), recent: Recent::new(size) }
    }

    fn push(&mut self, value: f64) {
        if self.first.0 < self.size {
            self.first = (self.first.0 + 1, self.first.1 + value);
        }
        self.recent.push(value);
        self.newest.push_back(value);
        if self.newest.len() > self.size {
            self.newest.pop_front();
        }
    }

    fn start(&self) -> f64 {
        self.first.1 / self.first.0.max(1) as f64
    }

    fn mean(&self) -> f64 {
        self.recent.mean()
    }

    fn median(&self) -> f64 {
        let mut sorted: Vec<f64> = self.newest.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// One run's watch.
pub struct Diagnosis {
    plan: Plan,
    said: Vec<Kind>,
    loss: Window,
    top1: Window,
    near: Window,
    intra: Window,
    inter: Window,
    reg: Window,
}

impl Diagnosis {
    pub fn new(plan: Plan) -> Self {
        let (far, near) = (|| Window::new(plan.window()), || Window::new(NEAR));
        Diagnosis {
            plan,
            said: Vec::new(),
            loss: far(),
            top1: far(),
            near: near(),
            intra: near(),
            inter: near(),
            reg: near(),
        }
    }

    /// Every line that a run with these numbers gets.
    pub fn of(plan: Plan, metrics: &[Metrics]) -> Vec<String> {
        let mut diagnosis = Diagnosis::new(plan);
        metrics.iter().flat_map(|m| diagnosis.see(m)).collect()
    }

    /// Takes in one step; a line for each kind of trouble that shows for the first time.
    pub fn see(&mut self, m: &Metrics) -> Vec<String> {
        // an overflow is what a loss scale is found by
        if !(m.loss.is_finite() && (m.grad_norm.is_finite() || m.loss_scale.is_some())) {
            return self.say(m, &[(Kind::NotANumber, format!("loss {}, gradient norm {}", m.loss, m.grad_norm))]);
        }
        let spike = self.spike(m);
        self.loss.push(m.loss);
        self.top1.push(m.position_top1);
        self.near.push(m.loss);
        self.intra.push(m.intra);
        self.inter.push(m.inter);
        self.reg.push(m.reg);
        let found: Vec<_> = [spike, rate_zero(m), self.collapse(), self.inter(), self.flat(m), self.chance(m)]
            .into_iter()
            .flatten()
            .collect();
        self.say(m, &found)
    }

    fn say(&mut self, m: &Metrics, found: &[(Kind, String)]) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, numbers) in found {
            if !self.said.contains(kind) {
                self.said.push(*kind);
                lines.push(format!("step {}: {} ({numbers})", m.step, kind.signature()));
            }
        }
        lines
    }

    fn spike(&self, m: &Metrics) -> Option<(Kind, String)> {
        let median = self.near.median();
        let high = self.near.newest.len() >= NEAR_LEAST && m.loss > SPIKE * median;
        high.then(|| (Kind::Spike, format!("{:.3} after a median of {median:.3}", m.loss)))
    }

    fn collapse(&self) -> Option<(Kind, String)> {
        let mean = self.reg.mean();
        let high = self.reg.newest.len() >= NEAR_LEAST && mean > COLLAPSE;
        high.then(|| (Kind::Collapse, format!("reg {mean:.2}")))
    }

    fn inter(&self) -> Option<(Kind, String)> {
        let (intra, inter) = (self.intra.mean(), self.inter.mean());
        let high = self.inter.newest.len() >= NEAR && inter > INTER_OVER_INTRA * intra;
        high.then(|| (Kind::InterDominates, format!("inter {inter:.3}, intra {intra:.3}")))
    }

    fn flat(&self, m: &Metrics) -> Option<(Kind, String)> {
        let (start, now) = (self.loss.start(), self.loss.mean());
        let flat = self.is_late(m) && now > (1.0 - FALL) * start;
        flat.then(|| {
            let window = self.plan.window();
            (Kind::Flat, format!("mean {start:.3} over the first {window} steps, {now:.3} over the newest {window}"))
        })
    }

    /// At chance means within two standard errors of it, the error being that of as many guesses as the window has crops.
    fn chance(&self, m: &Metrics) -> Option<(Kind, String)> {
        let (chance, mean) = (self.plan.chance(), self.top1.mean());
        let guesses = (self.plan.window() * self.plan.volumes * self.plan.crops).max(1) as f64;
        let noise = 2.0 * (chance * (1.0 - chance) / guesses).sqrt();
        let low = self.is_late(m) && mean <= chance + noise;
        low.then(|| (Kind::Chance, format!("{mean:.3}; chance {chance:.3}, noise {noise:.3}")))
    }

    fn is_late(&self, m: &Metrics) -> bool {
        m.step >= self.plan.warmup + self.plan.patience()
    }
}

fn rate_zero(m: &Metrics) -> Option<(Kind, String)> {
    (m.step > 1 && m.lr == 0.0).then(|| (Kind::RateZero, "lr 0".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::metrics;
    use engine::random::normal;

    const PLAN: Plan = Plan { steps: 1000, warmup: 50, volumes: 2, crops: 2, grid: 3 };

    /// 1000 steps whose loss is `level` of the step with the noise of real batches.
    fn curve(level: impl Fn(f64) -> f64) -> Vec<Metrics> {
        (1..=PLAN.steps).map(|s| metrics(s, level(s as f64) * (1.0 + 0.2 * normal(7, s)).max(0.3))).collect()
    }

    fn healthy() -> Vec<Metrics> {
        let mut steps = curve(|s| 0.6 + 0.6 * (-s / 300.0).exp());
        steps[0].lr = 0.0;
        steps
    }

    /// The one line about `steps`, which must begin at `step`.
    fn only(steps: &[Metrics], step: u64, says: &str) {
        let lines = Diagnosis::of(PLAN, steps);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with(&format!("step {step}: ")) && lines[0].contains(says), "{lines:?}");
        assert_eq!(lines[0].lines().count(), 1);
    }

    #[test]
    fn a_healthy_run_gets_no_line() {
        assert_eq!(Diagnosis::of(PLAN, &healthy()), Vec::<String>::new());
    }

    #[test]
    fn a_flat_loss_is_named_after_warmup_and_patience() {
        only(&curve(|_| 1.18), 250, "does not fall");
    }

    #[test]
    fn a_short_flat_run_gets_no_line() {
        assert!(Diagnosis::of(PLAN, &curve(|_| 1.18)[..249]).is_empty());
    }

    #[test]
    fn a_spike_is_named_once() {
        let mut steps = healthy();
        (steps[599].loss, steps[799].loss) = (9.0, 9.0);
        only(&steps, 600, "spikes");
    }

    #[test]
    fn nan_is_named_with_its_step() {
        let mut steps = healthy();
        steps[599].loss = f64::NAN;
        only(&steps, 600, "NaN");
        assert!(
            not_a_number(&[("intra", 1.0), ("inter", f64::NAN), ("reg", 1.0)]).starts_with("inter NaN or infinite: ")
        );
    }

    #[test]
    fn an_infinite_gradient_is_named_unless_a_loss_scale_is_being_found() {
        let mut steps = healthy();
        steps[599].grad_norm = f64::INFINITY;
        assert_eq!(Diagnosis::of(PLAN, &steps), Vec::<String>::new());
        steps[599].loss_scale = None;
        only(&steps, 600, "NaN");
    }

    /// The lines about 250 steps of loss 1, too few for any other kind, that `change` made.
    fn lines(change: impl Fn(&mut Metrics)) -> usize {
        let mut steps: Vec<_> =
            (1..=PLAN.steps / 4).map(|step| metrics(step, if step <= 50 { 1.0 } else { 0.9 })).collect();
        steps.iter_mut().for_each(change);
        Diagnosis::of(PLAN, &steps).len()
    }

    #[test]
    fn each_level_is_where_it_says() {
        let of =
            |level: f64, set: &dyn Fn(&mut Metrics, f64)| [0.99, 1.01].map(|share| lines(|m| set(m, share * level)));
        let after = |first: u64, set: fn(&mut Metrics, f64)| {
            move |m: &mut Metrics, v| {
                if m.step > first {
                    set(m, v)
                }
            }
        };
        assert_eq!(
            of(0.9 * SPIKE, &|m, v| if m.step == 200 {
                m.loss = v
            }),
            [0, 1]
        );
        assert_eq!(of(COLLAPSE, &|m, v| m.reg = v), [0, 1]);
        assert_eq!(of(INTER_OVER_INTRA, &|m, v| m.inter = v * m.intra), [0, 1]);
        assert_eq!(of(1.0 - FALL, &after(50, |m, v| m.loss = v)), [0, 1]);
        let chance = PLAN.chance() + 2.0 * (PLAN.chance() * (1.0 - PLAN.chance()) / 200.0).sqrt();
        assert_eq!(of(chance, &|m, v| m.position_top1 = v), [1, 0]);
    }

    #[test]
    fn a_rate_of_zero_after_the_first_step_is_named() {
        let mut steps = healthy();
        steps[1].lr = 0.0;
        only(&steps, 2, "learning rate is still zero");
    }

    #[test]
    fn top1_at_chance_is_named() {
        let mut steps = healthy();
        steps.iter_mut().for_each(|m| m.position_top1 = if m.step % 4 == 0 { 1.0 } else { 0.0 });
        only(&steps, 250, "at chance");
    }

    #[test]
    fn collapsed_bases_and_a_dominating_inter_term_are_named() {
        let mut steps = healthy();
        steps.iter_mut().for_each(|m| m.reg = 0.95);
        only(&steps, NEAR_LEAST as u64, "alike");
        let mut steps = healthy();
        steps.iter_mut().for_each(|m| m.inter = 5.0 * m.intra);
        only(&steps, NEAR as u64, "outgrows");
    }

    #[test]
    fn one_huge_value_says_nothing_about_the_steps_after_it() {
        let mut steps = healthy();
        steps[99].intra = 1e18;
        assert_eq!(Diagnosis::of(PLAN, &steps), Vec::<String>::new());
    }

    #[test]
    fn chance_is_a_quarter_for_grids_of_2_and_3() {
        let of = |grid| Plan { grid, ..PLAN }.chance();
        assert_eq!((of(2), of(3), of(5)), (0.25, 0.25, 0.0625));
    }
}
