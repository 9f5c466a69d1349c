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
use std::cell::Cell;
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
    tensors(path, &Weights::parse(path, &weights::read(path)?)?)
}

/// The float tensors of the file at `path` as f32. Errors when one has more axes than tensors here.
pub fn tensors(path: &Path, weights: &Weights) -> Result<StateDict> {
    let mut out = StateDict::new();
    for (name, raw) in &weights.tensors {
        if let Some(t) = tensor(raw).map_err(|e| Error::file(path, format!("tensor {name:?}: {e}")))? {
            out.insert(name.clone(), t);
        }
    }
    Ok(out)
}

/// As f32; none where it is no floats.
pub fn tensor(raw: &RawTensor) -> Result<Option<Tensor>> {
    Floats::of(raw)?.map(|values| values.tensor(&raw.shape)).transpose()
}

/// Values that are turned to floats one by one where they lie: copies of the largest tensors would be felt.
enum Floats<'a> {
    F64(&'a [[u8; 8]]),
    F32(&'a [[u8; 4]]),
    F16(&'a [[u8; 2]]),
    BF16(&'a [[u8; 2]]),
    /// Of a tensor in memory, whatever its dtype.
    Wide(Vec<f64>),
}

impl<'a> Floats<'a> {
    /// None where these are no floats. Errors when there are not as many as the shape has places.
    fn of(raw: &'a RawTensor) -> Result<Option<Floats<'a>>> {
        let floats = match raw.dtype {
            Dtype::F64 => Floats::F64(raw.data.as_chunks().0),
            Dtype::F32 => Floats::F32(raw.data.as_chunks().0),
            Dtype::F16 => Floats::F16(raw.data.as_chunks().0),
            Dtype::BF16 => Floats::BF16(raw.data.as_chunks().0),
            _ => return Ok(None),
        };
        let (shape, length) = (&raw.shape, floats.len());
        if shape.iter().product::<usize>() != length {
            return Err(Error::Config(format!("{length} elements for shape {shape:?}")));
        }
        Ok(Some(floats))
    }

    fn len(&self) -> usize {
        match self {
            Floats::F64(words) => words.len(),
            Floats::F32(words) => words.len(),
            Floats::F16(words) | Floats::BF16(words) => words.len(),
            Floats::Wide(values) => values.len(),
        }
    }

    /// Rounded to f32 but for tensors in memory.
    fn at(&self, i: usize) -> f64 {
        match self {
            Floats::F64(words) => (f64::from_le_bytes(words[i]) as f32).into(),
            Floats::F32(words) => f32::from_le_bytes(words[i]).into(),
            Floats::F16(words) => engine::f16::from_le_bytes(words[i]).into(),
            Floats::BF16(words) => engine::bf16::from_le_bytes(words[i]).into(),
            Floats::Wide(values) => values[i],
        }
    }

    fn tensor(&self, shape: &[usize]) -> Result<Tensor> {
        let mut out = Tensor::empty(shape, DType::F32, Device::Cpu)?;
        out.fill_with(0..self.len(), |i| self.at(i))?;
        Ok(out)
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
    /// Those among them of whose names there are tensors, but of a dtype that is no floats.
    pub no_floats: Vec<(String, Dtype)>,
    /// Those among the loaded that hold an infinity or NaN.
    pub not_finite: Vec<String>,
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
        let (theirs, ours) = match (self.mismatched.first(), self.no_floats.first()) {
            (Some((name, ours, theirs)), _) => (format!("{name:?} of shape {theirs:?}"), format!("{ours:?}")),
            (_, Some((name, dtype))) => (format!("{name:?} in {dtype:?}"), "floats".into()),
            _ => (some(&self.unused), some(&self.missing)),
        };
        Err(Error::file(path, format!("no tensor matches this model: holds {theirs} and the like, not {ours}")))
    }
}

/// A line of counts, then one for every tensor that did not fit and one for all names of each other kind that is there.
impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let LoadReport { loaded, mismatched, missing, no_floats, not_finite, unused } = self;
        let (m, n, u) = (mismatched.len(), missing.len(), unused.len());
        write!(f, "{} tensors loaded, {m} mismatched, {n} missing, {u} unused", loaded.len())?;
        for (name, ours, theirs) in mismatched {
            write!(f, "\n  mismatched: {name}: {ours:?} here, {theirs:?} in the file")?;
        }
        for (name, dtype) in no_floats {
            write!(f, "\n  no floats: {name}: {dtype:?} in the file; save it as float32")?;
        }
        for (kind, names) in [("not finite", not_finite), ("missing", missing), ("unused", unused)] {
            if !names.is_empty() {
                write!(f, "\n  {kind}: {}", names.join(", ").escape_debug())?;
            }
        }
        Ok(())
    }
}

/// Copies the tensors whose names and shapes match into `store`. Names match with or without `module.` and `backbone.`, and
/// with `swin_vit` for `swinViT`.
pub fn import(store: &mut ParamStore, tensors: &StateDict) -> Result<LoadReport> {
    copy([store], "", tensors, |t| Ok((t.dims(), Ok(Floats::Wide(t.to_f64_vec()?)))))
}

/// As [`import`], from the file at `path`, into several stores, and into the parameters alone whose names start with `prefix`. Tensors are turned
/// to floats as they are written into their parameters. Of what there is beside floats, MONAI's index buffers follow from the window; the rest is unused.
pub fn import_weights<'s>(
    stores: impl IntoIterator<Item = &'s mut ParamStore>,
    prefix: &str,
    path: &Path,
    weights: &Weights,
) -> Result<LoadReport> {
    let copied = copy(stores, prefix, &weights.tensors, |raw| Ok((&raw.shape, Floats::of(raw)?.ok_or(raw.dtype))));
    let mut report = copied.map_err(|e| Error::file(path, e))?;
    report.unused.retain(|name| !name.ends_with(INDEX));
    Ok(report)
}

/// `read` gives a tensor's shape and values in PyTorch's layout, or the dtype that is no floats.
fn copy<'s, 'g, T>(
    stores: impl IntoIterator<Item = &'s mut ParamStore>,
    prefix: &str,
    given: &'g BTreeMap<String, T>,
    read: impl Fn(&'g T) -> Result<(&'g [usize], Result<Floats<'g>, Dtype>)>,
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
            let Some((_, t)) = left.remove(&bare) else {
                report.missing.push(name);
                continue;
            };
            match read(t)? {
                (shape, Ok(values)) => take(store, id, shape, &values, &mut report)?,
                (_, Err(dtype)) => {
                    report.no_floats.push((name.clone(), dtype));
                    report.missing.push(name);
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

fn take(store: &mut ParamStore, id: ParamId, shape: &[usize], values: &Floats, report: &mut LoadReport) -> Result<()> {
    let (name, ours) = (store.name(id).to_string(), permuted(store.dims(id), TO_PYTORCH));
    if shape == ours {
        let (place, finite) = (place(shape), Cell::new(true));
        store.fill(id, |i| {
            let value = values.at(place(i));
            finite.set(finite.get() && value.is_finite());
            value
        })?;
        report.not_finite.extend((!finite.get()).then(|| name.clone()));
        report.loaded.push(name);
    } else {
        report.mismatched.push((name, ours, shape.to_vec()));
    }
    Ok(())
}

fn permuted(dims: &[usize], order: [usize; 5]) -> Vec<usize> {
    if dims.len() == 5 { order.map(|axis| dims[axis]).to_vec() } else { dims.to_vec() }
}

/// Where the element at i of a weight in the engine's layout lies in one of this shape in PyTorch's.
fn place(shape: &[usize]) -> impl Fn(usize) -> usize + use<> {
    let (channels, window) = match *shape {
        [_, b, d, h, w] => (b, d * h * w),
        _ => (1, 1),
    };
    move |i| {
        let (channel, row) = (i % channels, i / channels);
        let (voxel, outer) = (row % window, row / window);
        (outer * channels + channel) * window + voxel
    }
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
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("weights.safetensors");
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
    }

    /// Bit for bit what a tensor that is permuted first leaves, in the masters and in what is rounded of them.
    #[test]
    fn values_of_every_float_dtype_are_taken_through_the_permutation() {
        let n = 4 * 5 * 3 * 2;
        let value = |i: usize| (i as f64 / 7.0 - 3.0) * 1.001f64.powi(i as i32);
        fn data<const N: usize>(n: usize, word: impl Fn(usize) -> [u8; N]) -> Cow<'static, [u8]> {
            (0..n).flat_map(word).collect()
        }
        for (dtype, data) in [
            (Dtype::F64, data(n, |i| value(i).to_le_bytes())),
            (Dtype::F32, data(n, |i| (value(i) as f32).to_le_bytes())),
            (Dtype::F16, data(n, |i| engine::f16::from_f64(value(i)).to_le_bytes())),
            (Dtype::BF16, data(n, |i| engine::bf16::from_f64(value(i)).to_le_bytes())),
        ] {
            let raw = RawTensor { dtype, shape: vec![4, 5, 3, 2, 1], data };
            let mut b = ParamStoreBuilder::default();
            let id = b.add("conv.weight", &[4, 3, 2, 1, 5], Role::Operand, Init::Zeros);
            let mut store = b.build(DType::BF16, Device::Cpu, 1).expect("store");
            let bits = |store: &ParamStore| {
                let (master, operand) = (store.value(id).expect("master"), store.operand(id).expect("operand"));
                (master.to_vec::<f32>().expect("f32"), operand.to_vec::<engine::bf16>().expect("bf16"))
            };
            let first = from_pytorch(&tensor(&raw).expect("tensor").expect("floats")).expect("permuted");
            store.set(id, &first.to_f64_vec().expect("values")).expect("set");
            let want = bits(&store);
            store.set(id, &[0.0; 120]).expect("set");
            let weights = Weights { tensors: [("conv.weight".to_string(), raw)].into(), ..Weights::default() };
            assert_eq!(
                import_weights([&mut store], "", Path::new("w.pt"), &weights).expect("import").loaded,
                ["conv.weight"]
            );
            assert_eq!(bits(&store), want, "{dtype:?}");
        }
    }

    #[test]
    fn equal_contents_are_equal_files() {
        let dir = tempfile::tempdir().expect("folder");
        let tensors = export(&store(1)).expect("export");
        let written = ["first.safetensors", "second.safetensors"].map(|name| {
            let said = ["step", "loss", "feature_size", "patch_merging"].map(|key| (key.to_string(), key.to_string()));
            save(&dir.path().join(name), &tensors, said.into()).expect("save");
            std::fs::read(dir.path().join(name)).expect("read")
        });
        assert!(written[0] == written[1]);
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
        let report = import_weights([&mut store(1)], "", Path::new("w.pt"), &weights).expect("import");
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

    #[test]
    fn a_tensor_that_is_no_floats_or_not_finite_is_said_to_be_so() {
        let raw = |dtype, data: Vec<u8>| RawTensor { dtype, shape: vec![4], data: data.into() };
        let path = Path::new("w.safetensors");
        let read = |raw| {
            let weights = Weights { tensors: [("module.bias".to_string(), raw)].into(), ..Weights::default() };
            import_weights([&mut store(1)], "", path, &weights).expect("import")
        };
        let report = read(raw(Dtype::I8, vec![1; 4]));
        assert_eq!(report.no_floats, [("backbone.bias".to_string(), Dtype::I8)]);
        assert!(report.missing.contains(&"backbone.bias".to_string()) && report.unused.is_empty());
        assert!(report.to_string().contains("backbone.bias: I8 in the file"), "{report}");
        let error = report.check(path).expect_err("nothing loaded").to_string();
        assert!(error.contains("\"backbone.bias\" in I8"), "{error}");
        let with =
            |last: f32| read(raw(Dtype::F32, [1.0, 2.0, 3.0, last].iter().flat_map(|v| v.to_le_bytes()).collect()));
        assert!(with(f32::MAX).not_finite.is_empty());
        for last in [f32::NAN, f32::INFINITY] {
            assert_eq!(with(last).not_finite, ["backbone.bias"]);
            assert!(with(last).to_string().contains("\n  not finite: backbone.bias\n"));
        }
    }

    #[test]
    fn names_of_a_file_stay_on_their_line() {
        let bad = "x\n\u{1b}[2Jy";
        let report = LoadReport { unused: vec![bad.into()], ..LoadReport::default() };
        assert!(report.to_string().ends_with("\n  unused: x\\n\\u{1b}[2Jy"), "{report}");
        let error = crate::swin_unetr::merging_order(bad).expect_err("no such order").to_string();
        assert!(!error.contains(char::is_control), "{error}");
    }

    #[test]
    fn errors_of_a_file_name_it_and_the_tensor() {
        let path = Path::new("w.pt");
        let file = |tensors: &[(&str, usize)]| {
            let raw = |axes| RawTensor { dtype: Dtype::F32, shape: vec![1; axes], data: vec![0; 4].into() };
            let tensors = tensors.iter().map(|&(name, axes)| (name.to_string(), raw(axes))).collect();
            Weights { tensors, ..Weights::default() }
        };
        let said = tensors(path, &file(&[("deep", 9)])).expect_err("nine axes").to_string();
        assert!(said.starts_with("w.pt: tensor \"deep\": "), "{said}");
        let report = import_weights([&mut store(1)], "", path, &file(&[("bias", 9)])).expect("import");
        assert_eq!(report.mismatched, [("backbone.bias".to_string(), vec![4], vec![1; 9])]);
        let twice = import_weights([&mut store(1)], "", path, &file(&[("bias", 1), ("module.bias", 1)]));
        let said = twice.expect_err("two for one").to_string();
        assert!(said.starts_with("w.pt: tensors \"bias\" and \"module.bias\""), "{said}");
    }
}
