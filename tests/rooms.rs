//! The sources keep the order of the rooms: imports point one way, `unsafe`
//! stays in its corner, and nothing is unwrapped.

use std::fs;
use std::path::{Path, PathBuf};

/// Every room and file of the library, in the order the data walks through
/// them, with what it may import. A path stands for all that lies below it.
const ROOMS: [(&str, &[&str]); 9] = [
    ("error", &[]),
    ("source", &["error"]),
    ("quant", &["error", "source::config"]),
    ("coqa", &["error"]),
    ("experiment", &["error", "quant", "coqa"]),
    (
        "record",
        &[
            "error",
            "source::hex",
            "source::config::Config",
            "source::origin::Weights",
            "quant",
            "coqa",
        ],
    ),
    // Of a record, only what an engine says of itself and its device.
    (
        "engine",
        &[
            "error",
            "source",
            "quant",
            "record::Finish",
            "record::Memory",
            "record::Gpu",
            "record::CardState",
            "record::replace",
        ],
    ),
    (
        "measure",
        &[
            "error",
            "source",
            "quant",
            "engine",
            "coqa",
            "experiment",
            "record",
        ],
    ),
    // Never an engine and never weights.
    (
        "verdict",
        &[
            "error",
            "quant::Format",
            "quant::Code4",
            "quant::Compute",
            "quant::Bytes",
            "quant::size",
            "coqa",
            "experiment",
            "record",
        ],
    ),
];

/// The program, which may use all of the library, and the library's front page.
const NO_ROOM: [&str; 3] = ["main", "cli", "lib"];

/// Where the memory map lies, and all that talks to the GPU.
const UNSAFE: [&str; 2] = ["source/checkpoint.rs", "engine/cuda/"];

/// A source file, without comments and strings.
struct Source {
    /// Below `src`, with forward slashes.
    name: String,
    tokens: Vec<Token>,
}

#[derive(Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources: Vec<Source> = files(&root)
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a readable source");
            let name = path.strip_prefix(&root).expect("below src");
            let name = name.to_str().expect("a plain name").replace('\\', "/");
            Source {
                name,
                tokens: tokens(&text),
            }
        })
        .collect();
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    sources
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries
        .flat_map(|entry| {
            let path = entry.expect("a readable folder").path();
            match path.extension() {
                _ if path.is_dir() => files(&path),
                Some(extension) if extension == "rs" => vec![path],
                _ => vec![],
            }
        })
        .collect()
}

/// Names, `::` and single other characters of Rust code.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut i = 0;
    let mut line = 1;
    while i < chars.len() {
        let start = i;
        let mut word = None;
        match (at(i), at(i + 1)) {
            ('/', '/') => i += chars[i..].iter().take_while(|&&c| c != '\n').count(),
            ('/', '*') => i = end_of_comment(&chars, i),
            ('"', _) => i = end_of_string(&chars, i),
            // A character, or the name of a lifetime.
            ('\'', '\\') => i = end_of_string(&chars, i),
            ('\'', _) => i += if at(i + 2) == '\'' { 3 } else { 1 },
            (c, _) if is_word(c) => {
                i += chars[i..].iter().take_while(|&&c| is_word(c)).count();
                let text: String = chars[start..i].iter().collect();
                let hashes = chars[i..].iter().take_while(|&&c| c == '#').count();
                match text.as_str() {
                    "r" | "br" | "cr" if at(i + hashes) == '"' => {
                        i = end_of_raw_string(&chars, i, hashes);
                    }
                    // A name that would be a keyword without it.
                    "r" if hashes == 1 => i += 1,
                    _ => word = Some(text),
                }
            }
            (':', ':') => {
                i += 2;
                word = Some("::".to_owned());
            }
            (c, _) => {
                i += 1;
                word = Some(c.to_string()).filter(|_| !c.is_whitespace());
            }
        }
        tokens.extend(word.map(|text| Token { text, line }));
        line += chars[start..i].iter().filter(|&&c| c == '\n').count();
    }
    tokens
}

