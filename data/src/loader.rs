//! Batches, prefetched by worker threads.
//!
//! The consumer hands out numbered samples and puts the answers back in order, so batches never depend on the number of threads,
//! on the cache, or on which thread was first. A volume that cannot be used is replaced by the next one of the epoch's order, of
//! the same region where batches are of one region.

use crate::cache::Cache;
use crate::dataset::Source;
use crate::error::{Error, Result};
use crate::order::{draws_per_rank, epoch_order, grouped, position};
use crate::sample::{Sample, Sampling};
use crate::volume::Volume;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use engine::random::derive;
use rayon::Yield;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between looks at whether there is something to do for the pool.
const PATIENCE: Duration = Duration::from_micros(500);

#[derive(Debug, Clone, Copy)]
pub struct LoaderConfig {
    /// Volumes per batch (V); the last batch of an epoch may hold fewer.
    pub volumes: usize,
    /// All volumes of a batch are of one region. Every volume is drawn as often as otherwise; the batches at an epoch's end,
    /// one for each region whose draws V does not divide, are smaller.
    pub same_region: bool,
    pub sampling: Sampling,
    pub seed: u64,
    /// Worker threads, at least 1.
    pub threads: usize,
    /// Batches prepared ahead of the one being asked for.
    pub prefetch: usize,
    /// Bytes of processed volumes to keep in memory; volumes beyond it are processed anew each time.
    pub cache_bytes: usize,
    /// Share of the volumes that may turn out unusable before that is an error.
    pub bad_share: f64,
    /// This process among `ranks` that share each epoch.
    pub rank: usize,
    pub ranks: usize,
    /// Number of the first batch to yield, for resuming.
    pub first_batch: u64,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        LoaderConfig {
            volumes: 2,
            same_region: false,
            sampling: Sampling::default(),
            seed: 0,
            threads: 2,
            prefetch: 2,
            cache_bytes: 4 << 30,
            bad_share: 0.2,
            rank: 0,
            ranks: 1,
            first_batch: 0,
        }
    }
}

/// Samples of V volumes, volume-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    pub epoch: u64,
    /// Number of the batch since the first epoch.
    pub number: u64,
    /// V, of this batch.
    pub volumes: usize,
    /// `[V·S, roi, roi, roi]`
    pub crops: Vec<f32>,
    /// `[V·K, roi, roi, roi]`
    pub bases: Vec<f32>,
    /// `[V, S, K]`
    pub labels: Vec<f32>,
    /// `[V·S]` centres `[x, y]` in voxels of the sub-volume.
    pub centres: Vec<[usize; 2]>,
    /// `[V]` names of the volumes.
    pub names: Vec<String>,
    /// Volumes that turned out unusable, each reported once: the error, which names the file.
    pub rejected: Vec<String>,
}

/// Yields batches for ever, epoch after epoch. Dropping it ends its threads.
pub struct Loader {
    shared: Arc<Shared>,
    tasks: Option<Sender<Task>>,
    queue: Receiver<Task>,
    answers: Receiver<(u64, usize, Answer)>,
    /// Answers that came before their turn, by batch and place in it.
    early: HashMap<(u64, usize), Answer>,
    workers: Vec<JoinHandle<()>>,
    /// The next batch to hand out, and the next to yield.
    next_task: u64,
    next_batch: u64,
    /// Sizes of the batches between the two.
    handed_out: VecDeque<usize>,
    epoch: Arc<Epoch>,
    reported: BTreeSet<usize>,
}

/// One sample to draw: place `slot` of batch `batch`, at `position` of the epoch's order.
struct Task {
    batch: u64,
    slot: usize,
    epoch: Arc<Epoch>,
    position: usize,
}

/// What one pass over the volumes draws.
struct Epoch {
    number: u64,
    /// Sources in the order in which all ranks together draw them.
    order: Vec<usize>,
    /// Positions in the order that each batch of this rank draws; past its end they wrap to its head.
    batches: Vec<Vec<usize>>,
}

struct Answer {
    sample: Result<(Sample, usize)>,
    /// Sources that were tried first and cannot be used.
    rejected: Vec<usize>,
}

impl Loader {
    /// Starts the workers; they begin with the first batch at once.
    ///
    /// Errors: no source with a weight, or a configuration that cannot work.
    pub fn new(sources: Vec<Source>, config: LoaderConfig) -> Result<Loader> {
        Loader::cached(sources, config, None)
    }

