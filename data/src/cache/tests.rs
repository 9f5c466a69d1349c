use super::folder::temporary;
use super::*;
use crate::affine::IDENTITY;
use crate::dataset::Region;
use crate::geometry::Geometry;
use crate::loader::{Batch, Loader, LoaderConfig};
use crate::nifti;
use crate::prepare::{self, Shard};
use std::fs::File;
use std::time::{Duration, SystemTime};

const TINY: Sampling = Sampling { crops: 2, roi: 8, grid: 2, geometry: Geometry::Voco };

/// Files of noise, each of its own dims, beside an empty folder for a cache.
fn sources(folder: &Path, count: u64, region: Region) -> Vec<Source> {
    let write = |i: u64| {
        let path = folder.join(format!("{i}.nii.gz"));
        let dims = [70 + i as usize, 66, 65];
        let hu = |v: u64| (engine::random::uniform(i, v) * 400.0) as i16 - 150;
        let data = (0..dims.iter().product::<usize>() as u64).map(hu).collect();
        let mut affine = IDENTITY;
        (0..3).for_each(|a| affine[a][a] = 1.5);
        nifti::write_image(&path, &Volume { data, dims, affine }).unwrap();
        Source { weight: 1, ..Source::file(path, region) }
    };
    (0..count).map(write).collect()
}

fn open(folder: &Path, bits: Bits) -> Cache {
    Cache::open(folder, bits, None).unwrap()
}

fn entry_names(folder: &Path) -> Vec<String> {
    let all = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = all.filter(|name| name != "names").collect();
    names.sort();
    names
}

fn shard(folder: &Path) -> PathBuf {
    folder.join(&entry_names(folder)[0]).join("c/0/0/0")
}

fn batches(sources: &[Source], cache: Option<Cache>, threads: usize) -> Vec<Batch> {
    let config = LoaderConfig { sampling: TINY, threads, seed: 4, bad_share: 1.0, ..LoaderConfig::default() };
    let mut loader = Loader::cached(sources.to_vec(), config, cache.map(Arc::new)).unwrap();
    (0..4).map(|_| loader.next_batch().unwrap()).collect()
}

#[test]
fn an_entry_gives_back_any_box_as_the_quantised_volume_does() {
    let folder = tempfile::tempdir().unwrap();
    let cache_folder = folder.path().join("cache");
    for (bits, region) in [(Bits::Sixteen, Region::Abdomen), (Bits::Eight, Region::HeadNeck)] {
        let source = &sources(folder.path(), 1, region)[0];
        let cache = open(&cache_folder, bits);
        cache.prepare(source, &TINY).unwrap();
        let entry = cache.find(&cache.key(source, &TINY).unwrap()).unwrap().unwrap();
        let volume = cache.quantised(source, &TINY).unwrap();
        let sub_volume = volume.extract(TINY.place(volume.dims, 7).corner, TINY.extent());
        assert!(cache.sub_volume(source, &TINY, 7).unwrap() == Some(sub_volume));
        // A volume that is resized for its samples has no entry for others.
        let other = Sampling { roi: 64, ..TINY };
        assert!(cache.sub_volume(source, &other, 7).unwrap().is_some() == (region != Region::HeadNeck));
        let (corners, size) = ([[0, 0, 0], [30, 40, 10], [-5, 60, -3], [500, 0, 0], [-90, 0, 0]], [50, 21, 64]);
        assert!(entry.read([0; 3], volume.dims).as_ref() == Ok(&volume));
        for corner in corners {
            let read = entry.read(corner, size).unwrap();
            let want = volume.extract(corner, size);
            assert!((read.dims, &read.data) == (want.dims, &want.data), "{corner:?}");
        }
    }
}

