//! The parquet file of the hub data set, as rows in the layout of its JSON.
//!
//! Columns are read one by one with their levels: the record reader of the
//! parquet crate panics where a damaged file's levels do not fit its schema.
//! Panics that are left (a page that needs a dictionary before there is one) are
//! caught and taken for damage.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use parquet::column::page::Page;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// More rows than any file of stories has; a damaged count is not believed.
const MOST_ROWS: i64 = 1 << 24;
/// An entry of a dictionary: a number of 32 bits, or the length of a text.
const LEAST_ENTRY_BYTES: usize = 4;

/// The rows of a parquet file, each a JSON object in the hub's layout.
pub(super) fn rows(path: &Path, bytes: &[u8]) -> Result<Vec<Value>> {
    let file = path.display().to_string();
    let damaged = |cause: String| {
        Error::dataset(
            &file,
            "a whole parquet file of stories",
            cause,
            "download the file again",
        )
    };
    // Nothing outlives the reading that a panic could leave half done.
    match catch_unwind(AssertUnwindSafe(|| all_rows(bytes))) {
        Ok(rows) => rows.map_err(damaged),
        Err(_) => Err(damaged("a file that makes its reader fail".to_owned())),
    }
}

fn all_rows(bytes: &[u8]) -> std::result::Result<Vec<Value>, String> {
    let text = |e: ParquetError| e.to_string();
    let reader = SerializedFileReader::new(Bytes::copy_from_slice(bytes)).map_err(text)?;
    let mut rows = Vec::new();
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(text)?;
        check_places(group.as_ref(), bytes.len())?;
        rows.extend(group_rows(group.as_ref())?);
    }
    Ok(rows)
}

/// Refuses columns that lie outside the file, on which the crate panics.
fn check_places(group: &dyn RowGroupReader, file: usize) -> std::result::Result<(), String> {
    for column in group.metadata().columns() {
        let first = column
            .dictionary_page_offset()
            .unwrap_or(column.data_page_offset());
        let end = u64::try_from(first)
            .ok()
            .zip(u64::try_from(column.compressed_size()).ok())
            .and_then(|(start, bytes)| start.checked_add(bytes));
        if end.is_none_or(|end| end > file as u64) {
            return Err(format!(
                "column {} of {} bytes at byte {first}, outside the file",
                column.column_path(),
                column.compressed_size()
            ));
        }
    }
    Ok(())
}

/// Refuses a dictionary with more entries than its bytes can hold: the crate
/// makes room for all that are claimed.
fn check_dictionary(
    group: &dyn RowGroupReader,
    index: usize,
) -> std::result::Result<(), ParquetError> {
    for page in group.get_column_page_reader(index)? {
        if let Page::DictionaryPage {
            buf, num_values, ..
        } = page?
            && num_values as usize > buf.len() / LEAST_ENTRY_BYTES
        {
            let found = format!(
                "a dictionary of {num_values} entries in {} bytes",
                buf.len()
            );
            return Err(ParquetError::General(found));
        }
    }
    Ok(())
}

/// The rows of one row group.
fn group_rows(group: &dyn RowGroupReader) -> std::result::Result<Vec<Value>, String> {
    let count = group.metadata().num_rows();
    if !(0..=MOST_ROWS).contains(&count) {
        return Err(format!("a row group of {count} rows"));
    }
    let count = count as usize;
    // Grows with what is found, not with what is claimed.
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    for index in 0..group.num_columns() {
        let described = group.metadata().column(index).column_descr();
        let parts = described.path().parts().to_vec();
        let levels = Levels {
            full: described.max_def_level(),
            empty: described.max_def_level() - 1 - i16::from(described.self_type().is_optional()),
            lists: described.max_rep_level(),
        };
        let name = parts.join(".");
        check_dictionary(group, index).map_err(|e| format!("column {name}: {e}"))?;
        let whole = |e: ParquetError| format!("column {name}: {e}");
        let reader = group.get_column_reader(index).map_err(whole)?;
        let Some(values) = column(reader, count, levels).map_err(whole)? else {
            continue;
        };
        if values.len() != count {
            return Err(format!("column {name}: {} rows of {count}", values.len()));
        }
        rows.resize_with(count, Map::new);
        // Between the field's name and its elements stand `list` and `element`.
        let names = match levels.lists {
            0 => parts.as_slice(),
            _ => &parts[..parts.len().saturating_sub(2)],
        };
        for (row, value) in rows.iter_mut().zip(values) {
            insert(row, names, value);
        }
    }
    Ok(rows
        .into_iter()
        .map(|row| without_null_objects(Value::Object(row)))
        .collect())
}

