//! CoQA stories from a file, checked once, here.
//!
//! Two layouts are read, told apart by their content:
//! - the official JSON of <https://stanfordnlp.github.io/coqa/>,
//!   `{"version", "data": [story, ...]}`, whose questions and answers are lists
//!   of objects;
//! - the rows of the hub dataset `EleutherAI/coqa`, which
//!   lm-evaluation-harness loads, as JSON lines or as one JSON array, whose
//!   questions and answers are objects of lists; or the parquet file of it.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::parquet;
use crate::error::{Error, Result};

/// A file of stories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    pub path: PathBuf,
    /// SHA-256 of the file's bytes, in lower-case hexadecimal digits.
    pub sha256: String,
    /// In the order of the file; at least one, with distinct ids.
    pub stories: Vec<Story>,
}

/// A passage and the conversation about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    pub id: String,
    /// The collection that the passage comes from, such as `mctest`.
    pub source: Option<String>,
    /// The passage, as it stands in the file.
    pub text: String,
    /// In the order of the conversation; at least one.
    pub turns: Vec<Turn>,
}

/// A question and what the annotators answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    pub question: String,
    /// The answer that later questions of the conversation build on.
    pub answer: String,
    /// What further annotators answered, in their order; may be empty.
    pub additional: Vec<String>,
}

impl Dataset {
    /// Reads a dataset from a file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Dataset`] with the
    /// file, the place in it and the story if it is not a usable dataset.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|cause| Error::io("read the dataset", path, cause))?;
        Self::from_bytes(path, &bytes)
    }

    /// Reads a dataset from the bytes of a file; `path` is what errors name.
    ///
    /// # Errors
    /// [`Error::Dataset`], as for [`Dataset::open`].
    pub fn from_bytes(path: impl AsRef<Path>, bytes: &[u8]) -> Result<Self> {
        let path = path.as_ref();
        let rows = if bytes.starts_with(b"PAR1") {
            numbered(path, parquet::rows(path, bytes)?, "row")
        } else {
            rows(path, text(path, bytes)?)?
        };
        let stories = rows
            .iter()
            .map(|row| story(path, row))
            .collect::<Result<Vec<_>>>()?;
        check_whole(path, &stories)?;
        Ok(Self {
            path: path.to_path_buf(),
            sha256: sha256(bytes),
            stories,
        })
    }

    /// The first `limit` stories, or all: what `limit` means in
    /// lm-evaluation-harness.
    pub fn first(&self, limit: Option<usize>) -> &[Story] {
        let count = limit.map_or(self.stories.len(), |limit| limit.min(self.stories.len()));
        &self.stories[..count]
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
            hex
        })
}

const FETCH_AGAIN: &str = "download the file again or repair this place";
const COMPARE: &str = "compare the story with the published dataset, or remove it";

