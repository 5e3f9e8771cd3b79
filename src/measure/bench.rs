//! How fast an engine runs a model. A measurement, not a test: nothing asserts
//! a time.

use std::path::PathBuf;
use std::time::Instant;

use super::environment::{environment, program};
use super::evaluate::{load_seconds, model};
use crate::engine::generate::{Limits, Prompt, generate_on};
use crate::engine::{AnyDecoder, Decoder, Device, Devices, Opening, Segment, open_each};
use crate::error::{Error, Result};
use crate::experiment::Experiment;
use crate::quant::size::model_parts;
use crate::record::{
    self, AllTurns, Bench, BenchHead, BenchSetup, CardState, Decode, Documents, Energy, Kind,
    Model, Plan, Prefill, SCHEMA,
};
use crate::source::config::Config;
use crate::source::hub::Located;
use crate::source::origin::Weights;

impl Plan {
    /// For a run that is there for something else: half a second to a second for
    /// the tiny Llama on two cores.
    pub fn short(device: Device) -> Self {
        let long = Self::long(device);
        Self {
            prefill_tokens: long.prefill_tokens[..2].to_vec(),
            cached_tokens: long.cached_tokens / 2,
            // The fewest that have an interval of the median.
            repetitions: 6,
            steps: 3,
            energy_seconds: 0.0,
            documents: 0,
            stories: 0,
            ..long
        }
    }

    /// For `llama-quant bench`.
    pub fn long(device: Device) -> Self {
        match device {
            Device::Cpu => Self {
                prefill_tokens: vec![64, 128, 256],
                batches: vec![1, 4, 16],
                cached_tokens: Self::CACHED_TOKENS,
                repetitions: 15,
                steps: 8,
                energy_seconds: 5.0,
                documents: 0,
                stories: 0,
            },
            Device::Cuda(_) => Self {
                prefill_tokens: vec![128, 256, 512, 1024],
                batches: vec![1, 4, 8, 32, 128, 512],
                cached_tokens: Self::CACHED_TOKENS,
                repetitions: 10,
                steps: 32,
                energy_seconds: 5.0,
                documents: 500,
                stories: 500,
            },
        }
    }

    /// The part of the plan that `slots` sequences of `context` tokens have
    /// room for.
    pub fn within(mut self, slots: usize, context: usize) -> Self {
        self.batches.retain(|&batch| batch <= slots);
        self.prefill_tokens.retain(|&tokens| tokens <= context);
        self.cached_tokens = self.cached_tokens.min(context.saturating_sub(self.steps));
        self
    }

    /// Sequences it takes.
    pub fn slots(&self) -> usize {
        self.batches.iter().copied().max().unwrap_or(1)
    }

    /// Tokens that a slot must hold for it.
    pub fn context(&self) -> usize {
        let longest = self.prefill_tokens.iter().copied().max().unwrap_or(0);
        longest.max(self.cached_tokens + self.steps)
    }

    fn check(&self, decoder: &(impl Decoder + ?Sized)) -> Result<()> {
        let (slots, context) = (decoder.slots(), decoder.context());
        let room = self.slots() <= slots && self.context() <= context;
        let some = self.repetitions > 0 && self.steps > 0 && self.cached_tokens > 0;
        let positive = |all: &[usize]| all.iter().all(|&one| one > 0);
        if room && some && positive(&self.batches) && positive(&self.prefill_tokens) {
            return Ok(());
        }
        Err(Error::usage(
            "plan of a measurement",
            format!("numbers from 1 on, within {slots} sequences of {context} tokens"),
            format!("{self:?}"),
            "make the engine larger or cut the plan with Plan::within",
        ))
    }
}

/// A model on devices whose speed is measured.
pub struct Benched {
    devices: Devices,
    dir: PathBuf,
    weights: Weights,
    config: Config,
    model: Model,
}