#[test]
fn batches_are_the_same_up_to_quantisation_and_the_same_from_cold_warm_and_damaged_entries() {
    let folder = tempfile::tempdir().unwrap();
    for (bits, region) in
        [(Bits::Sixteen, Region::Abdomen), (Bits::Eight, Region::Chest), (Bits::Sixteen, Region::HeadNeck)]
    {
        let sources = sources(folder.path(), 3, region);
        let at = folder.path().join(format!("{region:?}"));
        let plain = batches(&sources, None, 1);
        let cold = batches(&sources, Some(open(&at, bits)), 2);
        assert_eq!(entry_names(&at).len(), 3);
        assert!(cold == batches(&sources, Some(open(&at, bits)), 1));
        std::fs::write(shard(&at), "nothing of use").unwrap();
        assert!(cold == batches(&sources, Some(open(&at, bits)), 2));
        let bound = (0.5 / bits.most()) as f32 + 2.0 * f32::EPSILON; // the grey shift rounds once more
        for (a, b) in plain.iter().zip(&cold) {
            assert_eq!((&a.labels, &a.centres, &a.names), (&b.labels, &b.centres, &b.names));
            let far = |a: &[f32], b: &[f32]| a.iter().zip(b).any(|(a, b)| (a - b).abs() > bound);
            assert!(!far(&a.crops, &b.crops) && !far(&a.bases, &b.bases));
        }
        assert!(plain != cold);
    }
}

#[test]
fn a_damaged_byte_is_noticed_by_its_checksum_and_mended() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("cache");
    let source = &sources(folder.path(), 1, Region::Abdomen)[0];
    let cache = open(&at, Bits::Sixteen);
    assert_eq!(cache.prepare(source, &TINY).unwrap().0, Prepared::Written);
    let good = std::fs::read(shard(&at)).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 3] ^= 1;
    let mut bad_index = good.clone();
    bad_index[good.len() - 10] ^= 1;
    let damaged = [bad, bad_index, good[..good.len() / 2].to_vec(), Vec::new()];
    for bytes in damaged {
        std::fs::write(shard(&at), bytes).unwrap();
        assert_eq!(cache.prepare(source, &TINY).unwrap().0, Prepared::Mended);
        let problems = cache.take_problems();
        assert!(
            problems.len() == 1 && problems[0].contains("0.nii.gz") && problems[0].contains("damaged"),
            "{problems:?}"
        );
        assert!(std::fs::read(shard(&at)).unwrap() == good);
    }
    for missing in [shard(&at), at.join(&entry_names(&at)[0]).join(entry::DESCRIPTION)] {
        std::fs::remove_file(missing).unwrap();
        assert_eq!(cache.prepare(source, &TINY).unwrap().0, Prepared::Mended);
    }
    assert_eq!(cache.prepare(source, &TINY).unwrap().0, Prepared::Found);
}

#[cfg(unix)]
#[test]
fn an_entry_that_cannot_be_read_for_a_while_stays() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("cache");
    let source = &sources(folder.path(), 1, Region::Abdomen)[0];
    let cache = open(&at, Bits::Sixteen);
    cache.prepare(source, &TINY).unwrap();
    let want = cache.draw(source, &TINY, 5).unwrap();
    let (shard, aside) = (shard(&at), folder.path().join("aside"));
    std::fs::rename(&shard, &aside).unwrap();
    std::os::unix::fs::symlink(&shard, &shard).unwrap(); // a link to itself cannot be opened, but is no missing file
    assert!(cache.draw(source, &TINY, 5).unwrap() == want);
    let problems = cache.take_problems();
    assert!(problems.len() == 1 && problems[0].contains("cannot be read now"), "{problems:?}");
    let error = cache.prepare(source, &TINY).unwrap_err();
    assert!(error.to_string().contains("0.nii.gz") && !cache.is_at_fault(&error), "{error}");
    std::fs::rename(&aside, &shard).unwrap();
    assert_eq!(cache.prepare(source, &TINY).unwrap().0, Prepared::Found);
}

#[test]
fn chunks_of_zeros_are_read_as_such() {
    let dims = [130, 65, 67];
    let solid = |i: usize| i / (dims[1] * dims[2]) >= 64 && i % dims[2] < 64;
    let data = (0..dims.iter().product()).map(|i| if solid(i) { (i % 251) as f32 / 255.0 } else { 0.0 }).collect();
    let volume = Volume { data, dims, affine: IDENTITY };
    let nothing = Volume { data: vec![0.0; volume.data.len()], ..volume.clone() };
    for volume in [volume, nothing] {
        let entry::Blobs { description, shard } = entry::encode(&volume, Bits::Eight, &Map::new()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("c/0/0")).unwrap();
        std::fs::write(folder.path().join(entry::SHARD), shard).unwrap();
        std::fs::write(folder.path().join(entry::DESCRIPTION), description).unwrap();
        let entry = Entry::of(entry::Files::open(folder.path()).unwrap().unwrap()).unwrap();
        let (corner, size) = ([60, 1, -2], [70, 64, 70]);
        assert!(entry.read([0; 3], dims).unwrap() == volume);
        assert!(entry.read(corner, size).unwrap().data == volume.extract(corner, size).data);
    }
}

