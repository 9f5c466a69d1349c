//! A canvas of coloured pixels. Whatever lies outside it is left out.

use super::font;
use crate::{Error, Result};
use std::path::Path;

pub type Colour = [u8; 3];

/// Pixels from `left, top` up to, not including, `right, bottom`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    pub left: i64,
    pub top: i64,
    pub right: i64,
    pub bottom: i64,
}

impl Rect {
    pub fn new(left: i64, top: i64, width: i64, height: i64) -> Self {
        Rect { left, top, right: left + width, bottom: top + height }
    }

    pub fn width(&self) -> i64 {
        self.right - self.left
    }

    pub fn height(&self) -> i64 {
        self.bottom - self.top
    }

    /// Smaller by `by` pixels on every side.
    pub fn inset(&self, by: i64) -> Rect {
        Rect { left: self.left + by, top: self.top + by, right: self.right - by, bottom: self.bottom - by }
    }

    fn cut(&self, other: Rect) -> Rect {
        Rect {
            left: self.left.max(other.left),
            top: self.top.max(other.top),
            right: self.right.min(other.right),
            bottom: self.bottom.min(other.bottom),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Solid,
    Dashed,
}

/// Pixels of a dash, and of the gap after it.
const DASH: i64 = 5;

pub struct Canvas {
    bounds: Rect,
    pixels: Vec<Colour>,
}

impl Canvas {
    pub fn new(width: i64, height: i64, colour: Colour) -> Self {
        let bounds = Rect::new(0, 0, width.max(1), height.max(1));
        Canvas { bounds, pixels: vec![colour; (bounds.width() * bounds.height()) as usize] }
    }

    #[cfg(test)]
    pub fn bounds(&self) -> Rect {
        self.bounds
    }

    /// Every pixel of `area` that the canvas has gets the colour that `colour` says for its place.
    pub fn paint(&mut self, area: Rect, colour: impl Fn(i64, i64) -> Option<Colour>) {
        let area = area.cut(self.bounds);
        for y in area.top..area.bottom {
            for x in area.left..area.right {
                if let Some(colour) = colour(x, y) {
                    self.pixels[(y * self.bounds.width() + x) as usize] = colour;
                }
            }
        }
    }

    pub fn fill(&mut self, area: Rect, colour: Colour) {
        self.paint(area, |_, _| Some(colour));
    }

    /// The inner `width` pixels along the sides of `area`.
    pub fn outline(&mut self, area: Rect, colour: Colour, width: i64, line: Line) {
        let Rect { left, top, right, bottom } = area;
        let sides = [
            Rect { bottom: top + width, ..area },
            Rect { top: bottom - width, ..area },
            Rect { right: left + width, ..area },
            Rect { left: right - width, ..area },
        ];
        for (i, side) in sides.into_iter().enumerate() {
            self.paint(side, |x, y| {
                let along = if i < 2 { x - left } else { y - top };
                (line == Line::Solid || along / DASH % 2 == 0).then_some(colour)
            });
        }
    }

    /// Text from its upper left corner, every dot `zoom` pixels wide.
    pub fn text(&mut self, [left, top]: [i64; 2], text: &str, colour: Colour, zoom: i64) {
        for (i, character) in (0..).zip(text.chars()) {
            let left = left + i * font::STEP[0] * zoom;
            let area = Rect::new(left, top, font::SIZE[0] * zoom, font::SIZE[1] * zoom);
            self.paint(area, |x, y| font::dot(character, (x - left) / zoom, (y - top) / zoom).then_some(colour));
        }
    }

    /// Text on a ground of its own, so that it can be read on any picture.
    pub fn tag(&mut self, [left, top]: [i64; 2], text: &str, colour: Colour, ground: Colour, zoom: i64) {
        let [width, height] = font::extent(text).map(|n| n * zoom);
        self.fill(Rect::new(left, top, width + 2 * zoom, height + 2 * zoom), ground);
        self.text([left + zoom, top + zoom], text, colour, zoom);
    }

    /// Lines of text in the middle of `area`, as large as fits up to `zoom`; nothing where not even the smallest does.
    pub fn centred(&mut self, area: Rect, lines: &[&str], colour: Colour, zoom: i64) {
        let widest = lines.iter().map(|line| font::extent(line)[0]).max().unwrap_or(0);
        let height = lines.len() as i64 * font::STEP[1] - (font::STEP[1] - font::SIZE[1]);
        let fits = |zoom: &i64| widest * zoom < area.width() && height * zoom < area.height();
        let Some(zoom) = (1..=zoom).rev().find(fits) else { return };
        for (i, line) in (0..).zip(lines) {
            let left = area.left + (area.width() - font::extent(line)[0] * zoom) / 2;
            let top = area.top + (area.height() - height * zoom) / 2 + i * font::STEP[1] * zoom;
            self.text([left, top], line, colour, zoom);
        }
    }

    /// Writes a PNG file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let size = [self.bounds.width(), self.bounds.height()].map(|n| n as u32);
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, size[0], size[1]);
        encoder.set_color(png::ColorType::Rgb);
        let written = encoder.add_text_chunk(SOFTWARE.into(), MARK.into()).and_then(|()| {
            let mut writer = encoder.write_header()?;
            writer.write_image_data(self.pixels.as_flattened())?;
            writer.finish()
        });
        written.map_err(|e| Error::file(path, e))?;
        Ok(training::file::replace(path, bytes)?)
    }
}

