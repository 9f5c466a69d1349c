//! Self-supervised pre-training: batches in, weights and metrics out.

use crate::checkpoint::{self, Best, Saved};
use crate::diagnosis::{self, Diagnosis, Plan};
use crate::events::Events;
use crate::metrics::{Metrics, MetricsFile, position_correlation, position_top1};
use crate::optimizer::AdamW;
use crate::schedule::warmup_cosine;
use crate::steps::{Done, Steps};
use crate::{Config, Error, Result, ending, file, profile, source};
use engine::{Tensor, memory, random, trace};
use models::Voco;
use models::voco::Values;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where a run left its results.
#[derive(Debug)]
pub struct Outcome {
    /// The weights; None when the run was stopped before its last step.
    pub model: Option<PathBuf>,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
    pub best: Best,
    /// Every step, those before a resume too.
    pub metrics: Vec<Metrics>,
    /// Whether a step was recorded for [`Watch::profile`].
    pub has_profile: bool,
}

/// How a run and the world around it talk to each other.
pub struct Watch<'a> {
    /// Hears of every step.
    pub observe: &'a mut dyn FnMut(&Metrics),
    /// Hears what is worth a line: what the initial weights gave, numbers that look wrong, a checkpoint that could not be written.
    pub note: &'a mut dyn FnMut(String),
    /// Once true, the run writes a checkpoint after the step that it is at, and ends.
    pub stop: &'a AtomicBool,
    /// Where the recording of one step goes, the second that is run: the first also loads kernels and takes memory.
    pub profile: Option<&'a Path>,
}

/// Trains on `batches` up to step `config.steps`, from the start or from where `saved` was written (then the first batch must be
/// number `saved.step`); `volumes` is the list of what they are cut from ([`source::list`]). Writes `config.toml`, `volumes.txt`,
/// `metrics.jsonl`, TensorBoard's events, `checkpoints/` and at the end `model.safetensors` under `config.out`, where no other run may be
/// writing; these last files it writes whenever there is room for them. Errors when the batches run out or a number is none any more;
/// what ended the run is then in `ended.txt`, but for errors that came before the run went on.
pub fn run(
    config: &Config,
    saved: Option<Saved>,
    volumes: &str,
    batches: &mut dyn Iterator<Item = data::Result<data::Batch>>,
    watch: &mut Watch,
) -> Result<Outcome> {
    let new = !config.out.exists();
    let _lock = file::lock(&config.out).map_err(unwritable)?;
    let mut goes_on = false;
    let outcome = train(config, saved, volumes, batches, watch, &mut goes_on);
    if let Err(error) = &outcome {
        if goes_on && let Err(unkept) = ending::record(&config.out, error) {
            (watch.note)(unkept.to_string());
        }
        if new {
            // Where the run came to putting something into the folder, this fails, and the folder stays.
            let _ = std::fs::remove_dir(&config.out);
        }
    }
    outcome
}

/// What [`run`] does in a folder that is its own. `goes_on` becomes true where it leaves the state that the folder tells of.
fn train(
    config: &Config,
    saved: Option<Saved>,
    volumes: &str,
    batches: &mut dyn Iterator<Item = data::Result<data::Batch>>,
    watch: &mut Watch,
    goes_on: &mut bool,
) -> Result<Outcome> {
    let is_resumed = saved.is_some();
    let mut keeper = Keeper::new(config, saved.as_ref().map(|s| s.best));
    let mut trainer = Trainer::new(config, saved, watch.note)?;
    memory::flush(); // what reading weights took
    prepare(&keeper.folder, config).map_err(unwritable)?;
    ending::forget(&config.out)?;
    *goes_on = true;
    source::record(&config.out, volumes, is_resumed, watch.note)?;
    if is_resumed {
        checkpoint::forget_after(&keeper.folder, trainer.optimizer.steps())?;
    }
    let (mut lines, mut metrics) = MetricsFile::open(&config.out.join("metrics.jsonl"), trainer.optimizer.steps())?;
    let mut events = Events::create(&config.out, trainer.optimizer.steps())?;
    let mut diagnosis = Diagnosis::new(Plan::from(config));
    metrics.iter().for_each(|m| drop(diagnosis.see(m))); // what was said before a resume is not said again
    watch.profile.map_or(Ok(()), profile::prepare)?;
    let (mut steps, mut has_profile) = (trainer.optimizer.steps(), false);
    let profiled = (steps + 2).min(config.steps);
    while steps < config.steps {
        let mut step = || trainer.step(steps + 1, batches);
        let done = match watch.profile.filter(|_| steps + 1 == profiled) {
            Some(file) => {
                has_profile = true;
                profile::record(file, config.device()?, step)?
            }
            None => step()?,
        };
        steps = done.step;
        lines.write(&done)?;
        events.write(&done, watch.note);
        (watch.observe)(&done);
        diagnosis.see(&done).into_iter().for_each(&mut *watch.note);
        metrics.push(done);
        keeper.add(&done);
        if steps == config.steps || watch.stop.load(Ordering::Relaxed) {
            let lost = format!("the {} steps since the last checkpoint are lost", keeper.steps);
            insist(watch, &lost, || keeper.save(&trainer, &mut lines))?;
            keeper.prune(watch.note);
            break;
        }
        if keeper.is_due(steps) {
            keeper.try_save(&trainer, &mut lines, watch.note);
        }
    }
    let checkpoint = checkpoint::path(&keeper.folder, steps);
    if steps < config.steps {
        return Ok(Outcome { model: None, checkpoint, best: keeper.best, metrics, has_profile });
    }
    let model = config.out.join("model.safetensors");
    let kept = format!("all of it is in {}; make room and resume", checkpoint.display());
    insist(watch, &kept, || checkpoint::save_weights(&model, &trainer.model, steps))?;
    Ok(Outcome { model: Some(model), checkpoint, best: keeper.best, metrics, has_profile })
}