fn end_of_comment(chars: &[char], start: usize) -> usize {
    let (mut i, mut depth) = (start, 0);
    loop {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
}

/// The place after the closing quote, which is the character at `start`.
fn end_of_string(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while chars[i] != chars[start] {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn end_of_raw_string(chars: &[char], hashes_start: usize, hashes: usize) -> usize {
    let end: Vec<char> = std::iter::once('"')
        .chain(std::iter::repeat_n('#', hashes))
        .collect();
    let mut i = hashes_start + hashes + 1;
    while !chars[i..].starts_with(&end) {
        i += 1;
    }
    i + end.len()
}

/// A path into this crate, from its root.
#[derive(Debug, PartialEq)]
struct Import {
    path: Vec<String>,
    line: usize,
}

/// All paths that start with `crate` or `super`, in `use` and elsewhere.
fn imports(module: &[String], tokens: &[Token]) -> Vec<Import> {
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    let mut found = Vec::new();
    // Modules within the file, each with the depth of braces around it.
    let mut inner: Vec<(String, usize)> = Vec::new();
    let mut depth = 0;
    for i in 0..tokens.len() {
        match text(i) {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inner.pop_if(|(_, around)| *around == depth);
            }
            "mod" if text(i + 2) == "{" => inner.push((text(i + 1).to_owned(), depth)),
            "crate" if text(i + 1) == "::" => {
                tree(tokens, i + 2, Vec::new(), &mut found);
            }
            "super" if text(i + 1) == "::" && (i == 0 || text(i - 1) != "::") => {
                let inner = inner.iter().map(|(name, _)| name.clone());
                let path = module.iter().cloned().chain(inner).collect();
                tree(tokens, i, path, &mut found);
            }
            _ => {}
        }
    }
    found
}

/// Reads one branch of a path that goes on at `i`, and returns where it ends.
fn tree(tokens: &[Token], mut i: usize, mut path: Vec<String>, found: &mut Vec<Import>) -> usize {
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    loop {
        match text(i) {
            "{" => {
                i += 1;
                while text(i) != "}" {
                    i = tree(tokens, i, path.clone(), found);
                    while !matches!(text(i), "," | "}") {
                        i += 1; // `as other`
                    }
                    i += usize::from(text(i) == ",");
                }
                return i + 1;
            }
            "super" => {
                path.pop();
            }
            "self" => {}
            name if name.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                path.push(name.to_owned());
            }
            _ => break, // `*`, or the `<` of a generic argument
        }
        i += 1;
        if text(i) != "::" {
            break;
        }
        i += 1;
    }
    let line = tokens[i.min(tokens.len()) - 1].line;
    found.push(Import { path, line });
    i
}

/// The module that a file holds: `quant/size.rs` is `quant::size`.
fn module(name: &str) -> Vec<String> {
    let name = name.trim_end_matches(".rs").trim_end_matches("/mod");
    name.split('/').map(str::to_owned).collect()
}

fn may_import(room: &str, path: &[String]) -> bool {
    let allowed = ROOMS.iter().find(|(name, _)| *name == room);
    let (_, allowed) = allowed.unwrap_or_else(|| panic!("{room} is not in the table of rooms"));
    // The crate's front page gives the two names of `error` on.
    if matches!(path, [name] if name == "Error" || name == "Result") {
        return room == "error" || allowed.contains(&"error");
    }
    let starts_with = |prefix: &str| {
        let mut names = path.iter();
        prefix
            .split("::")
            .all(|name| names.next().is_some_and(|n| n == name))
    };
    starts_with(room) || allowed.iter().any(|prefix| starts_with(prefix))
}

#[test]
fn the_table_of_rooms_points_one_way() {
    for (i, (room, allowed)) in ROOMS.iter().enumerate() {
        for path in *allowed {
            let of = path.split("::").next().expect("a first part");
            let before = ROOMS[..i].iter().any(|(room, _)| *room == of);
            assert!(
                before,
                "{room} may import {path}, which does not come before it"
            );
        }
    }
}

#[test]
fn every_room_of_the_table_exists_and_no_other() {
    let mut rooms: Vec<String> = sources()
        .iter()
        .map(|s| module(&s.name).remove(0))
        .collect();
    rooms.dedup();
    rooms.retain(|room| !NO_ROOM.contains(&room.as_str()));
    let mut wanted = ROOMS.map(|(room, _)| room);
    wanted.sort_unstable();
    assert_eq!(rooms, wanted);
}

#[test]
fn rooms_import_only_what_comes_before_them() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for Source { name, tokens } in sources() {
        let module = module(&name);
        if NO_ROOM.contains(&module[0].as_str()) {
            continue;
        }
        for Import { path, line } in imports(&module, &tokens) {
            seen += 1;
            if !may_import(&module[0], &path) {
                wrong.push(format!("src/{name}:{line} imports {}", path.join("::")));
            }
        }
    }
    assert!(seen > 50, "only {seen} imports were found");
    assert!(
        wrong.is_empty(),
        "against the table of rooms:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn unsafe_code_is_only_the_memory_map_and_the_gpu() {
    let mut maps = 0;
    for Source { name, tokens } in sources() {
        for Token { text, line } in &tokens {
            if text != "unsafe" {
                continue;
            }
            let allowed = UNSAFE.iter().any(|place| name.starts_with(place));
            assert!(allowed, "src/{name}:{line} is unsafe");
            maps += usize::from(name == UNSAFE[0]);
        }
    }
    assert_eq!(maps, 1, "unsafe blocks in {}", UNSAFE[0]);
}

#[test]
fn nothing_is_unwrapped() {
    for Source { name, tokens } in sources() {
        for pair in tokens.windows(2) {
            let line = pair[0].line;
            let unwraps = pair[0].text == "unwrap" && pair[1].text == "(";
            assert!(
                !unwraps,
                "src/{name}:{line} unwraps; use `?` or state a proof in `expect`"
            );
        }
    }
}

#[test]
fn the_clock_of_the_wall_is_read_for_dates_alone() {
    // It can jump; durations are measured with one that cannot.
    let allowed = ["measure/environment.rs", "source/hub/client.rs"];
    for Source { name, tokens } in sources() {
        for Token { text, line } in &tokens {
            let reads = matches!(text.as_str(), "SystemTime" | "Timestamp" | "Zoned");
            let allowed = allowed.contains(&name.as_str());
            assert!(
                !reads || allowed,
                "src/{name}:{line} reads the clock of the wall"
            );
        }
    }
}

#[test]
fn the_reader_of_sources_finds_paths_and_skips_comments_and_strings() {
    let text = r##"
        //! [`crate::in_comment`] unsafe
        /* crate::a /* crate::b */ crate::c */
        use crate::quant::{self, bnb4::{Bnb4 as Four, Absmax}, size::*};
        use super::engine;
        pub(crate) fn f<'a>(c: char) -> crate::Result<&'a str> {
            let quotes = ['\'', '"', '\\'];
            let r#type = r#"crate::raw "string" unsafe"#;
            let text = "crate::string \" unwrap(";
            crate::source::config::parse::<u8>(text)
        }
        mod tests {
            use super::super::verdict::judge;
            use super::f;
        }
        use super::record::Record;
    "##;
    let found = imports(&module("room/file.rs"), &tokens(text));
    let found: Vec<(String, usize)> = found
        .into_iter()
        .map(|import| (import.path.join("::"), import.line))
        .collect();
    let wanted = [
        ("quant", 4),
        ("quant::bnb4::Bnb4", 4),
        ("quant::bnb4::Absmax", 4),
        ("quant::size", 4),
        ("room::engine", 5),
        ("Result", 6),
        ("source::config::parse", 10),
        ("room::verdict::judge", 13),
        ("room::file::f", 14),
        ("room::record::Record", 16),
    ];
    assert_eq!(found, wanted.map(|(path, line)| (path.to_owned(), line)));
    // In the file of a room itself, `super` is the root of the crate.
    let found = imports(
        &module("room/mod.rs"),
        &tokens("use super::engine::Decoder;"),
    );
    assert_eq!(found[0].path, ["engine", "Decoder"]);
    assert!(
        tokens(text)
            .iter()
            .all(|token| !matches!(token.text.as_str(), "unsafe" | "unwrap"))
    );
}

#[test]
fn the_rules_refuse_what_the_order_of_rooms_forbids() {
    let may = |room: &str, path: &str| may_import(room, &module(&path.replace("::", "/")));
    assert!(may("verdict", "quant::size::MIB") && may("verdict", "verdict::stats"));
    assert!(may("quant", "Result") && may("coqa", "error::Error"));
    for path in [
        "engine::Decoder",
        "measure::Options",
        "source::hex",
        "quant::Weight",
        "quant",
    ] {
        assert!(!may("verdict", path), "{path}");
    }
    assert!(!may("coqa", "quant::Format") && !may("quant", "source::checkpoint"));
    assert!(!may("engine", "coqa::STOP") && !may("record", "engine::generate"));
    assert!(may("engine", "record::Memory") && !may("engine", "record::Record"));
}