/// The bytes as text, without a byte order mark.
fn text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    let file = path.display();
    let text = str::from_utf8(bytes).map_err(|cause| {
        let before = &bytes[..cause.valid_up_to()];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        let place = format!("{file} line {line}");
        Error::dataset(
            place,
            "text in UTF-8",
            "other bytes",
            "save or download the file again",
        )
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// One story of the file, not yet checked, and where it stands.
struct Row {
    place: String,
    value: Value,
}

/// The stories, each at its place in the file, counted from 1.
fn numbered(path: &Path, stories: Vec<Value>, unit: &str) -> Vec<Row> {
    let places = (1..).map(|number| format!("{} {unit} {number}", path.display()));
    let rows = places.zip(stories);
    rows.map(|(place, value)| Row { place, value }).collect()
}

/// The stories of the file, whatever its layout.
fn rows(path: &Path, text: &str) -> Result<Vec<Row>> {
    let file = path.display().to_string();
    if text.trim().is_empty() {
        return Err(Error::dataset(
            file,
            "stories",
            "an empty file",
            FETCH_AGAIN,
        ));
    }
    match serde_json::from_str(text) {
        Ok(Value::Array(stories)) => Ok(numbered(path, stories, "story")),
        Ok(Value::Object(mut whole)) => match whole.remove("data") {
            Some(Value::Array(stories)) => Ok(numbered(path, stories, "story")),
            Some(other) => Err(wrong_kind(
                format!("{file}: `data`"),
                "a list of stories",
                &other,
            )),
            None => Ok(numbered(path, vec![Value::Object(whole)], "story")),
        },
        Ok(other) => Err(wrong_kind(file, "stories", &other)),
        Err(_) if is_json_lines(text) => json_lines(&file, text),
        Err(cause) => Err(damaged(&file, cause.line(), &cause)),
    }
}

/// The lines that are not blank, numbered from 1.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty())
}

/// Whether the first or the last line is a story by itself. In a document that
/// is one value spread over several lines neither is; with both asked, damage
/// in the first of many lines is still reported as that.
fn is_json_lines(text: &str) -> bool {
    let is_story = |(_, line): (usize, &str)| {
        serde_json::from_str::<Map<String, Value>>(line).is_ok_and(|row| row.contains_key("story"))
    };
    lines(text).next().is_some_and(is_story) || lines(text).last().is_some_and(is_story)
}

fn json_lines(file: &str, text: &str) -> Result<Vec<Row>> {
    let row = |(number, line)| match serde_json::from_str(line) {
        Ok(value) => Ok(Row {
            place: format!("{file} line {number}"),
            value,
        }),
        Err(cause) => Err(damaged(file, number, &cause)),
    };
    lines(text).map(row).collect()
}

fn damaged(file: &str, line: usize, cause: &serde_json::Error) -> Error {
    let place = match cause.column() {
        // serde_json counts a line break as column 0 of the line after it.
        0 => format!("{file} line {}, at its end", line.saturating_sub(1).max(1)),
        column => format!("{file} line {line} column {column}"),
    };
    let cause = cause.to_string();
    // The position that follows counts from the start of what was parsed.
    let reason = cause.split(" at line ").next().unwrap_or_default();
    Error::dataset(place, "JSON", format!("damage ({reason})"), FETCH_AGAIN)
}

fn wrong_kind(thing: impl Into<String>, wanted: &str, found: &Value) -> Error {
    let found = match found {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Error::dataset(
        thing,
        wanted,
        found,
        "use a file in the official or the hub layout of CoQA",
    )
}

/// A story from its row, in either layout.
fn story(path: &Path, row: &Row) -> Result<Story> {
    let Row {
        place,
        value: Value::Object(fields),
    } = row
    else {
        return Err(wrong_kind(&row.place, "a story", &row.value));
    };
    let field = |name: &str| fields.get(name).unwrap_or(&Value::Null);
    // Before the id, which this layout lacks too.
    if field("questions")
        .as_array()
        .is_some_and(|list| list.iter().any(Value::is_string))
    {
        let found = "the layout of stanfordnlp/coqa, which lacks additional answers";
        return Err(lacks_additional_answers(path, found));
    }
    let id = string(format!("{place}: `id`"), field("id"))?;
    let story = format!("{place}, story {id}");
    let source = match field("source") {
        Value::Null => None,
        source => Some(string(format!("{story}: `source`"), source)?),
    };
    let text = string(format!("{story}: `story`"), field("story"))?;
    if text.trim().is_empty() {
        return Err(Error::dataset(story, "a passage", "an empty one", COMPARE));
    }
    let questions = column(format!("{story}: `questions`"), field("questions"))?;
    if questions.is_empty() {
        return Err(Error::dataset(story, "questions", "none", COMPARE));
    }
    let answers = column(format!("{story}: `answers`"), field("answers"))?;
    check_against_questions(&format!("{story}: `answers`"), &answers, &questions)?;
    let additional = additional_answers(&story, field("additional_answers"), &questions)?;

    let turn = |(index, (question, answer)): (usize, (Entry, Entry))| Turn {
        question: question.text,
        answer: answer.text,
        additional: additional
            .iter()
            .map(|annotator| annotator[index].text.clone())
            .collect(),
    };
    let turns = questions
        .into_iter()
        .zip(answers)
        .enumerate()
        .map(turn)
        .collect();
    Ok(Story {
        id,
        source,
        text,
        turns,
    })
}

/// The answers of each further annotator who answered, all as many as there
/// are questions.
fn additional_answers(story: &str, value: &Value, questions: &[Entry]) -> Result<Vec<Vec<Entry>>> {
    let annotators = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Object(annotators) => annotators,
        other => {
            return Err(wrong_kind(
                format!("{story}: `additional_answers`"),
                "an object",
                other,
            ));
        }
    };
    // The keys are "0", "1", "2": by length first is by number.
    let mut annotators: Vec<_> = annotators
        .iter()
        .filter(|(_, list)| !list.is_null())
        .collect();
    annotators.sort_by_key(|(key, _)| (key.len(), *key));

    let mut all = Vec::new();
    for (key, list) in annotators {
        let place = format!("{story}: additional answers \"{key}\"");
        let answers = column(&place, list)?;
        // Instead of no list the hub's training split holds an empty answer to
        // a turn -1. An empty list passes as well.
        let is_placeholder = |answer: &Entry| answer.turn_id.is_some_and(|id| id < 0);
        if !answers.iter().all(is_placeholder) {
            check_against_questions(&place, &answers, questions)?;
            all.push(answers);
        }
    }
    Ok(all)
}

/// A question or an answer.
struct Entry {
    text: String,
    turn_id: Option<i64>,
}

/// The entries of a list of objects (official) or an object of lists (hub).
fn column(place: impl Into<String>, value: &Value) -> Result<Vec<Entry>> {
    let place = place.into();
    match value {
        Value::Array(list) => list
            .iter()
            .map(|entry| official_entry(&place, entry))
            .collect(),
        Value::Object(lists) => hub_entries(&place, lists),
        other => Err(wrong_kind(place, "a list or an object of lists", other)),
    }
}

fn official_entry(place: &str, value: &Value) -> Result<Entry> {
    let Value::Object(fields) = value else {
        return Err(wrong_kind(place, "objects with an `input_text`", value));
    };
    let text = fields.get("input_text").unwrap_or(&Value::Null);
    let text = string(format!("{place}, `input_text`"), text)?;
    Ok(Entry {
        text,
        turn_id: turn_id(place, fields.get("turn_id"))?,
    })
}

fn hub_entries(place: &str, lists: &Map<String, Value>) -> Result<Vec<Entry>> {
    let texts = match lists.get("input_text") {
        Some(Value::Array(texts)) => texts,
        other => {
            let place = format!("{place}, `input_text`");
            return Err(wrong_kind(
                place,
                "a list of strings",
                other.unwrap_or(&Value::Null),
            ));
        }
    };
    let turn_ids = match lists.get("turn_id") {
        None | Some(Value::Null) => None,
        Some(Value::Array(turn_ids)) if turn_ids.len() == texts.len() => Some(turn_ids),
        Some(Value::Array(turn_ids)) => {
            let wanted = format!("as many turn ids as texts, {}", texts.len());
            return Err(Error::dataset(
                place,
                wanted,
                turn_ids.len().to_string(),
                COMPARE,
            ));
        }
        Some(other) => return Err(wrong_kind(format!("{place}, `turn_id`"), "a list", other)),
    };
    let entry = |(index, text)| {
        let text = string(format!("{place}, `input_text`"), text)?;
        let turn_id = turn_id(place, turn_ids.and_then(|turn_ids| turn_ids.get(index)))?;
        Ok(Entry { text, turn_id })
    };
    texts.iter().enumerate().map(entry).collect()
}

fn string(place: String, value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(wrong_kind(place, "a string", other)),
    }
}