/// Another --out helps no one to go on with a run that another process has.
fn unwritable(error: Error) -> Error {
    match error {
        Error::Locked { .. } => error,
        error => Error::Config(format!("{error}; give an --out that can be written to")),
    }
}

/// The run's folder with that of its checkpoints and its settings.
fn prepare(checkpoints: &Path, config: &Config) -> Result<()> {
    std::fs::create_dir_all(checkpoints).map_err(Error::io(checkpoints))?;
    file::tidy(checkpoints)?;
    file::replace(&config.out.join("config.toml"), config.to_toml()?)
}

/// Repeats `write` until it works, since everything is in memory still and would be lost with it; only an interrupt ends that,
/// with an error that says what `remains`.
fn insist(watch: &mut Watch, remains: &str, mut write: impl FnMut() -> Result<()>) -> Result<()> {
    let (mut pause, mut said) = (FIRST_PAUSE, String::new());
    while let Err(error) = write() {
        let error = error.to_string();
        if watch.stop.load(Ordering::Relaxed) {
            return Err(Error::Config(format!("{error}; stopped: {remains}")));
        }
        if error != said {
            let most = RETRY.as_secs();
            (watch.note)(format!(
                "{error}; waiting for it, with another try every {most} s at the latest: make room, or interrupt to give up"
            ));
            said = error;
        }
        wait(pause, watch.stop);
        pause = RETRY.min(2 * pause);
    }
    Ok(())
}

/// For as long as `time`, or until `stop`.
fn wait(time: Duration, stop: &AtomicBool) {
    let begun = Instant::now();
    while begun.elapsed() < time && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(FIRST_PAUSE.min(time) / 10);
    }
}

/// Decides when checkpoints are written, and which stay.
struct Keeper<'c> {
    config: &'c Config,
    folder: PathBuf,
    best: Best,
    /// Steps since the last checkpoint, and the sum of their losses.
    steps: u64,
    losses: f64,
    /// When the last one could not be written.
    failed: Option<Instant>,
}

/// Time until a checkpoint is tried again that the disk had no room for.
const RETRY: Duration = Duration::from_secs(60);
/// The same at a run's end, when there is nothing else to do: at first this long, then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

impl<'c> Keeper<'c> {
    fn new(config: &'c Config, best: Option<Best>) -> Self {
        let best = best.unwrap_or(Best { step: 0, loss: f64::MAX });
        Keeper { config, folder: config.out.join("checkpoints"), best, steps: 0, losses: 0.0, failed: None }
    }

    fn add(&mut self, done: &Metrics) {
        self.steps += 1;
        self.losses += done.loss;
    }

    fn is_due(&self, step: u64) -> bool {
        let every = self.config.checkpoint_every;
        every > 0 && step.is_multiple_of(every) || self.failed.is_some_and(|at| at.elapsed() >= RETRY)
    }

    /// Writes a checkpoint once the metrics up to here are on the disk.
    fn save(&mut self, trainer: &Trainer, lines: &mut MetricsFile) -> Result<()> {
        let mut best = self.best;
        let loss = self.losses / self.steps.max(1) as f64;
        if loss < best.loss {
            best = Best { step: trainer.optimizer.steps(), loss };
        }
        lines.flush()?;
        lines.sync()?;
        memory::flush(); // what the step's buffers took goes to the copies that writing makes
        checkpoint::save(&self.folder, self.config, &trainer.model, &trainer.optimizer, best)?;
        (self.best, self.steps, self.losses, self.failed) = (best, 0, 0.0, None);
        Ok(())
    }

