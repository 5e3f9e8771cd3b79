//! Greedy generation on a decoder without a model: where texts end, that every
//! prompt is completed once, and that slots, order and cache change nothing.

#[path = "common/mock.rs"]
mod mock;
#[path = "common/random.rs"]
mod random;
#[path = "common/refusal.rs"]
mod refusal;

use std::cell::Cell;
use std::sync::Mutex;

use llama_quant::engine::generate::{
    Completion, Limits, Prompt, generate, generate_in_opened, generate_on,
};
use llama_quant::engine::{Decoder, Segment};
use llama_quant::record::Finish;
use llama_quant::{Error, Result};
use mock::{Call, Mock, Run};
use random::Random;
use refusal::assert_refuses;
use rstest::rstest;

/// The piece that stands for an end-of-text token.
const EOS: &[u8] = b"<eos>";
const STOP: &str = "\nQ:";

/// Completes one prompt with a script, its tokens divided by bars: the n-th new
/// token is number n, and stands for the n-th piece. A generation that goes on
/// after the script's end fails.
fn completion(script: &[u8], limits: &Limits) -> Completion {
    const PROMPT: usize = 2;
    let pieces: Vec<&[u8]> = script.split(|&byte| byte == b'|').collect();
    let next = |sequence: &[u32]| match sequence.len() - PROMPT + 1 {
        n if n <= pieces.len() => Ok(n as u32),
        _ => Err(Error::engine("reading the script", "it has ended")),
    };
    let mut decoder = Mock::new(1, PROMPT + limits.max_new_tokens, 1000, next);
    let eos = (1_u32..).zip(&pieces).filter(|(_, piece)| **piece == EOS);
    let limits = Limits {
        eos: eos.map(|(token, _)| token).collect(),
        ..limits.clone()
    };
    let prompt = Prompt {
        tokens: vec![0; PROMPT],
        group: 0,
    };
    let mut completions = Vec::new();
    generate(
        &mut decoder,
        &[prompt],
        &limits,
        |tokens| {
            let bytes = tokens.iter().flat_map(|&t| pieces[t as usize - 1]);
            let bytes: Vec<u8> = bytes.copied().collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        },
        |prompt, completion| {
            assert_eq!(prompt, 0);
            completions.push(completion);
            Ok(())
        },
    )
    .expect("the generation ends within the script");
    assert_eq!(completions.len(), 1, "one prompt, one completion");
    completions.remove(0)
}

fn limits(max_new_tokens: usize, first_line: bool) -> Limits {
    Limits {
        max_new_tokens,
        eos: Vec::new(),
        stop: vec![STOP.to_owned()],
        first_line,
    }
}

/// Asserts the text, why it ended, and after how many tokens.
#[track_caller]
fn assert_ends(script: &[u8], limits: &Limits, (text, finish, tokens): (&str, Finish, usize)) {
    let Completion {
        text: found,
        tokens: ids,
        finish: why,
    } = completion(script, limits);
    assert_eq!((found.as_str(), why, ids.len()), (text, finish, tokens));
    assert!(ids.iter().copied().eq(1..=tokens as u32), "{ids:?}");
}

#[rstest]
#[case::in_one_token(b"blue|\nQ: Where", ("blue", Finish::Stop, 2))]
#[case::over_three_tokens(b"blue|\n|Q|: Where", ("blue", Finish::Stop, 4))]
#[case::from_the_middle_of_a_token(b"in blue\n|Q:", ("in blue", Finish::Stop, 2))]
#[case::at_the_very_start(b"\nQ: Where", ("", Finish::Stop, 1))]
#[case::at_the_very_start_over_three_tokens(b"\n|Q|:", ("", Finish::Stop, 3))]
#[case::after_blanks_that_stay(b"  blue |\n\nQ:", ("  blue \n", Finish::Stop, 2))]
#[case::after_one_that_was_cut_short(
    b"blue\n|Q|\n|Q|:", ("blue\nQ", Finish::Stop, 5)
)]
#[case::twice_in_one_token(b"a\nQ: b\nQ: c", ("a", Finish::Stop, 1))]
#[case::before_an_end_of_text(b"blue|\nQ:", ("blue", Finish::Stop, 2))]
fn a_stop_string_ends_the_text_before_it_wherever_tokens_are_cut(
    #[case] script: &[u8],
    #[case] wanted: (&str, Finish, usize),
) {
    assert_ends(script, &limits(100, false), wanted);
}

