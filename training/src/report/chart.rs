//! One curve as SVG: thin raw values, a thick running mean, a dashed level.

use crate::recent::Recent;
use std::fmt::Write;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 24.0;
/// Places along x that are drawn; more steps than that share places.
const PLACES: usize = 400;
/// Raw values beyond this share of them, at either end, may fall off the axis: one spike would flatten all the rest.
const CUT: f64 = 0.005;

pub struct Chart<'a> {
    pub title: &'a str,
    /// A value to compare with, and what it is.
    pub level: Option<(f64, &'a str)>,
    /// Steps of the running mean.
    pub window: usize,
}

/// A step's value, and how much it counts in a mean.
#[derive(Clone, Copy)]
pub struct Point {
    pub step: f64,
    pub value: f64,
    pub weight: f64,
}

/// What is drawn at one place: the last step there, the range of its raw values, the running mean.
struct Place {
    step: f64,
    low: f64,
    high: f64,
    last: f64,
    mean: f64,
}

/// From data to the coordinates of the picture.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
}

impl Chart<'_> {
    /// A card with the curve through `points`.
    pub fn draw(&self, points: &[Point]) -> String {
        let title = self.title;
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return format!("<article><h3>{title}</h3><p class=\"hint\">Not on record.</p></article>\n");
        };
        let places = places(points, self.window);
        let axes = Axes { x: (first.step, last.step), y: self.range(points, &places) };
        let newest = places.last().map_or(String::new(), |p| short(p.mean));
        format!(
            "<article><h3>{title}{name}<span class=\"reading\">{newest}</span></h3>\n\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\" data-points=\"{data}\">\n\
             {grid}<svg x=\"{LEFT}\" y=\"{TOP}\" width=\"{w}\" height=\"{h}\" viewBox=\"{LEFT} {TOP} {w} {h}\">\
             <path class=\"raw\" d=\"{raw}\"/><path class=\"mean\" d=\"{mean}\"/>{level}</svg>\n\
             <g class=\"cursor\" visibility=\"hidden\"><line y1=\"{TOP}\" y2=\"{floor}\"/><circle r=\"3.5\"/></g>\n\
             </svg></article>\n",
            data = data(&axes, &places),
            grid = axes.grid(),
            w = WIDTH - LEFT - RIGHT,
            h = HEIGHT - TOP - BOTTOM,
            floor = HEIGHT - BOTTOM,
            name = self.level.map_or(String::new(), level_name),
            level = self.level.map_or(String::new(), |(level, _)| axes.level(level)),
            raw = path(places.iter().flat_map(|p| [(p.step, p.low), (p.step, p.high)]).map(|p| axes.at(p))),
            mean = path(places.iter().map(|p| axes.at((p.step, p.mean)))),
        )
    }

    /// Holds the means, the level, and nearly all raw values; 0 too, where that costs little room.
    fn range(&self, points: &[Point], places: &[Place]) -> (f64, f64) {
        let mut sorted: Vec<f64> = points.iter().map(|p| p.value).collect();
        sorted.sort_by(f64::total_cmp);
        let cut = (sorted.len() as f64 * CUT) as usize;
        let raw = [sorted[cut], sorted[sorted.len() - 1 - cut]];
        let shown = || raw.into_iter().chain(places.iter().map(|p| p.mean)).chain(self.level.map(|l| l.0));
        let (low, high) = (shown().fold(f64::MAX, f64::min), shown().fold(f64::MIN, f64::max));
        let low = if low > 0.0 && low < 0.4 * high { 0.0 } else { low };
        if high > low {
            return (low, high + 0.04 * (high - low));
        }
        let room = if low == 0.0 { 1.0 } else { 0.1 * low.abs() };
        (low - room, high + room)
    }
}