    /// [`Loader::new`] with a cache on disk that files are read through. Batches are the same up to its quantisation.
    pub fn cached(sources: Vec<Source>, config: LoaderConfig, cache: Option<Arc<Cache>>) -> Result<Loader> {
        config.sampling.check()?;
        if config.volumes == 0 || config.threads == 0 || config.rank >= config.ranks {
            let problem = format!(
                "{} volumes a batch, {} loader threads, rank {} of {}",
                config.volumes, config.threads, config.rank, config.ranks
            );
            return Err(Error::setting(problem, "take at least one of each, and ranks from 0"));
        }
        let shared = Arc::new(Shared::new(sources, config, cache));
        if shared.draws() == 0 {
            return Err(Error::setting("no volume to draw from", "name a folder or list with CT volumes"));
        }
        let (tasks, queue) = unbounded();
        let (answer, answers) = unbounded();
        let workers = (0..config.threads)
            .map(|_| {
                let (shared, queue, answer) = (shared.clone(), queue.clone(), answer.clone());
                std::thread::spawn(move || work(&shared, &queue, &answer))
            })
            .collect();
        let mut loader = Loader {
            epoch: Arc::new(shared.epoch(0)),
            shared,
            tasks: Some(tasks),
            queue,
            answers,
            early: HashMap::new(),
            workers,
            next_task: config.first_batch,
            next_batch: config.first_batch,
            handed_out: VecDeque::new(),
            reported: BTreeSet::new(),
        };
        (0..config.prefetch).for_each(|_| loader.hand_out());
        Ok(loader)
    }

    /// Batches in an epoch of this rank.
    pub fn batches_per_epoch(&self) -> u64 {
        self.epoch.batches.len() as u64
    }

    /// Unusable volumes reported so far.
    pub fn rejected(&self) -> usize {
        self.reported.len()
    }

    /// The next batch, waiting for the workers where it must.
    ///
    /// Errors: no usable volume is left, too many were unusable, or a worker died.
    pub fn next_batch(&mut self) -> Result<Batch> {
        self.hand_out();
        let number = self.next_batch;
        self.next_batch += 1;
        let volumes = self.handed_out.pop_front().unwrap_or(0);
        let answers = (0..volumes).map(|slot| self.wait_for(number, slot)).collect::<Result<Vec<_>>>()?;
        self.assemble(number, answers)
    }

    /// Queues the samples of one more batch.
    fn hand_out(&mut self) {
        let batch = self.next_task;
        self.next_task += 1;
        let (number, place) = (batch / self.batches_per_epoch(), batch % self.batches_per_epoch());
        if self.epoch.number != number {
            self.epoch = Arc::new(self.shared.epoch(number));
        }
        let positions = &self.epoch.batches[place as usize];
        self.handed_out.push_back(positions.len());
        for (slot, &position) in positions.iter().enumerate() {
            let task = Task { batch, slot, epoch: self.epoch.clone(), position };
            // a queue without workers shows when the answer is waited for
            let _ = self.tasks.as_ref().map(|tasks| tasks.send(task));
        }
    }

    fn wait_for(&mut self, batch: u64, slot: usize) -> Result<Answer> {
        loop {
            if let Some(answer) = self.early.remove(&(batch, slot)) {
                return Ok(answer);
            }
            let (batch, slot, answer) = self
                .answer()
                .map_err(|_| Error::setting("the loader's threads have died", "report this with the output above"))?;
            self.early.insert((batch, slot), answer);
        }
    }

    /// The next answer. A thread of rayon's pool does the pool's work while it waits, of which the workers' loops are a part.
    fn answer(&self) -> std::result::Result<(u64, usize, Answer), RecvTimeoutError> {
        let mut patience = Duration::ZERO;
        loop {
            match self.answers.recv_timeout(patience) {
                Err(RecvTimeoutError::Timeout) => {}
                done => return done,
            }
            patience = match rayon::yield_now() {
                Some(Yield::Executed) => Duration::ZERO,
                Some(Yield::Idle) => PATIENCE,
                None => Duration::MAX,
            };
        }
    }

