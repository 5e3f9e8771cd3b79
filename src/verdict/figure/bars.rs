//! Bars: memory part by part, shares of a limit, answers that flipped, items
//! that differ.

use plotters::prelude::*;

use super::canvas::{
    Area, DrawingError, GRID, HPos, INK, MUTED, Picture, SHADE, SMALL, Shape, TEXT, VPos, WIDTH,
    legend, picture, rectangle, stroke, text_style, text_width, write, write_over,
};
use crate::error::Result;

/// A bar made of parts laid end to end.
pub struct Stack {
    pub name: String,
    pub colour: RGBColor,
    /// The unquantised part, the packed weights, their quantisation state.
    pub parts: [f64; 3],
    /// At the end of the bar.
    pub note: String,
}

const ROW: i32 = 78;
const BAR: i32 = 40;

/// Draws `stacks`, at least one.
///
/// # Errors
/// If the plotting library refuses.
pub fn stacks(stacks: &[Stack], legend_names: [&str; 3]) -> Result<Picture> {
    let left = 40 + widest(stacks.iter().map(|s| s.name.as_str()), TEXT);
    let note = 30 + widest(stacks.iter().map(|s| s.note.as_str()), SMALL);
    let most = stacks
        .iter()
        .map(|s| s.parts.iter().sum())
        .fold(0.0, f64::max);
    let scale = f64::from(WIDTH as i32 - left - note) / f64::max(most, f64::MIN_POSITIVE);
    let colours = |own: RGBColor| [SHADE.mix(1.0), own.mix(1.0), own.mix(0.4)];
    let entries: Vec<(String, RGBAColor)> = std::iter::zip(legend_names, colours(MUTED))
        .map(|(name, colour)| (name.to_owned(), colour))
        .collect();
    let above = 3 * (SMALL + 16) + 24;
    picture((above + ROW * stacks.len() as i32 + 10) as u32, |area| {
        for (i, (name, colour)) in entries.iter().enumerate() {
            let y = 30 + i as i32 * (SMALL + 16);
            area.draw(&Rectangle::new(
                [(20, y - 14), (48, y + 14)],
                colour.filled(),
            ))?;
            write(area, name, (62, y), SMALL, INK, (HPos::Left, VPos::Center))?;
        }
        for (i, stack) in stacks.iter().enumerate() {
            let y = above + i as i32 * ROW + ROW / 2;
            write(
                area,
                &stack.name,
                (20, y),
                TEXT,
                INK,
                (HPos::Left, VPos::Center),
            )?;
            let mut done = 0.0;
            let x = |value: f64| left + (value * scale).round() as i32;
            for (part, colour) in stack.parts.iter().zip(colours(stack.colour)) {
                bar(area, (x(done), x(done + part)), y, colour)?;
                done += part;
            }
            let end = (x(done) + 14, y);
            write(
                area,
                &stack.note,
                end,
                SMALL,
                INK,
                (HPos::Left, VPos::Center),
            )?;
        }
        Ok(())
    })
}

/// A share of a limit.
pub struct Share {
    pub name: String,
    pub colour: RGBColor,
    /// 1 is the limit.
    pub share: f64,
    /// At the end of the bar.
    pub note: String,
}

/// Draws `shares`, at least one, with a line at the limit.
///
/// # Errors
/// If the plotting library refuses.
pub fn shares(shares: &[Share], limit: &str) -> Result<Picture> {
    let left = 40 + widest(shares.iter().map(|s| s.name.as_str()), TEXT);
    let note = 30 + widest(shares.iter().map(|s| s.note.as_str()), SMALL);
    let most = shares.iter().map(|s| s.share).fold(1.0, f64::max);
    let scale = f64::from(WIDTH as i32 - left - note) / most;
    let x = |share: f64| left + (share * scale).round() as i32;
    let above = SMALL + 40;
    let bottom = above + ROW * shares.len() as i32;
    picture((bottom + 10) as u32, |area| {
        let line = |at: f64, colour: RGBColor| {
            let ends = [above - 6, bottom].map(|y| (x(at), y));
            stroke(area, ends[0], ends[1], colour.stroke_width(3))
        };
        line(0.0, GRID)?;
        for (i, share) in shares.iter().enumerate() {
            let y = above + i as i32 * ROW + ROW / 2;
            let side = (HPos::Left, VPos::Center);
            write(area, &share.name, (20, y), TEXT, INK, side)?;
            bar(area, (left, x(share.share)), y, share.colour.mix(1.0))?;
        }
        // Across the bars, and below the notes, so that both can be read.
        line(1.0, MUTED)?;
        for (i, share) in shares.iter().enumerate() {
            let y = above + i as i32 * ROW + (ROW + SMALL) / 2;
            let end = (x(share.share) + 14, y);
            write_over(area, &share.note, end, SMALL, INK, HPos::Left)?;
        }
        // On the left of the line, unless shares far above it leave no room.
        let left_of_line = x(1.0) > text_width(limit, SMALL) + 20;
        let side = if left_of_line {
            HPos::Right
        } else {
            HPos::Left
        };
        let at = (x(1.0), above - 16);
        write(area, limit, at, SMALL, MUTED, (side, VPos::Bottom))
    })
}

/// Answers of one format that flipped.
pub struct Flipped {
    pub name: String,
    pub colour: RGBColor,
    pub lost: u64,
    pub gained: u64,
}

