//! Sections into files: Markdown, HTML, CSV, LaTeX, pictures.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Output, State, Value as Printed, context};
use rayon::prelude::*;
use serde::Serialize;

use super::findings::Findings;
use super::folder::{File, manifest};
use super::table::{Cell, Heading, Layout, Table};
use super::{escape, group, original, speed};
use crate::error::{Error, Result};
use crate::verdict::figure::{Picture, png};

/// One part of a section.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Block {
    Text {
        text: String,
    },
    Verdict {
        verdict: String,
        text: String,
    },
    Figure {
        /// Name of its files, without extension.
        file: String,
        caption: String,
        svg: String,
    },
    Table(Table),
}

impl Block {
    pub(super) fn text(text: &str) -> Self {
        let text = text.to_owned();
        Self::Text { text }
    }
}

impl From<Table> for Block {
    fn from(table: Table) -> Self {
        Self::Table(table)
    }
}

/// A heading with what stands under it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Section {
    pub id: String,
    pub title: String,
    pub blocks: Vec<Block>,
}

/// The sections about one comparison, or about benches of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chapter {
    pub id: String,
    pub title: String,
    pub sections: Vec<Section>,
}

/// The whole report, before it has a form.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Page {
    pub chapters: Vec<Chapter>,
    pub study: Section,
    /// Where the columns of the tables come from.
    pub sources: Section,
}

/// The report on `findings`.
///
/// # Errors
/// If a picture cannot be drawn.
pub fn page(findings: &Findings) -> Result<Page> {
    let json =
        serde_json::to_value(findings).map_err(|e| Error::engine("collecting the findings", e))?;
    let chapters = findings.groups.iter().enumerate().map(|(place, group)| {
        let writer = group::Writer {
            findings: &json,
            place,
            group,
        };
        Ok(Chapter {
            id: group.slug.clone(),
            title: group.title.clone(),
            sections: group::sections(&writer)?,
        })
    });
    let benches = findings.benches.iter().enumerate().map(|(place, benched)| {
        Ok(Chapter {
            id: benched.slug.clone(),
            title: benched.title.clone(),
            sections: speed::sections(&json, place, benched)?,
        })
    });
    let mut page = Page {
        chapters: chapters.chain(benches).collect::<Result<_>>()?,
        study: original::section(findings, &json)?,
        sources: Section {
            id: "sources".to_owned(),
            title: "Where the numbers come from".to_owned(),
            blocks: Vec::new(),
        },
    };
    let sources = sources(&page);
    page.sources.blocks.push(Block::Table(sources));
    Ok(page)
}

impl Page {
    fn sections(&self) -> impl Iterator<Item = &Section> {
        let chapters = self.chapters.iter();
        let sections = chapters.flat_map(|c| &c.sections);
        sections.chain([&self.study, &self.sources])
    }

    /// Every table, in the order of the report.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        let blocks = self.sections().flat_map(|s| &s.blocks);
        blocks.filter_map(|block| match block {
            Block::Table(table) => Some(table),
            _ => None,
        })
    }

    fn figures(&self) -> impl Iterator<Item = (&str, &str)> {
        let blocks = self.sections().flat_map(|s| &s.blocks);
        blocks.filter_map(|block| match block {
            Block::Figure { file, svg, .. } => Some((file.as_str(), svg.as_str())),
            _ => None,
        })
    }
}

/// Each column once, though every comparison has it.
fn sources(page: &Page) -> Table {
    let mut columns: BTreeMap<String, &str> = BTreeMap::new();
    for heading in page.tables().flat_map(|table| &table.columns) {
        let keys = heading.sources.join(", ");
        columns.entry(keys).or_insert(&heading.title);
    }
    let cell = |text: &str| Cell {
        values: vec![text.to_owned()],
        text: text.to_owned(),
        numeric: false,
    };
    let heading = |title: &str| Heading {
        title: title.to_owned(),
        numeric: false,
        sources: Vec::new(),
    };
    Table {
        name: "sources".to_owned(),
        caption: "Keys of the findings that each column shows. Findings are computed from the \
                  records; [] is any place in a list."
            .to_owned(),
        columns: vec![heading("Column"), heading("Keys")],
        rows: columns
            .iter()
            .map(|(keys, title)| vec![cell(title), cell(keys)])
            .collect(),
        layout: Layout::Facts,
    }
}

