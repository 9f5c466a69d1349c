//! The texts that `train` reads: settings, a `dataset.json`, a list of paths. The first byte chooses which.
#![no_main]

use fuzz::{FIXED, bounded, file, one_line};
use libfuzzer_sys::fuzz_target;
use vocoe::train::{self, Options};
use vocoe_fuzz as fuzz;

fuzz_target!(|input: &[u8]| {
    let Some((form, bytes)) = input.split_first() else { return };
    let limit = FIXED + 1024 * bytes.len();
    match form % 3 {
        0 => {
            let path = file("x.toml", bytes);
            bounded(limit, || {
                if let Ok(config) = train::fresh(Some(&path), Options::default())
                    && config.check().is_ok()
                {
                    config.to_toml().expect("what was accepted can be written");
                }
            });
        }
        form => {
            let path = file(["dataset.json", "list.txt"][usize::from(form == 2)], bytes);
            bounded(limit, || one_line(data::dataset::find(&path, &[]), fuzz::folder()));
        }
    }
});