/// Names of files may change; anything else makes the entry a damaged one, or changes nothing.
#[test]
fn no_changed_byte_of_a_description_gives_another_volume() {
    let volume = Volume { data: vec![0.5; 3 * 5 * 7], dims: [3, 5, 7], affine: IDENTITY };
    let entry = entry::encode(&volume, Bits::Eight, &Map::new()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("c/0/0")).unwrap();
    std::fs::write(folder.path().join(entry::SHARD), &entry.shard).unwrap();
    let read = |description: &[u8]| {
        std::fs::write(folder.path().join(entry::DESCRIPTION), description).unwrap();
        let entry = Entry::of(entry::Files::open(folder.path()).unwrap()?)?;
        entry.read([0; 3], entry.dims)
    };
    let want = read(&entry.description).unwrap();
    assert_eq!(want.dims, volume.dims);
    let mut refused = 0;
    for (i, bit) in (0..entry.description.len()).zip([1u8, 2, 16].into_iter().cycle()) {
        let mut changed = entry.description.clone();
        changed[i] ^= bit;
        match read(&changed) {
            Ok(volume) => assert!(volume == want, "byte {i} ^ {bit}"),
            Err(_) => refused += 1,
        }
    }
    // The rest is blanks between words, most of the text.
    assert!(refused > entry.description.len() / 4, "{refused} of {}", entry.description.len());
}

#[test]
fn two_writers_leave_one_whole_entry() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("cache");
    let source = &sources(folder.path(), 1, Region::Abdomen)[0];
    let (one, other) = (open(&at, Bits::Sixteen), open(&at, Bits::Sixteen));
    // both have found nothing there before either writes
    let volume = one.quantised(source, &TINY).unwrap();
    let key = one.key(source, &TINY).unwrap();
    one.write(&key, source, &volume, None).unwrap();
    other.write(&key, source, &volume, None).unwrap();
    assert_eq!(entry_names(&at), [format!("{key}.zarr")]);
    // a place that is taken by half an entry is no success
    let good = std::fs::read(shard(&at)).unwrap();
    std::fs::write(shard(&at), &good[..good.len() / 2]).unwrap();
    assert!(other.write(&key, source, &volume, None).is_err_and(|problem| problem.contains("not whole")));
    std::fs::write(shard(&at), good).unwrap();
    std::thread::scope(|scope| {
        for cache in [&one, &other] {
            scope.spawn(|| (0..5).for_each(|_| assert!(cache.prepare(source, &TINY).is_ok())));
        }
    });
    assert_eq!(entry_names(&at), [format!("{key}.zarr")]);
    assert_eq!(other.prepare(source, &TINY).unwrap().0, Prepared::Found);
}

#[test]
fn what_a_killed_writer_left_is_no_entry_and_goes_after_an_hour() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("cache");
    let source = &sources(folder.path(), 1, Region::Abdomen)[0];
    let cache = open(&at, Bits::Sixteen);
    let [old, new] = [1, 2].map(|i| temporary(&at.join(format!("{i:032x}.zarr"))));
    for left in [&old, &new] {
        std::fs::create_dir(left).unwrap();
        std::fs::write(left.join("zarr.json"), "{").unwrap();
    }
    assert_eq!(cache.prepare(source, &TINY).unwrap().0, Prepared::Written);
    File::open(&old).unwrap().set_modified(SystemTime::now() - Duration::from_secs(4000)).unwrap();
    open(&at, Bits::Sixteen);
    assert_eq!((old.exists(), new.exists()), (false, true));
}

