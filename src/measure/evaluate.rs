//! One experiment on one model and one data set: load, ask, score, write.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::ProgressBar;
use tracing::info;

use super::environment::{environment, program};
use super::forced::{Reference, read};
use super::interrupt;
use super::questions::Questions;
use crate::coqa::{self, Dataset, STOP, Scoring, Turns};
use crate::engine::cpu::CpuEngine;
use crate::engine::generate::{Completion, Limits, Prompt, generate_in_opened};
use crate::engine::llama::Llama;
use crate::engine::{Decoder, Segment};
use crate::error::Result;
use crate::experiment::{BASELINE, Experiment};
use crate::quant::size::model_parts;
use crate::quant::{Compute, Format};
use crate::record::{self, Constant, Head, Item, Record, SCHEMA, Samples, Setup, Task, Writer};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use crate::source::sha256;
use crate::source::tokenizer::Tokenizer;

/// New tokens at most, as lm-evaluation-harness has it.
pub const MAX_NEW_TOKENS: usize = 256;
/// Prompt tokens and decode steps of the latency samples.
const LATENCY: (usize, usize) = (64, 16);

/// What to evaluate on, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// A checkpoint folder.
    pub model: PathBuf,
    /// A data set file.
    pub dataset: PathBuf,
    pub turns: Turns,
    pub scoring: Scoring,
    /// Only the first so many stories.
    pub limit: Option<usize>,
    /// Whether prompts start with the beginning-of-text token.
    pub bos: bool,
    /// End each generation after its first line. Without this the stop string
    /// alone ends it, as in lm-evaluation-harness; scores are the same.
    pub first_line: bool,
    /// Folder that the record goes to.
    pub out: PathBuf,
}

/// Runs `experiment` and returns its record and where it was written. A record
/// of the same key that is already there is read instead. `reference` holds what
/// experiments on the same model and data set share.
pub fn evaluate(
    experiment: &Experiment,
    options: &Options,
    reference: &mut Reference,
    progress: &ProgressBar,
) -> Result<(PathBuf, Record)> {
    let dataset = Dataset::open(&options.dataset)?;
    let config = Config::open(&options.model)?;
    let setup = setup(experiment, options, &dataset)?;
    let finished = Record::path(&options.out, &setup);
    if finished.is_file() {
        info!("already measured: {}", finished.display());
        return Ok((finished.clone(), Record::open(&finished)?));
    }
    let tokenizer = Tokenizer::open(&options.model, &config)?;
    let questions = Questions::new(options, dataset, &config, &tokenizer)?;

    let start = Instant::now();
    let model = Llama::load(&options.model, experiment.format)?;
    let size = model.bytes();
    let slots = experiment.slots.min(questions.prompts.len());
    let mut engine = CpuEngine::new(model, slots, questions.context());
    let load_seconds = start.elapsed().as_secs_f64();

    let (answer, f1) = coqa::best_constant(&questions.references, options.scoring);
    let mut writer = Writer::begin(
        &options.out,
        Head {
            schema: SCHEMA,
            key: setup.key(),
            setup,
            environment: environment("cpu"),
            size,
            parts: model_parts(&config, experiment.format),
            constant: Constant { answer, f1 },
        },
    )?;
    let start = Instant::now();
    let run = Run {
        experiment,
        options,
        questions: &questions,
        tokenizer: &tokenizer,
        config: &config,
    };
    run.ask(&mut engine, reference, &mut writer, progress)?;
    writer.finish(Samples {
        load_seconds,
        evaluate_seconds: start.elapsed().as_secs_f64(),
        decode_seconds: decode_seconds(&mut engine, &questions.prompts[0].tokens)?,
    })
}

fn setup(experiment: &Experiment, options: &Options, dataset: &Dataset) -> Result<Setup> {
    Ok(Setup {
        experiment: experiment.name.to_owned(),
        format: experiment.format,
        compute: Compute::F16,
        model: record::Model {
            name: file_name(&options.model),
            files: model_files(&options.model)?,
        },
        dataset: record::Dataset {
            name: file_name(&options.dataset),
            sha256: dataset.sha256.clone(),
        },
        task: Task {
            turns: options.turns,
            limit: options.limit,
            scoring: options.scoring,
            bos: options.bos,
            max_new_tokens: MAX_NEW_TOKENS,
            stop: vec![STOP.to_owned()],
            first_line: options.first_line,
        },
        engine: "cpu".to_owned(),
        slots: experiment.slots,
        program: program()?,
    })
}

/// The name that a path is called by: in the cache of the hub a link's name
/// says what the file is, and its target a checksum.
fn file_name(path: &Path) -> String {
    let whole = || path.canonicalize().ok()?.file_name().map(OsStr::to_owned);
    let name = path.file_name().map(OsStr::to_owned).or_else(whole);
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// SHA-256 of every file that is read from the checkpoint folder.
fn model_files(dir: &Path) -> Result<BTreeMap<String, String>> {
    let checkpoint = Checkpoint::open(dir)?;
    let fixed = ["config.json", "tokenizer.json"].map(|name| dir.join(name));
    let files = fixed.iter().map(PathBuf::as_path).chain(checkpoint.files());
    files
        .map(|path| Ok((file_name(path), sha256(path)?)))
        .collect()
}

/// What the callbacks of a generation need.
struct Run<'a> {
    experiment: &'a Experiment,
    options: &'a Options,
    questions: &'a Questions,
    tokenizer: &'a Tokenizer,
    config: &'a Config,
}

