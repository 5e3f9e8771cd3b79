//! From records to verdicts.

use serde::{Deserialize, Serialize};

use super::number::{self, Unit};
use super::speed::{Speed, speed};
use super::stats::{
    Goal, Interval, McNemar, Needed, NonInferiority, Paired, Pairs, Plan, Recovery, Resampling,
    Sample, compare, holm, mcnemar, median, summarize,
};
use crate::error::{Error, Result};
use crate::experiment::{BASELINE, CONTROL, Verdict, expected, margin};
use crate::quant::{Bytes, Compute, Format};
use crate::record::{Dataset, Forced, Item, Model, Record, Task};

/// Chance of calling a format that loses the margin "not worse".
const ALPHA: f64 = 0.05;

/// Records of one model, data set and task, held against their baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub model: Model,
    pub dataset: Dataset,
    pub task: Task,
    /// What ran the model.
    pub engine: String,
    pub items: usize,
    pub stories: usize,
    /// Mean of the best F1 that the references allow.
    pub ceiling_f1: f64,
    /// The best answer that does not read the question, and its mean F1.
    pub constant: crate::record::Constant,
    /// The largest loss of F1 that is accepted, 0..1.
    pub margin: f64,
    pub resampling: Resampling,
    /// In the order of the experiment table.
    pub rows: Vec<Row>,
}

/// A mean over items, 0..1, with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    pub value: f64,
    /// BCa over stories; none from a single story.
    pub interval: Option<Interval>,
}

/// One experiment, and how it differs from the baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub experiment: String,
    pub format: Format,
    pub compute: Compute,
    pub slots: usize,
    pub f1: Mean,
    pub em: Mean,
    pub size: Bytes,
    pub load_seconds: f64,
    pub evaluate_seconds: f64,
    /// None if it was not measured.
    pub speed: Option<Speed>,
    pub perplexity: Option<f64>,
    /// None for the baseline, or if it was not run.
    pub difference: Option<Difference>,
}

/// An experiment less the baseline, on the same items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Of F1.
    pub paired: Paired,
    /// Of the sign-flip test, adjusted by Holm over the formats; not adjusted
    /// for the control.
    pub p_adjusted: f64,
    /// The smallest true difference of F1 that this run would find in 80 % of
    /// cases; none from a single story.
    pub detectable: Option<f64>,
    /// What it would take to rule out a loss of the margin, if there is none;
    /// none from a single story or where nothing varies.
    pub needed: Option<Needed>,
    pub non_inferiority: Option<NonInferiority>,
    pub recovery: Option<Recovery>,
    pub flips: Flips,
    pub forced: Option<Divergence>,
    /// None for the control, which is not judged.
    pub judged: Option<Judged>,
}

/// A verdict with what was expected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    pub verdict: Verdict,
    /// From the experiment table, where it has this comparison.
    pub expected: Option<Verdict>,
    /// The verdict in plain words.
    pub sentence: String,
}

/// How answers changed against the baseline's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flips {
    /// Right (equal to any reference) before and wrong now, and back.
    pub mcnemar: McNemar,
    /// Items whose answer text differs.
    pub answers_changed: usize,
    pub items: usize,
    /// Median place, from 1, of the first generated token that differs, over
    /// items where one does.
    pub first_differing_token: Option<f64>,
}

/// How far the model's distributions are from the baseline's on the gold text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    pub tokens: usize,
    /// Mean KL divergence a token, in nats.
    pub kl: f64,
    /// Standard error of `kl`, by story; none from a single story.
    pub kl_error: Option<f64>,
    pub kl_p99: f64,
    pub kl_largest: f64,
    /// Share of tokens whose likeliest one is the baseline's.
    pub same_top: f64,
    /// Perplexity over the baseline's.
    pub perplexity_ratio: f64,
    /// 95 %, from a t interval of the mean log ratio by story.
    pub perplexity_ratio_limits: Option<[f64; 2]>,
}

/// Judges each of the [`groups`] of `records`.
///
/// # Errors
/// If runs of one group do not have the same items.
pub fn comparisons(records: &[Record], resampling: Resampling) -> Result<Vec<Comparison>> {
    groups(records)
        .iter()
        .map(|group| judge(group, resampling))
        .collect()
}