#[test]
fn files_of_others_in_the_folder_stay_and_do_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("cache");
    let key = "0123456789abcdef".repeat(2);
    let theirs = ["atlas.zarr", "results.tmp", "notes.1-2-3.tmp", &format!("{key}.tmp"), &format!("{key}.1-2.tmp")];
    for name in theirs {
        std::fs::create_dir_all(at.join(name)).unwrap();
        std::fs::write(at.join(name).join("data"), [0; 100]).unwrap();
        File::open(at.join(name)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    let cache = Cache::open(&at, Bits::Eight, Some(1)).unwrap();
    cache.prepare(&sources(folder.path(), 1, Region::Abdomen)[0], &TINY).unwrap();
    assert!(theirs.iter().all(|name| at.join(name).join("data").exists()));
    assert_eq!(entry_names(&at).len(), theirs.len() + 1);
}

#[test]
fn the_least_recently_used_make_way_and_readers_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("cache");
    let sources = sources(folder.path(), 4, Region::Abdomen);
    let bytes = open(&at, Bits::Sixteen).prepare(&sources[0], &TINY).unwrap().1;
    let cache = Cache::open(&at, Bits::Sixteen, Some(bytes * 7 / 2)).unwrap();
    let places: Vec<PathBuf> = sources.iter().map(|s| at.join(cache.key(s, &TINY).unwrap() + ".zarr")).collect();
    for (i, source) in sources[..3].iter().enumerate() {
        cache.prepare(source, &TINY).unwrap();
        let then = SystemTime::now() - Duration::from_secs(1000 - i as u64);
        File::open(&places[i]).unwrap().set_modified(then).unwrap();
    }
    let entry = cache.find(&cache.key(&sources[1], &TINY).unwrap()).unwrap().unwrap(); // used: now the newest
    File::open(&places[0]).unwrap().set_modified(SystemTime::now()).unwrap();
    cache.prepare(&sources[3], &TINY).unwrap();
    assert_eq!([0, 1, 2, 3].map(|i: usize| places[i].exists()), [true, true, false, true]);
    evict::remove(&places[1]);
    assert!(!places[1].exists() && entry.read([0; 3], entry.dims).is_ok());
    assert_eq!(cache.prepare(&sources[1], &TINY).unwrap().0, Prepared::Written);
}

#[test]
fn keys_follow_content_and_settings_and_not_names() {
    let folder = tempfile::tempdir().unwrap();
    let sources = sources(folder.path(), 2, Region::Abdomen);
    let (wide, narrow) = (open(folder.path(), Bits::Sixteen), open(folder.path(), Bits::Eight));
    let key = |source: &Source, sampling: &Sampling| wide.key(source, sampling).unwrap();
    let first = key(&sources[0], &TINY);
    let copy = folder.path().join("copy.nii.gz");
    let Origin::File(path) = &sources[0].origin else { panic!("a file") };
    std::fs::copy(path, &copy).unwrap();
    assert_eq!(first, key(&Source::file(copy.clone(), Region::Abdomen), &TINY));
    // crops of another size or number come from the same volume, unless it is resized for them
    let other = Sampling { crops: 5, grid: 3, ..TINY };
    assert_eq!(first, key(&sources[0], &other));
    let head = Source::file(copy.clone(), Region::HeadNeck);
    assert_ne!(key(&head, &TINY), key(&head, &other));
    let all = [
        key(&sources[1], &TINY),
        key(&Source::file(copy.clone(), Region::Chest), &TINY),
        key(&head, &TINY),
        key(&sources[0], &Sampling { geometry: Geometry::Cvpr, ..TINY }),
        narrow.key(&sources[0], &TINY).unwrap(),
    ];
    assert!(!all.contains(&first) && all.iter().collect::<std::collections::BTreeSet<_>>().len() == all.len());
    std::fs::copy(folder.path().join("1.nii.gz"), &copy).unwrap();
    File::options().write(true).open(&copy).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(key(&Source::file(copy, Region::Abdomen), &TINY), all[0]);
}

#[test]
fn preparing_goes_on_where_it_stopped_and_says_what_was_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("cache");
    let mut all = sources(folder.path(), 4, Region::Abdomen);
    let bad = folder.path().join("bad.nii");
    std::fs::write(&bad, "no volume").unwrap();
    all.insert(1, Source::file(bad, Region::Abdomen));
    let run = |part: &[Source]| prepare::run(part, &TINY, &open(&at, Bits::Sixteen), 2, &|_| ()).0;
    assert_eq!(run(&all[..2]).written, 1);
    let report = run(&all);
    assert_eq!((report.written, report.found, report.mended), (3, 1, 0));
    assert!(report.skipped.len() == 1 && report.skipped[0].contains("bad.nii"), "{report:?}");
    assert!(report.bytes > 0 && report.float_bytes > report.bytes);
    let trained = batches(&all, Some(open(&at, Bits::Sixteen)), 2);
    assert_eq!(trained.iter().flat_map(|b| &b.rejected).count(), 1);
}

