//! NF4 against FP4, item by item.

use serde::Serialize;

use crate::error::Result;
use crate::quant::Code4::{Fp4, Nf4};
use crate::quant::Format;
use crate::record::{Item, Record};
use crate::verdict::judge::Row;
use crate::verdict::stats::{Paired, Pairs, Resampling, compare};

/// Answers shown where two formats differ; the rest is counted.
const SHOWN: usize = 20;
/// Characters of a text that are shown.
const SHOWN_CHARACTERS: usize = 160;

/// NF4 against FP4, item by item.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Duel {
    /// `a - b` is what is compared.
    pub a: Contender,
    pub b: Contender,
    /// Of F1, `a - b`.
    pub paired: Paired,
    /// Items whose answer text differs.
    pub texts_differ: usize,
    /// The largest differences of F1 first.
    pub shown: Vec<Changed>,
    /// Further items whose text or F1 differs.
    pub not_shown: usize,
    /// The differences of F1 that are not 0.
    #[serde(skip)]
    pub differences: Vec<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contender {
    pub name: String,
    pub format: Format,
}

/// An item that two formats answer differently.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changed {
    pub id: String,
    pub question: String,
    pub references: String,
    pub answer_a: String,
    pub answer_b: String,
    pub f1_a: f64,
    pub f1_b: f64,
}

/// An NF4 and an FP4 that differ in nothing but the code.
pub(super) fn duellists(rows: &[Row]) -> Option<[Format; 2]> {
    let with = |format: Format, wanted| match format {
        Format::Bnb4 {
            block,
            double_quant,
            code,
        } => (code != wanted).then_some(Format::Bnb4 {
            code: wanted,
            block,
            double_quant,
        }),
        _ => None,
    };
    let formats = || rows.iter().map(|r| r.format);
    let pair = |b: Format| {
        let a = with(b, Nf4)?;
        (with(a, Fp4) == Some(b) && formats().any(|f| f == a)).then_some([a, b])
    };
    formats().find_map(pair)
}

pub(super) fn duel(a: &Record, b: &Record, resampling: Resampling) -> Result<Duel> {
    let f1 = |r: &Record| r.items.iter().map(|i| i.f1).collect::<Vec<f64>>();
    let stories: Vec<&str> = a.items.iter().map(|i| i.story.as_str()).collect();
    let paired = compare(&Pairs::new(&f1(b), &f1(a), &stories)?, resampling)?;
    let differ = |(a, b): &(&Item, &Item)| a.prediction.trim() != b.prediction.trim();
    let pairs = || a.items.iter().zip(&b.items);
    let loss = |(a, b): &(&Item, &Item)| (a.f1 - b.f1).abs();
    let mut changed: Vec<(&Item, &Item)> = pairs().filter(differ).collect();
    changed.sort_by(|x, y| loss(y).total_cmp(&loss(x)));
    let contender = |record: &Record| Contender {
        name: record.head.setup.format.label(record.head.setup.compute),
        format: record.head.setup.format,
    };
    let differences = pairs().map(|(a, b)| a.f1 - b.f1);
    Ok(Duel {
        a: contender(a),
        b: contender(b),
        paired,
        texts_differ: changed.len(),
        not_shown: changed.len().saturating_sub(SHOWN),
        shown: changed
            .iter()
            .take(SHOWN)
            .map(|(a, b)| shown(a, b))
            .collect(),
        differences: differences.filter(|d| d.abs() > 1e-9).collect(),
    })
}

fn shown(a: &Item, b: &Item) -> Changed {
    let mut references: Vec<&str> = Vec::new();
    for reference in &a.references {
        if !references.contains(&reference.as_str()) {
            references.push(reference);
        }
    }
    Changed {
        id: a.id.clone(),
        question: shorten(&a.question),
        references: shorten(&references.join(" / ")),
        answer_a: shorten(&a.prediction),
        answer_b: shorten(&b.prediction),
        f1_a: a.f1,
        f1_b: b.f1,
    }
}

fn shorten(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