impl Benched {
    /// The model in the folder; random weights need only its `config.json`.
    ///
    /// # Errors
    /// If the folder does not hold a model.
    pub fn open(devices: Devices, located: &Located, weights: Weights) -> Result<Self> {
        Ok(Self {
            devices,
            weights,
            config: Config::open(&located.path)?,
            model: model(located, weights)?,
            dir: located.path.clone(),
        })
    }

    /// Refuses a cache that the model was not made for.
    ///
    /// # Errors
    /// If the cached tokens of `plan` are none, or too many with its steps.
    pub fn check_cached(&self, plan: &Plan) -> Result<()> {
        let most = self.config.max_positions.saturating_sub(plan.steps);
        if (1..=most).contains(&plan.cached_tokens) {
            return Ok(());
        }
        Err(Error::usage(
            "--cached",
            format!("1 to {most} tokens, the model's positions less the steps that follow"),
            plan.cached_tokens.to_string(),
            "name fewer, or a model with more positions",
        ))
    }

    /// Loads the model in the format of `experiment` and measures its speed as
    /// far as `plan` fits into what the model was made for: that of the first
    /// device, and of all together where they read documents and stories.
    ///
    /// # Errors
    /// If the model cannot be loaded or run.
    pub fn bench(&self, experiment: &Experiment, plan: &Plan) -> Result<Bench> {
        let environment = environment(&self.devices)?;
        let plan = plan.clone().within(plan.slots(), self.config.max_positions);
        let device = self.devices.first();
        let opening = Opening {
            device,
            model: &self.dir,
            weights: self.weights,
            format: experiment.format,
            compute: experiment.compute,
            slots: plan.slots(),
            context: plan.context(),
        };
        let mut opened = open_each(&self.devices, opening)?;
        let (size, load_seconds) = (opened[0].size, load_seconds(&opened));
        let mut decoders: Vec<&mut AnyDecoder> =
            opened.iter_mut().map(|o| o.decoder.as_mut()).collect();
        let (slots, context) = (decoders[0].slots(), decoders[0].context());
        // A full card holds fewer sequences than it was asked to.
        let left_out = plan.batches.iter().filter(|&&batch| batch > slots);
        let left_out: Vec<String> = left_out.map(usize::to_string).collect();
        if !left_out.is_empty() {
            tracing::warn!(
                "{}: not measured with {} sequences: there is room for {slots} of {context} tokens",
                experiment.name,
                left_out.join(" and ")
            );
        }
        let plan = plan.within(slots, context);
        let speed = speed(&mut decoders, device, &plan)?;
        let setup = BenchSetup {
            experiment: experiment.name.to_owned(),
            format: experiment.format,
            compute: experiment.compute,
            model: self.model.clone(),
            weights: self.weights,
            config: self.config.clone(),
            engine: device.engine().to_owned(),
            devices: self.devices.all().len(),
            slots,
            context,
            plan,
            program: program()?,
        };
        Ok(Bench {
            head: BenchHead {
                schema: SCHEMA,
                kind: Kind::Bench,
                key: setup.key(),
                setup,
                environment,
                size,
                parts: model_parts(&self.config, experiment.format),
            },
            load_seconds,
            speed,
        })
    }
}

/// New tokens of each document.
const DOCUMENT_NEW_TOKENS: usize = 16;

/// New tokens of each turn: a gold answer of CoQA's and the line break after it
/// take 4 on average, few take more than 8.
const TURN_NEW_TOKENS: usize = 8;

/// Tokens between the prompts of two consecutive turns, a gold answer and the
/// next question with `Q:`, `A:` and line breaks: CoQA's mean with the Llama 3
/// tokenizer (14.8 on 64 stories of its validation split).
const EXCHANGE_TOKENS: usize = 15;

/// Number `i` of a sequence around 0 of the standard deviation `deviation`:
/// uniform, and spread as evenly as an irrational step does it.
fn spread(i: usize, deviation: f64) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let even = (i as f64 * GOLDEN).fract();
    deviation * 12.0_f64.sqrt() * (even - 0.5)
}

