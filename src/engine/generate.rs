//! Greedy generation of many sequences on the slots of a [`Decoder`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::decoder::{Decoder, Segment};
use crate::error::{Error, Result};
use crate::record::Finish;

/// One sequence to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// At least one.
    pub tokens: Vec<u32>,
    /// Consecutive prompts of one group run in one slot, one after the other:
    /// what a prompt shares with the one before it is taken from the cache.
    pub group: usize,
}

/// When a generation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// At most this many tokens.
    pub max_new_tokens: usize,
    /// Any of these tokens ends the text before it.
    pub eos: Vec<u32>,
    /// Any of these strings ends the text before it, wherever tokens are cut.
    pub stop: Vec<String>,
    /// The first line break after something that is not blank ends the text.
    pub first_line: bool,
}

/// What was generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// All tokens, the one that ended the text included unless it is an EOS.
    pub tokens: Vec<u32>,
    /// Their text up to where it ended.
    pub text: String,
    pub finish: Finish,
}

/// A slot's work.
struct Slot {
    /// Prompts of the slot's group still to come.
    waiting: VecDeque<usize>,
    running: Option<Running>,
    /// Tokens whose keys and values the slot holds.
    cached: Vec<u32>,
}

struct Running {
    prompt: usize,
    tokens: Vec<u32>,
    /// The latest token, not yet in the cache; none before the prompt has run.
    next: Option<u32>,
}

/// Continues every prompt greedily and calls `done(prompt, completion)` as each
/// ends. `decode` turns tokens into text.
///
/// # Errors
/// If a prompt is empty or does not fit the decoder's context with its new
/// tokens; then nothing has run. Whatever the decoder, `decode` or `done`
/// return as an error ends the run.
pub fn generate<D: Decoder + ?Sized>(
    decoder: &mut D,
    prompts: &[Prompt],
    limits: &Limits,
    decode: impl Fn(&[u32]) -> Result<String>,
    done: impl FnMut(usize, Completion) -> Result<()>,
) -> Result<()> {
    generate_in_opened(
        decoder,
        prompts,
        limits,
        |_, _, _| Ok(Vec::new()),
        decode,
        done,
    )
}

/// As [`generate`], with `open(decoder, slot, group)` called before the first
/// prompt of each group. It may run tokens in that slot, and returns those that
/// the slot then holds: prompts that start with them need not run them again.
///
/// # Errors
/// As [`generate`], and whatever `open` returns as an error.
pub fn generate_in_opened<D: Decoder + ?Sized>(
    decoder: &mut D,
    prompts: &[Prompt],
    limits: &Limits,
    open: impl FnMut(&mut D, usize, usize) -> Result<Vec<u32>>,
    decode: impl Fn(&[u32]) -> Result<String>,
    done: impl FnMut(usize, Completion) -> Result<()>,
) -> Result<()> {
    check(decoder, prompts, limits)?;
    let groups = groups(prompts);
    let never = AtomicBool::new(false);
    run(decoder, prompts, groups, limits, open, decode, done, &never)
}

/// As [`generate_in_opened`] on several decoders at once, which give the
/// completions that one gives. Each runs on a thread of its own, the first on
/// the caller's, and calls `open(place among the decoders, decoder, slot,
/// group)`, `decode` and `done` from there.
///
/// # Errors
/// As [`generate_in_opened`]: the others stop after the step that they are at.
pub fn generate_on<D: Decoder + Send + ?Sized>(
    decoders: &mut [&mut D],
    prompts: &[Prompt],
    limits: &Limits,
    open: impl Fn(usize, &mut D, usize, usize) -> Result<Vec<u32>> + Sync,
    decode: impl Fn(&[u32]) -> Result<String> + Sync,
    done: impl Fn(usize, Completion) -> Result<()> + Sync,
) -> Result<()> {
    for decoder in decoders.iter() {
        check(*decoder, prompts, limits)?;
    }
    let stop = AtomicBool::new(false);
    let (open, decode, done, stop) = (&open, &decode, &done, &stop);
    let on = |place: usize, decoder: &mut D, groups| {
        let open = |decoder: &mut D, slot, group| open(place, decoder, slot, group);
        let ran = run(decoder, prompts, groups, limits, open, decode, done, stop);
        if ran.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        ran
    };
    let shares = shares(groups(prompts), prompts, decoders.len());
    thread::scope(|scope| {
        let mut work = decoders.iter_mut().zip(shares).enumerate();
        let first = work.next();
        let others: Vec<_> = work
            .map(|(place, (decoder, groups))| scope.spawn(move || on(place, decoder, groups)))
            .collect();
        let first = first.map_or(Ok(()), |(place, (decoder, groups))| {
            on(place, decoder, groups)
        });
        let panicked = |panic| std::panic::resume_unwind(panic);
        let others = others.into_iter();
        let others = others.map(|other| other.join().unwrap_or_else(panicked));
        others.fold(first, Result::and)
    })
}

