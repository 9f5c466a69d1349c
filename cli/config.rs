//! `vocoe config`, and settings files whose mistakes are named.

use crate::{Error, Result, train, verbosity};
use clap::{Arg, Command};
use std::path::Path;
use toml::{Table, Value};

/// Show the settings that `vocoe train --config` reads.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print every setting with its default and what it means, as TOML
    #[arg(long, required = true)]
    print_default: bool,
}

const EXAMPLES: &str = "\
Examples:
  vocoe config --print-default > first.toml
  vocoe train --config first.toml --data DIR";

pub fn command(_: &Args) -> Result<bool> {
    verbosity::print(default_text()?)?;
    Ok(true)
}

/// The list of tables that no flag gives.
const SOURCES: &str = "sources";
const SOURCE_KEYS: [&str; 2] = ["path", "region"];

const SOURCES_TEXT: &str = "\
# Data of several regions, in place of data and region.
# [[sources]]
# path = \"/data/chest\"
# region = \"chest\"";

/// Settings without a default, or with one that others decide, each with an example.
const OPTIONAL: [(&str, &str); 12] = [
    ("data", "[\"/data/abdomen\"]"),
    ("region", "\"abdomen\""),
    ("exclude", "[\"*_pet*\"]"),
    ("feature_size", "48"),
    ("warmup", "5000"),
    ("grid", "3"),
    ("device", "\"auto\""),
    ("out", "\"runs/first\""),
    ("cache", "\"/data/cache\""),
    ("cache_bits", "16"),
    ("cache_size", "\"500GB\""),
    ("weights", "\"VoCo_B_SSL_head.pt\""),
];

/// Every setting under its flag's help: with its default, or commented out with an example.
fn default_text() -> Result<String> {
    let defaults = train::defaults()?;
    let mut blocks = vec!["# Settings of `vocoe train --config FILE`. Flags override them.".to_string()];
    blocks.extend(settings().map(|setting| block(&setting, &defaults)));
    blocks.push(SOURCES_TEXT.into());
    Ok(blocks.join("\n\n"))
}

fn block(setting: &Arg, defaults: &Table) -> String {
    let key = setting.get_id().as_str();
    let help = setting.get_help().map(ToString::to_string).unwrap_or_default();
    let example = OPTIONAL.iter().find(|(optional, _)| *optional == key);
    match (example, defaults.get(key)) {
        (Some((_, example)), _) => format!("# {help}\n# {key} = {example}"),
        // the value says what the help gives in brackets
        (None, Some(value)) => format!("# {}\n{key} = {value}", help.split(" [default").next().unwrap_or(&help)),
        (None, None) => format!("# {help}\n# {key} ="),
    }
}

/// The flags that are keys of the file too.
fn settings() -> impl Iterator<Item = Arg> {
    let command = train::augment_settings(Command::new("settings"));
    command.get_arguments().cloned().collect::<Vec<_>>().into_iter()
}

/// Reads a settings file whose keys are all known. Errors name the first that is not, and what may have been meant.
pub fn read(path: &Path) -> Result<Table> {
    let missing = "`vocoe config --print-default` prints settings to start from";
    let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, format!("{e}; {missing}")))?;
    let table: Table = text.parse().map_err(|e: toml::de::Error| Error::file(path, one_line(&e.to_string())))?;
    check(&table).map_err(|problem| Error::file(path, problem))?;
    Ok(table)
}

/// TOML's own message spans several lines, with a picture of the place, which is left out.
pub fn one_line(message: &str) -> String {
    let is_picture = |l: &str| l.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|');
    message.lines().map(str::trim).filter(|l| !l.is_empty() && !is_picture(l)).collect::<Vec<_>>().join("; ")
}

/// Errors name the first key that is no setting.
pub(crate) fn check(table: &Table) -> Result<(), String> {
    let mut known: Vec<String> = settings().map(|setting| setting.get_id().to_string()).collect();
    known.push(SOURCES.into());
    check_keys(table, &known)?;
    let sources = table.get(SOURCES).and_then(Value::as_array);
    let entries = sources.into_iter().flatten().filter_map(Value::as_table);
    entries.into_iter().try_for_each(|entry| check_keys(entry, &SOURCE_KEYS))
}

fn check_keys(table: &Table, known: &[impl AsRef<str>]) -> Result<(), String> {
    let is_known = |key: &str| known.iter().any(|k| k.as_ref() == key);
    let Some(key) = table.keys().find(|key| !is_known(key)) else { return Ok(()) };
    let advice = match similar(key, known) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => "`vocoe config --print-default` lists the keys".into(),
    };
    Err(format!("unknown key `{key}`; {advice}"))
}

/// The known name that is most like this one, if any is.
fn similar<'k>(name: &str, known: &'k [impl AsRef<str>]) -> Option<&'k str> {
    const ALIKE: f64 = 0.8;
    let likeness = |other: &str| strsim::jaro_winkler(&name.to_lowercase().replace('-', "_"), other);
    let best = known.iter().map(|k| (likeness(k.as_ref()), k.as_ref())).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness >= ALIKE).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        check(&text.parse().expect("TOML")).expect_err("an unknown key")
    }

    #[test]
    fn unknown_keys_are_refused_with_the_one_that_was_meant() {
        let cases = [
            ("step = 5", "unknown key `step`; did you mean `steps`?"),
            ("feature-size = 48", "unknown key `feature-size`; did you mean `feature_size`?"),
            ("learning = 1", "unknown key `learning`; `vocoe config --print-default` lists the keys"),
            ("source = []", "unknown key `source`; did you mean `sources`?"),
            ("[[sources]]\npath = 'x'\nregoin = 'chest'", "unknown key `regoin`; did you mean `region`?"),
            ("Seed = 1", "unknown key `Seed`; did you mean `seed`?"),
        ];
        cases.iter().for_each(|(text, want)| assert_eq!(refusal(text), *want));
        assert!(check(&Table::new()).is_ok());
    }

    #[test]
    fn the_default_text_holds_every_setting_and_its_own_reader_takes_it() {
        let text = default_text().expect("text");
        let table: Table = text.parse().expect("TOML");
        check(&table).expect("known keys");
        assert_eq!(table["steps"], Value::Integer(2_000_000));
        let text = text.replace(SOURCES_TEXT, "");
        for setting in settings() {
            let key = setting.get_id().as_str();
            let line = |l: &str| l.trim_start_matches("# ").starts_with(&format!("{key} ="));
            assert_eq!(text.lines().filter(|l| line(l)).count(), 1, "{key}\n{text}");
        }
        assert!(
            !text.lines().any(|l| l.ends_with('=')),
            "a setting without a default needs an example in OPTIONAL:\n{text}"
        );
        assert!(
            !text.lines().any(|l| l.trim() == "#" || l.starts_with("# [default")),
            "a setting without help:\n{text}"
        );
    }

    #[test]
    fn the_examples_of_optional_settings_are_taken_too() {
        let text = OPTIONAL.map(|(key, value)| format!("{key} = {value}\n")).concat();
        train::parse(text.parse().expect("TOML")).expect("settings");
    }
}
