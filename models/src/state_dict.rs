//! Weights in and out under PyTorch's names and layouts.
//!
//! Inside, every rank-5 weight (of convolutions and of transposed ones alike) is `[a, k, k, k, b]` where PyTorch has
//! `[a, b, k, k, k]`; nothing else is permuted. MONAI also stores an integer buffer `relative_position_index` beside every bias
//! table: it is written, and ignored when read.

use crate::weights::{self, RawTensor, Weights, bare_name};
use crate::{Error, Result};
use autograd::{ParamId, ParamStore};
use engine::{DType, Device, Tensor};
use safetensors::Dtype;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

const TO_PYTORCH: [usize; 5] = [0, 4, 1, 2, 3];
const FROM_PYTORCH: [usize; 5] = [0, 2, 3, 4, 1];
const TABLE: &str = "relative_position_bias_table";
const INDEX: &str = "relative_position_index";
/// The window whose pairs of tokens MONAI's buffer numbers.
const WINDOW: usize = 7;

/// Named tensors in PyTorch's layouts.
pub type StateDict = BTreeMap<String, Tensor>;

/// All parameters of `store`, on the host, under PyTorch's names and layouts.
pub fn export(store: &ParamStore) -> Result<StateDict> {
    let value = |id| to_pytorch(&store.value(id)?.to_device(Device::Cpu)?);
    store.ids().map(|id| Ok((store.name(id).to_string(), value(id)?))).collect()
}

/// A weight from the engine's layout to PyTorch's.
pub fn to_pytorch(t: &Tensor) -> Result<Tensor> {
    Ok(if t.rank() == 5 { t.permute(&TO_PYTORCH)? } else { t.clone() })
}

/// A weight from PyTorch's layout to the engine's.
pub fn from_pytorch(t: &Tensor) -> Result<Tensor> {
    Ok(if t.rank() == 5 { t.permute(&FROM_PYTORCH)? } else { t.clone() })
}

/// Writes a state dict in f32 with MONAI's index buffers and the given metadata.
pub fn save(path: &Path, tensors: &StateDict, metadata: BTreeMap<String, String>) -> Result<()> {
    let mut weights = Weights { metadata, ..Weights::default() };
    for (name, t) in tensors {
        weights
            .tensors
            .insert(name.clone(), RawTensor { dtype: Dtype::F32, shape: t.dims().to_vec(), data: bytes(t)? });
        if let Some(prefix) = name.strip_suffix(TABLE) {
            let n = WINDOW * WINDOW * WINDOW;
            let data = relative_position_index(WINDOW).iter().flat_map(|v| v.to_le_bytes()).collect();
            weights
                .tensors
                .insert(format!("{prefix}{INDEX}"), RawTensor { dtype: Dtype::I64, shape: vec![n, n], data });
        }
    }
    weights.save(path)
}