/// Prompts of one group, in their order.
type Group = VecDeque<usize>;

/// Deals `groups` out, each to the decoder that has the fewest tokens to read so
/// far: the same share for the same prompts, whoever is faster.
fn shares(groups: VecDeque<Group>, prompts: &[Prompt], decoders: usize) -> Vec<VecDeque<Group>> {
    let mut shares = vec![(0, VecDeque::new()); decoders];
    for group in groups {
        // What the prompts of a group share is read once.
        let tokens = group.iter().map(|&i| prompts[i].tokens.len()).max();
        if let Some((read, share)) = shares.iter_mut().min_by_key(|(read, _)| *read) {
            *read += tokens.unwrap_or_default();
            share.push_back(group);
        }
    }
    shares.into_iter().map(|(_, share)| share).collect()
}

/// Runs `groups` of `prompts` on one decoder, until `stop` is set.
#[expect(clippy::too_many_arguments, reason = "those of the functions above")]
fn run<D: Decoder + ?Sized>(
    decoder: &mut D,
    prompts: &[Prompt],
    mut groups: VecDeque<Group>,
    limits: &Limits,
    mut open: impl FnMut(&mut D, usize, usize) -> Result<Vec<u32>>,
    decode: impl Fn(&[u32]) -> Result<String>,
    mut done: impl FnMut(usize, Completion) -> Result<()>,
    stop: &AtomicBool,
) -> Result<()> {
    let mut slots: Vec<Slot> = (0..decoder.slots())
        .map(|_| Slot {
            waiting: VecDeque::new(),
            running: None,
            cached: Vec::new(),
        })
        .collect();
    loop {
        for (i, slot) in slots.iter_mut().enumerate() {
            if slot.is_idle()
                && let Some(group) = groups.pop_front()
            {
                slot.cached = open(decoder, i, prompts[group[0]].group)?;
                slot.waiting = group;
            }
            slot.admit();
        }
        let idle = slots.iter().all(|slot| slot.running.is_none());
        if idle || stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        run_prompts(decoder, prompts, &mut slots)?;
        let rows = rows(&slots);
        let mut take = |slots: &mut [Slot]| {
            for slot in slots {
                if let Some((prompt, completion)) = slot.take_token(limits, &decode)? {
                    done(prompt, completion)?;
                }
            }
            Ok(())
        };
        if decoder.runs_beside_host() {
            let next = decoder.step_beside(&rows, &mut || take(&mut slots))?;
            append(&mut slots, &rows, &next);
        } else {
            take(&mut slots)?;
            step(decoder, &mut slots)?;
        }
    }
}

fn check(decoder: &(impl Decoder + ?Sized), prompts: &[Prompt], limits: &Limits) -> Result<()> {
    let refuse = |thing: String, wanted: String, found: usize, remedy: &str| {
        Err(Error::usage(thing, wanted, found.to_string(), remedy))
    };
    if limits.max_new_tokens == 0 {
        let remedy = "ask for at least one";
        return refuse("new tokens".into(), "at least 1".into(), 0, remedy);
    }
    if decoder.slots() == 0 {
        let remedy = "make the engine with more slots";
        return refuse("slots".into(), "at least 1".into(), 0, remedy);
    }
    for (i, prompt) in prompts.iter().enumerate() {
        let wanted = prompt.tokens.len().saturating_add(limits.max_new_tokens);
        if prompt.tokens.is_empty() || wanted > decoder.context() {
            return refuse(
                format!("prompt {i} with its new tokens"),
                format!("1 to {} tokens, the context", decoder.context()),
                if prompt.tokens.is_empty() { 0 } else { wanted },
                "shorten the text, lower the limit of new tokens, or leave the item out",
            );
        }
    }
    Ok(())
}

/// Runs of consecutive prompts with one group.
fn groups(prompts: &[Prompt]) -> VecDeque<Group> {
    let mut groups: VecDeque<Group> = VecDeque::new();
    for (i, prompt) in prompts.iter().enumerate() {
        match groups.back_mut() {
            Some(group) if i > 0 && prompts[i - 1].group == prompt.group => group.push_back(i),
            _ => groups.push_back(VecDeque::from([i])),
        }
    }
    groups
}

impl Slot {
    /// Whether the slot has nothing to run and nothing waiting.
    fn is_idle(&self) -> bool {
        self.running.is_none() && self.waiting.is_empty()
    }