impl Axes {
    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let share = |v: f64, (low, high): (f64, f64)| if high > low { (v - low) / (high - low) } else { 0.5 };
        let x = LEFT + share(x, self.x) * (WIDTH - LEFT - RIGHT);
        (x, TOP + (1.0 - share(y, self.y)) * (HEIGHT - TOP - BOTTOM))
    }

    fn grid(&self) -> String {
        let (mut grid, floor, end) = (String::new(), HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in ticks(self.y, 4) {
            let (y, label) = (self.at((self.x.0, tick)).1, short(tick));
            grid += &format!("<line class=\"grid\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
            grid += &format!("<text class=\"y\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>\n", LEFT - 7.0, y + 4.0);
        }
        for tick in ticks(self.x, 5).into_iter().filter(|t| t.fract() == 0.0) {
            let (x, label) = (self.at((tick, self.y.0)).0, short(tick));
            grid += &format!("<text class=\"x\" x=\"{x:.1}\" y=\"{:.1}\">{label}</text>\n", floor + 17.0);
        }
        grid
    }

    fn level(&self, level: f64) -> String {
        let (y, end) = (self.at((self.x.0, level)).1, WIDTH - RIGHT);
        format!("<line class=\"level\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>")
    }
}

/// Beside the title, where no curve can run through it.
fn level_name((level, name): (f64, &str)) -> String {
    format!("<span class=\"level\">{name}: {}</span>", short(level))
}

/// Means over the newest `window` points.
pub fn running_mean(points: &[Point], window: usize) -> Vec<f64> {
    let (mut values, mut weights) = (Recent::new(window), Recent::new(window));
    let mean = |p: &Point| {
        values.push(p.weight * p.value);
        weights.push(p.weight);
        values.sum() / weights.sum()
    };
    points.iter().map(mean).collect()
}

fn places(points: &[Point], window: usize) -> Vec<Place> {
    let means = running_mean(points, window);
    let size = points.len().div_ceil(PLACES).max(1);
    let place = |(points, means): (&[Point], &[f64])| {
        let (last, mean) = (points.last()?, means.last()?);
        let low = points.iter().map(|p| p.value).fold(f64::MAX, f64::min);
        let high = points.iter().map(|p| p.value).fold(f64::MIN, f64::max);
        Some(Place { step: last.step, low, high, last: last.value, mean: *mean })
    };
    points.chunks(size).zip(means.chunks(size)).filter_map(place).collect()
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (i, (x, y)) in points.enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(path, "{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" });
    }
    path
}

/// For the script: `x,y,text` of each place, `;` between them.
fn data(axes: &Axes, places: &[Place]) -> String {
    let point = |p: &Place| {
        let (x, y) = axes.at((p.step, p.mean));
        format!("{x:.1},{y:.1},step {}: {} (mean {})", p.step, short(p.last), short(p.mean))
    };
    places.iter().map(point).collect::<Vec<_>>().join(";")
}

/// About `count` round numbers within the range: 1, 2 or 5 times a power of ten apart.
fn ticks((low, high): (f64, f64), count: usize) -> Vec<f64> {
    let rough = (high - low) / count as f64;
    if !(rough.is_finite() && rough > 0.0) {
        return vec![low];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|f| f * power).find(|s| *s >= rough).unwrap_or(rough);
    let first = (low / step).ceil();
    (0..=2 * count).map(|i| (first + i as f64) * step).take_while(|t| *t <= high).collect()
}

/// Four digits that count, without trailing zeros.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e7).contains(&size) {
        let text = format!("{value:.2e}");
        return text.replace(".00e", "e").replace("0e", "e");
    }
    let digits = if size == 0.0 { 0 } else { (3 - size.log10().floor() as i64).clamp(0, 6) };
    let text = format!("{value:.*}", digits as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let got = [0.0, 1.0, 0.25, 1.23456, 12345.6, 1e-4, 1.5e-5, -0.0456789, 2e6].map(short);
        assert_eq!(got, ["0", "1", "0.25", "1.235", "12346", "1e-4", "1.5e-5", "-0.04568", "2000000"]);
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks((0.0, 1.0), 4), [0.0, 0.5, 1.0]);
        assert_eq!(ticks((3.0, 3.0), 4), [3.0]);
        let far = ticks((1.0, 2_000_000.0), 5);
        assert_eq!(far, [500_000.0, 1_000_000.0, 1_500_000.0, 2_000_000.0]);
    }

    fn point((step, value): (f64, f64)) -> Point {
        Point { step, value, weight: 1.0 }
    }

    #[test]
    fn means_start_with_what_there_is_and_follow_the_weights() {
        let mut points = [(1.0, 1.0), (2.0, 3.0), (3.0, 5.0), (4.0, 7.0)].map(point);
        assert_eq!(running_mean(&points, 2), [1.0, 2.0, 4.0, 6.0]);
        points[3].weight = 3.0;
        assert_eq!(running_mean(&points, 2), [1.0, 2.0, 4.0, 6.5]);
    }

    #[test]
    fn a_spike_neither_squeezes_the_axis_nor_gets_lost_in_a_long_run() {
        let mut points: Vec<Point> = (0..100_000).map(|i| point((i as f64, 1.0 + (i % 7) as f64 / 100.0))).collect();
        points[50_000].value = 1000.0;
        let chart = Chart { title: "t", level: None, window: 3000 };
        let places = places(&points, chart.window);
        assert!(places.len() <= PLACES && places.iter().any(|p| p.high == 1000.0));
        assert!(chart.range(&points, &places).1 < 2.0);
        assert!(chart.draw(&points).len() < 50_000);
    }

    #[test]
    fn one_point_and_huge_values_make_finite_coordinates() {
        for points in [&[(1.0, 0.0)][..], &[(1.0, 5.0)], &[(1.0, -3e38), (2.0, 3e38)]] {
            let points: Vec<Point> = points.iter().copied().map(point).collect();
            let svg = Chart { title: "t", level: Some((0.25, "chance")), window: 5 }.draw(&points);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