/// Little-endian f32, where they lie if they lie so: copies of a whole checkpoint would double the memory of a run.
fn bytes(t: &Tensor) -> Result<Cow<'_, [u8]>> {
    if t.dtype() == DType::F32 && cfg!(target_endian = "little") {
        return Ok(Cow::Borrowed(bytemuck::cast_slice(t.as_slice::<f32>()?)));
    }
    Ok(t.to_dtype(DType::F32)?.as_slice::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// For query token i and key token j of a cubic window, the row of the bias table: `169 Δd + 13 Δh + Δw` counted from the most
/// negative offset. Row-major `[n, n]`.
pub fn relative_position_index(window: usize) -> Vec<i64> {
    let n = window * window * window;
    let side = 2 * window - 1;
    let at = |token: usize| [token / (window * window), token / window % window, token % window];
    let mut index = Vec::with_capacity(n * n);
    for (q, k) in (0..n).flat_map(|i| (0..n).map(move |j| (at(i), at(j)))) {
        let offset = |axis: usize| q[axis] + window - 1 - k[axis];
        index.push(((offset(0) * side + offset(1)) * side + offset(2)) as i64);
    }
    index
}

/// Reads every float tensor of a `.safetensors`, `.pt` or `.pth` file as f32; integer buffers are left out.
pub fn load(path: &Path) -> Result<StateDict> {
    tensors(&Weights::parse(path, &weights::read(path)?)?)
}

/// The float tensors as f32.
pub fn tensors(weights: &Weights) -> Result<StateDict> {
    let mut out = StateDict::new();
    for (name, raw) in &weights.tensors {
        if let Some(t) = tensor(raw)? {
            out.insert(name.clone(), t);
        }
    }
    Ok(out)
}

/// As f32; none where it is no floats.
pub fn tensor(raw: &RawTensor) -> Result<Option<Tensor>> {
    floats(raw).map(|values| Ok(Tensor::from_slice(&values, &raw.shape)?)).transpose()
}

fn floats(raw: &RawTensor) -> Option<Vec<f32>> {
    fn words<const N: usize>(data: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        data.as_chunks::<N>().0.iter().map(|&w| f(w)).collect()
    }
    match raw.dtype {
        Dtype::F32 => Some(words(&raw.data, f32::from_le_bytes)),
        Dtype::F64 => Some(words(&raw.data, |w| f64::from_le_bytes(w) as f32)),
        Dtype::F16 => Some(words(&raw.data, |w| engine::f16::from_le_bytes(w).to_f32())),
        Dtype::BF16 => Some(words(&raw.data, |w| engine::bf16::from_le_bytes(w).to_f32())),
        _ => None,
    }
}

/// What an import did, by name. Say it aloud: silence here has cost others whole training runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadReport {
    pub loaded: Vec<String>,
    /// Name, shape here, shape in the file (PyTorch's layout).
    pub mismatched: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Parameters that the file lacks; they keep their values.
    pub missing: Vec<String>,
    /// Tensors of the file that nothing here takes.
    pub unused: Vec<String>,
}

impl LoadReport {
    /// Errors when nothing was loaded: then the file is of another model, or its names are of another kind.
    pub fn check(&self, path: &Path) -> Result<()> {
        if !self.loaded.is_empty() {
            return Ok(());
        }
        let some = |names: &[String]| names.first().map_or("nothing".into(), |name| format!("{name:?}"));
        let (theirs, ours) = match self.mismatched.first() {
            Some((name, ours, theirs)) => (format!("{name:?} of shape {theirs:?}"), format!("{ours:?}")),
            None => (some(&self.unused), some(&self.missing)),
        };
        Err(Error::file(path, format!("no tensor matches this model: holds {theirs} and the like, not {ours}")))
    }
}

/// A line of counts, then one for every mismatch and one for all names of each other kind that is there.
impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let LoadReport { loaded, mismatched, missing, unused } = self;
        let (m, n, u) = (mismatched.len(), missing.len(), unused.len());
        write!(f, "{} tensors loaded, {m} mismatched, {n} missing, {u} unused", loaded.len())?;
        for (name, ours, theirs) in mismatched {
            write!(f, "\n  mismatched: {name}: {ours:?} here, {theirs:?} in the file")?;
        }
        for (kind, names) in [("missing", missing), ("unused", unused)] {
            if !names.is_empty() {
                write!(f, "\n  {kind}: {}", names.join(", "))?;
            }
        }
        Ok(())
    }
}

/// Copies the tensors whose names and shapes match into `store`. Names match with or without `module.` and `backbone.`.
pub fn import(store: &mut ParamStore, tensors: &StateDict) -> Result<LoadReport> {
    copy([store], "", tensors, |t| Ok(Some(t.clone())))
}

/// As [`import`], from a file, into several stores, and into the parameters alone whose names start with `prefix`. Tensors are turned
/// to floats one at a time, when a parameter takes them. Of what there is beside floats, MONAI's index buffers follow from the window; the rest is unused.
pub fn import_weights<'s>(
    stores: impl IntoIterator<Item = &'s mut ParamStore>,
    prefix: &str,
    weights: &Weights,
) -> Result<LoadReport> {
    let mut report = copy(stores, prefix, &weights.tensors, tensor)?;
    report.unused.retain(|name| !name.ends_with(INDEX));
    Ok(report)
}

