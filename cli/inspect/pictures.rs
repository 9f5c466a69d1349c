//! Slices with the boxes of a sample on them, and each crop's overlaps as heat maps.
//!
//! Seen as radiologists do: the patient's right on the left, front and head on top; in the sagittal slice the front on the left.

use super::draw::{Canvas, Colour, Line, Rect};
use super::font;
use super::geometry::{Bounds, Crop, Layout};
use data::Volume;

/// Longer side of a slice, and side of a panel, in pixels.
const SLICE: f64 = 760.0;
const PANEL: f64 = 440.0;
/// Around a panel: room for the letters that say which side is which.
const MARGIN: i64 = 18;
/// Height of the line above a panel.
const TITLE: i64 = 22;
/// Size of titles and letters.
const ZOOM: i64 = 2;

const GROUND: Colour = [18, 20, 26];
const INK: Colour = [232, 234, 238];
/// Beyond the volume: what training sees as 0 there is padding.
const PADDING: Colour = [44, 26, 58];
const GRID: Colour = [70, 190, 255];
const CROPS: [Colour; 6] =
    [[255, 160, 20], [60, 220, 120], [255, 90, 170], [245, 230, 70], [255, 95, 60], [175, 140, 255]];
/// Ends of the heat maps' scale.
const COLD: Colour = [30, 32, 58];
const HOT: Colour = [255, 206, 84];

fn crop_colour(number: usize) -> Colour {
    CROPS[number % CROPS.len()]
}

/// A direction to look in: the axes across and up the picture, and the one that is looked along.
#[derive(Clone, Copy)]
pub struct Plane {
    pub name: &'static str,
    across: usize,
    up: usize,
    along: usize,
    /// What lies left, right, above and below.
    sides: [&'static str; 4],
}

pub const PLANES: [Plane; 3] = [
    Plane { name: "axial", across: 0, up: 1, along: 2, sides: ["R", "L", "A", "P"] },
    Plane { name: "coronal", across: 0, up: 2, along: 1, sides: ["R", "L", "S", "I"] },
    Plane { name: "sagittal", across: 1, up: 2, along: 0, sides: ["A", "P", "S", "I"] },
];
const AXIAL: Plane = PLANES[0];

/// One slice of the volume on a part of the canvas, and where voxels come to lie on it.
#[derive(Clone, Copy)]
struct View {
    plane: Plane,
    shown: Bounds,
    /// The slice's place on the axis that is looked along.
    depth: isize,
    /// Pixels per voxel along every axis.
    scale: [f64; 3],
    corner: [i64; 2],
}

impl View {
    /// As large as fits into a square of `side` pixels, whose left upper corner is `corner`.
    fn new(plane: Plane, shown: Bounds, depth: isize, zooms: [f64; 3], side: f64, corner: [i64; 2]) -> Self {
        let millimetres = zooms.map(|z| if z.is_finite() && z > 0.0 { z } else { 1.0 });
        let size = shown.size();
        let longest = [plane.across, plane.up].map(|i| size[i] as f64 * millimetres[i]);
        let per_millimetre = side / longest[0].max(longest[1]);
        View { plane, shown, depth, scale: millimetres.map(|m| m * per_millimetre), corner }
    }

    fn area(&self) -> Rect {
        self.project(self.shown)
    }

    /// Where a box comes to lie. Both axes run against the picture's: their far ends are left and on top.
    fn project(&self, bounds: Bounds) -> Rect {
        let pixel = |axis: usize, at: isize| ((self.shown.high[axis] - at) as f64 * self.scale[axis]).round() as i64;
        let Plane { across, up, .. } = self.plane;
        Rect {
            left: self.corner[0] + pixel(across, bounds.high[across]),
            top: self.corner[1] + pixel(up, bounds.high[up]),
            right: self.corner[0] + pixel(across, bounds.low[across]),
            bottom: self.corner[1] + pixel(up, bounds.low[up]),
        }
    }

    /// The voxel under a pixel.
    fn voxel(&self, x: i64, y: i64) -> [isize; 3] {
        let at = |axis: usize, offset: i64| {
            self.shown.high[axis] - 1 - ((offset as f64 + 0.5) / self.scale[axis]).floor() as isize
        };
        let Plane { across, up, along, .. } = self.plane;
        let mut voxel = [0; 3];
        voxel[across] = at(across, x - self.corner[0]);
        voxel[up] = at(up, y - self.corner[1]);
        voxel[along] = self.depth;
        voxel
    }

