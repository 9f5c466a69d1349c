//! Where volumes come from: a folder, a list file, a `dataset.json`, or memory.

use crate::error::{Error, Result};
use crate::nifti;
use crate::preprocess::{self, Settings};
use crate::sample::Sampling;
use crate::transform;
use crate::volume::Volume;
use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use walkdir::WalkDir;

/// Names that end like this (before the extension) are labels, not images.
const LABEL_ENDINGS: [&str; 6] = ["_label", "_labels", "_seg", "_mask", "_gtv", "_oar"];
/// Names that begin like this are labels: KiTS's `segmentation`, LiTS's `segmentation-0`.
const LABEL_BEGINNING: &str = "segmentation";
/// Names that are one of these words are labels, as is a word before digits, `-` or `_`: BTCV's `label0001`.
const LABEL_WORDS: [&str; 2] = ["label", "mask"];
/// What is in folders of these names, in lower case, are labels: MSD's and nnU-Net's, BTCV's, and those of TotalSegmentator.
const LABEL_FOLDERS: [&str; 9] =
    ["label", "labels", "labelstr", "labelsts", "mask", "masks", "seg", "segmentation", "segmentations"];

/// Part of the body: decides the chain's settings and how often a volume is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Region {
    Abdomen,
    Chest,
    HeadNeck,
}

impl Region {
    /// Spacing, window and smallest size (64³) of the reference recipe.
    pub fn settings(self) -> Settings {
        let (spacing, window) = match self {
            Region::Abdomen | Region::HeadNeck => ([1.5, 1.5, 1.5], [-175.0, 250.0]),
            Region::Chest => ([1.25, 1.25, 5.0], [-1000.0, 500.0]),
        };
        Settings { spacing: Some(spacing), window, foreground: 0.0, pad: [64; 3] }
    }

    /// Whether the whole volume is resized to the sub-volume, instead of cropped.
    pub fn resize(self) -> bool {
        self == Region::HeadNeck
    }

    /// How many times an epoch draws each volume.
    pub fn weight(self) -> usize {
        match self {
            Region::Abdomen | Region::HeadNeck => 8,
            Region::Chest => 1,
        }
    }
}

impl FromStr for Region {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "abdomen" => Ok(Region::Abdomen),
            "chest" => Ok(Region::Chest),
            "headneck" => Ok(Region::HeadNeck),
            _ => Err("use abdomen, chest or headneck".into()),
        }
    }
}

/// A volume to draw samples from.
#[derive(Debug, Clone)]
pub struct Source {
    pub origin: Origin,
    pub region: Region,
    /// Times per epoch; 0 leaves the volume out.
    pub weight: usize,
}

#[derive(Debug, Clone)]
pub enum Origin {
    /// A NIfTI file in HU.
    File(PathBuf),
    /// A volume that went through the chain already, intensities in `[0, 1]`.
    Memory { name: String, volume: Arc<Volume> },
}

impl Source {
    /// A file with its region's weight.
    pub fn file(path: PathBuf, region: Region) -> Source {
        Source { origin: Origin::File(path), region, weight: region.weight() }
    }

    /// A processed volume in memory, drawn once per epoch.
    pub fn memory(name: String, volume: Volume, region: Region) -> Source {
        Source { origin: Origin::Memory { name, volume: Arc::new(volume) }, region, weight: 1 }
    }

    /// The volume as far as nothing is random: processed, and resized to the sub-volume where region or geometry say so.
    ///
    /// Errors: what [`preprocess::run`] refuses.
    pub fn load(&self, sampling: &Sampling) -> Result<Arc<Volume>> {
        let (geometry, extent) = (sampling.geometry, sampling.extent());
        let volume = match &self.origin {
            Origin::File(path) => Arc::new(preprocess::run(path, None, &geometry.settings(self.region))?.image),
            Origin::Memory { volume, .. } => volume.clone(),
        };
        let resize = geometry.resize(self.region) && volume.dims != extent;
        Ok(if resize { Arc::new(transform::resize(&volume, extent)) } else { volume })
    }

    /// The path or name that reports and errors show.
    pub fn name(&self) -> String {
        match &self.origin {
            Origin::File(path) => path.display().to_string(),
            Origin::Memory { name, .. } => name.clone(),
        }
    }
}