/// `records` by model, data set, task and engine. Of several records of one
/// experiment the latest counts.
pub fn groups(records: &[Record]) -> Vec<Vec<&Record>> {
    let mut groups: Vec<Vec<&Record>> = Vec::new();
    for record in records {
        match groups.iter_mut().find(|group| same_task(group[0], record)) {
            Some(group) => add_latest(group, record),
            None => groups.push(vec![record]),
        }
    }
    groups
}

fn same_task(a: &Record, b: &Record) -> bool {
    let (a, b) = (&a.head.setup, &b.head.setup);
    a.model == b.model && a.dataset == b.dataset && a.task == b.task && a.engine == b.engine
}

fn add_latest<'a>(group: &mut Vec<&'a Record>, record: &'a Record) {
    let name = |r: &Record| r.head.setup.experiment.clone();
    match group.iter_mut().find(|other| name(other) == name(record)) {
        None => group.push(record),
        Some(other) if other.head.environment.started < record.head.environment.started => {
            *other = record;
        }
        Some(_) => {}
    }
}

/// Judges the records of one group.
///
/// # Errors
/// If they do not have the same items.
pub fn judge(records: &[&Record], resampling: Resampling) -> Result<Comparison> {
    let mut records = records.to_vec();
    let place = |r: &Record| {
        let known = crate::experiment::EXPERIMENTS.iter();
        known
            .take_while(|e| e.name != r.head.setup.experiment)
            .count()
    };
    records.sort_by_key(|record| place(record));
    let baseline = records
        .iter()
        .find(|r| r.head.setup.experiment == BASELINE)
        .copied();
    let first = records[0];
    let setup = &first.head.setup;
    let mut rows = Vec::with_capacity(records.len());
    for record in &records {
        rows.push(row(record, baseline, resampling)?);
    }
    adjust(&mut rows)?;
    let f1 = Sample::new(&values(first, |i| i.f1), &stories(first))?;
    Ok(Comparison {
        model: setup.model.clone(),
        dataset: setup.dataset.clone(),
        task: setup.task.clone(),
        engine: setup.engine.clone(),
        items: f1.items(),
        stories: f1.stories(),
        ceiling_f1: Sample::new(&values(first, |i| i.ceiling_f1), &stories(first))?.mean(),
        constant: first.head.constant.clone(),
        margin: margin(setup.task.turns),
        resampling,
        rows,
    })
}

/// Holm's adjustment over the formats; the control is not one of them.
fn adjust(rows: &mut [Row]) -> Result<()> {
    let judged = |row: &Row| row.difference.is_some() && row.experiment != CONTROL;
    let family: Vec<usize> = (0..rows.len()).filter(|&i| judged(&rows[i])).collect();
    let p = |&i: &usize| rows[i].difference.as_ref().map(|d| d.p_adjusted);
    let p_values: Vec<f64> = family.iter().filter_map(p).collect();
    for (i, p) in family.into_iter().zip(holm(&p_values)?) {
        if let Some(difference) = &mut rows[i].difference {
            difference.p_adjusted = p;
        }
    }
    Ok(())
}

fn row(record: &Record, baseline: Option<&Record>, resampling: Resampling) -> Result<Row> {
    let setup = &record.head.setup;
    let mean = |value: fn(&Item) -> f64| {
        let sample = Sample::new(&values(record, value), &stories(record))?;
        let summary = summarize(&sample, 0.95, resampling)?;
        Ok::<Mean, Error>(Mean {
            value: summary.mean,
            interval: summary.bootstrap.map(|b| b.bca),
        })
    };
    let baseline = baseline.filter(|_| setup.experiment != BASELINE);
    let samples = record.samples.speed.as_ref();
    Ok(Row {
        experiment: setup.experiment.clone(),
        format: setup.format,
        compute: setup.compute,
        slots: setup.slots,
        f1: mean(|item| item.f1)?,
        em: mean(|item| item.em)?,
        size: record.head.size,
        load_seconds: record.samples.load_seconds,
        evaluate_seconds: record.samples.evaluate_seconds,
        speed: samples
            .map(|samples| speed(setup.format, record.head.parts, samples))
            .transpose()?,
        perplexity: mean_nll(&record.forced).map(f64::exp),
        difference: baseline
            .map(|b| difference(b, record, resampling))
            .transpose()?,
    })
}