fn copy<'s, T>(
    stores: impl IntoIterator<Item = &'s mut ParamStore>,
    prefix: &str,
    given: &BTreeMap<String, T>,
    tensor: impl Fn(&T) -> Result<Option<Tensor>>,
) -> Result<LoadReport> {
    let mut left = by_bare_name(given)?;
    let mut report = LoadReport::default();
    for store in stores {
        for id in store.ids() {
            let name = store.name(id).to_string();
            if !name.starts_with(prefix) {
                continue;
            }
            let bare = bare_name(&name);
            match left.get(&bare).map(|(_, t)| tensor(t)).transpose()?.flatten() {
                None => report.missing.push(name),
                Some(tensor) => {
                    left.remove(&bare);
                    take(store, id, name, &tensor, &mut report)?;
                }
            }
        }
    }
    report.unused = left.into_values().map(|(name, _)| name.clone()).collect();
    report.unused.sort();
    Ok(report)
}

/// Each under its bare name, with its own. Errors when two share one.
fn by_bare_name<T>(given: &BTreeMap<String, T>) -> Result<HashMap<String, (&String, &T)>> {
    let mut named: HashMap<String, (&String, &T)> = HashMap::new();
    for (name, t) in given {
        if let Some((other, _)) = named.insert(bare_name(name), (name, t)) {
            return Err(Error::Config(format!("tensors {other:?} and {name:?} are both for one parameter")));
        }
    }
    Ok(named)
}