/// Tokens of document `i`, with the mean and the deviation of CoQA's last turns
/// (520 and 110 tokens of the Llama 3 tokenizer).
fn document_tokens(i: usize) -> usize {
    (520.5 + spread(i, 110.0)) as usize
}

/// Turns of story `i`: 500 stories have the 7,983 of CoQA's validation split,
/// with the deviation of the same 64 stories. More turns go with longer prompts,
/// as they do there.
fn story_turns(i: usize) -> usize {
    (16.471 + spread(i, 4.2)) as usize
}

/// Measures the first of `decoders`, which runs on `device`, and all of them where
/// they read documents and stories. What their slots held is gone afterwards.
///
/// # Errors
/// If an engine has no room for the plan, or fails, or there is none.
pub fn speed<D: Decoder + Send + ?Sized>(
    decoders: &mut [&mut D],
    device: Device,
    plan: &Plan,
) -> Result<record::Speed> {
    let Some(decoder) = decoders.first_mut() else {
        return Err(Error::engine("measuring speed", "no engine"));
    };
    let decoder: &mut D = decoder;
    plan.check(decoder)?;
    let mut card: Vec<CardState> = device.card()?.into_iter().collect();
    let mut run = Run::new(decoder, plan);
    let prefill = plan.prefill_tokens.iter().map(|&n| run.prefill(n));
    let prefill = prefill.collect::<Result<_>>()?;
    run.fill()?;
    let decode = plan.batches.iter().map(|&n| run.decode(n));
    let decode = decode.collect::<Result<_>>()?;
    let documents = documents(decoders, plan)?;
    let turns = turns(decoders, plan)?;
    let decoder: &mut D = decoders[0];
    let mut energy = Vec::new();
    let energy_missing = if plan.energy_seconds > 0.0 {
        device.joules().err()
    } else {
        Some("a window of several seconds takes a run of `llama-quant bench`".to_owned())
    };
    if energy_missing.is_none() {
        let mut run = Run::new(decoder, plan);
        run.fill()?;
        let windows = plan.batches.iter().map(|&n| run.energy(n, device));
        energy = windows.collect::<Result<_>>()?;
    }
    card.extend(device.card()?);
    Ok(record::Speed {
        copy_bytes_per_second: Some(device.copy_bytes_per_second()?),
        flops_per_second: device.flops_per_second()?,
        prefill,
        decode,
        energy,
        energy_missing,
        documents,
        turns,
        memory: decoder.memory(),
        card,
    })
}

/// Reads and continues the prompts of an evaluation of last turns, scoring and
/// divergences aside, on all decoders.
fn documents<D: Decoder + Send + ?Sized>(
    decoders: &mut [&mut D],
    plan: &Plan,
) -> Result<Option<Documents>> {
    if plan.documents == 0 {
        return Ok(None);
    }
    let vocab = decoders[0].vocab();
    let tokens = tokens(plan, vocab);
    let room = plan.context().saturating_sub(DOCUMENT_NEW_TOKENS);
    let prompts: Vec<Prompt> = (0..plan.documents)
        .map(|group| Prompt {
            tokens: tokens[..document_tokens(group).min(room)].to_vec(),
            group,
        })
        .collect();
    Ok(Some(Documents {
        count: prompts.len(),
        prompt_tokens: prompts.iter().map(|prompt| prompt.tokens.len()).sum(),
        new_tokens: DOCUMENT_NEW_TOKENS,
        seconds: continued(decoders, &prompts, DOCUMENT_NEW_TOKENS)?,
    }))
}

