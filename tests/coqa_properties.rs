//! What holds for every dataset, prompt and score: examples of each layout and
//! each refusal, then properties over random input.

use std::path::Path;

use llama_quant::coqa::{
    Dataset, Score, Scoring, Story, Turn, Turns, best_constant, ceiling, exact_match, f1,
    gold_dialogue, items, normalise, prediction, prompt, references, score,
};
use llama_quant::error::Error;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use rstest::rstest;
use serde_json::{Value, json};

const FILE: &str = "some/dev.jsonl";

fn read(text: &str) -> Result<Dataset, Error> {
    Dataset::from_bytes(FILE, text.as_bytes())
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Two stories as rows of the hub dataset; the second has no further answers.
fn hub() -> Vec<Value> {
    vec![
        json!({
            "id": "s1", "source": "mctest", "story": " A cat sat. \n\nIt purred.",
            "questions": {"input_text": ["Who sat?", "What did it do?"], "turn_id": [1, 2]},
            "answers": {"input_text": ["a cat", "purred"], "turn_id": [1, 2],
                        "span_start": [0, 1], "span_end": [1, 2], "span_text": ["", ""]},
            "additional_answers": {
                "0": {"input_text": ["the cat", "It purred"], "turn_id": [1, 2]},
                "1": {"input_text": ["cat", "purr"], "turn_id": [1, 2]},
            },
        }),
        json!({
            "id": "s2", "source": null, "story": "Rain fell.",
            "questions": {"input_text": ["What fell?"]},
            "answers": {"input_text": ["rain"]},
            "additional_answers": null,
        }),
    ]
}

/// The same two stories in the official layout.
fn official() -> Value {
    json!({"version": "1.0", "data": [
        {
            "id": "s1", "source": "mctest", "filename": "x", "name": "x",
            "story": " A cat sat. \n\nIt purred.",
            "questions": [{"input_text": "Who sat?", "turn_id": 1},
                          {"input_text": "What did it do?", "turn_id": 2}],
            "answers": [{"input_text": "a cat", "turn_id": 1, "span_start": 0},
                        {"input_text": "purred", "turn_id": 2, "span_start": 1}],
            "additional_answers": {
                "1": [{"input_text": "cat", "turn_id": 1}, {"input_text": "purr", "turn_id": 2}],
                "0": [{"input_text": "the cat", "turn_id": 1},
                      {"input_text": "It purred", "turn_id": 2}],
            },
        },
        {
            "id": "s2", "story": "Rain fell.",
            "questions": [{"input_text": "What fell?", "turn_id": 1}],
            "answers": [{"input_text": "rain", "turn_id": 1}],
        },
    ]})
}

fn turn(question: &str, answer: &str, additional: &[&str]) -> Turn {
    Turn {
        question: question.to_owned(),
        answer: answer.to_owned(),
        additional: additional.iter().map(|&text| text.to_owned()).collect(),
    }
}

fn stories() -> Vec<Story> {
    vec![
        Story {
            id: "s1".to_owned(),
            source: Some("mctest".to_owned()),
            text: " A cat sat. \n\nIt purred.".to_owned(),
            turns: vec![
                turn("Who sat?", "a cat", &["the cat", "cat"]),
                turn("What did it do?", "purred", &["It purred", "purr"]),
            ],
        },
        Story {
            id: "s2".to_owned(),
            source: None,
            text: "Rain fell.".to_owned(),
            turns: vec![turn("What fell?", "rain", &[])],
        },
    ]
}

#[test]
fn every_layout_gives_the_same_stories() {
    let json_lines = lines(&hub());
    let pretty = |value: &Value| format!("{value:#}");
    let layouts = [
        ("JSON lines", json_lines.clone()),
        ("a byte order mark", format!("\u{feff}{json_lines}")),
        ("CRLF", json_lines.replace('\n', "\r\n")),
        (
            "blank lines",
            format!("\n{}\n \n", json_lines.replace('\n', "\n\n")),
        ),
        ("no final line break", json_lines.trim_end().to_owned()),
        ("JSON array", Value::from(hub()).to_string()),
        ("JSON array, indented", pretty(&hub().into())),
        ("official", official().to_string()),
        ("official, indented", pretty(&official())),
        (
            "official, a story a line",
            lines(official()["data"].as_array().unwrap()),
        ),
    ];
    for (layout, text) in layouts {
        let dataset = read(&text).unwrap_or_else(|error| panic!("{layout}: {error}"));
        assert_eq!(dataset.stories, stories(), "{layout}");
        assert_eq!(dataset.path, Path::new(FILE));
    }
}

#[test]
fn the_checksum_is_that_of_the_file() {
    let text = r#"{"id":"s","story":"x","questions":{"input_text":["q"]},"answers":{"input_text":["a"]},"additional_answers":{"0":{"input_text":["b"]}}}"#;
    // From `sha256sum`.
    let wanted = "585d95929c488f004e76d8252b7e8b608dd7256ab493a202286422f6b0ecf353";
    assert_eq!(read(text).unwrap().sha256, wanted);
}

#[test]
fn a_story_may_lack_additional_answers_in_any_way_if_another_has_them() {
    let placeholder = json!({"0": {"input_text": [""], "turn_id": [-1]}});
    let nothing = [
        json!(null),
        json!({}),
        json!({"0": null}),
        json!({"0": []}),
        json!({"0": {"input_text": []}}),
        placeholder,
    ];
    for none in nothing {
        let mut rows = hub();
        rows[1]["additional_answers"] = none.clone();
        let dataset = read(&lines(&rows)).unwrap_or_else(|error| panic!("{none}: {error}"));
        assert_eq!(dataset.stories, stories(), "{none}");

        rows[0]["additional_answers"] = none;
        let error = read(&lines(&rows)).unwrap_err().to_string();
        assert!(
            error.contains("2 stories that all lack additional answers"),
            "{error}"
        );
        assert!(error.contains("EleutherAI/coqa"), "{error}");
    }
}

#[test]
fn the_hub_dataset_without_additional_answers_is_refused_by_name() {
    let row = json!({
        "source": "wikipedia", "story": "Rain fell.", "questions": ["What fell?"],
        "answers": {"input_text": ["rain"], "answer_start": [0], "answer_end": [4]},
    });
    let error = read(&lines(&[row.clone(), row])).unwrap_err().to_string();
    for part in [
        FILE,
        "stanfordnlp/coqa, which lacks additional answers",
        "EleutherAI/coqa",
    ] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

/// The rows of [`hub`] with the value at a JSON pointer replaced.
fn with(pointer: &str, value: Value) -> String {
    let mut rows = Value::from(hub());
    *rows
        .pointer_mut(pointer)
        .expect("the pointer leads somewhere") = value;
    lines(rows.as_array().unwrap())
}

#[test]
fn a_refusal_names_the_file_the_place_the_wanted_and_the_found() {
    let json_lines = lines(&hub());
    let indented = format!("{:#}", official());
    let cut_at_line_end: String = indented.split_inclusive('\n').take(10).collect();
    let cut = |text: &str| text[..text.len() - 20].to_owned();
    let no_turns = json!({"input_text": []});
    let damaged_first = json_lines.replacen("\"id\"", "\"id", 1);
    let array = format!("[\n{}\n]", json_lines.trim_end().replace('\n', ",\n"));
    let damaged_array = array.replacen("Rain fell.\"", "Rain fell.", 1);
    let cut_first = json_lines.replacen("}\n", "\n", 1);
    let cases: Vec<(String, &[&str])> = vec![
        (String::new(), &["an empty file"]),
        (" \n".into(), &["an empty file"]),
        ("[]".into(), &["an empty list"]),
        ("7".into(), &["expected stories, found a number"]),
        (
            "[[]]".into(),
            &["story 1", "expected a story, found a list"],
        ),
        (
            json!({"data": {}}).to_string(),
            &["`data`", "found an object"],
        ),
        (
            cut(&json_lines),
            &["line 2 column", "damage (EOF", "download the file again"],
        ),
        (damaged_first, &["line 1 column", "damage"]),
        (cut_first, &["line 1 column", "damage"]),
        (
            format!("{json_lines}oops\n"),
            &["line 3 column 1", "damage"],
        ),
        (cut(&official().to_string()), &["line 1 column", "damage"]),
        (damaged_array, &["line 3", "damage"]),
        (cut_at_line_end, &["line 10, at its end", "damage (EOF"]),
        (
            with("/0/id", json!(3)),
            &["line 1: `id`", "a string, found a number"],
        ),
        (with("/1/id", json!("s1")), &["story s1", "found it twice"]),
        (
            with("/0/story", json!(" ")),
            &["line 1, story s1", "a passage"],
        ),
        (
            with("/1/story", json!(null)),
            &["line 2, story s2: `story`", "found nothing"],
        ),
        (
            with("/0/source", json!([])),
            &["story s1: `source`", "found a list"],
        ),
        (
            with("/0/questions", no_turns),
            &["story s1", "expected questions, found none"],
        ),
        (
            with("/0/questions", json!(1)),
            &["`questions`", "found a number"],
        ),
        (
            with("/0/questions/input_text/1", json!(null)),
            &["`questions`", "found nothing"],
        ),
        (
            with("/0/questions/turn_id", json!([1])),
            &["as many turn ids as texts, 2, found 1"],
        ),
        (
            with("/0/questions/turn_id", json!("1")),
            &["`turn_id`", "found a string"],
        ),
        (
            with("/0/questions/turn_id/0", json!(1.5)),
            &["`turn_id`", "whole numbers"],
        ),
        (
            with("/1/answers/input_text", json!([])),
            &["story s2: `answers`", "1, found 0"],
        ),
        (
            with("/0/answers/input_text", json!({})),
            &["a list of strings, found an object"],
        ),
        (
            with("/0/answers/turn_id", json!([1, 3])),
            &["`answers`", "turn 2, found turn 3"],
        ),
        (
            with("/0/additional_answers", json!([])),
            &["`additional_answers`", "found a list"],
        ),
        (
            with("/0/additional_answers/1", json!({"input_text": ["cat"]})),
            &[
                "story s1: additional answers \"1\"",
                "questions, 2, found 1",
            ],
        ),
        (
            with("/0/additional_answers/0/turn_id", json!([2, 1])),
            &["additional answers \"0\"", "turn 1, found turn 2"],
        ),
        (
            official()
                .to_string()
                .replace(r#"{"input_text":"purr","turn_id":2}"#, "7"),
            &["story s1: additional answers \"1\"", "found a number"],
        ),
    ];
    for (text, parts) in cases {
        let error = read(&text).expect_err(&text).to_string();
        for part in [FILE].iter().chain(parts) {
            assert!(error.contains(part), "{part:?} is not in: {error}\n{text}");
        }
    }
}

#[test]
fn a_file_that_is_not_text_is_refused_by_what_it_is() {
    let refusal = |bytes: &[u8]| Dataset::from_bytes(FILE, bytes).unwrap_err().to_string();
    let parquet = refusal(b"PAR1\x15\x04\x15\x80PAR1");
    assert!(
        parquet.contains("a whole parquet file of stories") && parquet.contains(FILE),
        "{parquet}"
    );
    let latin1 = refusal(b"{}\n{\"story\": \"Qu\xe9bec\"}");
    assert!(
        latin1.contains("line 2: expected text in UTF-8"),
        "{latin1}"
    );
}

#[test]
fn a_file_that_is_missing_is_named() {
    let error = Dataset::open("no/such/file.jsonl").unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
    assert!(error.to_string().contains("no/such/file.jsonl"), "{error}");
}

#[test]
fn items_are_the_last_or_all_turns_of_the_first_stories() {
    let dataset = read(&lines(&hub())).unwrap();
    let ids = |turns, limit| -> Vec<String> {
        let items = items(&dataset, turns, limit);
        items.into_iter().map(|item| item.id).collect()
    };
    assert_eq!(ids(Turns::Last, None), ["s1#2", "s2#1"]);
    assert_eq!(ids(Turns::All, None), ["s1#1", "s1#2", "s2#1"]);
    assert_eq!(ids(Turns::All, Some(1)), ["s1#1", "s1#2"]);
    assert_eq!(ids(Turns::Last, Some(9)), ["s1#2", "s2#1"]);
    assert!(ids(Turns::All, Some(0)).is_empty());
}

#[test]
fn names_are_read_as_they_are_written_and_others_are_refused_with_the_known_ones() {
    for turns in Turns::ALL {
        assert_eq!(turns.to_string().parse::<Turns>().unwrap(), turns);
        assert_eq!(json!(turns), json!(turns.to_string()));
    }
    for scoring in Scoring::ALL {
        assert_eq!(scoring.to_string().parse::<Scoring>().unwrap(), scoring);
        assert_eq!(json!(scoring), json!(scoring.to_string()));
    }
    let error = "squad".parse::<Scoring>().unwrap_err().to_string();
    assert!(
        error.contains("lm_eval, official, max, found `squad`"),
        "{error}"
    );
    let error = "first".parse::<Turns>().unwrap_err().to_string();
    assert!(error.contains("last or all, found `first`"), "{error}");
}

#[test]
fn the_prediction_is_the_first_line_of_what_precedes_the_next_question() {
    let cases = [
        ("", ""),
        (" white", "white"),
        ("\n\n white \nblack", "white "),
        (" white\n\nQ: And then?\n\nA: black", "white"),
        ("\nQ: And then?", ""),
        (" \nQ: And then?", ""),
        (
            "Q: not at the start of a line",
            "Q: not at the start of a line",
        ),
        ("\u{1c}\u{a0}white\u{1f}", "white"),
        ("white\r\nblack", "white\r"),
    ];
    for (generation, wanted) in cases {
        assert_eq!(prediction(generation), wanted, "{generation:?}");
    }
}

#[test]
fn normalising_follows_python_where_rust_would_not() {
    let cases = [
        ("The U.S.A.", "usa"),
        ("a.n apple", "apple"),
        ("an_a the-an", "ana thean"),
        ("A\u{1c}b\u{1f}c\u{a0}d\u{3000}e", "b c d e"),
        ("\u{201c}the\u{2014}a\u{201d}", "\u{201c} \u{2014} \u{201d}"),
        (
            "cafe\u{301} a\u{301} théâtre",
            "cafe\u{301} \u{301} théâtre",
        ),
        ("a1 1a theé éa", "a1 1a theé éa"),
        ("ΟΔΟΣ ΣΑ Σ", "οδος σα σ"),
        ("İstanbul", "i\u{307}stanbul"),
        ("$3.50!?", "350"),
        ("€3,50", "€350"),
        ("  \t the \n", ""),
    ];
    for (text, wanted) in cases {
        assert_eq!(normalise(text), wanted, "{text:?}");
    }
}

#[test]
fn a_prediction_between_the_references_can_pass_their_ceiling() {
    let references = ["x b c".to_owned(), "x b d".to_owned()];
    let ceiling = ceiling(&references, Scoring::Official).f1;
    let between = score("x b c d", &references, Scoring::Official).f1;
    assert!((ceiling - 5.0 / 6.0).abs() < 1e-12 && (between - 6.0 / 7.0).abs() < 1e-12);
}

#[test]
fn without_references_there_is_no_score_and_no_constant() {
    let nothing = Score { em: 0.0, f1: 0.0 };
    for scoring in Scoring::ALL {
        assert_eq!(score("white", &[], scoring), nothing);
        assert_eq!(ceiling(&[], scoring), nothing);
        assert_eq!(best_constant(&[], scoring), (String::new(), 0.0));
    }
}

#[test]
fn the_best_constant_is_the_answer_that_most_items_share() {
    let items = [
        vec!["Yes."],
        vec!["no", "No"],
        vec!["yes", "yes it is"],
        vec!["the barn"],
    ]
    .map(|answers| answers.into_iter().map(str::to_owned).collect());
    let (answer, f1) = best_constant(&items, Scoring::Max);
    assert_eq!((answer.as_str(), f1), ("yes", 0.5));
}

/// Words and separators at which normalisation could go wrong.
fn text() -> impl Strategy<Value = String> {
    let pieces = [
        "a", "an", "the", "The", "A.", "white", "White", "kitten", "it", "was", "$3.50", "3", "é",
        "É", "Σ", "İ", "\u{301}", "_", "-", "—", "“", "'s", " ", " ", " ", "\n", "\u{1c}",
        "\u{a0}",
    ];
    let sentence = vec(select(pieces.to_vec()), 0..8).prop_map(|pieces| pieces.concat());
    prop_oneof![4 => sentence, 1 => any::<String>()]
}

fn turns() -> impl Strategy<Value = Turn> {
    (text(), text(), vec(text(), 0..4)).prop_map(|(question, answer, additional)| Turn {
        question,
        answer,
        additional,
    })
}

fn scoring() -> impl Strategy<Value = Scoring> {
    select(Scoring::ALL.to_vec())
}

/// Every JSON pointer into `value`.
fn pointers(value: &Value) -> Vec<String> {
    let children: Vec<(String, &Value)> = match value {
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(i, v)| (i.to_string(), v))
            .collect(),
        Value::Object(map) => map.iter().map(|(key, v)| (key.clone(), v)).collect(),
        _ => Vec::new(),
    };
    let below = |(key, child): (String, &Value)| {
        pointers(child)
            .into_iter()
            .map(move |rest| format!("/{key}{rest}"))
    };
    std::iter::once(String::new())
        .chain(children.into_iter().flat_map(below))
        .collect()
}

/// A dataset error names the file; anything else is a dataset as promised.
fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    match Dataset::from_bytes(FILE, bytes) {
        Err(error) => prop_assert!(error.to_string().contains(FILE), "{error}"),
        Ok(dataset) => {
            prop_assert!(!dataset.stories.is_empty());
            for item in items(&dataset, Turns::All, None) {
                prompt(&dataset.stories[item.story_index], item.turn_index);
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_damaged_file_is_never_a_panic_and_its_error_names_it(
        is_official: bool,
        changes in vec((any::<Index>(), any::<u8>()), 0..4),
        end in any::<Index>(),
        is_cut: bool,
    ) {
        let text = if is_official { format!("{:#}", official()) } else { lines(&hub()) };
        let mut bytes = text.into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if is_cut {
            bytes.truncate(end.index(bytes.len()));
        }
        check(&bytes)?;
    }

    #[test]
    fn a_value_out_of_place_is_never_a_panic_and_its_error_names_the_file(
        is_official: bool,
        at in any::<Index>(),
        value in select(vec![
            json!(null), json!(true), json!(-1), json!(1.5), json!(""), json!("1"), json!([]),
            json!({}), json!([null]), json!(["x"]), json!({"input_text": null}),
            json!({"input_text": ["x"], "turn_id": [1]}), json!([{"input_text": "x"}]),
        ]),
    ) {
        let mut file = if is_official { official() } else { hub().into() };
        let pointers = pointers(&file);
        let pointer: &String = at.get(&pointers);
        *file.pointer_mut(pointer).expect("pointers are those of the file") = value;
        check(file.to_string().as_bytes())?;
    }

    #[test]
    fn arbitrary_bytes_are_never_a_panic(bytes in vec(any::<u8>(), 0..64)) {
        check(&bytes)?;
    }

    #[test]
    fn what_is_written_as_a_row_is_read_back(
        text in "\\PC*[a-z]",
        turns in vec(turns(), 1..4),
    ) {
        let column = |entry: fn(&Turn) -> &String| -> Value {
            json!({"input_text": turns.iter().map(entry).collect::<Vec<_>>()})
        };
        let row = json!({
            "id": "s", "story": text, "questions": column(|turn| &turn.question),
            "answers": column(|turn| &turn.answer),
            "additional_answers": {"0": column(|turn| &turn.answer)},
        });
        let additional = |turn: &Turn| vec![turn.answer.clone()];
        let wanted = turns.iter().map(|turn| Turn { additional: additional(turn), ..turn.clone() });
        let dataset = read(&lines(&[row])).unwrap();
        prop_assert_eq!(&dataset.stories[0].text, &text);
        prop_assert_eq!(&dataset.stories[0].turns, &wanted.collect::<Vec<_>>());
    }

    #[test]
    fn every_prompt_is_the_gold_dialogue_up_to_its_answer(
        text in text(),
        turns in vec(turns(), 1..5),
    ) {
        let story = Story { id: "s".to_owned(), source: None, text, turns };
        let dialogue = gold_dialogue(&story);
        prop_assert_eq!(dialogue.answers.len(), story.turns.len());
        for (index, (turn, range)) in story.turns.iter().zip(dialogue.answers).enumerate() {
            prop_assert_eq!(&dialogue.text[range.clone()], &turn.answer);
            let before = &dialogue.text[..range.start];
            prop_assert_eq!(before, prompt(&story, index) + " ");
            prop_assert!(dialogue.text[range.end..].starts_with("\n\n"));
        }
    }

    #[test]
    fn a_prediction_is_one_line_and_what_follows_it_does_not_matter(
        generation in text(),
        rest in text(),
    ) {
        let answer = prediction(&generation);
        prop_assert!(!answer.contains('\n'));
        prop_assert_eq!(normalise(prediction(answer)), normalise(answer));
        if !answer.is_empty() {
            let longer = format!("{generation}\n{rest}");
            prop_assert_eq!(normalise(prediction(&longer)), normalise(answer));
        }
    }

    #[test]
    fn normalising_twice_changes_nothing_more(text in text()) {
        let once = normalise(&text);
        prop_assert_eq!(normalise(&once), once);
    }

    #[test]
    fn case_punctuation_articles_and_spaces_do_not_count(text in text()) {
        let dressed = format!("  The {}.", text.replace(' ', " \t an  "));
        prop_assert!(exact_match(&text, &dressed), "{text:?}");
        // ASCII alone: upper case is not undone by lower case for every letter.
        prop_assert!(exact_match(&text, &text.to_ascii_uppercase()), "{text:?}");
    }

    #[test]
    fn f1_is_symmetric_and_1_for_equals(a in text(), b in text()) {
        prop_assert_eq!(f1(&a, &b).to_bits(), f1(&b, &a).to_bits());
        prop_assert_eq!(f1(&a, &a), 1.0);
        prop_assert_eq!(exact_match(&a, &b), exact_match(&b, &a));
        if exact_match(&a, &b) {
            prop_assert_eq!(f1(&a, &b), 1.0);
        }
    }

    #[test]
    fn a_score_lies_between_0_and_1_and_exact_match_below_f1(
        answer in text(),
        turn in turns(),
        scoring in scoring(),
    ) {
        let Score { em, f1 } = score(&answer, &references(&turn, scoring), scoring);
        // Exactly: rounding keeps the order of sums taken in the same order.
        prop_assert!(0.0 <= em && em <= f1 && f1 <= 1.0, "{em} {f1}");
    }

    #[test]
    fn the_order_of_the_references_does_not_count(
        answer in text(),
        references in vec(text(), 1..5),
        scoring in scoring(),
    ) {
        let mut turned = references.clone();
        turned.reverse();
        let (a, b) = (score(&answer, &references, scoring), score(&answer, &turned, scoring));
        // The mean is summed in another order.
        prop_assert!((a.em - b.em).abs() < 1e-12 && (a.f1 - b.f1).abs() < 1e-12);
    }

    #[test]
    fn only_lm_eval_merges_references_and_only_those_that_differ_in_case(turn in turns()) {
        let all: Vec<String> =
            std::iter::once(&turn.answer).chain(&turn.additional).cloned().collect();
        prop_assert_eq!(&references(&turn, Scoring::Official), &all);
        prop_assert_eq!(&references(&turn, Scoring::Max), &all);

        let merged = references(&turn, Scoring::LmEval);
        prop_assert_eq!(&merged[0], &turn.answer);
        let lower: Vec<String> = merged.iter().map(|text| text.to_lowercase()).collect();
        for (i, text) in lower.iter().enumerate() {
            prop_assert!(!lower[..i].contains(text), "{text:?} twice");
        }
        for text in &all {
            prop_assert!(lower.contains(&text.to_lowercase()), "{text:?} lost");
        }
    }

    #[test]
    fn the_ceiling_is_reached_by_a_reference_and_passed_by_none(
        turn in turns(),
        scoring in scoring(),
    ) {
        let references = references(&turn, scoring);
        let ceiling = ceiling(&references, scoring);
        let scores: Vec<Score> =
            references.iter().map(|text| score(text, &references, scoring)).collect();
        prop_assert!(scores.iter().all(|s| s.em <= ceiling.em && s.f1 <= ceiling.f1));
        prop_assert!(scores.iter().any(|s| s.em == ceiling.em));
        prop_assert!(scores.iter().any(|s| s.f1 == ceiling.f1));
        if scoring == Scoring::Max {
            prop_assert_eq!(ceiling, Score { em: 1.0, f1: 1.0 });
        }
    }

    #[test]
    fn exact_match_has_no_score_above_its_ceiling(
        answer in text(),
        turn in turns(),
        scoring in scoring(),
    ) {
        let references = references(&turn, scoring);
        prop_assert!(score(&answer, &references, scoring).em <= ceiling(&references, scoring).em);
    }

    #[test]
    fn no_reference_is_a_better_constant_than_the_best(
        turns in vec(turns(), 1..6),
        scoring in scoring(),
    ) {
        let items: Vec<Vec<String>> = turns.iter().map(|turn| references(turn, scoring)).collect();
        let mean_f1 = |answer: &str| {
            let scores = items.iter().map(|references| score(answer, references, scoring).f1);
            scores.sum::<f64>() / items.len() as f64
        };
        let (best, best_f1) = best_constant(&items, scoring);
        prop_assert_eq!(mean_f1(&best).to_bits(), best_f1.to_bits());
        for answer in items.iter().flatten() {
            prop_assert!(mean_f1(answer) <= best_f1, "{answer:?} beats {best:?}");
        }
    }
}

// ---- Odd texts ---

#[rstest]
#[case::a_megabyte("ten ".repeat(1 << 18))]
#[case::from_right_to_left("\u{202e}שלום عليكم\u{202c}".to_owned())]
#[case::control_characters("a\u{0}b\u{7}c\u{1b}[31m\u{7f}".to_owned())]
#[case::beyond_the_basic_plane("\u{1f600}\u{10ffff}\u{e000}".to_owned())]
#[case::marks_that_combine(format!("e{}", "\u{301}".repeat(5000)))]
fn odd_texts_are_kept_as_they_are_and_scored(#[case] odd: String) {
    let mut rows = hub();
    rows[0]["questions"]["input_text"][0] = json!(odd);
    rows[0]["answers"]["input_text"][0] = json!(odd);
    rows[0]["additional_answers"]["0"]["input_text"][0] = json!(odd);
    let dataset = read(&lines(&rows)).expect("a data set");
    let turn = &dataset.stories[0].turns[0];
    assert_eq!((&turn.question, &turn.answer), (&odd, &odd));
    assert_eq!(turn.additional[0], odd);
    assert!(prompt(&dataset.stories[0], 0).contains(&odd));
    assert_eq!(f1(&odd, &odd), 1.0);
    let found = score(&odd, &[odd.clone(), odd.clone()], Scoring::Official);
    assert_eq!((found.em, found.f1), (1.0, 1.0));
}

#[test]
fn half_a_surrogate_pair_is_refused_with_its_place() {
    let text = lines(&hub()).replace("purred", "pur\\ud83dred");
    let error = read(&text).expect_err("a refusal").to_string();
    assert!(
        error.contains("line 1") && error.contains("hex escape"),
        "{error}"
    );
}

// ---- Parquet ---------------------------------------------------------------------

fn fixture(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(path);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[rstest]
fn parquet_holds_the_stories_of_the_json_lines(#[values("datasets", "other")] file: &str) {
    let parquet = Dataset::from_bytes(FILE, &fixture(&format!("parquet/{file}.parquet")));
    let parquet = parquet.expect("a data set").stories;
    let lines = Dataset::from_bytes(FILE, &fixture("coqa-mini.jsonl")).expect("a data set");
    assert_eq!(parquet.len(), 7);
    assert_eq!(parquet, lines.stories[..7]);
}

#[test]
fn parquet_whose_pages_are_damaged_is_refused() {
    let error = Dataset::from_bytes(FILE, &fixture("parquet/damaged.parquet"));
    let error = error.expect_err("a refusal").to_string();
    assert!(
        error.contains(FILE) && error.contains("Required field"),
        "{error}"
    );
}

#[test]
fn a_parquet_dictionary_that_claims_more_than_it_holds_is_refused() {
    // Its reader would allocate 8.7 GB for it.
    let error = Dataset::from_bytes(FILE, &fixture("parquet/huge-dictionary.parquet"));
    let error = error.expect_err("a refusal").to_string();
    assert!(error.contains("dictionary of 270549139 entries"), "{error}");
}

#[test]
fn parquet_columns_that_lie_outside_the_file_are_refused() {
    let whole = fixture("parquet/datasets.parquet");
    let mut refused = 0;
    // Every byte of the description, turned into one that makes numbers
    // negative or large.
    for at in whole.len() - 4000..whole.len() {
        for byte in [0x01, 0x7f, 0xff] {
            let mut file = whole.clone();
            file[at] = byte;
            if let Err(error) = Dataset::from_bytes(FILE, &file) {
                refused += usize::from(error.to_string().contains("outside the file"));
            }
        }
    }
    assert!(refused > 0, "none of the places was damaged");
}

proptest! {
    #[test]
    fn damaged_parquet_never_causes_a_panic(
        other in any::<bool>(),
        bytes in vec((any::<Index>(), any::<u8>()), 0..6),
        // Damage at the end hits what describes the file.
        at_end in vec((0_usize..4000, any::<u8>()), 0..4),
        cut in proptest::option::of(any::<Index>()),
    ) {
        let mut file = fixture(&format!("parquet/{}.parquet", if other { "other" } else { "datasets" }));
        for (at, byte) in bytes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        for (at, byte) in at_end {
            let at = file.len() - 1 - at;
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        if let Err(error) = Dataset::from_bytes(FILE, &file) {
            prop_assert!(error.to_string().contains(FILE), "{}", error);
        }
    }
}