#[test]
fn a_cache_that_cannot_be_written_stops_preparing_but_not_training() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("cache");
    let sources = sources(folder.path(), 2, Region::Abdomen);
    let want = batches(&sources, Some(open(&at, Bits::Sixteen)), 1);
    let (first, second) = (open(&at, Bits::Sixteen), open(&at, Bits::Sixteen));
    std::fs::remove_dir_all(&at).unwrap();
    let bad = folder.path().join("bad.nii");
    std::fs::write(&bad, "no volume").unwrap();
    let with_bad = [vec![Source::file(bad, Region::Abdomen)], sources.clone()].concat();
    let (report, outcome) = prepare::run(&with_bad, &TINY, &first, 1, &|_| ());
    assert!(report.skipped.len() == 1 && report.skipped[0].contains("bad.nii"), "{report:?}");
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("cannot be written to") && !error.contains('\n'), "{error}");
    assert!(want == batches(&sources, Some(second), 1));
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(Cache::open(&file, Bits::Eight, None).is_err());
}

#[test]
fn a_cache_that_cannot_be_written_says_so_once_and_reads_no_file_twice_for_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("cache");
    let sources = sources(folder.path(), 2, Region::Abdomen);
    let cache = open(&at, Bits::Sixteen);
    std::fs::remove_dir_all(&at).unwrap();
    for source in sources.iter().chain(&sources) {
        cache.draw(source, &TINY, 3).unwrap();
    }
    let problems = cache.take_problems();
    assert!(problems.len() == 1 && problems[0].contains("make room"), "{problems:?}");
    let mut contents = cache.contents.lock().unwrap();
    assert_eq!(contents.len(), 2);
    contents.values_mut().for_each(|content| *content = 7); // as no file's content is
    drop(contents);
    let remembered = key::of(7, Region::Abdomen, &TINY, Bits::Sixteen);
    assert_eq!(cache.key(&sources[0], &TINY).unwrap(), remembered);
}

#[test]
fn shards_are_disjoint_and_complete() {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<Source> =
        (0..11).map(|i| Source::file(folder.path().join(format!("{i}.nii")), Region::Chest)).collect();
    let names = |part: Vec<Source>| part.iter().map(Source::name).collect::<Vec<_>>();
    for parts in 1..14 {
        let part = |i: usize| format!("{i}/{parts}").parse::<Shard>().unwrap().of(all.clone());
        let mut together: Vec<String> = (1..=parts).flat_map(|i| names(part(i))).collect();
        assert!((1..=parts).all(|i| part(i).len().abs_diff(all.len() / parts) <= 1));
        together.sort();
        let mut want = names(all.clone());
        want.sort();
        assert_eq!(together, want);
    }
    assert!(["0/2", "3/2", "1", "a/b", "1/0", ""].iter().all(|text| text.parse::<Shard>().is_err()));
}