    /// Takes up the next prompt of its group if nothing runs.
    fn admit(&mut self) {
        if self.running.is_some() {
            return;
        }
        self.running = self.waiting.pop_front().map(|prompt| Running {
            prompt,
            tokens: Vec::new(),
            next: None,
        });
    }

    /// Takes the latest token into the text; the completion if that ends it.
    fn take_token(
        &mut self,
        limits: &Limits,
        decode: impl Fn(&[u32]) -> Result<String>,
    ) -> Result<Option<(usize, Completion)>> {
        let Some(running) = &mut self.running else {
            return Ok(None);
        };
        let next = running.next.expect("a prompt that runs has a next token");
        if !limits.eos.contains(&next) {
            running.tokens.push(next);
        }
        let text = decode(&running.tokens)?;
        let stops = limits.stop.iter().filter_map(|stop| text.find(stop));
        let stops = stops.map(|at| (at, Finish::Stop));
        let line = first_line_end(&text).filter(|_| limits.first_line);
        let line = line.map(|at| (at, Finish::Line));
        // One token can hold a line and a stop string: what comes first counts.
        let end = if let Some(end) = stops.chain(line).min_by_key(|&(at, _)| at) {
            Some(end)
        } else if limits.eos.contains(&next) {
            Some((text.len(), Finish::Eos))
        } else if running.tokens.len() == limits.max_new_tokens {
            Some((text.len(), Finish::Length))
        } else {
            None
        };
        let Some((at, finish)) = end else {
            return Ok(None);
        };
        let completion = Completion {
            tokens: std::mem::take(&mut running.tokens),
            text: text[..at].to_owned(),
            finish,
        };
        let prompt = running.prompt;
        self.running = None;
        Ok(Some((prompt, completion)))
    }
}

/// Where the first line that is not blank ends, if it does.
fn first_line_end(text: &str) -> Option<usize> {
    let start = text.len() - text.trim_start().len();
    text[start..].find('\n').map(|at| start + at)
}

/// Runs the prompts that were just admitted, [`Decoder::chunk_tokens`] a call.
fn run_prompts<D: Decoder + ?Sized>(
    decoder: &mut D,
    prompts: &[Prompt],
    slots: &mut [Slot],
) -> Result<()> {
    // For each new prompt, how much of it the cache holds.
    let mut pending = VecDeque::new();
    for (i, slot) in slots.iter_mut().enumerate() {
        if let Some(Running {
            prompt, next: None, ..
        }) = &slot.running
        {
            let tokens = &prompts[*prompt].tokens;
            let same = slot
                .cached
                .iter()
                .zip(tokens)
                .take_while(|(a, b)| a == b)
                .count();
            // The last token always runs, since its logits are wanted.
            let start = same.min(tokens.len() - 1);
            slot.cached.clone_from(tokens);
            pending.push_back((i, tokens, start));
        }
    }
    while !pending.is_empty() {
        let mut room = decoder.chunk_tokens();
        let mut segments = Vec::new();
        let mut complete = Vec::new();
        while room > 0
            && let Some((slot, tokens, start)) = pending.pop_front()
        {
            let end = tokens.len().min(start + room);
            room -= end - start;
            segments.push(Segment {
                slot,
                start,
                tokens: &tokens[start..end],
            });
            complete.push(end == tokens.len());
            if end < tokens.len() {
                pending.push_front((slot, tokens, end));
            }
        }
        let next = decoder.prefill(&segments)?;
        for ((segment, next), complete) in segments.iter().zip(next).zip(complete) {
            if let Some(running) = slots[segment.slot].running.as_mut().filter(|_| complete) {
                running.next = Some(next);
            }
        }
    }
    Ok(())
}

/// Slots that run, each with its latest token.
fn rows(slots: &[Slot]) -> Vec<(usize, u32)> {
    let running = |(i, slot): (usize, &Slot)| Some((i, slot.running.as_ref()?.next?));
    slots.iter().enumerate().filter_map(running).collect()
}

/// Runs one step of every running sequence.
fn step<D: Decoder + ?Sized>(decoder: &mut D, slots: &mut [Slot]) -> Result<()> {
    let rows = rows(slots);
    if rows.is_empty() {
        return Ok(());
    }
    let next = decoder.step(&rows)?;
    append(slots, &rows, &next);
    Ok(())
}

/// Notes what a step of `rows` left in the caches, and its tokens where the
/// sequence has not ended meanwhile.
fn append(slots: &mut [Slot], rows: &[(usize, u32)], next: &[u32]) {
    for (&(slot, token), &next) in rows.iter().zip(next) {
        slots[slot].cached.push(token);
        if let Some(running) = &mut slots[slot].running {
            running.next = Some(next);
        }
    }
}