/// Puts `value` where the path leads, through objects.
fn insert(row: &mut Map<String, Value>, names: &[String], value: Value) {
    match names {
        [] => {}
        [name] => drop(row.insert(name.clone(), value)),
        [name, rest @ ..] => {
            let inner = row.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// An object that is null has columns that are null.
fn without_null_objects(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: Map<_, _> = fields
                .into_iter()
                .map(|(name, value)| (name, without_null_objects(value)))
                .collect();
            if fields.values().all(Value::is_null) {
                Value::Null
            } else {
                Value::Object(fields)
            }
        }
        other => other,
    }
}

/// How deep a column's values lie.
#[derive(Clone, Copy)]
struct Levels {
    /// Definition level of a value that is there.
    full: i16,
    /// That of a list without elements.
    empty: i16,
    /// Lists around a value.
    lists: i16,
}

/// One value a row: a string, a number, null, or a list of these. None for
/// columns of other types or with lists in lists, which no layout of CoQA has.
fn column(
    reader: ColumnReader,
    rows: usize,
    levels: Levels,
) -> std::result::Result<Option<Vec<Value>>, ParquetError> {
    if levels.lists > 1 {
        return Ok(None);
    }
    let text = |value: ByteArray| match str::from_utf8(value.data()) {
        Ok(text) => Ok(Value::from(text)),
        Err(_) => Err(ParquetError::General("text that is not UTF-8".to_owned())),
    };
    match reader {
        ColumnReader::ByteArrayColumnReader(r) => read(r, rows, levels, text).map(Some),
        ColumnReader::Int32ColumnReader(r) => {
            read(r, rows, levels, |v| Ok(Value::from(v))).map(Some)
        }
        ColumnReader::Int64ColumnReader(r) => {
            read(r, rows, levels, |v| Ok(Value::from(v))).map(Some)
        }
        _ => Ok(None),
    }
}

fn read<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    rows: usize,
    levels: Levels,
    json: impl Fn(T::T) -> std::result::Result<Value, ParquetError>,
) -> std::result::Result<Vec<Value>, ParquetError> {
    let (mut defined, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let mut found = 0;
    while found < rows {
        let (records, _, _) = reader.read_records(
            rows - found,
            Some(&mut defined),
            Some(&mut repeated),
            &mut values,
        )?;
        if records == 0 {
            break;
        }
        found += records;
    }
    let mut values = values.into_iter();
    let mut next = || match values.next() {
        Some(value) => json(value),
        None => Err(ParquetError::General("fewer values than levels".to_owned())),
    };
    // Required columns have no levels at all.
    if levels.full == 0 && levels.lists == 0 {
        return (0..found).map(|_| next()).collect();
    }
    let mut rows = Vec::new();
    for (i, &level) in defined.iter().enumerate() {
        let goes_on = levels.lists > 0 && repeated.get(i).is_some_and(|&level| level > 0);
        let value = if level == levels.full {
            next()?
        } else {
            Value::Null
        };
        match (levels.lists, rows.last_mut()) {
            (0, _) => rows.push(value),
            (_, Some(Value::Array(list))) if goes_on => list.push(value),
            _ if goes_on => {
                let what = "a list that goes on before it starts";
                return Err(ParquetError::General(what.to_owned()));
            }
            _ if level > levels.empty => rows.push(Value::Array(vec![value])),
            _ if level == levels.empty => rows.push(Value::Array(Vec::new())),
            _ => rows.push(Value::Null),
        }
    }
    Ok(rows)
}