#[test]
fn of_several_stop_strings_the_earliest_in_the_text_counts() {
    let limits = Limits {
        stop: vec!["later".into(), "first".into()],
        ..limits(100, false)
    };
    let script = b"blue fir|st and later";
    assert_ends(script, &limits, ("blue ", Finish::Stop, 2));
}

#[rstest]
#[case::at_once(b"<eos>", ("", Finish::Eos, 0))]
#[case::after_text(b"blue|<eos>", ("blue", Finish::Eos, 1))]
#[case::after_half_a_stop_string(b"blue|\nQ|<eos>", ("blue\nQ", Finish::Eos, 2))]
fn an_end_of_text_token_ends_the_text_and_is_not_part_of_it(
    #[case] script: &[u8],
    #[case] wanted: (&str, Finish, usize),
) {
    assert_ends(script, &limits(100, false), wanted);
}

#[test]
fn any_of_several_end_of_text_tokens_ends_the_text() {
    for end in [5, 6] {
        let next = |sequence: &[u32]| Ok(if sequence.len() < 3 { 4 } else { end });
        let mut decoder = Mock::new(1, 10, 10, next);
        let limits = Limits {
            eos: vec![5, 6],
            ..limits(8, false)
        };
        let found = run(&mut decoder, &prompts(&[(&[1], 0)]), &limits).expect("a completion");
        let wanted = Completion {
            tokens: vec![4, 4],
            text: text(&[4, 4]),
            finish: Finish::Eos,
        };
        assert_eq!(found, [Some(wanted)]);
    }
}

#[rstest]
#[case::with_plain_text(b"a|b|c", ("abc", Finish::Length, 3))]
#[case::with_half_a_stop_string(b"a|\n|Q", ("a\nQ", Finish::Length, 3))]
#[case::unless_the_last_token_completes_a_stop_string(
    b"a|\nQ|:", ("a", Finish::Stop, 3)
)]
#[case::unless_an_end_of_text_comes_first(b"a|b|<eos>", ("ab", Finish::Eos, 2))]
fn a_generation_ends_at_the_limit_of_new_tokens(
    #[case] script: &[u8],
    #[case] wanted: (&str, Finish, usize),
) {
    assert_ends(script, &limits(3, false), wanted);
}

#[rstest]
#[case::a_line_break_after_text(b"blue|\n", ("blue", Finish::Line, 2))]
#[case::a_line_break_within_a_token(b"blue\nred", ("blue", Finish::Line, 1))]
#[case::blank_lines_first(b"\n| \n| blue|\n", ("\n \n blue", Finish::Line, 4))]
#[case::blank_lines_and_text_in_one_token(b"\n\nblue\n\n", ("\n\nblue", Finish::Line, 1))]
#[case::a_stop_string_at_the_start(b"\n|Q|:", ("", Finish::Stop, 3))]
#[case::blank_lines_alone(b"\n|\n|<eos>", ("\n\n", Finish::Eos, 2))]
#[case::a_line_and_the_stop_string_at_one_place(b"blue\nQ:", ("blue", Finish::Stop, 1))]
#[case::a_line_before_the_stop_string(b"blue\nred\nQ:", ("blue", Finish::Line, 1))]
#[case::the_stop_string_before_a_line(b"\nQ: Where?\nA:", ("", Finish::Stop, 1))]
fn the_first_line_that_is_not_blank_ends_the_text(
    #[case] script: &[u8],
    #[case] wanted: (&str, Finish, usize),
) {
    assert_ends(script, &limits(100, true), wanted);
}