    fn cuts(&self, bounds: Bounds) -> bool {
        bounds.spans(self.plane.along, self.depth)
    }
}

/// The middle slice of the sub-volume in the whole volume, with the bases and crops that it cuts; dashed the ones that it does
/// not.
pub fn slice(volume: &Volume, layout: &Layout, plane: Plane) -> Canvas {
    let shown = layout.region.around(Bounds::new([0; 3], volume.dims));
    let depth = layout.region.middle()[plane.along];
    let zooms = data::affine::zooms(&volume.affine);
    let view = View::new(plane, shown, depth, zooms, SLICE, [MARGIN, TITLE + MARGIN]);
    let (area, axis) = (view.area(), ["x", "y", "z"][plane.along]);
    let heading = format!("{}  {axis} {depth} of {}", plane.name, volume.dims[plane.along]);
    let width = area.right.max(area.left + font::extent(&heading)[0] * ZOOM) + MARGIN;
    let mut canvas = Canvas::new(width, area.bottom + MARGIN, GROUND);
    title(&mut canvas, area, &heading, INK);
    grey(&mut canvas, &view, volume);
    grid(&mut canvas, &view, layout);
    for (number, crop) in layout.crops.iter().enumerate() {
        outline(&mut canvas, &view, crop, number);
    }
    numbers(&mut canvas, &view, layout);
    sides(&mut canvas, &view);
    canvas
}

/// A crop on the axial slice of its sub-volume, its overlap with every base, and the overlaps that a model predicts.
pub fn crop(volume: &Volume, layout: &Layout, number: usize, crop: &Crop, predicted: Option<&[f32]>) -> Canvas {
    let zooms = data::affine::zooms(&volume.affine);
    let depth = layout.region.middle()[AXIAL.along];
    let panels = 2 + i64::from(predicted.is_some());
    let step = PANEL as i64 + MARGIN;
    let view =
        |panel: i64| View::new(AXIAL, layout.region, depth, zooms, PANEL, [MARGIN + panel * step, TITLE + MARGIN]);
    let height = view(0).area().bottom + MARGIN;
    let mut canvas = Canvas::new(MARGIN + panels * step, height, GROUND);
    let [x, y] = crop.centre;
    title(&mut canvas, view(0).area(), &format!("crop {number} at {x},{y}"), crop_colour(number));
    grey(&mut canvas, &view(0), volume);
    grid(&mut canvas, &view(0), layout);
    outline(&mut canvas, &view(0), crop, number);
    numbers(&mut canvas, &view(0), layout);
    sides(&mut canvas, &view(0));
    heat(&mut canvas, &view(1), layout, "label", &crop.label);
    canvas.outline(view(1).project(crop.bounds), crop_colour(number), 2, Line::Dashed);
    if let Some(predicted) = predicted {
        heat(&mut canvas, &view(2), layout, "predicted", predicted);
    }
    canvas
}

fn title(canvas: &mut Canvas, area: Rect, text: &str, colour: Colour) {
    canvas.text([area.left, area.top - TITLE - MARGIN + 6], text, colour, ZOOM);
}

fn grey(canvas: &mut Canvas, view: &View, volume: &Volume) {
    canvas.paint(view.area(), |x, y| Some(intensity(volume, view.voxel(x, y)).map_or(PADDING, |v| [v; 3])));
}

/// 0 to 255; `None` beyond the volume.
fn intensity(volume: &Volume, at: [isize; 3]) -> Option<u8> {
    let mut index = 0;
    for (at, n) in at.into_iter().zip(volume.dims) {
        index = index * n + usize::try_from(at).ok().filter(|&at| at < n)?;
    }
    volume.data.get(index).map(|v| (v * 255.0).round() as u8)
}

fn grid(canvas: &mut Canvas, view: &View, layout: &Layout) {
    layout.bases.iter().for_each(|base| canvas.outline(view.project(*base), GRID, 1, Line::Solid));
}

/// The numbers of the bases that the slice cuts, where there is room for them.
fn numbers(canvas: &mut Canvas, view: &View, layout: &Layout) {
    for (number, base) in layout.bases.iter().enumerate().filter(|(_, base)| view.cuts(**base)) {
        let (area, text) = (view.project(*base), number.to_string());
        let [width, height] = font::extent(&text);
        if width + 8 < area.width() && height + 8 < area.height() {
            let zoom = if area.width() > 80 { 2 } else { 1 };
            canvas.tag([area.left + 3, area.top + 3], &text, GRID, GROUND, zoom);
        }
    }
}

fn outline(canvas: &mut Canvas, view: &View, crop: &Crop, number: usize) {
    let (area, colour) = (view.project(crop.bounds), crop_colour(number));
    let (width, line) = if view.cuts(crop.bounds) { (3, Line::Solid) } else { (2, Line::Dashed) };
    canvas.outline(area, colour, width, line);
    let text = format!("crop {number}");
    let [wide, high] = font::extent(&text).map(|n| n + 2);
    // crops that lie over each other have their names at different heights
    let lift = number as i64 % 4 * (high + 2);
    canvas.tag([area.right - wide - 4, area.bottom - high - 4 - lift], &text, GROUND, colour, 1);
}

/// The letters of the sides, in the margin.
fn sides(canvas: &mut Canvas, view: &View) {
    let area = view.area();
    let [width, height] = font::SIZE.map(|n| n * ZOOM);
    let (x, y) = ((area.left + area.right - width) / 2, (area.top + area.bottom - height) / 2);
    let gap = (MARGIN - width) / 2;
    let places =
        [[area.left - gap - width, y], [area.right + gap, y], [x, area.top - height - 2], [x, area.bottom + 2]];
    for (text, place) in view.plane.sides.into_iter().zip(places) {
        canvas.text(place, text, INK, ZOOM);
    }
}

/// Every base in the colour of its value, with its number and the value.
fn heat(canvas: &mut Canvas, view: &View, layout: &Layout, name: &str, values: &[f32]) {
    title(canvas, view.area(), name, INK);
    // names of one length, so that all are of one size
    let digits = layout.bases.len().saturating_sub(1).to_string().len();
    for (number, (base, &value)) in layout.bases.iter().zip(values).enumerate() {
        let area = view.project(*base).inset(1);
        let share = if value.is_finite() { value.clamp(0.0, 1.0) } else { 0.0 };
        canvas.fill(area, blend(COLD, HOT, share));
        let ink = if share > 0.45 { GROUND } else { INK };
        canvas.centred(area.inset(2), &[&format!("{value:.3}"), &format!("base {number:>digits$}")], ink, 2);
    }
}

fn blend(from: Colour, to: Colour, share: f32) -> Colour {
    [0, 1, 2].map(|i| (f32::from(from[i]) + share * (f32::from(to[i]) - f32::from(from[i]))).round() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use data::{Geometry, Place, Sampling};

    const SAMPLING: Sampling = Sampling { crops: 2, roi: 8, grid: 3, geometry: Geometry::Voco };

    fn scene(dims: [usize; 3]) -> (Volume, Layout) {
        let data = (0..dims.iter().product::<usize>()).map(|i| i as f32 / 1e4).collect();
        let mut affine = data::affine::IDENTITY;
        affine[2][2] = 4.0;
        let layout = Layout::new(&SAMPLING, &Place { corner: [-1, 2, 0], centres: vec![[4, 4], [12, 19]] });
        (Volume { data, dims, affine }, layout)
    }

    #[test]
    fn every_pixel_of_a_box_shows_a_voxel_of_it() {
        let (volume, layout) = scene([23, 30, 9]);
        let zooms = data::affine::zooms(&volume.affine);
        for plane in PLANES {
            let view = View::new(plane, layout.region, layout.region.middle()[plane.along], zooms, 100.0, [7, 11]);
            for base in &layout.bases {
                let area = view.project(*base);
                let corners = [[area.left, area.top], [area.right - 1, area.bottom - 1]].map(|[x, y]| view.voxel(x, y));
                for axis in [plane.across, plane.up] {
                    assert!(
                        corners.iter().all(|at| base.spans(axis, at[axis])),
                        "{}: {base:?} {corners:?}",
                        plane.name
                    );
                    assert!(corners[0][axis] >= corners[1][axis]);
                }
            }
        }
    }

    #[test]
    fn voxels_keep_their_proportions() {
        let (volume, layout) = scene([23, 30, 9]);
        let zooms = data::affine::zooms(&volume.affine);
        let area = View::new(PLANES[1], layout.region, 0, zooms, 96.0, [0, 0]).area();
        assert_eq!((area.width(), area.height()), (72, 96));
    }

    #[test]
    fn pictures_of_odd_volumes_and_values_are_drawn() {
        for dims in [[1, 1, 1], [40, 3, 200]] {
            let (volume, layout) = scene(dims);
            for plane in PLANES {
                let bounds = slice(&volume, &layout, plane).bounds();
                assert!(bounds.width().max(bounds.height()) <= SLICE as i64 + 2 * MARGIN + TITLE + 1);
            }
            let predicted = [f32::NAN, f32::INFINITY, -1.0, 2.0, 0.5, 0.0, 0.0, 0.0, 0.0];
            let narrow = crop(&volume, &layout, 0, &layout.crops[0], None).bounds();
            let wide = crop(&volume, &layout, 1, &layout.crops[1], Some(&predicted)).bounds();
            assert!(wide.width() > narrow.width());
        }
    }

    #[test]
    fn intensities_cover_the_window_and_end_with_the_volume() {
        let volume = Volume { data: vec![0.0, 0.5, 1.0, 7.0], dims: [1, 2, 2], affine: data::affine::IDENTITY };
        let at = |y, z| intensity(&volume, [0, y, z]);
        assert_eq!([at(0, 0), at(0, 1), at(1, 0), at(1, 1)], [Some(0), Some(128), Some(255), Some(255)]);
        assert_eq!([at(2, 0), at(-1, 0), at(0, 2)], [None; 3]);
    }
}