fn take(store: &mut ParamStore, id: ParamId, name: String, tensor: &Tensor, report: &mut LoadReport) -> Result<()> {
    let ours = from_pytorch(tensor)?;
    if ours.dims() == store.dims(id) {
        store.set(id, &ours.to_f64_vec()?)?;
        report.loaded.push(name);
    } else {
        let want = to_pytorch(&store.value(id)?)?.dims().to_vec();
        report.mismatched.push((name, want, tensor.dims().to_vec()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SwinUnetr, SwinUnetrConfig};
    use autograd::{Init, ParamStoreBuilder, Role};
    use kernels::patch_merging::Order;

    #[test]
    fn index_buffer_matches_its_goldens() {
        let idx = relative_position_index(7);
        let at = |i: usize, j: usize| idx[343 * i + j];
        assert_eq!([at(0, 0), at(0, 1), at(1, 0), at(0, 7), at(0, 49)], [1098, 1097, 1099, 1085, 929]);
        assert_eq!([at(0, 342), at(342, 0), at(100, 200)], [0, 2196, 758]);
        assert_eq!(idx.iter().sum::<i64>(), 129_178_602);
    }

    fn store(seed: u64) -> ParamStore {
        let mut b = ParamStoreBuilder::default();
        b.add("backbone.conv.weight", &[4, 3, 2, 1, 5], Role::Operand, Init::Uniform(1.0));
        b.add("backbone.attn.relative_position_bias_table", &[2197, 3], Role::Term, Init::Uniform(1.0));
        b.add("backbone.bias", &[4], Role::Term, Init::Ones);
        b.build(DType::F32, Device::Cpu, seed).expect("store")
    }

    #[test]
    fn weights_survive_a_round_trip_through_pytorchs_layout() {
        let dir = std::env::temp_dir().join(format!("vocoe-state-dict-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("folder");
        let path = dir.join("weights.safetensors");
        let (from, mut to) = (store(1), store(2));
        save(&path, &export(&from).expect("export"), BTreeMap::new()).expect("save");
        let tensors = load(&path).expect("load");
        assert_eq!(tensors["backbone.conv.weight"].dims(), [4, 5, 3, 2, 1]);
        assert!(!tensors.contains_key("backbone.attn.relative_position_index"));
        let report = import(&mut to, &tensors).expect("import");
        assert_eq!((report.loaded.len(), report.missing.len(), report.unused.len()), (3, 0, 0));
        for id in from.ids() {
            let values = |s: &ParamStore| s.value(id).and_then(|t| Ok(t.to_f64_vec()?)).expect("value");
            assert_eq!(values(&from), values(&to));
        }
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn equal_contents_are_equal_files() {
        let dir = std::env::temp_dir().join(format!("vocoe-equal-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("folder");
        let tensors = export(&store(1)).expect("export");
        let written = ["first.safetensors", "second.safetensors"].map(|name| {
            let said = ["step", "loss", "feature_size", "patch_merging"].map(|key| (key.to_string(), key.to_string()));
            save(&dir.join(name), &tensors, said.into()).expect("save");
            std::fs::read(dir.join(name)).expect("read")
        });
        assert!(written[0] == written[1]);
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    /// A network of 12 features with a decoder, for images of `channels` channels.
    fn network(channels: usize, seed: u64) -> ParamStore {
        let config = SwinUnetrConfig {
            in_channels: channels,
            feature_size: 12,
            out_channels: Some(2),
            patch_merging: Order::Monai13,
        };
        let mut b = ParamStoreBuilder::default();
        SwinUnetr::new(&mut b, "", config).expect("network");
        b.build(DType::F32, Device::Cpu, seed).expect("store")
    }

    #[test]
    fn more_input_channels_keep_their_own_first_layers_and_take_all_else() {
        let (from, mut to, drawn) = (network(1, 1), network(4, 2), network(4, 2));
        let report = import(&mut to, &export(&from).expect("export")).expect("import");
        let first = [
            ("swinViT.patch_embed.proj.weight", vec![12, 4, 2, 2, 2], vec![12, 1, 2, 2, 2]),
            ("encoder1.layer.conv1.conv.weight", vec![12, 4, 3, 3, 3], vec![12, 1, 3, 3, 3]),
            ("encoder1.layer.conv3.conv.weight", vec![12, 4, 1, 1, 1], vec![12, 1, 1, 1, 1]),
        ];
        assert_eq!(report.mismatched, first.map(|(name, ours, theirs)| (name.to_string(), ours, theirs)));
        assert!(report.missing.is_empty() && report.unused.is_empty(), "{report}");
        assert_eq!(report.loaded.len(), to.ids().count() - 3);
        let values = |s: &ParamStore| -> BTreeMap<String, Vec<f32>> {
            let all = export(s).expect("export");
            all.into_iter().map(|(name, t)| (name, t.to_vec().expect("values"))).collect()
        };
        let (from, to, drawn) = (values(&from), values(&to), values(&drawn));
        for (name, got) in &to {
            let mismatched = report.mismatched.iter().any(|(other, ..)| other == name);
            assert_eq!(got, if mismatched { &drawn[name] } else { &from[name] }, "{name}");
        }
    }

    #[test]
    fn integers_that_nothing_takes_are_unused() {
        let raw = |dtype, n: usize| RawTensor { dtype, shape: vec![n], data: vec![0; 4 * n].into() };
        let mut weights = Weights::default();
        for (name, dtype, n) in
            [("bias", Dtype::F32, 4), ("count", Dtype::I32, 1), ("attn.relative_position_index", Dtype::I32, 1)]
        {
            weights.tensors.insert(name.into(), raw(dtype, n));
        }
        let report = import_weights([&mut store(1)], "", &weights).expect("import");
        assert_eq!((report.loaded, report.unused), (vec!["backbone.bias".to_string()], vec!["count".to_string()]));
    }

    #[test]
    fn import_reports_what_it_could_not_use() {
        let mut to = store(1);
        let t = |dims: &[usize]| Tensor::full(dims, 0.5, DType::F32, Device::Cpu).expect("tensor");
        let given = StateDict::from([
            ("module.bias".into(), t(&[4])),
            ("conv.weight".into(), t(&[4, 5, 3, 2, 2])),
            ("x".into(), t(&[1])),
        ]);
        let report = import(&mut to, &given).expect("import");
        assert_eq!(report.loaded, ["backbone.bias"]);
        assert_eq!(report.mismatched, [("backbone.conv.weight".to_string(), vec![4, 5, 3, 2, 1], vec![4, 5, 3, 2, 2])]);
        assert_eq!(report.missing, ["backbone.attn.relative_position_bias_table"]);
        assert_eq!(report.unused, ["x"]);
        let said = report.to_string();
        assert!(said.starts_with("1 tensors loaded, 1 mismatched, 1 missing, 1 unused\n"), "{said}");
        assert!(said.contains("backbone.conv.weight: [4, 5, 3, 2, 1] here, [4, 5, 3, 2, 2] in the file"), "{said}");
        assert!(said.ends_with("\n  unused: x"), "{said}");
        assert!(report.check(Path::new("w.pt")).is_ok());
        let nothing = StateDict::from([("y".into(), t(&[1]))]);
        let error = import(&mut to, &nothing).expect("import").check(Path::new("w.pt")).expect_err("no match");
        assert!(error.to_string().contains("\"y\""), "{error}");
        let twice = StateDict::from([("bias".into(), t(&[4])), ("module.bias".into(), t(&[4]))]);
        assert!(import(&mut to, &twice).is_err());
    }
}