/// As [`documents`], of an evaluation of all turns.
fn turns<D: Decoder + Send + ?Sized>(
    decoders: &mut [&mut D],
    plan: &Plan,
) -> Result<Option<AllTurns>> {
    if plan.stories == 0 {
        return Ok(None);
    }
    let tokens = tokens(plan, decoders[0].vocab());
    let room = plan.context().saturating_sub(TURN_NEW_TOKENS);
    let prompts = turn_prompts(plan.stories, &tokens[..room]);
    let last = prompts.chunk_by(|a, b| a.group == b.group);
    Ok(Some(AllTurns {
        stories: plan.stories,
        count: prompts.len(),
        prompt_tokens: last.map(|story| story[0].tokens.len()).sum(),
        new_tokens: TURN_NEW_TOKENS,
        seconds: continued(decoders, &prompts, TURN_NEW_TOKENS)?,
    }))
}

/// The prompts of all turns of `stories` stories, each the beginning of `tokens`.
///
/// They are in the order of an evaluation, a story's last turn first. The prompt
/// of a turn is a beginning of that of the next, which goes on with the gold
/// answer: the first prompt of a story is read whole, and of each other only the
/// last token runs, for its logits.
fn turn_prompts(stories: usize, tokens: &[u32]) -> Vec<Prompt> {
    let prompts = (0..stories).flat_map(|story| {
        let last = document_tokens(story).min(tokens.len());
        (0..story_turns(story)).map(move |before_last| {
            let length = last.saturating_sub(before_last * EXCHANGE_TOKENS);
            Prompt {
                tokens: tokens[..length.max(1).min(last)].to_vec(),
                group: story,
            }
        })
    });
    prompts.collect()
}

/// Seconds in which `decoders` together read and continue `prompts`, after a run
/// that does not count.
fn continued<D: Decoder + Send + ?Sized>(
    decoders: &mut [&mut D],
    prompts: &[Prompt],
    new_tokens: usize,
) -> Result<f64> {
    let limits = Limits {
        max_new_tokens: new_tokens,
        eos: Vec::new(),
        stop: Vec::new(),
        first_line: false,
    };
    let mut seconds = 0.0;
    for _ in 0..2 {
        let start = Instant::now();
        let open = |_, _: &mut D, _, _| Ok(Vec::new());
        let decode = |_: &[u32]| Ok(String::new());
        generate_on(decoders, prompts, &limits, open, decode, |_, _| Ok(()))?;
        seconds = start.elapsed().as_secs_f64();
    }
    Ok(seconds)
}

/// Any tokens do: time does not depend on them.
fn tokens(plan: &Plan, vocab: usize) -> Vec<u32> {
    (0..plan.context()).map(|i| (i % vocab) as u32).collect()
}

/// A decoder with something to read.
struct Run<'a, D: ?Sized> {
    decoder: &'a mut D,
    plan: &'a Plan,
    tokens: Vec<u32>,
}

impl<'a, D: Decoder + ?Sized> Run<'a, D> {
    fn new(decoder: &'a mut D, plan: &'a Plan) -> Self {
        Self {
            tokens: tokens(plan, decoder.vocab()),
            decoder,
            plan,
        }
    }