#[rstest]
#[case::two_bytes_in_two_tokens(b"caf\xc3|\xa9|<eos>", ("caf\u{e9}", Finish::Eos, 2))]
#[case::four_bytes_in_four_tokens(
    b"\xf0|\x9f|\xa6|\x99|!|<eos>", ("\u{1f999}!", Finish::Eos, 5)
)]
#[case::before_a_stop_string(b"caf\xc3|\xa9\nQ|:", ("caf\u{e9}", Finish::Stop, 3))]
#[case::cut_by_the_limit(
    b"caf|e| |o|l|\xc3", ("cafe ol\u{fffd}", Finish::Length, 6)
)]
fn characters_split_over_tokens_come_out_whole_unless_the_limit_cuts_them(
    #[case] script: &[u8],
    #[case] wanted: (&str, Finish, usize),
) {
    assert_ends(script, &limits(6, false), wanted);
}

#[test]
fn a_stop_string_with_characters_split_over_tokens_is_found() {
    let limits = Limits {
        stop: vec!["\u{2014}\u{e9}".into()],
        ..limits(100, false)
    };
    let script = b"blue\xe2\x80|\x94\xc3|\xa9 red";
    assert_ends(script, &limits, ("blue", Finish::Stop, 3));
}

const VOCAB: usize = 64;
const CONTEXT: usize = 2000;

/// The next token as a hash of the whole sequence (FNV-1a): any token that is
/// missing, doubled or out of place changes everything after it.
fn hashed(sequence: &[u32]) -> Result<u32> {
    let hash = sequence
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &t| {
            (hash ^ u64::from(t)).wrapping_mul(0x0100_0000_01b3)
        });
    Ok((hash >> 32) as u32 % VOCAB as u32)
}

/// Mostly words; every eighth token is part of a stop string or a line break.
fn text(tokens: &[u32]) -> String {
    let piece = |&token: &u32| match token {
        8 => "\nQ: why".to_owned(),
        16 => "\n".to_owned(),
        24 => "Q:".to_owned(),
        _ => format!(" w{token}"),
    };
    tokens.iter().map(piece).collect()
}

/// Ends of all kinds within some twenty tokens.
fn hashed_limits() -> Limits {
    Limits {
        eos: vec![32],
        ..limits(30, false)
    }
}

fn prompts(of: &[(&[u32], usize)]) -> Vec<Prompt> {
    let prompt = |&(tokens, group): &(&[u32], usize)| Prompt {
        tokens: tokens.to_vec(),
        group,
    };
    of.iter().map(prompt).collect()
}

/// The completion of each prompt, by prompt.
fn run<F: Fn(&[u32]) -> Result<u32>>(
    decoder: &mut Mock<F>,
    prompts: &[Prompt],
    limits: &Limits,
) -> Result<Vec<Option<Completion>>> {
    let mut completions = vec![None; prompts.len()];
    generate(
        decoder,
        prompts,
        limits,
        |tokens| Ok(text(tokens)),
        |prompt, completion| {
            let earlier = completions[prompt].replace(completion);
            assert_eq!(earlier, None, "prompt {prompt} was completed before");
            Ok(())
        },
    )?;
    Ok(completions)
}

/// Dialogues: groups of one to five prompts, each the one before it with more
/// tokens, as the turns of a story are.
fn dialogues(groups: usize, random: &mut Random) -> Vec<Vec<Prompt>> {
    let tokens = |random: &mut Random, least, most| -> Vec<u32> {
        let count = least + random.below(most);
        (0..count).map(|_| random.below(VOCAB) as u32).collect()
    };
    (0..groups)
        .map(|group| {
            let mut sequence = tokens(random, 1, 300);
            (0..1 + random.below(5))
                .map(|_| {
                    sequence.extend(tokens(random, 0, 20));
                    Prompt {
                        tokens: sequence.clone(),
                        group,
                    }
                })
                .collect()
        })
        .collect()
}