/// Every file of the report.
///
/// # Errors
/// If a picture cannot be drawn or a template does not fit.
pub fn files(findings: &Findings) -> Result<Vec<File>> {
    let page = page(findings)?;
    let templates = templates()?;
    let render = |name: &str, context: Printed| {
        let template = templates.get_template(name);
        template
            .and_then(|t| t.render(context))
            .map_err(|e| Error::engine(format!("filling in {name}"), e))
    };
    let mut files = vec![
        File::new(
            "REPORT.md",
            render("report.md", context!(page => Serde(&page)))?,
        ),
        File::new(
            "index.html",
            render("report.html", context!(page => Serde(&page)))?,
        ),
    ];
    for table in page.tables() {
        let name = |extension| format!("tables/{}.{extension}", table.name);
        files.push(File::new(name("csv"), csv(table)));
        files.push(File::new(
            name("tex"),
            render("table.tex", context!(table => Serde(table)))?,
        ));
    }
    let figures: Vec<(&str, &str)> = page.figures().collect();
    let drawn = figures.par_iter().map(|(name, svg)| {
        let picture = Picture {
            svg: (*svg).to_owned(),
        };
        let pixels = png(&picture)?;
        Ok([
            File::new(format!("figures/{name}.svg"), picture.svg),
            File::new(format!("figures/{name}.png"), pixels),
        ])
    });
    files.extend(drawn.collect::<Result<Vec<_>>>()?.into_iter().flatten());
    files.push(manifest(&files));
    Ok(files)
}

fn templates() -> Result<Environment<'static>> {
    let mut templates = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true)
        .build()
        .map_err(|e| Error::engine("preparing the templates", e))?;
    templates.set_syntax(syntax);
    let by_name = |name: &str| match name.rsplit('.').next() {
        Some("html") => AutoEscape::Html,
        Some("md") => AutoEscape::Custom("markdown".into()),
        Some("tex") => AutoEscape::Custom("latex".into()),
        _ => AutoEscape::None,
    };
    templates.set_auto_escape_callback(by_name);
    templates.set_formatter(print);
    let sources = [
        ("report.html", include_str!("../templates/report.html")),
        ("style.css", include_str!("../templates/style.css")),
        ("report.md", include_str!("../templates/report.md")),
        ("table.tex", include_str!("../templates/table.tex")),
    ];
    for (name, source) in sources {
        let added = templates.add_template(name, source);
        added.map_err(|e| Error::engine(format!("reading {name}"), e))?;
    }
    Ok(templates)
}

/// Prints a value into a template, escaped as its output needs it.
fn print(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Printed,
) -> std::result::Result<(), minijinja::Error> {
    let text = value.to_string();
    let escaped = match state.auto_escape() {
        _ if value.is_safe() => text,
        AutoEscape::None => text,
        AutoEscape::Custom(name) if name == "markdown" => escape::markdown(&text),
        AutoEscape::Custom(name) if name == "latex" => escape::latex(&text),
        _ => escape::html(&text),
    };
    Ok(out.write_str(&escaped)?)
}

fn csv(table: &Table) -> String {
    let mut text = String::new();
    let mut line = |fields: Vec<String>| {
        let fields: Vec<String> = fields.iter().map(|field| escape::csv(field)).collect();
        text.push_str(&fields.join(","));
        text.push_str("\r\n");
    };
    let titles = table.columns.iter().flat_map(|column| {
        let limits = ["", " low", " high"]
            .iter()
            .take(column.sources.len().max(1));
        limits.map(|limit| format!("{}{limit}", column.title))
    });
    line(titles.collect());
    for row in &table.rows {
        line(row.iter().flat_map(|cell| cell.values.clone()).collect());
    }
    text
}
