//! Tables whose columns name the findings they show.
//!
//! A cell is looked up in the findings by its row's and its column's key, and
//! there is no other way to fill one: a number that nobody measured cannot get
//! into a table.

use serde::Serialize;
use serde_json::Value;

use crate::verdict::number::{Unit, significant};

/// A column: its title and where its cells are found below the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    pub title: &'static str,
    /// A key, or three: a value and the limits of its interval.
    pub keys: &'static [&'static str],
    pub unit: Unit,
}

/// A column of single values.
pub const fn column(title: &'static str, keys: &'static [&'static str], unit: Unit) -> Column {
    Column { title, keys, unit }
}

/// Of a table of facts about a machine.
pub const PROPERTIES: [Column; 2] = [
    column("Property", &["name"], Unit::Text),
    column("Value", &["values"], Unit::Text),
];

/// Of a table of what was read.
pub const FILES: [Column; 2] = [
    column("File", &["file"], Unit::Text),
    column("SHA-256", &["sha256"], Unit::Text),
];

/// A table, ready to be printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// Names its files.
    pub name: String,
    pub caption: String,
    pub columns: Vec<Heading>,
    pub rows: Vec<Vec<Cell>>,
    pub layout: Layout,
}

/// What a table does where the page is narrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Numbers, compared down a column: scrolls, the first column stays.
    Numbers,
    /// A name and a long value: breaks anywhere.
    Facts,
    /// Sentences in many columns: each row becomes a card.
    Cards,
}

/// The head of a column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Heading {
    pub title: String,
    /// Whether its cells are numbers.
    pub numeric: bool,
    /// Where its cells come from: keys of the findings, with `[]` for any
    /// place in a list.
    pub sources: Vec<String>,
}

/// One cell.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cell {
    /// As printed; empty where there is nothing.
    pub text: String,
    /// As exported: one for each key of the column, six significant digits.
    pub values: Vec<String>,
    pub numeric: bool,
}

impl Table {
    /// The table of `columns` with a row for each of `rows`, keys of lists or
    /// objects in `findings`.
    pub fn new(
        findings: &Value,
        name: String,
        caption: impl Into<String>,
        rows: &[String],
        columns: &[Column],
    ) -> Self {
        let heading = |column: &Column| Heading {
            title: column.title.to_owned(),
            numeric: column.unit != Unit::Text,
            sources: column
                .keys
                .iter()
                .map(|key| anywhere(rows.first().map_or("", String::as_str), key))
                .collect(),
        };
        let row = |prefix: &String| {
            let at = lookup(findings, prefix).unwrap_or(&Value::Null);
            columns.iter().map(|column| cell(at, column)).collect()
        };
        Self {
            name,
            caption: caption.into(),
            columns: columns.iter().map(heading).collect(),
            rows: rows.iter().map(row).collect(),
            layout: Layout::Numbers,
        }
    }

    /// The same table, laid out otherwise.
    pub fn laid_out(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Without columns that have nothing in any row.
    pub fn without_empty_columns(mut self) -> Self {
        let kept: Vec<bool> = (0..self.columns.len())
            .map(|i| self.rows.iter().any(|row| !row[i].text.is_empty()))
            .collect();
        let mut keep = kept.iter();
        self.columns.retain(|_| *keep.next().unwrap_or(&true));
        for row in &mut self.rows {
            let mut keep = kept.iter();
            row.retain(|_| *keep.next().unwrap_or(&true));
        }
        self
    }
}

/// What lies at `key`, names and places in lists joined by dots.
pub fn lookup<'a>(findings: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.')
        .try_fold(findings, |value, name| match value {
            Value::Array(list) => list.get(name.parse::<usize>().ok()?),
            other => other.get(name),
        })
}

/// The key of a column below any row: `groups[].entries[].f1.value`.
fn anywhere(row: &str, key: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in row.split('.') {
        match (part.parse::<usize>(), parts.last_mut()) {
            (Ok(_), Some(list)) => list.push_str("[]"),
            _ => parts.push(part.to_owned()),
        }
    }
    parts.push(key.to_owned());
    parts.join(".")
}

fn cell(row: &Value, column: &Column) -> Cell {
    let found: Vec<Option<&Value>> = column
        .keys
        .iter()
        .map(|key| lookup(row, key).filter(|v| !v.is_null()))
        .collect();
    if column.unit == Unit::Text {
        let text = found[0].map_or_else(String::new, plain_text);
        return Cell {
            values: vec![text.clone()],
            text,
            numeric: false,
        };
    }
    let numbers: Vec<Option<f64>> = found.iter().map(|v| v.and_then(Value::as_f64)).collect();
    let print = |x: f64| column.unit.print(x);
    let text = match numbers[..] {
        [Some(value), Some(low), Some(high)] => {
            format!("{} [{}, {}]", print(value), print(low), print(high))
        }
        [Some(value), ..] => print(value),
        _ => String::new(),
    };
    let export = |x: f64| match column.unit {
        Unit::Count => format!("{x:.0}"),
        unit => significant(unit.scale() * x, 6),
    };
    Cell {
        text,
        values: numbers
            .into_iter()
            .map(|x| x.map_or_else(String::new, export))
            .collect(),
        numeric: true,
    }
}

fn plain_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        other => other.to_string(),
    }
}