impl Run<'_> {
    /// Reads the stories and asks the items that the writer does not have yet.
    ///
    /// A slot first reads a story with all its gold answers. Every prompt about
    /// it starts in the same way, so it only has to be continued; the last turn
    /// goes first, because a turn overwrites what comes after it in the cache.
    fn ask(
        &self,
        engine: &mut CpuEngine,
        reference: &mut Reference,
        writer: &mut Writer,
        progress: &ProgressBar,
    ) -> Result<()> {
        let questions = self.questions;
        let mut indices: Vec<usize> = (0..questions.items.len())
            .filter(|&i| !writer.has(i))
            .collect();
        indices.sort_by_key(|&i| {
            let item = &questions.items[i];
            (item.story_index, usize::MAX - item.turn_index)
        });
        let prompts: Vec<Prompt> = indices
            .iter()
            .map(|&i| questions.prompts[i].clone())
            .collect();
        progress.set_length(questions.items.len() as u64);
        progress.set_position((questions.items.len() - indices.len()) as u64);
        let limits = Limits {
            max_new_tokens: MAX_NEW_TOKENS,
            eos: self.config.eos.clone(),
            stop: vec![STOP.to_owned()],
            first_line: self.options.first_line,
        };
        let mut baseline = None;
        let writer = RefCell::new(writer);
        generate_in_opened(
            engine,
            &prompts,
            &limits,
            |engine, slot, story| {
                self.read(
                    engine,
                    slot,
                    story,
                    reference,
                    &mut baseline,
                    &mut writer.borrow_mut(),
                )
            },
            |ids| self.tokenizer.decode(ids),
            |prompt, completion| {
                progress.inc(1);
                writer
                    .borrow_mut()
                    .add(self.item(indices[prompt], completion))?;
                interrupt::check(&self.options.out)
            },
        )
    }

    /// Reads the story at place `story` of the data set in `slot`, if that is
    /// not written yet, and returns the tokens that the slot then holds.
    fn read(
        &self,
        engine: &mut CpuEngine,
        slot: usize,
        story: usize,
        reference: &mut Reference,
        baseline: &mut Option<CpuEngine>,
        writer: &mut Writer,
    ) -> Result<Vec<u32>> {
        let id = &self.questions.dataset.stories[story].id;
        let dialogue = self.questions.dialogues.iter().find(|d| d.story == *id);
        let dialogue = dialogue.expect("every story that is asked about has its dialogue");
        if writer.has_forced(dialogue.index) {
            return Ok(Vec::new());
        }
        let forced = if self.experiment.name == BASELINE {
            reference.remember(engine, slot, dialogue)?
        } else {
            reference.compare(engine, slot, dialogue, || {
                let baseline = match baseline {
                    Some(loaded) => loaded,
                    none => {
                        let model = Llama::load(&self.options.model, Format::Fp16)?;
                        none.insert(CpuEngine::new(model, 1, self.questions.context()))
                    }
                };
                read(baseline, 0, &dialogue.tokens)
            })?
        };
        writer.add_forced(forced)?;
        Ok(dialogue.tokens[..dialogue.tokens.len() - 1].to_vec())
    }

    /// The scored item at `index`.
    fn item(&self, index: usize, completion: Completion) -> Item {
        let references = &self.questions.references[index];
        let scoring = self.options.scoring;
        let prediction = coqa::prediction(&completion.text);
        let score = coqa::score(prediction, references, scoring);
        Item {
            index,
            id: self.questions.items[index].id.clone(),
            story: self.questions.story(index).id.clone(),
            question: self.questions.turn(index).question.clone(),
            references: references.clone(),
            prompt_tokens: self.questions.prompts[index].tokens.len(),
            finish: completion.finish,
            em: score.em,
            f1: score.f1,
            em_any: references.iter().any(|r| coqa::exact_match(r, prediction)),
            ceiling_f1: coqa::ceiling(references, scoring).f1,
            prediction: prediction.to_owned(),
            tokens: completion.tokens,
        }
    }
}

/// Seconds of single decode steps at batch 1, after a warm-up step.
fn decode_seconds(engine: &mut CpuEngine, prompt: &[u32]) -> Result<Vec<f64>> {
    let (prompt_tokens, steps) = LATENCY;
    let first = Segment {
        slot: 0,
        start: 0,
        tokens: &prompt[..prompt_tokens.min(prompt.len())],
    };
    let mut next = engine.prefill(&[first])?[0];
    let mut seconds = Vec::with_capacity(steps);
    for step in 0..=steps {
        let start = Instant::now();
        next = engine.step(&[(0, next)])?[0];
        if step > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(seconds)
}