#[rstest]
fn completions_do_not_depend_on_the_number_of_slots_or_the_order_of_groups(
    #[values(1, 2, 3, 7, 16, 100)] slots: usize,
    #[values(1, 2)] order: u64,
    #[values(false, true)] beside: bool,
) {
    let mut dialogues = dialogues(40, &mut Random::new(7));
    Random::new(order).shuffle(&mut dialogues);
    let prompts = dialogues.concat();
    assert!(prompts.len() > slots, "more prompts than slots");
    let mut decoder = Mock::new(slots, CONTEXT, VOCAB, hashed).beside(beside);
    let together = run(&mut decoder, &prompts, &hashed_limits()).expect("a run");

    let mut finishes = Vec::new();
    for (prompt, completion) in prompts.iter().zip(together) {
        let completion = completion.expect("every prompt is completed");
        let mut decoder = Mock::new(1, CONTEXT, VOCAB, hashed);
        let prompt = std::slice::from_ref(prompt);
        let alone = run(&mut decoder, prompt, &hashed_limits()).expect("a run");
        assert_eq!(alone, [Some(completion.clone())]);
        finishes.push(completion.finish);
    }
    for finish in [Finish::Eos, Finish::Stop, Finish::Length] {
        assert!(finishes.contains(&finish), "no text ended by {finish:?}");
    }
}

#[test]
fn every_slot_is_used_when_there_are_groups_enough() {
    let prompts = dialogues(8, &mut Random::new(3)).concat();
    let mut decoder = Mock::new(4, CONTEXT, VOCAB, hashed);
    run(&mut decoder, &prompts, &hashed_limits()).expect("a run");
    let mut used: Vec<usize> = decoder.prefilled().iter().map(|run| run.slot).collect();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used, [0, 1, 2, 3]);
}

/// The starts and lengths of what was run before the first new token of each
/// prompt, on one slot.
fn prefilled(prompts: &[Prompt]) -> Vec<(usize, usize)> {
    // Token 1 after everything: new tokens never look like the next prompt.
    let mut decoder = Mock::new(1, CONTEXT, VOCAB, |_: &[u32]| Ok(1));
    run(&mut decoder, prompts, &limits(3, false)).expect("a run");
    let runs = decoder.prefilled().into_iter();
    runs.map(|run| (run.start, run.tokens.len())).collect()
}

#[rstest]
#[case::that_goes_on(&[10, 11, 12], &[10, 11, 12, 20, 21], (3, 2))]
#[case::that_goes_on_as_the_answer_did(&[10, 11, 12], &[10, 11, 12, 1, 20], (4, 1))]
// The last new token ended the text and was never run.
#[case::that_holds_the_whole_answer(&[10, 11, 12], &[10, 11, 12, 1, 1, 1, 20], (5, 2))]
#[case::that_differs_in_the_middle(&[10, 11, 12, 13], &[10, 11, 22, 13], (2, 2))]
#[case::that_differs_from_the_start(&[10, 11, 12], &[20, 11, 12], (0, 3))]
// Its logits are wanted, so the last token runs again.
#[case::that_is_the_same(&[10, 11, 12], &[10, 11, 12], (2, 1))]
#[case::that_is_shorter(&[10, 11, 12, 13], &[10, 11], (1, 1))]
#[case::of_one_token(&[10], &[10], (0, 1))]
fn a_prompt_reuses_what_it_shares_with_the_one_before_it_in_its_group(
    #[case] first: &[u32],
    #[case] second: &[u32],
    #[case] wanted: (usize, usize),
) {
    let found = prefilled(&prompts(&[(first, 0), (second, 0)]));
    assert_eq!(found, [(0, first.len()), wanted]);
}

#[test]
fn the_prompts_of_a_group_stay_in_one_slot_and_in_order() {
    let prompts = prompts(&[
        (&[10, 11], 0),
        (&[10, 11, 12], 0),
        (&[20, 21], 1),
        (&[10, 11, 12, 13], 1),
        (&[20, 21, 22], 1),
    ]);
    let mut decoder = Mock::new(2, CONTEXT, VOCAB, |_: &[u32]| Ok(1));
    run(&mut decoder, &prompts, &limits(3, false)).expect("a run");
    let of_slot = |slot| {
        let runs = decoder.prefilled().into_iter();
        let runs = runs.filter(move |run| run.slot == slot);
        runs.map(|run| (run.start, run.tokens)).collect::<Vec<_>>()
    };
    assert_eq!(of_slot(0), [(0, vec![10, 11]), (2, vec![12])]);
    assert_eq!(
        of_slot(1),
        [
            (0, vec![20, 21]),
            (0, vec![10, 11, 12, 13]),
            (0, vec![20, 21, 22])
        ]
    );
}