fn difference(baseline: &Record, record: &Record, resampling: Resampling) -> Result<Difference> {
    check_same_items(baseline, record)?;
    let setup = &record.head.setup;
    let margin = margin(setup.task.turns);
    let (a, b) = (values(baseline, |i| i.f1), values(record, |i| i.f1));
    let pairs = Pairs::new(&a, &b, &stories(record))?;
    let paired = compare(&pairs, resampling)?;
    let estimate = paired.over_stories.map(|t| t.estimate);
    let plan = Plan {
        alpha: ALPHA,
        ..Plan::default()
    };
    let detectable = |e| Goal::Difference.detectable(e, plan);
    let spread = pairs
        .difference()
        .spread()
        .filter(|s| s.standard_deviation > 0.0);
    let non_inferiority = estimate
        .map(|e| e.non_inferiority(margin, ALPHA))
        .transpose()?;
    let judged = (setup.experiment != CONTROL).then(|| {
        let verdict = verdict(&paired, non_inferiority);
        Judged {
            verdict,
            expected: expected_of(record),
            sentence: sentence(&setup.format.label(setup.compute), &paired, margin, verdict),
        }
    });
    Ok(Difference {
        p_adjusted: paired.sign_flip.p,
        detectable: estimate.map(|e| detectable(e.standard_error)).transpose()?,
        needed: spread
            .map(|s| Goal::NonInferiority.needed(margin, s, plan))
            .transpose()?,
        recovery: paired.recovery,
        flips: flips(baseline, record)?,
        forced: divergence(&baseline.forced, &record.forced)?,
        paired,
        non_inferiority,
        judged,
    })
}

fn check_same_items(baseline: &Record, record: &Record) -> Result<()> {
    let same = baseline.items.len() == record.items.len()
        && baseline
            .items
            .iter()
            .zip(&record.items)
            .all(|(a, b)| a.id == b.id);
    if same {
        return Ok(());
    }
    Err(Error::record(
        &record.head.setup.experiment,
        format!("the items of {}", baseline.head.setup.experiment),
        "other items",
        "run both experiments again on one data set",
    ))
}

/// The verdict expected of a run on all stories of a known data set.
fn expected_of(record: &Record) -> Option<Verdict> {
    let setup = &record.head.setup;
    let whole = setup.task.limit.is_none();
    let known = expected(
        &setup.model.name,
        &setup.dataset.name,
        setup.task.turns,
        &setup.experiment,
    );
    known.filter(|_| whole)
}

/// PASS if a loss of the margin is ruled out, FAIL if a larger loss is shown,
/// both by the limits of the 90 % interval (one-sided 5 %).
///
/// Where no score differs the interval is a point and rules everything out,
/// however few the items. Then the share of items that could have changed
/// unseen decides: its upper limit, each at the loss of a whole point.
fn verdict(paired: &Paired, non_inferiority: Option<NonInferiority>) -> Verdict {
    let (Some(over_stories), Some(test)) = (paired.over_stories, non_inferiority) else {
        return Verdict::Inconclusive;
    };
    let unseen = paired.changes.changed_interval.high;
    if over_stories.estimate.standard_error == 0.0 && paired.mean_difference == 0.0 {
        return if unseen < test.margin {
            Verdict::Pass
        } else {
            Verdict::Inconclusive
        };
    }
    if test.passes {
        Verdict::Pass
    } else if over_stories.interval_90.high < -test.margin {
        Verdict::Fail
    } else {
        Verdict::Inconclusive
    }
}

