//! Curves over a growing number, such as that of sequences, on logarithmic axes
//! both ways.

use plotters::prelude::*;

use super::canvas::{
    DrawingError, GRID, HPos, INK, MUTED, Picture, SMALL, Shape, TEXT, VPos, WIDTH, legend, mark,
    picture, stroke, text_width, write,
};
use crate::error::Result;

/// One format.
pub struct Curve {
    pub name: String,
    pub colour: RGBColor,
    pub shape: Shape,
    /// By rising x, both above 0.
    pub points: Vec<(f64, f64)>,
}

pub struct Curves {
    pub curves: Vec<Curve>,
    pub x_title: String,
    pub y_title: String,
}

/// Height of the plot itself.
const HEIGHT: i32 = 460;
/// Room between the outer points and the edges of the plot.
const ROOM: i32 = 40;

/// Draws `curves`: at least one, each with at least one point.
///
/// # Errors
/// If the plotting library refuses.
pub fn lines(curves: &Curves) -> Result<Picture> {
    let points = || curves.curves.iter().flat_map(|c| &c.points);
    let mut xs: Vec<f64> = points().map(|p| p.0).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let ticks = ticks(points().map(|p| p.1));
    let entries: Vec<_> = curves
        .curves
        .iter()
        .map(|c| (c.name.clone(), c.shape, c.colour))
        .collect();
    let title = legend(None, 10, &entries).unwrap_or(TEXT) + 20;
    let top = title + SMALL + 20;
    let bottom = top + HEIGHT;
    let widest = ticks.iter().map(|y| text_width(&y.to_string(), SMALL));
    let left = 40 + widest.max().unwrap_or(0);
    let right = WIDTH as i32 - 30;
    let x = axis(&xs, (left + ROOM, right - ROOM));
    let ys: Vec<f64> = points().map(|p| p.1).chain(ticks.iter().copied()).collect();
    let y = axis(&ys, (bottom - ROOM / 2, top + ROOM / 2));
    picture((bottom + 2 * (SMALL + 16)) as u32, |area| {
        legend(Some(area), 10, &entries)?;
        let at = (20, title + SMALL / 2);
        let side = (HPos::Left, VPos::Center);
        write(area, &curves.y_title, at, SMALL, MUTED, side)?;
        for &tick in &ticks {
            let ends = [left, right].map(|x| (x, y(tick)));
            stroke(area, ends[0], ends[1], GRID.stroke_width(2))?;
            let side = (HPos::Right, VPos::Center);
            let at = (left - 14, y(tick));
            write(area, &tick.to_string(), at, SMALL, INK, side)?;
        }
        let below = bottom + SMALL / 2 + 10;
        let mut free = left;
        for &tick in &xs {
            let ends = [top, bottom].map(|y| (x(tick), y));
            stroke(area, ends[0], ends[1], GRID.stroke_width(2))?;
            let half = text_width(&tick.to_string(), SMALL) / 2;
            // Of crowded labels the first stay.
            if x(tick) - half >= free {
                let side = (HPos::Center, VPos::Center);
                write(area, &tick.to_string(), (x(tick), below), SMALL, INK, side)?;
                free = x(tick) + half + 12;
            }
        }
        let middle = ((left + right) / 2, below + SMALL + 14);
        let side = (HPos::Center, VPos::Center);
        write(area, &curves.x_title, middle, SMALL, MUTED, side)?;
        for curve in &curves.curves {
            let places: Vec<(i32, i32)> = curve.points.iter().map(|p| (x(p.0), y(p.1))).collect();
            for ends in places.windows(2) {
                stroke(area, ends[0], ends[1], curve.colour.stroke_width(4))?;
            }
            for &place in &places {
                mark(area, place, curve.shape, curve.colour)?;
            }
        }
        Ok::<(), DrawingError>(())
    })
}

/// Places a value between two coordinates by its logarithm; in the middle if
/// there is but one.
fn axis(values: &[f64], (from, to): (i32, i32)) -> impl Fn(f64) -> i32 {
    let logarithms = || values.iter().map(|v| v.ln());
    let low = logarithms().fold(f64::INFINITY, f64::min);
    let high = logarithms().fold(f64::NEG_INFINITY, f64::max);
    move |value: f64| {
        if high <= low {
            return (from + to) / 2;
        }
        let share = (value.ln() - low) / (high - low);
        from + (share * f64::from(to - from)).round() as i32
    }
}

/// 1, 2 and 5 times powers of ten around `values`: the tightest that hold them
/// all. Over more than three decades the powers alone.
fn ticks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let steps: &[f64] = match high / low {
        wide if wide > 1e3 => &[1.0],
        _ => &[1.0, 2.0, 5.0],
    };
    let all: Vec<f64> = decades
        .flat_map(|exponent| steps.iter().map(move |step| (step, exponent)))
        .map(|(step, exponent)| match exponent {
            // Exact, where powers of 0.1 would not be.
            0.. => step * 10_f64.powi(exponent),
            _ => step / 10_f64.powi(-exponent),
        })
        .collect();
    let first = all.iter().rposition(|&t| t <= low).unwrap_or(0);
    let last = all.iter().position(|&t| t >= high);
    all[first..=last.unwrap_or(all.len() - 1)].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_hold_the_values_and_no_more() {
        let of = |low: f64, high: f64| ticks([low, high].into_iter());
        assert_eq!(of(207.0, 4282.0), [200.0, 500.0, 1e3, 2e3, 5e3]);
        assert_eq!(of(0.3, 0.7), [0.2, 0.5, 1.0]);
        assert_eq!(of(0.012, 0.02), [0.01, 0.02]);
        assert_eq!(of(1.0, 1.0), [1.0]);
        assert_eq!(of(3.0, 40_000.0), [1.0, 10.0, 100.0, 1e3, 1e4, 1e5]);
    }

    #[test]
    fn a_value_lies_between_the_ends_by_its_logarithm() {
        let place = axis(&[1.0, 100.0], (0, 200));
        assert_eq!([1.0, 10.0, 100.0].map(place), [0, 100, 200]);
        assert_eq!(axis(&[7.0], (0, 200))(7.0), 100);
    }
}