/// Images that were found, sorted in a folder, in the order given otherwise, and what was left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    pub images: Vec<PathBuf>,
    /// Files left out because their names are like labels', or because they are in a folder of labels.
    pub labels: usize,
    /// Files left out by an exclusion.
    pub excluded: usize,
    /// Listed files that do not exist, and links to none.
    pub missing: Vec<PathBuf>,
}

impl Found {
    /// Every image as a source of `region`, with its weight.
    pub fn sources(&self, region: Region) -> Vec<Source> {
        self.images.iter().map(|path| Source::file(path.clone(), region)).collect()
    }
}

/// Finds the images of a folder (every NIfTI file below it), of a `dataset.json` (MSD or nnU-Net), or of a list file (one path a
/// line, relative to the list or to the folder above it; `#` at a line's start or after a blank begins a comment). A glob in
/// `exclude` is matched against the path below the folder, against the path as listed, and against the file name.
///
/// Errors: unreadable folders or lists, malformed globs or JSON, and no image at all.
pub fn find(path: &Path, exclude: &[String]) -> Result<Found> {
    let globs = globs(exclude)?;
    let found = if path.is_dir() {
        folder(path, &globs)?
    } else if path.extension().is_some_and(|e| e == "json") {
        listed(path, json(path)?, &globs)
    } else if nifti::is_volume(path) {
        listed(path, vec![path.file_name().map(PathBuf::from).unwrap_or_default()], &globs)
    } else {
        listed(path, lines(path)?, &globs)
    };
    if found.images.is_empty() {
        let (labels, excluded, missing) = (found.labels, found.excluded, found.missing.len());
        let first = found.missing.first().map(|p| format!(", first {}", p.display())).unwrap_or_default();
        let problem = format!("holds no image ({labels} labels, {excluded} excluded, {missing} missing{first})");
        return Err(Error::file(path, problem, "name a folder, list or dataset.json with .nii or .nii.gz files"));
    }
    Ok(found)
}

fn globs(exclude: &[String]) -> Result<GlobSet> {
    let bad =
        |e: globset::Error| Error::setting(format!("exclusion: {e}"), "write a glob such as '*_pet*' or 'old/**'");
    let mut set = GlobSetBuilder::new();
    for glob in exclude {
        set.add(Glob::new(glob).map_err(bad)?);
    }
    set.build().map_err(bad)
}

fn excluded(globs: &GlobSet, path: &Path) -> bool {
    globs.is_match(path) || path.file_name().is_some_and(|name| globs.is_match(name))
}

fn folder(root: &Path, globs: &GlobSet) -> Result<Found> {
    let mut found = Found::default();
    for entry in WalkDir::new(root).follow_links(true).sort_by_file_name() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                found.missing.extend(dead_link(root, error)?);
                continue;
            }
        };
        if !nifti::is_volume(entry.path()) || entry.file_type().is_dir() {
            continue;
        }
        let below = entry.path().strip_prefix(root).unwrap_or(entry.path());
        if excluded(globs, below) {
            found.excluded += 1;
        } else if is_label(below) {
            found.labels += 1;
        } else {
            found.images.push(entry.into_path());
        }
    }
    found.images.sort();
    Ok(found)
}

/// A link to a volume that is not there, if the walk stumbled upon one: none where it leads to a folder around it, or is no volume's.
///
/// Errors: anything else.
fn dead_link(root: &Path, error: walkdir::Error) -> Result<Option<PathBuf>> {
    let path = error.path().unwrap_or(root).to_owned();
    let is_dead = path.is_symlink() && error.io_error().is_some_and(|e| e.kind() == ErrorKind::NotFound);
    match error.loop_ancestor() {
        Some(_) => Ok(None),
        None if is_dead => Ok(nifti::is_volume(&path).then_some(path)),
        None => Err(Error::io(&path, error.into(), "check the folder and its permissions")),
    }
}

/// Paths relative to the file that lists them, or to the folder above it, where lists stand in a folder of their own. Nothing is
/// taken for a label here: the list says what to read.
fn listed(list: &Path, paths: Vec<PathBuf>, globs: &GlobSet) -> Found {
    let beside = list.parent().unwrap_or(Path::new(""));
    let mut found = Found::default();
    for path in paths {
        if excluded(globs, &path) {
            found.excluded += 1;
            continue;
        }
        let places = [beside.join(&path), beside.join("..").join(&path)];
        match places.iter().find(|place| place.exists()) {
            Some(place) => found.images.push(place.clone()),
            None => found.missing.push(places[0].clone()),
        }
    }
    found
}