/// Under which keyword a PNG file says what wrote it, and what those of [`Canvas::save`] say.
const SOFTWARE: &str = "Software";
const MARK: &str = "vocoe inspect";

/// Whether a file was written by [`Canvas::save`].
pub fn is_ours(path: &Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else { return false };
    let reader = png::Decoder::new(std::io::BufReader::new(file)).read_info();
    let is_mark = |text: &png::text_metadata::TEXtChunk| text.keyword == SOFTWARE && text.text == MARK;
    reader.is_ok_and(|reader| reader.info().uncompressed_latin1_text.iter().any(is_mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHITE: Colour = [255; 3];

    fn lit(canvas: &Canvas) -> Vec<[i64; 2]> {
        let width = canvas.bounds.width();
        let places = (0..).map(|i| [i % width, i / width]);
        places.zip(&canvas.pixels).filter(|(_, pixel)| **pixel == WHITE).map(|(at, _)| at).collect()
    }

    #[test]
    fn outlines_lie_inside_their_area() {
        let mut canvas = Canvas::new(6, 5, [0; 3]);
        canvas.outline(Rect::new(1, 1, 4, 3), WHITE, 1, Line::Solid);
        assert_eq!(lit(&canvas).len(), 4 * 3 - 2);
        assert!(lit(&canvas).iter().all(|&[x, y]| (1..5).contains(&x) && (1..4).contains(&y)));
    }

    #[test]
    fn what_lies_outside_is_left_out() {
        let mut canvas = Canvas::new(4, 4, [0; 3]);
        canvas.fill(Rect::new(-10, -10, 5, 5), WHITE);
        canvas.outline(Rect::new(-5, -5, 100, 100), WHITE, 2, Line::Dashed);
        canvas.text([-50, 2], "8", WHITE, 3);
        canvas.fill(Rect::new(3, 3, -2, 9), WHITE);
        assert_eq!(lit(&canvas), Vec::<[i64; 2]>::new());
        canvas.fill(Rect::new(3, 3, 9, 9), WHITE);
        assert_eq!(lit(&canvas), [[3, 3]]);
    }

    #[test]
    fn centred_text_shrinks_until_it_fits() {
        let height = |side| {
            let mut canvas = Canvas::new(side, side, [0; 3]);
            canvas.centred(canvas.bounds(), &["1"], WHITE, 3);
            let rows: Vec<i64> = lit(&canvas).iter().map(|at| at[1]).collect();
            rows.iter().max().zip(rows.iter().min()).map_or(0, |(high, low)| high - low + 1)
        };
        assert_eq!([40, 20, 8, 7].map(height), [21, 14, 7, 0]);
    }

    #[test]
    fn files_read_back_pixel_for_pixel() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x.png");
        let mut canvas = Canvas::new(3, 2, [9, 8, 7]);
        canvas.fill(Rect::new(2, 1, 1, 1), [1, 2, 3]);
        canvas.save(&path).expect("written");
        let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).expect("file")));
        let mut reader = decoder.read_info().expect("header");
        let mut pixels = vec![0; reader.output_buffer_size().expect("size")];
        reader.next_frame(&mut pixels).expect("pixels");
        assert_eq!(pixels, canvas.pixels.as_flattened());
        assert!(canvas.save(&folder.path().join("no/such/folder.png")).is_err());
    }
}