fn turn_id(place: &str, value: Option<&Value>) -> Result<Option<i64>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_i64() {
            Some(id) => Ok(Some(id)),
            None => Err(wrong_kind(
                format!("{place}, `turn_id`"),
                "whole numbers",
                value,
            )),
        },
    }
}

/// Refuses answers that are not one to each question, turn by turn.
fn check_against_questions(place: &str, answers: &[Entry], questions: &[Entry]) -> Result<()> {
    let (wanted, found) = (questions.len(), answers.len());
    if wanted != found {
        let wanted = format!("as many as there are questions, {wanted}");
        return Err(Error::dataset(place, wanted, found.to_string(), COMPARE));
    }
    for (question, answer) in questions.iter().zip(answers) {
        if let (Some(asked), Some(answered)) = (question.turn_id, answer.turn_id)
            && asked != answered
        {
            let (wanted, found) = (format!("turn {asked}"), format!("turn {answered}"));
            return Err(Error::dataset(place, wanted, found, COMPARE));
        }
    }
    Ok(())
}

/// What no story can show by itself.
fn check_whole(path: &Path, stories: &[Story]) -> Result<()> {
    let file = path.display().to_string();
    if stories.is_empty() {
        return Err(Error::dataset(
            file,
            "stories",
            "an empty list",
            FETCH_AGAIN,
        ));
    }
    let mut ids = HashSet::new();
    if let Some(again) = stories.iter().find(|story| !ids.insert(&story.id)) {
        let place = format!("{file}, story {}", again.id);
        return Err(Error::dataset(
            place,
            "every id once",
            "it twice",
            "remove one of the two",
        ));
    }
    let mut turns = stories.iter().flat_map(|story| &story.turns);
    if turns.all(|turn| turn.additional.is_empty()) {
        let found = format!("{} stories that all lack additional answers", stories.len());
        return Err(lacks_additional_answers(path, &found));
    }
    Ok(())
}

/// Scores against a single reference are not CoQA scores, and look like them.
fn lacks_additional_answers(path: &Path, found: &str) -> Error {
    Error::dataset(
        path.display().to_string(),
        "the answers of several annotators, which CoQA's scores rest on",
        found,
        "use the validation split of EleutherAI/coqa as JSON lines, or the official \
         coqa-dev-v1.0.json",
    )
}