/// Completions of `prompts` on three slots, each opened with some tokens for its
/// group; which groups were opened, and how many tokens were run as prompts.
fn opened_with(
    prompts: &[Prompt],
    tokens: impl Fn(usize) -> Vec<u32>,
) -> (Vec<Completion>, Vec<usize>, usize) {
    let mut decoder = Mock::new(3, CONTEXT, VOCAB, hashed);
    let mut completions = vec![None; prompts.len()];
    let mut opened = Vec::new();
    generate_in_opened(
        &mut decoder,
        prompts,
        &hashed_limits(),
        |decoder, slot, group| {
            opened.push(group);
            let tokens = tokens(group);
            if !tokens.is_empty() {
                decoder.prefill(&[Segment {
                    slot,
                    start: 0,
                    tokens: &tokens,
                }])?;
            }
            Ok(tokens)
        },
        |tokens| Ok(text(tokens)),
        |prompt, completion| {
            completions[prompt] = Some(completion);
            Ok(())
        },
    )
    .expect("a run");
    let completions = completions.into_iter();
    let completions = completions.map(|c| c.expect("every prompt is completed"));
    let run = decoder.prefilled().iter().map(|run| run.tokens.len()).sum();
    (completions.collect(), opened, run)
}

#[test]
fn what_opening_a_group_has_run_is_not_run_again_and_changes_nothing() {
    let dialogues = dialogues(20, &mut Random::new(9));
    let prompts = dialogues.concat();
    let (plain, _, run) = opened_with(&prompts, |_| Vec::new());

    // All but the last token of the group's first prompt.
    let start = |group: usize| {
        let first = &dialogues[group][0].tokens;
        first[..first.len() - 1].to_vec()
    };
    let (opened, groups, run_opened) = opened_with(&prompts, start);
    assert_eq!(opened, plain);
    assert_eq!(groups, Vec::from_iter(0..20));
    assert_eq!(run_opened, run);

    let (opened, ..) = opened_with(&prompts, |group| vec![group as u32; 40]);
    assert_eq!(opened, plain, "tokens that belong to no prompt");
}

#[test]
fn long_prompts_run_in_calls_of_at_most_512_tokens() {
    let long: Vec<u32> = (0..1300).map(|i| i % 50).collect();
    let prompts = prompts(&[(&long[..1300], 0), (&long[..700], 1), (&long[..3], 2)]);
    let mut decoder = Mock::new(3, CONTEXT, VOCAB, hashed);
    run(&mut decoder, &prompts, &hashed_limits()).expect("a run");
    let calls = decoder.calls.iter().filter_map(|call| match call {
        Call::Prefill(runs) => Some(runs.iter().map(|run| run.tokens.len()).sum::<usize>()),
        Call::Step(_) => None,
    });
    // 2,003 tokens in as few calls as can be.
    assert_eq!(calls.collect::<Vec<_>>(), [512, 512, 512, 467]);
    for (slot, prompt) in prompts.iter().enumerate() {
        let mut cached: Vec<u32> = Vec::new();
        for Run { start, tokens, .. } in decoder.prefilled().iter().filter(|r| r.slot == slot) {
            assert_eq!(*start, cached.len());
            cached.extend(tokens);
        }
        assert_eq!(cached, prompt.tokens);
    }
}

#[rstest]
#[case::an_empty_prompt(&[], 30, "prompt 1", "1 to 50 tokens", "found 0")]
#[case::a_prompt_without_room_for_its_new_tokens(
    &[9; 21], 30, "prompt 1", "1 to 50 tokens", "found 51"
)]
#[case::a_limit_of_no_new_tokens(&[9], 0, "new tokens", "at least 1", "found 0")]
#[case::a_limit_beyond_all_numbers(&[9], usize::MAX, "prompt 0", "1 to 50 tokens", "found 18446")]
fn what_cannot_run_is_refused_before_anything_runs(
    #[case] second: &[u32],
    #[case] max_new_tokens: usize,
    #[case] thing: &str,
    #[case] wanted: &str,
    #[case] found: &str,
) {
    let mut decoder = Mock::new(1, 50, VOCAB, hashed);
    let prompts = prompts(&[(&[9], 0), (second, 0)]);
    let outcome = run(&mut decoder, &prompts, &limits(max_new_tokens, false));
    let found = found.trim_start_matches("found ");
    assert_refuses(outcome, [thing, wanted, found, ""]);
    assert_eq!(decoder.calls, []);
}