fn sentence(format: &str, paired: &Paired, margin: f64, verdict: Verdict) -> String {
    let points = 100.0 * paired.mean_difference;
    let direction = if points.abs() < 0.05 {
        "scores the same as FP16".to_owned()
    } else {
        let side = if points < 0.0 { "below" } else { "above" };
        format!("scores {:.1} points {side} FP16", points.abs())
    };
    let interval = match paired.over_stories.map(|t| t.interval_90) {
        None => "no interval from a single story".to_owned(),
        Some(i) => {
            let [low, high] = [i.low, i.high].map(|limit| Unit::Points.print(limit));
            format!("90 % interval {low} to {high}")
        }
    };
    let margin = number::points(margin);
    let conclusion = match verdict {
        Verdict::Pass => format!("a loss of {margin} or more is ruled out"),
        Verdict::Fail => format!("a loss of more than {margin} is shown"),
        Verdict::Inconclusive => {
            format!("a loss of {margin} is neither shown nor ruled out")
        }
    };
    format!(
        "{format} {direction} on {} questions ({interval}): {conclusion}.",
        paired.items
    )
}

fn flips(baseline: &Record, record: &Record) -> Result<Flips> {
    let pairs = || baseline.items.iter().zip(&record.items);
    let count = |from: bool, to: bool| {
        let flipped = pairs().filter(|(a, b)| a.em_any == from && b.em_any == to);
        u32::try_from(flipped.count()).unwrap_or(u32::MAX)
    };
    let places: Vec<f64> = pairs()
        .filter_map(|(a, b)| first_difference(&a.tokens, &b.tokens))
        .map(|place| (place + 1) as f64)
        .collect();
    let changed = |(a, b): &(&Item, &Item)| a.prediction.trim() != b.prediction.trim();
    Ok(Flips {
        mcnemar: mcnemar(count(true, false), count(false, true)),
        answers_changed: pairs().filter(changed).count(),
        items: record.items.len(),
        first_differing_token: median(&places, 0.95)?.map(|m| m.value),
    })
}

/// Place of the first token that differs, from 0; none if all are equal.
fn first_difference(a: &[u32], b: &[u32]) -> Option<usize> {
    let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (common < a.len().max(b.len())).then_some(common)
}

fn divergence(baseline: &[Forced], forced: &[Forced]) -> Result<Option<Divergence>> {
    let same = baseline.len() == forced.len()
        && baseline
            .iter()
            .zip(forced)
            .all(|(a, b)| a.story == b.story && a.tokens == b.tokens);
    let mut kl: Vec<f64> = forced.iter().flat_map(|f| f.kl.iter().copied()).collect();
    if !same || kl.is_empty() {
        return Ok(None);
    }
    let story = |f: &Forced| std::iter::repeat_n(f.story.clone(), f.tokens).collect::<Vec<_>>();
    let stories: Vec<String> = forced.iter().flat_map(story).collect();
    let sample = Sample::new(&kl, &stories)?;
    // A story's tokens enter its sum alone, so its mean may stand for each.
    let log_ratio = |(a, b): (&Forced, &Forced)| {
        std::iter::repeat_n((b.nll - a.nll) / b.tokens as f64, b.tokens)
    };
    let log_ratios: Vec<f64> = baseline.iter().zip(forced).flat_map(log_ratio).collect();
    let log_ratios = Sample::new(&log_ratios, &stories)?;
    let limits = log_ratios
        .over_stories()
        .map(|e| e.interval(0.95))
        .transpose()?;
    kl.sort_by(f64::total_cmp);
    let same_top: usize = forced.iter().map(|f| f.same_top).sum();
    Ok(Some(Divergence {
        tokens: kl.len(),
        kl: sample.mean(),
        kl_error: sample.clustering().map(|c| c.cr1),
        kl_p99: kl[(kl.len() * 99).div_ceil(100) - 1],
        kl_largest: kl[kl.len() - 1],
        same_top: same_top as f64 / kl.len() as f64,
        perplexity_ratio: log_ratios.mean().exp(),
        perplexity_ratio_limits: limits.map(|i| [i.low.exp(), i.high.exp()]),
    }))
}

fn mean_nll(forced: &[Forced]) -> Option<f64> {
    let tokens: usize = forced.iter().map(|f| f.tokens).sum();
    let nll: f64 = forced.iter().map(|f| f.nll).sum();
    (tokens > 0).then(|| nll / tokens as f64)
}

fn values(record: &Record, value: impl Fn(&Item) -> f64) -> Vec<f64> {
    record.items.iter().map(value).collect()
}

fn stories(record: &Record) -> Vec<&str> {
    record
        .items
        .iter()
        .map(|item| item.story.as_str())
        .collect()
}
