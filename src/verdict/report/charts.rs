//! Which findings go into which picture. None is drawn from nothing.

use super::findings::{AGAIN, Duel, Entry, Findings, Group, Run, Speeds};
use crate::error::Result;
use crate::experiment::CONTROL;
use crate::quant::Format;
use crate::quant::size::MIB;
use crate::verdict::figure::{
    self, Axis, Curve, Curves, Differences, Flipped, Line, Mark, Picture, Point, Rows, Shape,
    Share, Stack,
};
use crate::verdict::judge::Difference;
use crate::verdict::number::{Unit, margin};
use crate::verdict::speed::{Decode, Prefill};
use crate::verdict::stats::Interval;
use crate::verdict::study::System;

/// The runs that are compared: all but the control.
pub(super) fn formats(group: &Group) -> impl Iterator<Item = &Entry> {
    let entries = group.entries.iter();
    entries.filter(|entry| entry.row.experiment != CONTROL)
}

/// The formats that have something, such as a difference to the baseline.
fn with<'a, T>(group: &'a Group, part: impl Fn(&'a Entry) -> Option<T>) -> Vec<(&'a Entry, T)> {
    let pairs = formats(group).filter_map(|e| part(e).map(|t| (e, t)));
    pairs.collect()
}

fn limits(interval: Interval) -> [f64; 2] {
    [interval.low, interval.high]
}

fn mark(entry: &Entry, value: f64, unit: Unit) -> Mark {
    mark_of(&entry.name, entry.row.format, value, unit)
}

fn mark_of(name: &str, format: Format, value: f64, unit: Unit) -> Mark {
    let scale = unit.scale();
    Mark {
        name: name.to_owned(),
        under: String::new(),
        colour: figure::colour(format),
        shape: figure::shape(format),
        value: scale * value,
        note: unit.print(value),
        thick: None,
        thin: None,
        dots: Vec::new(),
    }
}

/// Names such as `NF4, no double quant` on two lines.
fn on_two_lines(mut mark: Mark) -> Mark {
    if let Some((name, rest)) = mark.name.clone().split_once(", ") {
        (mark.name, mark.under) = (name.to_owned(), rest.to_owned());
    }
    mark
}

fn draw(mut rows: Rows) -> Result<Option<Picture>> {
    if rows.marks.is_empty() {
        return Ok(None);
    }
    rows.marks = rows.marks.into_iter().map(on_two_lines).collect();
    figure::rows(&rows).map(Some)
}

fn linear(title: &str) -> Axis {
    Axis {
        title: title.to_owned(),
        logarithmic: false,
        from_zero: false,
    }
}

fn line(at: f64, name: impl Into<String>) -> Line {
    Line {
        at,
        name: name.into(),
        loss: false,
    }
}

/// F1 with its interval, between what needs no reading and what is possible.
pub(super) fn f1(group: &Group) -> Result<Option<Picture>> {
    let of = |entry: &Entry| Mark {
        thin: entry.row.f1.interval.map(limits),
        ..mark(entry, entry.row.f1.value, Unit::Score)
    };
    draw(Rows {
        marks: formats(group).map(of).collect(),
        lines: vec![
            line(group.comparison.constant.f1, "best constant answer"),
            line(group.comparison.ceiling_f1, "best possible"),
        ],
        axis: linear("F1"),
    })
}

/// The forest plot: differences to the baseline, with the margin.
pub(super) fn forest(group: &Group) -> Result<Option<Picture>> {
    let of = |(entry, difference): (&Entry, &Difference)| {
        let paired = &difference.paired;
        let mut mark = mark(entry, paired.mean_difference, Unit::Points);
        let points = |interval| limits(interval).map(|x| 100.0 * x);
        mark.thick = paired.over_stories.map(|t| points(t.interval_90));
        mark.thin = paired.over_stories.map(|t| points(t.interval_95));
        if let Some(judged) = &difference.judged {
            mark.note = format!("{} {}", mark.note, judged.verdict);
        }
        mark
    };
    let marks = with(group, |e| e.row.difference.as_ref());
    let margin = margin(group.comparison.margin);
    draw(Rows {
        marks: marks.into_iter().map(of).collect(),
        lines: vec![
            Line {
                loss: true,
                ..line(
                    -100.0 * group.comparison.margin,
                    format!("margin: -{margin}"),
                )
            },
            line(0.0, "same as FP16"),
        ],
        axis: linear("F1 less FP16's, points"),
    })
}

