//! One experiment on one model and one data set: load, ask, score, write.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use indicatif::ProgressBar;
use tracing::info;

use super::bench::speed;
use super::environment::{environment, program};
use super::forced::{Reference, WHOLE, read};
use super::interrupt;
use super::questions::Questions;
use crate::coqa::{self, Dataset, STOP, Scoring, Turns};
use crate::engine::generate::{Completion, Limits, Prompt, generate_on};
use crate::engine::{AnyDecoder, Device, Devices, Opened, Opening, open, open_each};
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
    /// What runs the model, a part of the stories each.
    pub devices: Devices,
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
            engine: options.devices.first().engine().to_owned(),
            slots: experiment.slots(options.devices.first().is_gpu()),
            program: program()?,
        })
    }

    /// An engine for the questions, with the weights in `format`.
    fn opening(
        &self,
        device: Device,
        format: Format,
        compute: Compute,
        slots: usize,
    ) -> Opening<'_> {
        Opening {
            device,
            model: &self.options.model.path,
            weights: Weights::Checkpoint,
            format,
            compute,
            slots,
            context: self.questions.context(),
        }
    }
}

/// Runs `experiment` and returns its record and where it was written. A record
/// of the same key that is already there is read instead.
pub fn evaluate(
    experiment: &Experiment,
    shared: &Shared,
    progress: &ProgressBar,
) -> Result<(PathBuf, Record)> {
    let setup = shared.setup(experiment)?;
    let (devices, out) = (&shared.options.devices, shared.options.out.clone());
    let finished = Record::path(&out, &setup);
    if finished.is_file() {
        info!("already measured: {}", finished.display());
        return Ok((finished.clone(), Record::open(&finished)?));
    }
    let slots = setup.slots.min(shared.questions.dialogues.len());
    let Experiment {
        format, compute, ..
    } = *experiment;
    let opening = shared.opening(devices.first(), format, compute, slots);
    let mut opened = open_each(devices, opening)?;
    let load_seconds = load_seconds(&opened);
    let size = opened[0].size;
    let mut decoders: Vec<&mut AnyDecoder> =
        opened.iter_mut().map(|o| o.decoder.as_mut()).collect();
    let writer = Writer::begin(
        &out,
        Head {
            schema: SCHEMA,
            kind: Kind::Evaluation,
            key: setup.key(),
            setup,
            environment: environment(devices)?,
            size,
            parts: model_parts(&shared.config, format),
            constant: shared.constant.clone(),
        },
    )?;
    let start = Instant::now();
    let run = Run {
        experiment,
        shared,
        baselines: devices.all().iter().map(|_| Mutex::default()).collect(),
        writer: Mutex::new(writer),
    };
    run.ask(&mut decoders, progress)?;
    let writer = run.writer.into_inner().expect(WHOLE);
    let evaluate_seconds = start.elapsed().as_secs_f64();
    let plan = Plan::short(devices.first());
    let plan = plan.within(decoders[0].slots(), decoders[0].context());
    let wanted = shared.options.speed;
    let speed = wanted.then(|| speed(&mut decoders, devices.first(), &plan));
    writer.finish(Samples {
        load_seconds,
        evaluate_seconds,
        speed: speed.transpose()?,
    })
}

/// Seconds until all were ready.
pub(super) fn load_seconds(opened: &[Opened]) -> f64 {
    opened.iter().map(|o| o.load_seconds).fold(0.0, f64::max)
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
            // Who measures speed needs none.
            let tokenizer = Some(dir.join("tokenizer.json")).filter(|path| path.exists());
            [config]
                .into_iter()
                .chain(tokenizer)
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
    /// By device, loaded when its engine first asks for one.
    baselines: Vec<Mutex<Option<Box<AnyDecoder>>>>,
    writer: Mutex<Writer>,
}

impl Run<'_> {
    /// Reads the stories and asks the items that the writer does not have yet.
    ///
    /// A slot first reads a story with all its gold answers. Every prompt about
    /// it starts in the same way, so it only has to be continued; the last turn
    /// goes first, because a turn overwrites what comes after it in the cache.
    fn ask(&self, engines: &mut [&mut AnyDecoder], progress: &ProgressBar) -> Result<()> {
        let questions = &self.shared.questions;
        let mut indices: Vec<usize> = {
            let writer = self.writer.lock().expect(WHOLE);
            let all = 0..questions.items.len();
            all.filter(|&i| !writer.has(i)).collect()
        };
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
        generate_on(
            engines,
            &prompts,
            &limits,
            |place, engine, slot, story| self.read(place, engine, slot, story),
            |ids| self.shared.tokenizer.decode(ids),
            |prompt, completion| {
                progress.inc(1);
                let item = self.item(indices[prompt], completion);
                self.writer.lock().expect(WHOLE).add(item)?;
                interrupt::check(&self.shared.options.out)
            },
        )
    }

    /// Reads the story at place `story` of the data set in `slot` of the engine
    /// at `place`, if that is not written yet, and returns the tokens that the
    /// slot then holds.
    fn read(
        &self,
        place: usize,
        engine: &mut AnyDecoder,
        slot: usize,
        story: usize,
    ) -> Result<Vec<u32>> {
        let reference = &self.shared.reference;
        let questions = &self.shared.questions;
        let id = &questions.dataset.stories[story].id;
        let dialogue = questions.dialogues.iter().find(|d| d.story == *id);
        let dialogue = dialogue.expect("every story that is asked about has its dialogue");
        if self.writer.lock().expect(WHOLE).has_forced(dialogue.index) {
            return Ok(Vec::new());
        }
        let forced = if self.experiment.name == BASELINE {
            reference.remember(engine, slot, dialogue)?
        } else {
            reference.compare(engine, slot, dialogue, || {
                let mut baseline = self.baselines[place].lock().expect(WHOLE);
                let baseline = match &mut *baseline {
                    Some(loaded) => loaded,
                    none => {
                        let device = self.shared.options.devices.all()[place];
                        let (format, compute) = (Format::Fp16, Compute::F16);
                        let opening = self.shared.opening(device, format, compute, 1);
                        none.insert(open(opening)?.decoder)
                    }
                };
                read(baseline.as_mut(), 0, &dialogue.tokens)
            })?
        };
        self.writer.lock().expect(WHOLE).add_forced(forced)?;
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
