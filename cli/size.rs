//! Sizes in bytes, as people write them.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Bytes of `500GB`, `1.5TB` or a plain number.
pub fn parse(text: &str) -> Result<u64, String> {
    let units = [("KB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12), ("", 1.0)];
    let upper = text.trim().to_uppercase();
    let split = units.iter().find_map(|(unit, bytes)| Some((upper.strip_suffix(unit)?.trim().to_string(), bytes)));
    let bytes = split.and_then(|(number, unit)| Some(number.parse::<f64>().ok()? * unit));
    bytes.filter(|b| (1.0..1e18).contains(b)).map(|b| b as u64).ok_or_else(|| "write a size such as 500GB".into())
}

/// The same in a settings file, where a plain number may stand without quotes.
pub fn deserialize<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Number(u64),
        Text(String),
    }
    match Size::deserialize(value)? {
        Size::Number(bytes) => Ok(Some(bytes)),
        Size::Text(text) => parse(&text).map(Some).map_err(D::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes_take_units() {
        assert_eq!(["500GB", "1.5 tb", "7", "2kb"].map(parse), [500_000_000_000, 1_500_000_000_000, 7, 2000].map(Ok));
        assert!(["", "GB", "-1", "0", "inf", "nan", "5XB"].iter().all(|text| parse(text).is_err()));
    }
}
