//! Any texts as answer and references: scores in 0..1 that keep their order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llama_quant::coqa::{Scoring, ceiling, exact_match, f1, normalise, prediction, score};

fuzz_target!(|texts: Vec<String>| {
    let Some((answer, references)) = texts.split_first() else {
        return;
    };
    let answer = prediction(answer);
    assert!(!answer.contains('\n') && !answer.starts_with(' '));
    assert_eq!(normalise(&normalise(answer)), normalise(answer));
    for reference in references {
        let forth = f1(reference, answer);
        assert!((0.0..=1.0).contains(&forth) && forth == f1(answer, reference));
        assert!(!exact_match(reference, answer) || forth == 1.0);
    }
    if references.is_empty() {
        return;
    }
    for scoring in [Scoring::LmEval, Scoring::Official, Scoring::Max] {
        let found = score(answer, references, scoring);
        let best = ceiling(references, scoring);
        for value in [found.em, found.f1, best.em, best.f1] {
            assert!((0.0..=1.0).contains(&value), "{value}");
        }
        assert!(found.em <= found.f1 + 1e-12);
    }
});