pub(super) fn pareto(group: &Group) -> Result<Option<Picture>> {
    let point = |entry: &Entry| Point {
        name: entry.name.clone(),
        colour: figure::colour(entry.row.format),
        shape: figure::shape(entry.row.format),
        mebibytes: entry.row.size.with_state as f64 / MIB,
        f1: entry.row.f1.value,
        limits: entry.row.f1.interval.map(limits),
    };
    let points: Vec<Point> = formats(group).map(point).collect();
    if points.is_empty() {
        return Ok(None);
    }
    figure::scatter(&points).map(Some)
}

pub(super) fn duel(duel: &Duel) -> Result<Option<Picture>> {
    if duel.differences.is_empty() {
        return Ok(None);
    }
    let both = [&duel.a, &duel.b];
    figure::differences(&Differences {
        names: both.map(|c| c.name.clone()),
        colours: both.map(|c| figure::colour(c.format)),
        shapes: both.map(|c| figure::shape(c.format)),
        values: duel.differences.clone(),
    })
    .map(Some)
}

pub(super) fn memory(group: &Group) -> Result<Option<Picture>> {
    let stack = |entry: &Entry| {
        let parts = entry.parts;
        let plain = parts.embedding + parts.head + parts.norms;
        Stack {
            name: entry.name.clone(),
            colour: figure::colour(entry.row.format),
            parts: [plain, parts.linears, parts.state].map(|b| b as f64 / MIB),
            note: format!(
                "{} MiB",
                Unit::Mebibytes.print(parts.total().with_state as f64)
            ),
        }
    };
    let stacks: Vec<Stack> = formats(group).map(stack).collect();
    if stacks.is_empty() {
        return Ok(None);
    }
    let names = [
        "embedding, norms, head: FP16 in every format",
        "linears of the layers (in the format's colour)",
        "their quantisation state (lighter)",
    ];
    figure::stacks(&stacks, names).map(Some)
}

/// Decode steps of a single sequence, all of them.
pub(super) fn decode(speeds: &Speeds) -> Result<Option<Picture>> {
    let of = |run: &Run| {
        let single = run.speed.single.as_ref()?;
        let scaled = |x: f64| Unit::Milliseconds.scale() * x;
        let median = single.seconds.median;
        let mut mark = mark_of(&run.name, run.format, median.value, Unit::Milliseconds);
        mark.thick = median.limits.map(|l| l.map(scaled));
        mark.dots = run.single_samples.iter().map(|&s| scaled(s)).collect();
        Some(mark)
    };
    draw(Rows {
        marks: formats_of(speeds).filter_map(of).collect(),
        lines: Vec::new(),
        axis: Axis {
            from_zero: true,
            ..linear("milliseconds a token, one sequence")
        },
    })
}

/// Tokens a second by number of sequences.
pub(super) fn throughput(speeds: &Speeds) -> Result<Option<Picture>> {
    let point = |d: &Decode| (d.sequences as f64, d.tokens_per_second);
    let of = |run: &Run| run.speed.decode.iter().map(point).collect();
    curves(speeds, of, "sequences", "tokens a second")
}

/// Milliseconds a step by number of sequences.
pub(super) fn latency(speeds: &Speeds) -> Result<Option<Picture>> {
    let milliseconds = |d: &Decode| Unit::Milliseconds.scale() * d.seconds.median.value;
    let point = |d: &Decode| (d.sequences as f64, milliseconds(d));
    let of = |run: &Run| run.speed.decode.iter().map(point).collect();
    curves(speeds, of, "sequences", "milliseconds a step")
}

/// Milliseconds to the first token by length of the prompt.
pub(super) fn prefill(speeds: &Speeds) -> Result<Option<Picture>> {
    let milliseconds = |p: &Prefill| Unit::Milliseconds.scale() * p.seconds.median.value;
    let point = |p: &Prefill| (p.tokens as f64, milliseconds(p));
    let of = |run: &Run| run.speed.prefill.iter().map(point).collect();
    curves(
        speeds,
        of,
        "prompt tokens",
        "milliseconds to the first token",
    )
}

/// A curve for each format that has more than one point: a single one is no
/// curve, and stands in a table.
fn curves(
    speeds: &Speeds,
    points: impl Fn(&Run) -> Vec<(f64, f64)>,
    x_title: &str,
    y_title: &str,
) -> Result<Option<Picture>> {
    let curve = |run: &Run| Curve {
        name: run.name.clone(),
        colour: figure::colour(run.format),
        shape: figure::shape(run.format),
        points: points(run),
    };
    let curves: Vec<Curve> = formats_of(speeds).map(curve).collect();
    let curves: Vec<Curve> = curves.into_iter().filter(|c| c.points.len() > 1).collect();
    if curves.is_empty() {
        return Ok(None);
    }
    figure::lines(&Curves {
        curves,
        x_title: x_title.to_owned(),
        y_title: y_title.to_owned(),
    })
    .map(Some)
}