    /// Seconds from an empty slot to the first new token.
    fn prefill(&mut self, tokens: usize) -> Result<Prefill> {
        let mut seconds = Vec::with_capacity(self.plan.repetitions);
        for repetition in 0..=self.plan.repetitions {
            let start = Instant::now();
            self.decoder.prefill(&[Segment {
                slot: 0,
                start: 0,
                tokens: &self.tokens[..tokens],
            }])?;
            if repetition > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        Ok(Prefill { tokens, seconds })
    }

    /// Seconds of steps of `sequences`, each repetition from the same cache.
    fn decode(&mut self, sequences: usize) -> Result<Decode> {
        let mut seconds = Vec::with_capacity(self.plan.repetitions * self.plan.steps);
        for repetition in 0..=self.plan.repetitions {
            let mut rows = self.rewind(sequences)?;
            for _ in 0..self.plan.steps {
                let start = Instant::now();
                let next = self.decoder.step(&rows)?;
                if repetition > 0 {
                    seconds.push(start.elapsed().as_secs_f64());
                }
                rows = next.into_iter().enumerate().collect();
            }
        }
        Ok(Decode {
            sequences,
            cached_tokens: self.plan.cached_tokens,
            seconds,
        })
    }

    /// What the device uses while `sequences` decode.
    fn energy(&mut self, sequences: usize, device: Device) -> Result<Energy> {
        let joules = || {
            let counter = device.joules();
            counter.map_err(|reason| Error::engine("reading the energy counter", reason))
        };
        let before = joules()?;
        let start = Instant::now();
        let mut steps = 0;
        while start.elapsed().as_secs_f64() < self.plan.energy_seconds {
            let mut rows = self.rewind(sequences)?;
            for _ in 0..self.plan.steps {
                let next = self.decoder.step(&rows)?;
                rows = next.into_iter().enumerate().collect();
            }
            steps += self.plan.steps;
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok(Energy {
            sequences,
            joules: joules()? - before,
            seconds,
            tokens: steps * sequences,
        })
    }

    /// Gives the slots of the largest batch the tokens that a step finds in its
    /// cache, as many slots a call as the engine best takes.
    fn fill(&mut self) -> Result<()> {
        let tokens = &self.tokens[..self.plan.cached_tokens];
        let together = (self.decoder.chunk_tokens() / tokens.len()).max(1);
        let slots: Vec<usize> = (0..self.plan.slots()).collect();
        for some in slots.chunks(together) {
            let segment = |&slot: &usize| Segment {
                slot,
                start: 0,
                tokens,
            };
            let segments: Vec<Segment<'_>> = some.iter().map(segment).collect();
            self.decoder.prefill(&segments)?;
        }
        Ok(())
    }

    /// Drops what steps have added to the filled slots; the rows of the next step.
    fn rewind(&mut self, sequences: usize) -> Result<Vec<(usize, u32)>> {
        let last = self.plan.cached_tokens - 1;
        let again = |slot| Segment {
            slot,
            start: last,
            tokens: &self.tokens[last..=last],
        };
        let segments: Vec<Segment<'_>> = (0..sequences).map(again).collect();
        let next = self.decoder.prefill(&segments)?;
        Ok(next.into_iter().enumerate().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stories_have_the_turns_and_the_lengths_of_coqa() {
        let turns: Vec<usize> = (0..500).map(story_turns).collect();
        assert_eq!(turns.iter().sum::<usize>(), 7983);
        let range = (turns.iter().min(), turns.iter().max());
        assert_eq!(range, (Some(&9), Some(&23)));
        let tokens = (0..500).map(document_tokens).sum::<usize>();
        assert_eq!((tokens as f64 / 500.0).round(), 520.0);
        // Every story has a text before its first question.
        let text = |i| document_tokens(i) - (story_turns(i) - 1) * EXCHANGE_TOKENS;
        assert!((0..500).all(|i| text(i) > 200));
    }

    #[test]
    fn the_prompt_of_a_turn_is_a_beginning_of_that_of_the_next() {
        let tokens: Vec<u32> = (0..1024).collect();
        let prompts = turn_prompts(500, &tokens);
        assert_eq!(prompts.len(), 7983);
        for (story, prompts) in prompts.chunk_by(|a, b| a.group == b.group).enumerate() {
            assert_eq!(prompts[0].group, story);
            assert_eq!(prompts.len(), story_turns(story));
            assert_eq!(prompts[0].tokens.len(), document_tokens(story));
            for turns in prompts.windows(2) {
                let (next, turn) = (&turns[0].tokens, &turns[1].tokens);
                assert!(next.starts_with(turn));
                assert_eq!(next.len() - turn.len(), EXCHANGE_TOKENS);
            }
        }
    }

    #[test]
    fn prompts_are_cut_to_the_room_there_is() {
        let lengths = |room: &[u32]| {
            let prompts = turn_prompts(1, room).into_iter();
            prompts.map(|p| p.tokens.len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[7; 32]), [32, 17, 2, 1, 1, 1, 1, 1, 1]);
        // Empty ones, which generation refuses.
        assert_eq!(lengths(&[]), [0; 9]);
    }
}