/// Draws what was lost to the left and what was gained to the right.
///
/// # Errors
/// If the plotting library refuses.
pub fn flips(rows: &[Flipped]) -> Result<Picture> {
    let left = 40 + widest(rows.iter().map(|r| r.name.as_str()), TEXT);
    let most = rows
        .iter()
        .map(|r| r.lost.max(r.gained))
        .max()
        .unwrap_or(0)
        .max(1);
    let room = 20 + text_width(&most.to_string(), SMALL);
    let half = (WIDTH as i32 - left - 20) / 2;
    let zero = left + half;
    let above = SMALL + 40;
    let length = |n: u64| (f64::from(half - room) * n as f64 / most as f64).round() as i32;
    picture((above + ROW * rows.len() as i32 + 10) as u32, |area| {
        let titles = [
            ("right to wrong", -14, HPos::Right),
            ("wrong to right", 14, HPos::Left),
        ];
        for (title, shift, side) in titles {
            let at = (zero + shift, above - 16);
            write(area, title, at, SMALL, MUTED, (side, VPos::Bottom))?;
        }
        for (i, row) in rows.iter().enumerate() {
            let y = above + i as i32 * ROW + ROW / 2;
            write(
                area,
                &row.name,
                (20, y),
                TEXT,
                INK,
                (HPos::Left, VPos::Center),
            )?;
            let lost = zero - length(row.lost);
            let gained = zero + length(row.gained);
            bar(area, (lost, zero), y, row.colour.mix(1.0))?;
            bar(area, (zero, gained), y, row.colour.mix(0.4))?;
            let right = (HPos::Right, VPos::Center);
            write(
                area,
                &row.lost.to_string(),
                (lost - 12, y),
                SMALL,
                INK,
                right,
            )?;
            let left = (HPos::Left, VPos::Center);
            write(
                area,
                &row.gained.to_string(),
                (gained + 12, y),
                SMALL,
                INK,
                left,
            )?;
        }
        let bottom = above + ROW * rows.len() as i32;
        stroke(
            area,
            (zero, above - 6),
            (zero, bottom),
            MUTED.stroke_width(3),
        )
    })
}

/// Two formats, item by item.
pub struct Differences {
    /// The format that bars above the line favour, and the other.
    pub names: [String; 2],
    pub colours: [RGBColor; 2],
    pub shapes: [Shape; 2],
    /// Differences that are not 0, in any order, -1..1.
    pub values: Vec<f64>,
}

/// Room for so many bars at least, lest a few become walls.
const FEWEST: usize = 24;

/// Draws a bar for each item whose score differs, by falling difference.
///
/// # Errors
/// If the plotting library refuses.
pub fn differences(duel: &Differences) -> Result<Picture> {
    let mut values = duel.values.clone();
    values.sort_by(|a, b| b.total_cmp(a));
    let [above, below] = [0, 1].map(|i| {
        let name = format!("{} better", duel.names[i]);
        (name, duel.shapes[i], duel.colours[i])
    });
    let entries = [above, below];
    let slots = values.len().max(FEWEST) as f64;
    let top = legend(None, 10, &entries).unwrap_or(TEXT) + 24;
    picture((top + 480) as u32, |area| {
        legend(Some(area), 10, &entries)?;
        let mut chart = ChartBuilder::on(area)
            .margin_top(top)
            .margin_right(30)
            .margin_left(24)
            .set_label_area_size(LabelAreaPosition::Left, 130)
            .set_label_area_size(LabelAreaPosition::Bottom, 60)
            .build_cartesian_2d(0.0..slots, -1.05..1.05)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .axis_style(GRID.stroke_width(2))
            .bold_line_style(GRID.stroke_width(2))
            .light_line_style(TRANSPARENT)
            .y_labels(5)
            .y_label_formatter(&|y: &f64| {
                if y.abs() < 0.1 {
                    "0".to_owned()
                } else {
                    format!("{y:+.1}")
                }
            })
            .y_label_style(text_style(SMALL, INK))
            .y_desc("difference of F1")
            .axis_desc_style(text_style(SMALL, MUTED))
            .draw()?;
        for (i, &value) in values.iter().enumerate() {
            let colour = entries[usize::from(value < 0.0)].2;
            let (left, y) = chart.backend_coord(&(i as f64 + 0.1, value));
            let (right, zero) = chart.backend_coord(&(i as f64 + 0.9, 0.0));
            let right = right.max(left + 1);
            rectangle(
                area,
                (left, y.min(zero)),
                (right, y.max(zero)),
                colour.mix(1.0),
            )?;
        }
        let ends = [0.0, slots].map(|x| chart.backend_coord(&(x, 0.0)));
        stroke(area, ends[0], ends[1], MUTED.stroke_width(3))?;
        let middle = (WIDTH as i32 + 120) / 2;
        let title = "items whose F1 differs, sorted";
        let y = top + 450;
        write(
            area,
            title,
            (middle, y),
            SMALL,
            MUTED,
            (HPos::Center, VPos::Center),
        )
    })
}

fn bar(
    area: &Area<'_>,
    (from, to): (i32, i32),
    y: i32,
    colour: RGBAColor,
) -> std::result::Result<(), DrawingError> {
    rectangle(area, (from, y - BAR / 2), (to, y + BAR / 2), colour)
}

fn widest<'a>(texts: impl Iterator<Item = &'a str>, size: i32) -> i32 {
    texts.map(|text| text_width(text, size)).max().unwrap_or(0)
}
