//! One experiment on one model and one data set: load, ask, score, write.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::ProgressBar;
use tracing::info;

use super::bench::speed;
use super::environment::{environment, program};
use super::forced::{Reference, read};
use super::interrupt;
use super::questions::Questions;
use crate::coqa::{self, Dataset, STOP, Scoring, Turns};
use crate::engine::generate::{Completion, Limits, Prompt, generate_in_opened};
use crate::engine::{Decoder, Device, Opened, Opening, open};
use crate::error::Result;
use crate::experiment::{BASELINE, Experiment};
use crate::quant::size::model_parts;
use crate::quant::{Compute, Format};
use crate::record::{
    self, Constant, Head, Item, Kind, Plan, Record, SCHEMA, Samples, Setup, Task, Writer,
};
use crate::source::checkpoint::Checkpoint;
use crate::source::config::Config;
use crate::source::hub::Located;
use crate::source::origin::Weights;
use crate::source::sha256;
use crate::source::tokenizer::Tokenizer;

/// New tokens at most, as lm-evaluation-harness has it.
pub const MAX_NEW_TOKENS: usize = 256;

/// What to evaluate on, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// A checkpoint folder.
    pub model: Located,
    /// A data set file.
    pub dataset: Located,
    pub turns: Turns,
    pub scoring: Scoring,
    /// Only the first so many stories.
    pub limit: Option<usize>,
    /// Whether prompts start with the beginning-of-text token.
    pub bos: bool,
    /// End each generation after its first line. Without this the stop string
    /// alone ends it, as in lm-evaluation-harness; scores are the same.
    pub first_line: bool,
    /// What runs the model.
    pub device: Device,
    /// Whether speed is measured as well.
    pub speed: bool,
    /// Folder that the record goes to.
    pub out: PathBuf,
}

/// What the experiments of one comparison share: read, hashed and tokenised
/// once, with the baseline's logits for those that are compared with it.
pub struct Shared {
    options: Options,
    config: Config,
    tokenizer: Tokenizer,
    questions: Questions,
    model: record::Model,
    dataset: record::Dataset,
    constant: Constant,
    reference: Reference,
}

impl Shared {
    /// Opens the model's folder and the data set.
    ///
    /// # Errors
    /// If one of them is damaged, or there is nothing to ask.
    pub fn open(options: Options) -> Result<Self> {
        let dataset = Dataset::open(&options.dataset.path)?;
        let config = Config::open(&options.model.path)?;
        let tokenizer = Tokenizer::open(&options.model.path, &config)?;
        let sha256 = dataset.sha256.clone();
        let questions = Questions::new(&options, dataset, &config, &tokenizer)?;
        let (answer, f1) = coqa::best_constant(&questions.references, options.scoring);
        Ok(Self {
            model: model(&options.model, Weights::Checkpoint)?,
            dataset: record::Dataset {
                name: options.dataset.name.clone(),
                revision: options.dataset.revision.clone(),
                sha256,
            },
            constant: Constant { answer, f1 },
            reference: Reference::default(),
            options,
            config,
            tokenizer,
            questions,
        })
    }

    fn setup(&self, experiment: &Experiment) -> Result<Setup> {
        let options = &self.options;
        Ok(Setup {
            experiment: experiment.name.to_owned(),
            format: experiment.format,
            compute: experiment.compute,
            model: self.model.clone(),
            dataset: self.dataset.clone(),
            task: Task {
                turns: options.turns,
                limit: options.limit,
                scoring: options.scoring,
                bos: options.bos,
                max_new_tokens: MAX_NEW_TOKENS,
                stop: vec![STOP.to_owned()],
                first_line: options.first_line,
            },
            engine: options.device.engine().to_owned(),
            slots: experiment.slots(options.device.is_gpu()),
            program: program()?,
        })
    }

    /// An engine for the questions, with the weights in `format`.
    fn engine(&self, format: Format, compute: Compute, slots: usize) -> Result<Opened> {
        open(Opening {
            device: self.options.device,
            model: &self.options.model.path,
            weights: Weights::Checkpoint,
            format,
            compute,
            slots,
            context: self.questions.context(),
        })
    }
}