#[test]
fn a_prompt_that_fills_the_context_to_the_last_token_runs() {
    let mut decoder = Mock::new(1, 50, VOCAB, |_: &[u32]| Ok(1));
    let found = run(&mut decoder, &prompts(&[(&[9; 20], 0)]), &limits(30, false)).expect("a run");
    let completion = found[0].as_ref().expect("a completion");
    assert_eq!(
        (completion.tokens.len(), completion.finish),
        (30, Finish::Length)
    );
}

#[test]
fn a_decoder_without_slots_is_refused() {
    let mut decoder = Mock::new(0, 50, VOCAB, hashed);
    let outcome = run(&mut decoder, &prompts(&[(&[9], 0)]), &limits(30, false));
    assert_refuses(outcome, ["slots", "at least 1", "0", "more slots"]);
}

#[test]
fn no_prompts_need_no_calls() {
    let mut decoder = Mock::new(2, 50, VOCAB, hashed);
    let found = run(&mut decoder, &[], &limits(30, false)).expect("nothing to do");
    assert_eq!((found.len(), decoder.calls.len()), (0, 0));
}

/// Twelve prompts on three slots; where each kind of error ends the run.
fn failing(
    next: impl Fn(&[u32]) -> Result<u32>,
    decode: impl Fn(&[u32]) -> Result<String>,
    done: impl FnMut(usize, Completion) -> Result<()>,
) -> (String, usize) {
    let prompts = dialogues(12, &mut Random::new(5)).concat();
    let mut decoder = Mock::new(3, CONTEXT, VOCAB, next);
    let error = generate(&mut decoder, &prompts, &hashed_limits(), decode, done)
        .expect_err("the run fails");
    (error.to_string(), decoder.calls.len())
}

#[test]
fn an_error_of_the_decoder_ends_the_run() {
    let asked = Cell::new(0);
    let next = |sequence: &[u32]| {
        asked.set(asked.get() + 1);
        match asked.get() {
            n if n < 40 => hashed(sequence),
            _ => Err(Error::engine("running a test", "the 40th token")),
        }
    };
    let (error, calls) = failing(next, |tokens| Ok(text(tokens)), |_, _| Ok(()));
    assert_eq!(error, "engine failed while running a test: the 40th token");
    assert!(calls <= 40, "{calls} calls");
    assert_eq!(asked.get(), 40, "nothing runs after the error");
}

#[test]
fn an_error_of_open_ends_the_run() {
    let prompts = dialogues(12, &mut Random::new(5)).concat();
    let mut decoder = Mock::new(3, CONTEXT, VOCAB, hashed);
    let mut opened = 0;
    let outcome = generate_in_opened(
        &mut decoder,
        &prompts,
        &hashed_limits(),
        |_, _, _| {
            opened += 1;
            match opened {
                6 => Err(Error::engine("opening a test", "the 6th group")),
                _ => Ok(Vec::new()),
            }
        },
        |tokens| Ok(text(tokens)),
        |_, _| Ok(()),
    );
    let error = outcome.expect_err("the run fails").to_string();
    assert_eq!(error, "engine failed while opening a test: the 6th group");
    assert_eq!(opened, 6, "nothing is opened after the error");
}

#[test]
fn an_error_of_decode_ends_the_run() {
    let decoded = Cell::new(0);
    let decode = |tokens: &[u32]| {
        decoded.set(decoded.get() + 1);
        match decoded.get() {
            n if n < 25 => Ok(text(tokens)),
            _ => Err(Error::engine("decoding a test", "the 25th text")),
        }
    };
    let (error, _) = failing(hashed, decode, |_, _| Ok(()));
    assert_eq!(error, "engine failed while decoding a test: the 25th text");
    assert_eq!(decoded.get(), 25, "nothing is decoded after the error");
}