    /// As [`Keeper::save`]; but on the way a checkpoint that cannot be written costs nothing but a note, since the run still has
    /// everything in memory.
    fn try_save(&mut self, trainer: &Trainer, lines: &mut MetricsFile, note: &mut dyn FnMut(String)) {
        match self.save(trainer, lines) {
            Ok(()) => self.prune(note),
            Err(error) => {
                self.failed = Some(Instant::now());
                note(format!(
                    "{error}; make room: the run goes on, earlier checkpoints are whole, and the next is tried in {} s",
                    RETRY.as_secs()
                ));
            }
        }
    }

    fn prune(&self, note: &mut dyn FnMut(String)) {
        if let Err(error) = checkpoint::prune(&self.folder, self.config.keep, self.best) {
            note(format!("{error}; an old checkpoint stays"));
        }
    }
}

struct Trainer<'c> {
    config: &'c Config,
    model: Voco,
    optimizer: AdamW,
    steps: Steps,
}

impl<'c> Trainer<'c> {
    fn new(config: &'c Config, saved: Option<Saved>, note: &mut dyn FnMut(String)) -> Result<Self> {
        let steps = Steps::new(config.sampling(), config.device()?, !config.no_graph);
        if let Some(saved) = saved {
            let (model, optimizer) = saved.restore(config, note)?;
            return Ok(Trainer { config, model, optimizer, steps });
        }
        let mut model = Voco::new(config.voco(), config.precision.dtype(), config.device()?, config.seed)?;
        if let Some(path) = &config.weights {
            checkpoint::load_backbone(path, &mut model, note)?;
        }
        let optimizer = AdamW::new(&model.params, config.adamw())?;
        Ok(Trainer { config, model, optimizer, steps })
    }

    fn step(&mut self, step: u64, batches: &mut dyn Iterator<Item = data::Result<data::Batch>>) -> Result<Metrics> {
        let started = Instant::now();
        let _step = trace::scope("step");
        let waiting = trace::scope("wait for data");
        let batch = batches.next().ok_or_else(|| Error::Config("the loader has no more batches".into()))??;
        drop(waiting);
        let waited = started.elapsed();
        self.model.loss_scale = self.optimizer.loss_scale();
        let Done { step: done, grad_norm } =
            &*self.steps.run(&mut self.model, &batch, random::derive(self.config.seed, &[step]))?;
        let reading = trace::scope("read the losses");
        let values = done.values()?;
        drop(reading);
        let loss = self.model.loss(&values);
        let Values { intra, inter, reg, base_cosine } = values;
        if !(intra + inter + reg).is_finite() {
            let signature = diagnosis::not_a_number(&[("intra", intra), ("inter", inter), ("reg", reg)]);
            return Err(Error::Diverged { step, loss, signature });
        }
        let lr = self.config.lr * warmup_cosine(step - 1, self.config.warmup, self.config.steps);
        let grad_norm = grad_norm.item()? / self.model.loss_scale; // waits for the device, so that the time is the step's
        let is_fatal = self.optimizer.scaling().is_none_or(|scaling| scaling.is_exhausted());
        if is_fatal && !grad_norm.is_finite() {
            let signature = diagnosis::not_a_number(&[("the gradient", grad_norm)]);
            return Err(Error::Diverged { step, loss, signature });
        }
        let loss_scale = self.optimizer.scaling().map(|scaling| scaling.scale);
        let updating = trace::scope("update");
        self.optimizer.step_unless_overflowed(&mut self.model.params, &done.grads, grad_norm, lr)?;
        drop(updating);
        let seconds = started.elapsed().as_secs_f64();
        let crops = batch.volumes * (self.config.crops + self.config.grid.pow(2));
        let labels = Tensor::from_slice(&batch.labels, done.logits.dims())?;
        Ok(Metrics {
            step,
            loss,
            intra,
            inter,
            reg,
            lr,
            grad_norm,
            loss_scale,
            crops_per_s: crops as f64 / seconds,
            data_wait: waited.as_secs_f64() / seconds,
            position_top1: position_top1(&done.logits, &labels)?,
            base_cosine: Some(base_cosine),
            position_correlation: Some(position_correlation(&done.logits, &labels)?),
        })
    }
}
