//! Comparisons and speeds as text for the terminal.

use comfy_table::{CellAlignment, Table, presets};

use super::judge::{Comparison, Row};
use super::number::Unit;
use super::speed::{self, Decode, Speed};
use crate::error::Result;
use crate::experiment::CONTROL;
use crate::record::Bench;

/// What was compared, the table, the verdicts and the noise floor.
pub fn text(comparison: &Comparison) -> String {
    let mut parts = vec![heading(comparison), table(comparison)];
    for row in &comparison.rows {
        let judged = row.difference.as_ref().and_then(|d| d.judged.as_ref());
        parts.extend(judged.map(|j| format!("{:12} {}", j.verdict, j.sentence)));
    }
    parts.extend(
        comparison
            .rows
            .iter()
            .find(|row| row.experiment == CONTROL)
            .and_then(noise_floor),
    );
    parts.join("\n")
}

fn heading(comparison: &Comparison) -> String {
    let Comparison {
        model,
        dataset,
        task,
        ..
    } = comparison;
    format!(
        "{} on {}: {} questions on {} stories (turns {}), scoring {}, BOS {}\n\
         best possible F1 {}; best constant answer {:?}: F1 {}",
        model.name,
        dataset.name,
        comparison.items,
        comparison.stories,
        task.turns,
        task.scoring,
        if task.bos { "on" } else { "off" },
        Unit::Score.print(comparison.ceiling_f1),
        comparison.constant.answer,
        Unit::Score.print(comparison.constant.f1),
    )
}

fn table(comparison: &Comparison) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header([
        "format",
        "F1 [95 %]",
        "EM",
        "F1 - FP16, points [95 %]",
        "p (Holm)",
        "answers changed",
        "KL to FP16",
        "MiB weights",
        "MiB + state",
        "ms/token",
    ]);
    for row in comparison
        .rows
        .iter()
        .filter(|row| row.experiment != CONTROL)
    {
        table.add_row(cells(row));
    }
    plain(table)
}

fn cells(row: &Row) -> [String; 10] {
    let with_limits = |unit: Unit, value: f64, limits: Option<[f64; 2]>| match limits {
        None => unit.print(value),
        Some([low, high]) => format!(
            "{} [{}, {}]",
            unit.print(value),
            unit.print(low),
            unit.print(high)
        ),
    };
    let [mut points, mut p, mut changed, mut kl] = <[String; 4]>::default();
    if let Some(d) = &row.difference {
        let limits = d.paired.over_stories.map(|t| t.interval_95);
        points = with_limits(
            Unit::Points,
            d.paired.mean_difference,
            limits.map(|i| [i.low, i.high]),
        );
        p = Unit::Probability.print(d.p_adjusted);
        let share = d.flips.answers_changed as f64 / d.flips.items as f64;
        changed = format!(
            "{} ({} %)",
            d.flips.answers_changed,
            Unit::Percent.print(share)
        );
        kl = d.forced.map_or(String::new(), |f| Unit::Nats.print(f.kl));
    }
    let single = row.speed.as_ref().and_then(|s| s.single.as_ref());
    [
        row.format.label(row.compute),
        with_limits(
            Unit::Score,
            row.f1.value,
            row.f1.interval.map(|i| [i.low, i.high]),
        ),
        Unit::Score.print(row.em.value),
        points,
        p,
        changed,
        kl,
        Unit::Mebibytes.print(row.size.parameters as f64),
        Unit::Mebibytes.print(row.size.with_state as f64),
        single.map_or(String::new(), |d| {
            Unit::Milliseconds.print(d.seconds.median.value)
        }),
    ]
}

/// What the comparison shows where there is nothing to find.
fn noise_floor(control: &Row) -> Option<String> {
    let d = control.difference.as_ref()?;
    Some(format!(
        "noise floor  {} again, {} sequences together instead of the others' number: \
         {} of {} answers changed, F1 {} points, KL {}",
        control.format,
        control.slots,
        d.flips.answers_changed,
        d.flips.items,
        Unit::Points.print(d.paired.mean_difference),
        Unit::Nats.print(d.forced.map_or(0.0, |f| f.kl)),
    ))
}

/// The speed of each format, a line each; columns for what the bench with the
/// most batches has.
pub fn speed(benches: &[Bench]) -> Result<String> {
    let speeds: Vec<Speed> = benches
        .iter()
        .map(|bench| speed::speed(bench.head.setup.format, bench.head.parts, &bench.speed))
        .collect::<Result<_>>()?;
    let Some(first) = speeds.iter().max_by_key(|speed| speed.decode.len()) else {
        return Ok(String::new());
    };
    let mut header = vec!["format".to_owned(), "load, s".to_owned()];
    let prefills = first.prefill.iter();
    header.extend(prefills.map(|p| format!("prefill {}, ms", p.tokens)));
    header.push("decode b=1, ms".to_owned());
    header.push("% of copy".to_owned());
    let decodes = first.decode.iter();
    header.extend(decodes.map(|d| format!("b={}, tokens/s", d.sequences)));
    let devices = match benches[0].head.setup.devices {
        1 => String::new(),
        count => format!(" on {count} devices"),
    };
    let documents = first.documents.iter();
    header.extend(documents.map(|d| format!("{} prompts{devices}, s", d.all.count)));
    let turns = first.turns.iter();
    header.extend(turns.map(|t| format!("{} turns{devices}, s", t.all.count)));
    if !first.energy.is_empty() {
        header.push("J/token b=1".to_owned());
    }
    let columns = header.len();
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_header(header);
    for (bench, speed) in benches.iter().zip(&speeds) {
        let mut row = vec![
            bench.head.setup.format.label(bench.head.setup.compute),
            Unit::Seconds.print(bench.load_seconds),
        ];
        row.extend(first.prefill.iter().map(|column| {
            let found = speed.prefill.iter().find(|p| p.tokens == column.tokens);
            found.map_or_else(String::new, |p| {
                Unit::Milliseconds.print(p.seconds.median.value)
            })
        }));
        let single = speed.single.as_ref();
        row.push(single.map_or_else(String::new, |d| {
            Unit::Milliseconds.print(d.seconds.median.value)
        }));
        let share = single.and_then(|d| d.bandwidth_share);
        row.push(share.map_or_else(String::new, |share| Unit::Percent.print(share)));
        row.extend(first.decode.iter().map(|column| {
            let same = |d: &&Decode| d.sequences == column.sequences;
            let found = speed.decode.iter().find(same);
            found.map_or_else(String::new, |d| Unit::PerSecond.print(d.tokens_per_second))
        }));
        let seconds = |s: Option<f64>| s.map_or_else(String::new, |s| Unit::Seconds.print(s));
        if !first.documents.is_empty() {
            row.push(seconds(speed.documents.first().map(|d| d.all.seconds)));
        }
        if !first.turns.is_empty() {
            row.push(seconds(speed.turns.first().map(|t| t.all.seconds)));
        }
        let energy = speed.energy.iter().find(|e| e.sequences == 1);
        row.extend(energy.map(|e| Unit::Joules.print(e.joules_per_token)));
        row.resize(columns, String::new());
        table.add_row(row);
    }
    Ok(plain(table))
}

/// Numbers to the right, one line a format: no rules between rows.
fn plain(mut table: Table) -> String {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let text = table.to_string();
    text.lines()
        .filter(|line| !line.starts_with('─'))
        .collect::<Vec<_>>()
        .join("\n")
}