#[test]
fn an_error_of_done_ends_the_run() {
    let mut ended = 0;
    let done = |_, _| {
        ended += 1;
        match ended {
            5 => Err(Error::engine("writing a test", "the 5th item")),
            _ => Ok(()),
        }
    };
    let (error, _) = failing(hashed, |tokens| Ok(text(tokens)), done);
    assert_eq!(error, "engine failed while writing a test: the 5th item");
    assert_eq!(ended, 5, "nothing is completed after the error");
}

#[rstest]
fn several_decoders_give_the_completions_of_one(
    #[values(1, 2, 3, 50)] count: usize,
    #[values(1, 4)] slots: usize,
    #[values(false, true)] beside: bool,
) {
    let dialogues = dialogues(40, &mut Random::new(7));
    let prompts = dialogues.concat();
    let mut one = Mock::new(slots, CONTEXT, VOCAB, hashed);
    let wanted = run(&mut one, &prompts, &hashed_limits()).expect("a run");

    let mut decoders: Vec<_> = (0..count)
        .map(|_| Mock::new(slots, CONTEXT, VOCAB, hashed).beside(beside))
        .collect();
    let found = Mutex::new(vec![None; prompts.len()]);
    let opened = Mutex::new(vec![Vec::new(); count]);
    generate_on(
        &mut decoders.iter_mut().collect::<Vec<_>>(),
        &prompts,
        &hashed_limits(),
        |place, _, _, group| {
            opened.lock().expect("a list")[place].push(group);
            Ok(Vec::new())
        },
        |tokens| Ok(text(tokens)),
        |prompt, completion| {
            let earlier = found.lock().expect("a list")[prompt].replace(completion);
            assert_eq!(earlier, None, "prompt {prompt} was completed before");
            Ok(())
        },
    )
    .expect("a run");
    assert_eq!(found.into_inner().expect("a list"), wanted);

    // Every group is run by one decoder, and what they read is about as much.
    let opened = opened.into_inner().expect("lists");
    let mut groups = opened.concat();
    groups.sort_unstable();
    assert_eq!(groups, Vec::from_iter(0..40));
    let longest = |group: usize| dialogues[group].last().map_or(0, |p| p.tokens.len());
    let read = |groups: &Vec<usize>| groups.iter().map(|&g| longest(g)).sum::<usize>();
    let read: Vec<usize> = opened.iter().map(read).collect();
    let most = (0..40).map(longest).max().expect("a group");
    let (least, largest) = (read.iter().min(), read.iter().max());
    assert!(
        largest.expect("one") - least.expect("one") <= most,
        "{read:?}"
    );
}

#[test]
fn an_error_of_one_decoder_ends_the_run_of_the_others() {
    let prompts = dialogues(12, &mut Random::new(5)).concat();
    // More than anybody would wait for.
    let limits = limits(1 << 40, false);
    let next = |works: bool| {
        move |_: &[u32]| match works {
            true => Ok(1),
            false => Err(Error::engine("running a test", "the second decoder")),
        }
    };
    let mut decoders = [true, false, true].map(|works| Mock::new(3, 1 << 41, VOCAB, next(works)));
    let outcome = generate_on(
        &mut decoders.iter_mut().collect::<Vec<_>>(),
        &prompts,
        &limits,
        |_, _, _, _| Ok(Vec::new()),
        |_| Ok(String::new()),
        |_, _| Ok(()),
    );
    let error = outcome.expect_err("the run fails").to_string();
    assert_eq!(
        error,
        "engine failed while running a test: the second decoder"
    );
}

#[test]
fn what_one_of_several_decoders_cannot_run_is_refused_before_anything_runs() {
    let prompts = prompts(&[(&[9; 20], 0), (&[9; 20], 1)]);
    let mut decoders = [50, 49].map(|context| Mock::new(1, context, VOCAB, hashed));
    let outcome = generate_on(
        &mut decoders.iter_mut().collect::<Vec<_>>(),
        &prompts,
        &limits(30, false),
        |_, _, _, _| Ok(Vec::new()),
        |_| Ok(String::new()),
        |_, _| Ok(()),
    );
    assert_refuses(outcome, ["prompt 0", "1 to 49 tokens", "50", "shorten"]);
    assert!(decoders.iter().all(|decoder| decoder.calls.is_empty()));
}