/// Runs `experiment` and returns its record and where it was written. A record
/// of the same key that is already there is read instead.
pub fn evaluate(
    experiment: &Experiment,
    shared: &mut Shared,
    progress: &ProgressBar,
) -> Result<(PathBuf, Record)> {
    let setup = shared.setup(experiment)?;
    let (device, out) = (shared.options.device, shared.options.out.clone());
    let finished = Record::path(&out, &setup);
    if finished.is_file() {
        info!("already measured: {}", finished.display());
        return Ok((finished.clone(), Record::open(&finished)?));
    }
    let slots = setup.slots.min(shared.questions.dialogues.len());
    let Opened {
        mut decoder,
        load_seconds,
        size,
    } = shared.engine(experiment.format, experiment.compute, slots)?;
    let mut writer = Writer::begin(
        &out,
        Head {
            schema: SCHEMA,
            kind: Kind::Evaluation,
            key: setup.key(),
            setup,
            environment: environment(device)?,
            size,
            parts: model_parts(&shared.config, experiment.format),
            constant: shared.constant.clone(),
        },
    )?;
    let start = Instant::now();
    // Taken out, so that it can change while the rest of `shared` is read.
    let mut reference = std::mem::take(&mut shared.reference);
    let run = Run { experiment, shared };
    let asked = run.ask(decoder.as_mut(), &mut reference, &mut writer, progress);
    shared.reference = reference;
    asked?;
    let evaluate_seconds = start.elapsed().as_secs_f64();
    let plan = Plan::short(device).within(decoder.slots(), decoder.context());
    let wanted = shared.options.speed;
    let speed = wanted.then(|| speed(decoder.as_mut(), device, &plan));
    writer.finish(Samples {
        load_seconds,
        evaluate_seconds,
        speed: speed.transpose()?,
    })
}

/// What the name of a folder and the files read from it say of a model.
pub(super) fn model(located: &Located, weights: Weights) -> Result<record::Model> {
    let dir = &located.path;
    let config = dir.join("config.json");
    let files = match weights {
        Weights::Random { .. } => vec![config],
        Weights::Checkpoint => {
            let checkpoint = Checkpoint::open(dir)?;
            let stored = checkpoint.files().map(Path::to_path_buf);
            [config, dir.join("tokenizer.json")]
                .into_iter()
                .chain(stored)
                .collect()
        }
    };
    let sums = files
        .iter()
        .map(|path| Ok((file_name(path), sha256(path)?)));
    Ok(record::Model {
        name: located.name.clone(),
        revision: located.revision.clone(),
        files: sums.collect::<Result<_>>()?,
    })
}

/// The name that a path is called by: in the cache of the hub a link's name
/// says what the file is, and its target a checksum.
fn file_name(path: &Path) -> String {
    let whole = || path.canonicalize().ok()?.file_name().map(OsStr::to_owned);
    let name = path.file_name().map(OsStr::to_owned).or_else(whole);
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// What the callbacks of a generation need.
struct Run<'a> {
    experiment: &'a Experiment,
    shared: &'a Shared,
}

impl Run<'_> {
    /// Reads the stories and asks the items that the writer does not have yet.
    ///
    /// A slot first reads a story with all its gold answers. Every prompt about
    /// it starts in the same way, so it only has to be continued; the last turn
    /// goes first, because a turn overwrites what comes after it in the cache.
    fn ask(
        &self,
        engine: &mut dyn Decoder,
        reference: &mut Reference,
        writer: &mut Writer,
        progress: &ProgressBar,
    ) -> Result<()> {
        let questions = &self.shared.questions;
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
            eos: self.shared.config.eos.clone(),
            stop: vec![STOP.to_owned()],
            first_line: self.shared.options.first_line,
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
            |ids| self.shared.tokenizer.decode(ids),
            |prompt, completion| {
                progress.inc(1);
                writer
                    .borrow_mut()
                    .add(self.item(indices[prompt], completion))?;
                interrupt::check(&self.shared.options.out)
            },
        )
    }

    /// Reads the story at place `story` of the data set in `slot`, if that is
    /// not written yet, and returns the tokens that the slot then holds.
    fn read(
        &self,
        engine: &mut dyn Decoder,
        slot: usize,
        story: usize,
        reference: &mut Reference,
        baseline: &mut Option<Box<dyn Decoder>>,
        writer: &mut Writer,
    ) -> Result<Vec<u32>> {
        let questions = &self.shared.questions;
        let id = &questions.dataset.stories[story].id;
        let dialogue = questions.dialogues.iter().find(|d| d.story == *id);
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
                    none => none.insert(self.shared.engine(Format::Fp16, Compute::F16, 1)?.decoder),
                };
                read(baseline.as_mut(), 0, &dialogue.tokens)
            })?
        };
        writer.add_forced(forced)?;
        Ok(dialogue.tokens[..dialogue.tokens.len() - 1].to_vec())
    }

    /// The scored item at `index`.
    fn item(&self, index: usize, completion: Completion) -> Item {
        let questions = &self.shared.questions;
        let references = &questions.references[index];
        let scoring = self.shared.options.scoring;
        let prediction = coqa::prediction(&completion.text);
        let score = coqa::score(prediction, references, scoring);
        Item {
            index,
            id: questions.items[index].id.clone(),
            story: questions.story(index).id.clone(),
            question: questions.turn(index).question.clone(),
            references: references.clone(),
            prompt_tokens: questions.prompts[index].tokens.len(),
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
