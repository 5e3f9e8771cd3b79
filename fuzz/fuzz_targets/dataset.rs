//! Any bytes as a data set, text or parquet: refused, or stories that can be
//! asked about.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llama_quant::coqa::{Dataset, Scoring, Turns, items, prompt, references};

/// libFuzzer's own hook ends the process at every panic; those of the parquet
/// crate are caught by the program. One that is not caught still ends it.
fn end_at_panics_that_are_not_caught() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or("", |place| place.file());
        if !place.contains("/registry/") {
            eprintln!("{info}");
        }
    }));
}

fuzz_target!(init: end_at_panics_that_are_not_caught(), |bytes: &[u8]| {
    let Ok(dataset) = Dataset::from_bytes("data", bytes) else {
        return;
    };
    assert!(!dataset.stories.is_empty());
    let items = items(&dataset, Turns::All, None);
    assert!(items.len() >= dataset.stories.len());
    for item in items {
        let story = &dataset.stories[item.story_index];
        assert!(prompt(story, item.turn_index).ends_with("A:"));
        let turn = &story.turns[item.turn_index];
        assert!(!references(turn, Scoring::LmEval).is_empty());
    }
});