/// The share of the copy's bandwidth that a step of a single sequence uses.
pub(super) fn bandwidth(speeds: &Speeds) -> Result<Option<Picture>> {
    let of = |run: &Run| {
        let share = run.speed.single.as_ref()?.bandwidth_share?;
        Some(Share {
            name: run.name.clone(),
            colour: figure::colour(run.format),
            share,
            note: format!("{} %", Unit::Percent.print(share)),
        })
    };
    let shares: Vec<Share> = formats_of(speeds).filter_map(of).collect();
    if shares.is_empty() {
        return Ok(None);
    }
    figure::shares(&shares, "100 %: the speed of a large copy").map(Some)
}

/// Each format once: without the control, which is the baseline's again.
fn formats_of(speeds: &Speeds) -> impl Iterator<Item = &Run> {
    let runs = speeds.runs.iter();
    runs.filter(|run| !run.name.ends_with(AGAIN))
}

/// Divergence on a logarithmic axis: its mean, and its tail up to the 99th
/// percentile.
pub(super) fn divergence(group: &Group) -> Result<Option<Picture>> {
    let of = |(entry, forced): (&Entry, crate::verdict::judge::Divergence)| Mark {
        thin: Some([forced.kl, forced.kl_p99.max(forced.kl)]),
        thick: forced
            .kl_error
            .map(|error| [(forced.kl - error).max(forced.kl / 10.0), forced.kl + error]),
        ..mark(entry, forced.kl, Unit::Nats)
    };
    let forced = |e: &Entry| e.row.difference.as_ref().and_then(|d| d.forced);
    // A logarithmic axis has no place for 0.
    let marks = with(group, |e| forced(e).filter(|f| f.kl > 0.0));
    draw(Rows {
        marks: marks.into_iter().map(of).collect(),
        lines: Vec::new(),
        axis: Axis {
            logarithmic: true,
            ..linear("KL divergence to FP16, nats a token")
        },
    })
}

pub(super) fn flips(group: &Group) -> Result<Option<Picture>> {
    let of = |(entry, difference): (&Entry, &Difference)| Flipped {
        name: entry.name.clone(),
        colour: figure::colour(entry.row.format),
        lost: difference.flips.mcnemar.lost,
        gained: difference.flips.mcnemar.gained,
    };
    let rows = with(group, |e| e.row.difference.as_ref());
    if rows.is_empty() {
        return Ok(None);
    }
    let rows: Vec<Flipped> = rows.into_iter().map(of).collect();
    figure::flips(&rows).map(Some)
}

/// Differences to FP16 in the study and in each comparison of the records.
pub(super) fn study(findings: &Findings) -> Result<Option<Picture>> {
    let study = &findings.study;
    let effect = 100.0 * study.study.design.minimum_detectable_effect;
    let baseline = &study.study.systems[0].experiment;
    let known = |experiment: &str| {
        let mut table = crate::experiment::EXPERIMENTS.iter();
        table.find(|e| e.name == experiment).map(|e| e.format)
    };
    let published = study
        .pairs
        .iter()
        .filter(|pair| pair.experiments[1] == *baseline)
        .map(|pair| {
            let format = known(&pair.experiments[0]);
            Mark {
                name: pair.name.split(' ').next().unwrap_or_default().to_owned(),
                under: format!("study, n = {}", study.study.items),
                colour: format.map_or_else(Default::default, figure::colour),
                shape: format.map_or(Shape::Circle, figure::shape),
                value: 100.0 * pair.difference,
                note: Unit::Points.print(pair.difference),
                thick: None,
                thin: Some(pair.interval.map(|x| 100.0 * x)),
                dots: Vec::new(),
            }
        });
    let several = findings.groups.len() > 1;
    let here = findings.groups.iter().enumerate().flat_map(|(i, group)| {
        let rows = formats(group).filter_map(move |entry| {
            let paired = &entry.row.difference.as_ref()?.paired;
            let in_study = |s: &System| s.experiment == entry.row.experiment;
            study.study.systems.iter().find(|s| in_study(s))?;
            let place = if several {
                format!("comparison {}", i + 1)
            } else {
                format!("here, n = {}", paired.items)
            };
            Some(Mark {
                under: place,
                thin: paired
                    .over_stories
                    .map(|t| limits(t.interval_95).map(|x| 100.0 * x)),
                ..mark(entry, paired.mean_difference, Unit::Points)
            })
        });
        rows.collect::<Vec<Mark>>()
    });
    let distance = margin(effect / 100.0);
    figure::rows(&Rows {
        marks: published.chain(here).collect(),
        lines: vec![
            line(-effect, format!("the study could detect ±{distance}")),
            line(0.0, ""),
            line(effect, ""),
        ],
        axis: linear("F1 less FP16's, points"),
    })
    .map(Some)
}