/// The name up to the first of the NIfTI extensions is like a label's, or a folder on the way is one of labels.
fn is_label(path: &Path) -> bool {
    let folders = path.parent().into_iter().flat_map(Path::iter);
    if folders.map(|f| f.to_string_lossy().to_lowercase()).any(|f| LABEL_FOLDERS.contains(&&*f)) {
        return true;
    }
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let stem = name.strip_suffix(".gz").unwrap_or(&name);
    let stem = stem.rsplit_once('.').map_or(stem, |(stem, _)| stem);
    let after_word = |word: &&str| stem.strip_prefix(word).map(|rest| rest.bytes().next());
    let is_word = |next| matches!(next, None | Some(b'0'..=b'9' | b'-' | b'_'));
    LABEL_ENDINGS.iter().any(|end| stem.ends_with(end))
        || stem.starts_with(LABEL_BEGINNING)
        || LABEL_WORDS.iter().filter_map(after_word).any(is_word)
}

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|e| Error::io(path, e, "name a folder, a list of paths or a dataset.json that can be read"))
}

fn lines(path: &Path) -> Result<Vec<PathBuf>> {
    let content = text(path)?;
    let lines = content.lines().map(without_comment);
    Ok(lines.filter(|line| !line.is_empty()).map(PathBuf::from).collect())
}

/// `#` is also part of names: only at the start or after a blank it begins a comment.
fn without_comment(line: &str) -> &str {
    let begins = |at: &usize| line[..*at].chars().next_back().is_none_or(char::is_whitespace);
    let comment = line.match_indices('#').map(|(at, _)| at).find(begins);
    line[..comment.unwrap_or(line.len())].trim()
}