    fn assemble(&mut self, number: u64, answers: Vec<Answer>) -> Result<Batch> {
        let epoch = number / self.batches_per_epoch();
        let volumes = answers.len();
        let (crops, bases, labels) = (Vec::new(), Vec::new(), Vec::new());
        let (centres, names, rejected) = (Vec::new(), Vec::new(), Vec::new());
        let mut batch = Batch { epoch, number, volumes, crops, bases, labels, centres, names, rejected };
        for answer in answers {
            for source in answer.rejected {
                if self.reported.insert(source) {
                    batch.rejected.extend(self.shared.slot(source).bad.clone());
                }
            }
            self.tolerate(&batch.rejected)?;
            let (sample, source) = answer.sample?;
            batch.crops.extend(sample.crops);
            batch.bases.extend(sample.bases);
            batch.labels.extend(sample.labels);
            batch.centres.extend(sample.centres);
            batch.names.push(self.shared.sources[source].name());
        }
        Ok(batch)
    }

    /// Errors when more volumes were unusable than may be; `newest` are those of this batch.
    fn tolerate(&self, newest: &[String]) -> Result<()> {
        newest.last().map_or(Ok(()), |last| self.shared.tolerate(self.reported.len(), last))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.tasks = None; // workers end when the queue is closed and empty
        while self.queue.try_recv().is_ok() {}
        while self.answer().is_ok() {} // until the last worker is done: those that still read may need this thread of the pool
        for worker in self.workers.drain(..) {
            // a worker's panic was printed when it happened, and there is nobody left to tell
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, queue: &Receiver<Task>, answers: &Sender<(u64, usize, Answer)>) {
    for task in queue {
        // a panic would leave the consumer waiting for ever
        let answer = catch_unwind(AssertUnwindSafe(|| shared.draw(&task))).unwrap_or_else(|_| {
            let error = Error::setting("a loader thread panicked", "report this with the message above");
            Answer { sample: Err(error), rejected: Vec::new() }
        });
        if answers.send((task.batch, task.slot, answer)).is_err() {
            return;
        }
    }
}

/// What all workers see.
struct Shared {
    sources: Vec<Source>,
    weights: Vec<usize>,
    config: LoaderConfig,
    cache: Option<Arc<Cache>>,
    /// One per source. Held while its volume is being read, so that no volume is read twice at the same time.
    slots: Vec<Mutex<Slot>>,
    cached_bytes: AtomicUsize,
}

#[derive(Default)]
struct Slot {
    cached: Option<Arc<Volume>>,
    /// Why the volume cannot be used.
    bad: Option<String>,
}

impl Shared {
    fn new(sources: Vec<Source>, config: LoaderConfig, cache: Option<Arc<Cache>>) -> Shared {
        Shared {
            weights: sources.iter().map(|s| s.weight).collect(),
            slots: sources.iter().map(|_| Mutex::default()).collect(),
            sources,
            config,
            cache,
            cached_bytes: AtomicUsize::new(0),
        }
    }

    /// Samples in an epoch of all ranks.
    fn draws(&self) -> usize {
        self.weights.iter().sum()
    }

    /// Every epoch has as many batches.
    fn epoch(&self, number: u64) -> Epoch {
        let LoaderConfig { volumes, same_region, seed, rank, ranks, .. } = self.config;
        let order = epoch_order(&self.weights, seed, number);
        if same_region {
            let (order, all) = grouped(&order, |source| self.sources[source].region, volumes);
            let mine = (0..draws_per_rank(all.len(), ranks)).map(|i| position(i, rank, ranks) % all.len());
            let batches = mine.map(|batch| all[batch].clone().collect()).collect();
            return Epoch { number, order, batches };
        }
        let mine: Vec<usize> = (0..draws_per_rank(order.len(), ranks)).map(|i| position(i, rank, ranks)).collect();
        let batches = mine.chunks(volumes).map(<[usize]>::to_vec).collect();
        Epoch { number, order, batches }
    }

    fn slot(&self, source: usize) -> MutexGuard<'_, Slot> {
        // a slot is whole at any time, also after a panic
        self.slots[source].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Errors when more than so many volumes may be unusable; `last` says why one of them is. When all are, the draw says so.
    fn tolerate(&self, bad: usize, last: &str) -> Result<()> {
        let (all, share) = (self.sources.len(), self.config.bad_share);
        if bad == all || bad as f64 <= share * all as f64 {
            return Ok(());
        }
        let problem = format!("{bad} of {all} volumes cannot be used, the last because: {last}");
        Err(Error::setting(problem, "look at them, or let more of them be bad (--bad-share)"))
    }

    /// Why a source cannot be used.
    fn reason(&self, source: usize) -> String {
        self.slot(source).bad.clone().unwrap_or_default()
    }

    /// The sample at a position: of the volume there, or of the next usable one, as long as few enough are not.
    fn draw(&self, task: &Task) -> Answer {
        let Epoch { number, order, .. } = &*task.epoch;
        let seed = derive(self.config.seed, &[*number, task.position as u64]);
        let (mut rejected, mut tried) = (Vec::new(), HashSet::new());
        for i in 0..order.len() {
            let source = order[(task.position + i) % order.len()];
            if !self.fits(source, order[task.position % order.len()]) || !tried.insert(source) {
                continue;
            }
            if let Some(sample) = self.sample(source, seed) {
                return Answer { sample: Ok((sample, source)), rejected };
            }
            rejected.push(source);
            if let Err(error) = self.tolerate(rejected.len(), &self.reason(source)) {
                return Answer { sample: Err(error), rejected };
            }
        }
        let first = rejected.first().map(|&source| self.reason(source)).unwrap_or_default();
        let problem = format!("none of {} volumes can be used, the first because: {first}", rejected.len());
        Answer { sample: Err(Error::setting(problem, "check that they are CT volumes")), rejected }
    }

    /// Whether one source may stand in for another.
    fn fits(&self, source: usize, other: usize) -> bool {
        !self.config.same_region || self.sources[source].region == self.sources[other].region
    }

    /// A sample of a source; `None` when it cannot be used.
    fn sample(&self, source: usize, seed: u64) -> Option<Sample> {
        let sampling = &self.config.sampling;
        let Some(cache) = self.cache.as_ref().filter(|_| Cache::keeps(&self.sources[source])) else {
            return self.volume(source).map(|volume| sampling.draw(&volume, seed));
        };
        let mut slot = self.slot(source);
        if slot.bad.is_some() {
            return None;
        }
        cache.draw(&self.sources[source], sampling, seed).map_err(|error| slot.bad = Some(error.to_string())).ok()
    }

    /// The processed volume of a source; `None` when it cannot be used.
    fn volume(&self, source: usize) -> Option<Arc<Volume>> {
        let mut slot = self.slot(source);
        if slot.bad.is_some() || slot.cached.is_some() {
            return slot.cached.clone();
        }
        match self.sources[source].load(&self.config.sampling) {
            Ok(volume) => {
                if self.has_room(volume.data.len() * size_of::<f32>()) {
                    slot.cached = Some(volume.clone());
                }
                Some(volume)
            }
            Err(error) => {
                slot.bad = Some(error.to_string());
                None
            }
        }
    }

    /// Whether the cache takes `bytes` more; if so, they are counted.
    fn has_room(&self, bytes: usize) -> bool {
        let grow = |used: usize| used.checked_add(bytes).filter(|&n| n <= self.config.cache_bytes);
        self.cached_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::IDENTITY;
    use crate::dataset::Region;
    use crate::geometry::Geometry;

    const TINY: Sampling = Sampling { crops: 2, roi: 8, grid: 2, geometry: Geometry::Voco };

    fn memory(count: u64) -> Vec<Source> {
        let volume = |i| {
            let data = (0..20 * 18 * 9).map(|v| engine::random::uniform(i, v) as f32).collect();
            Volume { data, dims: [20, 18, 9], affine: IDENTITY }
        };
        let region = |i| if i % 3 == 0 { Region::HeadNeck } else { Region::Abdomen };
        (0..count).map(|i| Source::memory(format!("v{i}"), volume(i), region(i))).collect()
    }

    fn config(threads: usize, cache_bytes: usize) -> LoaderConfig {
        LoaderConfig {
            volumes: 3,
            sampling: TINY,
            seed: 9,
            threads,
            cache_bytes,
            bad_share: 1.0,
            ..LoaderConfig::default()
        }
    }

    fn batches(sources: Vec<Source>, config: LoaderConfig, count: usize) -> Vec<Batch> {
        let mut loader = Loader::new(sources, config).unwrap();
        (0..count).map(|_| loader.next_batch().unwrap()).collect()
    }

    /// A folder of phantom files, and files that are no volumes.
    fn files(good: u64, bad: usize) -> (tempfile::TempDir, Vec<Source>) {
        let folder = tempfile::tempdir().unwrap();
        let mut paths = Vec::new();
        for i in 0..good {
            let path = folder.path().join(format!("{i}.nii.gz"));
            let hu = (0..12 * 10 * 8).map(|v| (engine::random::uniform(i, v) * 400.0) as i16).collect();
            crate::nifti::write_image(&path, &Volume { data: hu, dims: [12, 10, 8], affine: IDENTITY }).unwrap();
            paths.push(path);
        }
        for i in 0..bad {
            let path = folder.path().join(format!("bad{i}.nii"));
            std::fs::write(&path, "no volume").unwrap();
            paths.insert(i, path);
        }
        let sources =
            paths.into_iter().map(|path| Source { weight: 1, ..Source::file(path, Region::Abdomen) }).collect();
        (folder, sources)
    }

    /// Workers share out what they read among the pool's threads, also when all of these wait for a batch, or for a loader's end.
    #[test]
    fn every_thread_of_the_pool_may_wait_for_workers() {
        let (_folder, sources) = files(4, 0);
        for count in [0, 1, 2] {
            let used = rayon::broadcast(|_| batches(sources.clone(), config(3, 0), count).len());
            assert!(used.iter().all(|&batches| batches == count), "{used:?}");
        }
    }

    #[test]
    fn batches_have_their_shapes_and_the_last_is_smaller() {
        let all = batches(memory(5), config(2, 1 << 20), 3);
        assert_eq!(
            all.iter().map(|b| (b.epoch, b.number, b.volumes)).collect::<Vec<_>>(),
            [(0, 0, 3), (0, 1, 2), (1, 2, 3)]
        );
        let b = &all[0];
        assert_eq!([b.crops.len(), b.bases.len(), b.labels.len(), b.centres.len()], [6 * 512, 12 * 512, 24, 6]);
        let mut names: Vec<_> = all[..2].iter().flat_map(|b| b.names.clone()).collect();
        names.sort();
        assert_eq!(names, ["v0", "v1", "v2", "v3", "v4"]);
    }

    #[test]
    fn threads_cache_and_resuming_do_not_change_batches() {
        let (_folder, sources) = files(4, 1);
        let want = batches(sources.clone(), config(1, 1 << 30), 5);
        assert_eq!(want, batches(sources.clone(), config(4, 1 << 30), 5));
        assert_eq!(want, batches(sources.clone(), config(4, 0), 5));
        let resumed = batches(sources, LoaderConfig { first_batch: 3, ..config(3, 0) }, 2);
        assert_eq!(want[4].crops, resumed[1].crops);
        assert_eq!(want[3].names, resumed[0].names);
    }

    #[test]
    fn batches_of_one_region_hold_every_volume_once_whatever_the_threads() {
        let same = |threads| LoaderConfig { same_region: true, volumes: 2, ..config(threads, 0) };
        let sources = memory(8); // three of one region, five of the other: batches of 2, 2, 1 and 2, 1
        let region = |name: &String| sources[name[1..].parse::<usize>().unwrap()].region;
        let all = batches(sources.clone(), same(1), 10);
        assert_eq!(all, batches(sources.clone(), same(4), 10));
        for epoch in all.chunks(5) {
            assert_eq!(epoch.iter().map(|b| b.volumes).collect::<Vec<_>>(), [2, 2, 2, 1, 1]);
            assert!(epoch.iter().all(|b| b.names.iter().all(|n| region(n) == region(&b.names[0]))));
            let mut names: Vec<_> = epoch.iter().flat_map(|b| b.names.clone()).collect();
            names.sort();
            assert_eq!(names, (0..8).map(|i| format!("v{i}")).collect::<Vec<_>>());
        }
        let names = |epoch: &[Batch]| epoch.iter().map(|b| b.names.clone()).collect::<Vec<_>>();
        assert_ne!(names(&all[..5]), names(&all[5..]));
        let resumed = batches(sources, LoaderConfig { first_batch: 7, ..same(2) }, 3);
        assert_eq!(resumed, all[7..]);
    }

    #[test]
    fn ranks_share_the_batches_of_one_region() {
        let rank = |rank| {
            let config = LoaderConfig { same_region: true, volumes: 2, rank, ranks: 2, ..config(1, 0) };
            let all = batches(memory(8), config, 3);
            assert!(all.iter().all(|b| b.epoch == 0));
            all.into_iter().flat_map(|b| b.names).collect::<Vec<_>>()
        };
        let mut names = [rank(0), rank(1)].concat(); // six batches, of which five are different
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 8);
    }

    #[test]
    fn an_unusable_volume_is_replaced_by_one_of_its_region() {
        let (_folder, mut sources) = files(3, 1);
        sources.extend(memory(1)); // another region
        let same = LoaderConfig { same_region: true, volumes: 2, ..config(2, 0) };
        for batch in batches(sources.clone(), same, 6) {
            assert!(!batch.names.iter().any(|n| n.contains("bad")));
            assert!(batch.names.iter().all(|n| n == "v0") || !batch.names.contains(&"v0".to_string()), "{batch:?}");
        }
        sources.retain(|s| s.region == Region::HeadNeck || s.name().contains("bad"));
        let mut loader = Loader::new(sources, same).unwrap();
        let error = (0..2).find_map(|_| loader.next_batch().err()).expect("an error").to_string();
        assert!(error.contains("none of 1 volumes") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn ranks_draw_different_volumes() {
        let rank = |rank| batches(memory(6), LoaderConfig { rank, ranks: 2, ..config(2, 0) }, 1)[0].names.clone();
        let mut names = [rank(0), rank(1)].concat();
        names.sort();
        assert_eq!(names, ["v0", "v1", "v2", "v3", "v4", "v5"]);
    }

    #[test]
    fn an_unusable_volume_is_reported_once_and_replaced() {
        let (_folder, sources) = files(3, 2);
        let mut loader = Loader::new(sources, config(3, 1 << 20)).unwrap();
        let all: Vec<Batch> = (0..6).map(|_| loader.next_batch().unwrap()).collect();
        let rejected: Vec<&String> = all.iter().flat_map(|b| &b.rejected).collect();
        assert_eq!(rejected.len(), 2);
        assert!(rejected.iter().all(|e| e.contains("bad") && !e.contains('\n')));
        assert_eq!(loader.rejected(), 2);
        assert!(all.iter().flat_map(|b| &b.names).all(|n| !n.contains("bad")));
        assert_eq!(all[0].volumes, 3);
    }

    #[test]
    fn too_many_unusable_volumes_are_an_error() {
        let (_folder, sources) = files(3, 2);
        let mut loader = Loader::new(sources, LoaderConfig { bad_share: 0.3, ..config(1, 0) }).unwrap();
        let error = (0..3).find_map(|_| loader.next_batch().err()).expect("an error").to_string();
        assert!(error.contains("2 of 5 volumes") && error.contains("--bad-share") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn no_more_volumes_are_tried_than_may_be_unusable() {
        let (_folder, sources) = files(0, 10);
        let few = LoaderConfig { bad_share: 0.2, volumes: 1, prefetch: 0, ..config(1, 0) };
        let mut loader = Loader::new(sources, few).unwrap();
        let error = loader.next_batch().unwrap_err().to_string();
        assert!(error.contains("3 of 10 volumes") && error.contains("--bad-share"), "{error}");
        assert_eq!((0..10).filter(|&source| loader.shared.slot(source).bad.is_some()).count(), 3);
    }

    #[test]
    fn nothing_usable_is_an_error() {
        let (_folder, sources) = files(0, 3);
        let mut loader = Loader::new(sources, config(2, 0)).unwrap();
        let error = loader.next_batch().unwrap_err().to_string();
        assert!(error.contains("none of 3 volumes") && error.contains(".nii") && !error.contains('\n'));
        assert!(Loader::new(Vec::new(), config(1, 0)).is_err());
        assert!(Loader::new(memory(1), LoaderConfig { threads: 0, ..config(1, 0) }).is_err());
    }

    #[test]
    fn dropping_a_busy_loader_ends_its_threads() {
        let loader = Loader::new(memory(3), LoaderConfig { prefetch: 500, ..config(4, 0) }).unwrap();
        let shared = Arc::downgrade(&loader.shared);
        drop(loader);
        assert!(shared.upgrade().is_none());
    }
}
