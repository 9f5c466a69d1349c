//! Every committed reference case, through the library.

use autograd::ParamStoreBuilder;
use engine::{DType, Device};
use kernels::patch_merging::Order;
use models::weights::Weights;
use models::{SwinUnetr, SwinUnetrConfig, state_dict};
use std::path::Path;
use vocoe::verify::{self, Context, Verdict, case, made};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference");

fn context() -> Context {
    Context { device: Device::Cpu, dtype: DType::F32, folder: FOLDER.into(), ct: "no volumes here".into() }
}

#[test]
fn every_case_stays_within_its_bounds() {
    let mut failures = Vec::new();
    for file in verify::files(Path::new(FOLDER), "").expect("cases") {
        let outcome = verify::check(&file, &context());
        if outcome.failed() {
            failures.push(format!("{outcome:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_kind_that_needs_no_patient_has_a_case() {
    let kinds: Vec<String> = verify::files(Path::new(FOLDER), "")
        .expect("cases")
        .iter()
        .map(|file| case::Case::read(file, DType::F32).expect("case").kind)
        .collect();
    let absent: Vec<&str> = verify::kinds().filter(|k| *k != "preprocess" && !kinds.iter().any(|x| x == k)).collect();
    assert!(absent.is_empty(), "no case of kind {absent:?}");
}

#[test]
fn the_cases_fit_in_the_repository() {
    let size = |file: &std::path::PathBuf| file.metadata().expect("size").len();
    let total: u64 = verify::files(Path::new(FOLDER), "").expect("cases").iter().map(size).sum();
    assert!(total <= 20_000_000, "{total} bytes");
}

/// A case may name a PyTorch file, above its folder too.
#[test]
fn the_weights_of_a_case_may_be_a_checkpoint_of_pytorch() {
    let folder = tempfile::tempdir().expect("folder");
    let config =
        SwinUnetrConfig { in_channels: 1, feature_size: 12, out_channels: None, patch_merging: Order::Monai13 };
    let mut builder = ParamStoreBuilder::default();
    SwinUnetr::new(&mut builder, "", config).expect("network");
    let mut store = builder.build(DType::F32, Device::Cpu, 0).expect("parameters");
    made::fill(&mut store).expect("filled");
    let wrapped = |(name, tensor)| (format!("module.backbone.{name}"), tensor);
    let tensors = state_dict::export(&store).expect("exported").into_iter().map(wrapped).collect();
    state_dict::save(&folder.path().join("hash.pt"), &tensors, Default::default()).expect("saved");

    let cases = folder.path().join("cases");
    std::fs::create_dir(&cases).expect("folder");
    let stored = Path::new(FOLDER).join("swin_unetr_embedding.safetensors");
    let bytes = std::fs::read(&stored).expect("case");
    let mut case = Weights::parse(&stored, &bytes).expect("case");
    let attrs = case.metadata["attrs"].replace("hash-fill", "hash.pt");
    assert!(attrs.contains("hash.pt"));
    case.metadata.insert("attrs".into(), attrs);
    let file = cases.join("embedding.safetensors");
    case.save(&file).expect("saved");
    let outcome = verify::check(&file, &Context { folder: cases, ..context() });
    assert!(!outcome.failed(), "{outcome:?}");
}

/// The name of a passing case's tightest tensor, as `verify` would print it, is one of the case's.
#[test]
fn an_outcome_names_the_tensors_of_its_case() {
    let file = Path::new(FOLDER).join("linear.safetensors");
    let Verdict::Compared(all) = verify::check(&file, &context()).verdict else { panic!("not compared") };
    let names: Vec<&str> = all.iter().map(|c| c.tensor.as_str()).collect();
    assert_eq!(names, ["grad.bias", "grad.weight", "grad.x", "out.y"]);
}