/// The training images of a `dataset.json`: MSD's `"training"` list, or nnU-Net's `imagesTr` folder beside it, where every case
/// has one file per channel and `_0000` is the first.
fn json(path: &Path) -> Result<Vec<PathBuf>> {
    let malformed = |problem: String| Error::file(path, problem, "see the MSD or nnU-Net description of dataset.json");
    let json: Value = serde_json::from_str(&text(path)?).map_err(|e| malformed(e.to_string()))?;
    if let Some(training) = json["training"].as_array() {
        let image = |entry: &Value| entry.as_str().or(entry["image"].as_str()).map(PathBuf::from);
        return training
            .iter()
            .map(|e| image(e).ok_or_else(|| malformed(format!("training entry {e} names no image"))))
            .collect();
    }
    let Some(ending) = json["file_ending"].as_str() else {
        return Err(malformed("has neither \"training\" nor \"file_ending\"".into()));
    };
    let images = path.parent().unwrap_or(Path::new("")).join("imagesTr");
    let entries = std::fs::read_dir(&images).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let entries = entries.map_err(|e| Error::io(&images, e, "put imagesTr beside the dataset.json"))?;
    let first_channel = format!("_0000{ending}");
    let names = entries.iter().map(|e| e.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(&first_channel) && !name.starts_with("._")).collect();
    names.sort();
    Ok(names.into_iter().map(|name| Path::new("imagesTr").join(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        root
    }

    fn names(found: &Found, root: &tempfile::TempDir) -> Vec<String> {
        let relative = |p: &PathBuf| p.strip_prefix(root.path()).unwrap().to_string_lossy().into_owned();
        found.images.iter().map(relative).collect()
    }

    #[test]
    fn a_folder_yields_its_images_sorted_without_labels_and_exclusions() {
        let files = [
            "b/2.nii.gz",
            "a.nii",
            "b/1.hdr",
            "b/1.img",
            "b/2_seg.nii.gz",
            "c_labels.nii",
            "d_oar.hdr",
            "x.txt",
            "b/pet_3.nii",
            "old/z.nii",
        ];
        let root = tree(&files);
        let found = find(root.path(), &["pet_*".into(), "old/**".into()]).unwrap();
        assert_eq!(names(&found, &root), ["a.nii", "b/1.hdr", "b/2.nii.gz"]);
        assert_eq!((found.labels, found.excluded, found.missing.len()), (3, 2, 0));
    }

    #[test]
    fn folders_of_labels_are_left_out_unless_they_are_asked_for() {
        let files =
            ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "s1/ct.nii.gz", "s1/Segmentations/liver.nii.gz", "masks/b.nii"];
        let root = tree(&files);
        let found = find(root.path(), &[]).unwrap();
        assert_eq!(names(&found, &root), ["imagesTr/a.nii.gz", "s1/ct.nii.gz"]);
        assert_eq!(found.labels, 3);
        assert_eq!(find(&root.path().join("labelsTr"), &[]).unwrap().images.len(), 1);
    }

    #[test]
    fn names_of_labels_are_told_from_those_of_images() {
        let labels = [
            "case_00000/segmentation.nii.gz",
            "segmentation-0.nii",
            "Training/label/img0001.nii.gz",
            "label0001.nii.gz",
            "Mask.nii",
            "mask_3.nii",
            "label-3.hdr",
            "MASK/a.nii",
            "Seg/b.nii",
        ];
        let images = [
            "case_00000/imaging.nii.gz",
            "volume-0.nii",
            "Training/img/img0001.nii.gz",
            "labelled_ct.nii.gz",
            "masked.nii",
            "unlabel/a.nii",
            "segments/a.nii",
            "seg0001.nii",
            "ct_segmentation-free.nii",
        ];
        let wrong: Vec<_> = labels.iter().filter(|l| !is_label(l.as_ref())).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        let wrong: Vec<_> = images.iter().filter(|i| is_label(i.as_ref())).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[cfg(unix)]
    #[test]
    fn dead_links_and_loops_do_not_end_the_search() {
        let root = tree(&["a.nii.gz", "sub/b.nii"]);
        let link = |from: &str, to: &str| std::os::unix::fs::symlink(to, root.path().join(from)).unwrap();
        link("c.nii.gz", "/no/such/volume");
        link("readme.txt", "/no/such/text");
        link("sub/self", "..");
        let found = find(root.path(), &[]).unwrap();
        assert_eq!(names(&found, &root), ["a.nii.gz", "sub/b.nii"]);
        assert_eq!(found.missing, [root.path().join("c.nii.gz")]);
        assert!(find(&root.path().join("readme.txt"), &[]).is_err());
    }

    #[test]
    fn a_list_is_relative_to_itself_and_keeps_its_order() {
        let root = tree(&["lists/x.txt", "ct/b.nii.gz", "ct/a_mask.nii.gz", "ct/CT#59.nii"]);
        let list = root.path().join("lists/x.txt");
        let lines = "# header\n../ct/b.nii.gz  # good\n\nct/a_mask.nii.gz\n../ct/none.nii\nct/CT#59.nii\t#59\n #\n";
        std::fs::write(&list, lines).unwrap();
        let found = find(&list, &[]).unwrap();
        assert_eq!(found.images.len(), 3);
        assert!(found.images[0].ends_with("ct/b.nii.gz") && found.images[2].ends_with("ct/CT#59.nii"));
        assert_eq!(found.missing.len(), 1);
    }

    #[test]
    fn msd_and_nnunet_descriptions_are_understood() {
        let images = ["b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz", "._a_0000.nii.gz"];
        let root = tree(&images.map(|name| format!("imagesTr/{name}")).each_ref().map(|path| &path[..]));
        let json = root.path().join("dataset.json");
        let read = |text: &str| {
            std::fs::write(&json, text).unwrap();
            find(&json, &[]).map(|found| names(&found, &root)).map_err(|e| e.to_string())
        };
        let msd = r#"{"training": [{"image": "imagesTr/b_0000.nii.gz", "label": "x"}, "imagesTr/a_0001.nii.gz"]}"#;
        assert_eq!(read(msd).unwrap(), ["imagesTr/b_0000.nii.gz", "imagesTr/a_0001.nii.gz"]);
        assert_eq!(
            read(r#"{"file_ending": ".nii.gz"}"#).unwrap(),
            ["imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz"]
        );
        assert!(read(r#"{"training": [{"label": "x"}]}"#).unwrap_err().contains("names no image"));
        assert!(read("{}").unwrap_err().contains("neither"));
        assert!(read("{").unwrap_err().contains("dataset.json"));
    }

    #[test]
    fn nothing_to_read_is_an_error() {
        let root = tree(&["a_seg.nii", "readme.txt"]);
        assert!(find(root.path(), &[]).unwrap_err().to_string().contains("1 labels"));
        assert!(find(&root.path().join("absent"), &[]).is_err());
        assert!(find(root.path(), &["[".into()]).is_err());
    }
}