#[cfg(feature = "object-store")]
#[test]
fn a_bucket_is_a_cache_as_a_folder_is() {
    use object_store::memory::InMemory;
    use object_store::{ObjectStore, ObjectStoreExt, path::Path as Key};
    let objects = Arc::new(InMemory::new());
    let bucket = || {
        let store: Box<dyn ObjectStore> = Box::new(objects.clone());
        let store = Box::new(bucket::Bucket::new(store, Key::from("caches/first")).unwrap());
        Cache::of(Path::new("s3://bucket/caches/first"), store, Bits::Sixteen, false)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let sources = sources(folder.path(), 3, Region::Abdomen);
    let want = batches(&sources, Some(open(&folder.path().join("cache"), Bits::Sixteen)), 1);
    assert!(want == batches(&sources, Some(bucket()), 2)); // cold
    assert!(want == batches(&sources, Some(bucket()), 1)); // warm
    let cache = bucket();
    let (found, bytes, _) = cache.prepare(&sources[0], &TINY).unwrap();
    assert_eq!((found, bytes), (Prepared::Found, cache.store.size(&cache.key(&sources[0], &TINY).unwrap())));
    let key = Key::from(format!("caches/first/{}.zarr", cache.key(&sources[0], &TINY).unwrap()));
    // a writer that was killed before it came to the description
    runtime.block_on(objects.delete(&key.clone().join("zarr.json"))).unwrap();
    assert_eq!(cache.prepare(&sources[0], &TINY).unwrap().0, Prepared::Written);
    runtime.block_on(objects.put(&key.join("c").join("0").join("0").join("0"), "of no use".into())).unwrap();
    assert_eq!(cache.prepare(&sources[0], &TINY).unwrap().0, Prepared::Mended);
    assert_eq!((cache.take_problems().len(), cache.prepare(&sources[0], &TINY).unwrap().0), (1, Prepared::Found));
}

#[cfg(feature = "object-store")]
#[test]
fn a_store_is_asked_once_and_told_nothing_but_awss_own_settings() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 1 << 16];
        let length = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    let settings = [
        ("AWS_ENDPOINT_URL", &endpoint[..]),
        ("AWS_REGION", "north-3"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("TOKEN", "not-for-them"),
        ("REGION", "elsewhere-1"),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    let open = |count| {
        let settings = settings.iter().take(count).map(|(k, v)| (k.to_string(), v.to_string()));
        bucket::Bucket::with("s3://bucket/caches", settings).map(drop)
    };
    assert!(open(6).is_err_and(|problem| !problem.contains('\n'))); // no http unless it is allowed
    assert_eq!(open(7), Ok(()));
    let heard = heard.join().unwrap();
    assert!(heard.starts_with("HEAD /bucket/caches/names/any ") && heard.contains("north-3"), "{heard}");
    assert!(!heard.contains("not-for-them") && !heard.contains("elsewhere"), "{heard}");
}

#[test]
fn volumes_that_make_way_are_no_success() {
    let folder = tempfile::tempdir().unwrap();
    let sources = sources(folder.path(), 3, Region::Abdomen);
    let run = |most| {
        let cache = Cache::open(&folder.path().join("cache"), Bits::Eight, most).unwrap();
        let (report, outcome) = crate::prepare::run(&sources, &TINY, &cache, 2, &|_| {});
        outcome.unwrap();
        ([report.written, report.found, report.evicted], report.bytes)
    };
    let (counts, one) = run(Some(1));
    assert_eq!(counts, [3, 0, 2]);
    let (counts, all) = run(None);
    assert_eq!(counts, [2, 1, 0]);
    assert!(one > 0 && 2 * one < all, "{one} {all}");
    assert_eq!(run(Some(1 << 30)), ([0, 3, 0], all));
}

#[test]
fn nothing_makes_way_for_an_entry_that_had_to_itself() {
    let folder = tempfile::tempdir().unwrap();
    let [entry, other] = [1, 2].map(|i| folder.path().join(format!("{i:032x}.zarr")));
    std::fs::create_dir(&entry).unwrap();
    std::fs::write(entry.join("c"), [0; 100]).unwrap();
    let budget = evict::Budget::new(folder.path(), 1);
    budget.grow(&other);
    assert!(entry.is_dir());
}

#[test]
fn a_full_cache_makes_room_for_more_than_one_entry_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let put = |i: usize, bytes: usize| {
        let entry = folder.path().join(format!("{i:032x}.zarr"));
        std::fs::create_dir(&entry).unwrap();
        std::fs::write(entry.join("c"), vec![0; bytes]).unwrap();
        File::open(&entry).unwrap().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(i as u64)).unwrap();
        entry
    };
    let count = || std::fs::read_dir(folder.path()).unwrap().count();
    (0..64).for_each(|i| drop(put(i, 100)));
    let budget = evict::Budget::new(folder.path(), 6400);
    let counts = [64, 65, 66, 67, 68].map(|i| {
        budget.grow(&put(i, 100));
        count()
    });
    assert_eq!(counts, [60, 61, 62, 63, 64]);
    budget.grow(&put(69, 100));
    assert_eq!(count(), 60);
    // the others make way for a large one, which stays
    budget.grow(&put(70, 7000));
    assert_eq!(count(), 1);
}

#[test]
fn places_that_are_no_cache_are_refused_with_a_remedy() {
    let refusal = |place: &str, most| {
        let opened = Cache::open(Path::new(place), Bits::Sixteen, most);
        opened.err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(refusal("s3://bucket/cache", Some(1)).contains("--cache-size"));
    let built = cfg!(feature = "object-store");
    let wrong = refusal(if built { "unknown://bucket" } else { "s3://bucket/cache" }, None);
    assert!(wrong.contains(if built { "s3://BUCKET/FOLDER" } else { "--features object-store" }), "{wrong}");
    assert!(!wrong.contains('\n'));
}
