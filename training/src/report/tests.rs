use super::*;
use crate::metrics::tests::{metrics, stalling};

/// A run's folder with these lines of metrics.
fn folder(lines: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("metrics.jsonl"), lines).expect("metrics");
    folder
}

fn line(step: u64) -> String {
    serde_json::to_string(&metrics(step, 1.0)).expect("JSON") + "\n"
}

fn report(folder: &tempfile::TempDir) -> String {
    let path = write(folder.path(), None).expect("report");
    std::fs::read_to_string(path).expect("page")
}

#[test]
fn a_page_holds_curves_settings_and_pictures_and_asks_for_nothing() {
    let folder = folder(&(1..=40).map(line).collect::<String>());
    std::fs::write(folder.path().join("config.toml"), "steps = 40\ngrid = 3\nout = \"runs/<b>\"\n").expect("config");
    std::fs::create_dir(folder.path().join("pictures")).expect("folder");
    std::fs::write(folder.path().join("pictures/overlap & logits.png"), b"png").expect("picture");
    std::fs::write(folder.path().join("pictures/notes.txt"), b"no picture").expect("text");
    let page = report(&folder);
    assert_eq!(page.matches("<path class=\"mean\"").count(), 11);
    assert!(page.contains("40 of 40 steps") && page.contains("always the most frequent base: 0.25"));
    assert!(page.contains("runs/&lt;b&gt;") && page.contains("data:image/png;base64,cG5n"));
    assert!(page.contains("overlap &amp; logits") && page.matches("<figure>").count() == 1);
    assert!(page.contains("Nothing in these numbers looks wrong"));
    assert!(!page.contains("http://") && !page.contains("https://"));
}

#[test]
fn rates_are_means_over_time_and_not_over_steps() {
    let lines: Vec<String> = stalling().iter().map(|m| serde_json::to_string(m).expect("JSON")).collect();
    let page = report(&folder(&lines.join("\n")));
    for (label, value) in [("Crops per second", "1.058"), ("Time waiting for data", "95.2 %")] {
        assert!(page.contains(&format!("<span>{label}</span><strong>{value}</strong>")), "{page}");
    }
    assert!(page.contains("crops per second<span class=\"reading\">1.058"), "{page}");
}

#[test]
fn a_level_is_named_outside_of_its_chart() {
    let page = report(&folder(&(1..=4).map(line).collect::<String>()));
    let drawings = page.split("<svg viewBox").skip(1).filter_map(|s| s.split("</article>").next());
    assert!(page.contains("<span class=\"level\">always") && page.contains("<line class=\"level\""));
    assert!(drawings.into_iter().all(|drawing| !drawing.contains("always")));
}

#[test]
fn unreadable_lines_are_counted_and_absent_values_said() {
    let old = line(2).replace(",\"base_cosine\":0.125", "");
    let page = report(&folder(&format!("{old}junk\n{{\"step\":3,\"loss\":")));
    assert!(page.contains("left out: 2.") && page.contains("2 of 2000000 steps"));
    assert!(page.contains("Mean cosine between bases</h3><p class=\"hint\">Not on record."));
    assert!(page.contains("No config.toml."));
}

#[test]
fn a_run_that_ended_before_its_first_step_has_a_page() {
    let folder = folder("");
    let path = write(folder.path(), Some("step 1: the loss is NaN")).expect("report");
    let page = std::fs::read_to_string(path).expect("page");
    assert!(page.contains("No step is on record yet.") && page.contains("step 1: the loss is NaN"));
}

#[test]
fn the_error_that_ended_a_run_is_told_again() {
    let folder = folder(&(1..=4).map(line).collect::<String>());
    std::fs::write(folder.path().join("ended.txt"), "step 5: the loss is NaN\n").expect("written");
    let page = report(&folder);
    assert!(page.contains("The run ended with an error: step 5: the loss is NaN<"), "{page}");
    assert!(!page.contains("Nothing in these numbers looks wrong"));
}

#[test]
fn a_folder_without_a_run_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let error = write(folder.path(), None).expect_err("no metrics").to_string();
    assert!(error.contains("metrics.jsonl") && error.contains("--out"), "{error}");
}
