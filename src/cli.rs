//! The sub-commands and their options.

mod run;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use llama_quant::coqa::{Scoring, Turns};
use llama_quant::engine::{Devices, check_baseline};
use llama_quant::experiment::{BASELINE, CONTROL, EXPERIMENTS, Experiment};
use llama_quant::measure::bench::Benched;
use llama_quant::measure::environment::today;
use llama_quant::measure::{self, Options, Shared, embedded, evaluate};
use llama_quant::quant::size::{MIB, model_bytes};
use llama_quant::record::{Bench, Plan};
use llama_quant::source::config::Config;
use llama_quant::source::hub::{self, Hub, Id, Kind, Located, Settings};
use llama_quant::source::origin::Weights;
use llama_quant::verdict::judge::comparisons;
use llama_quant::verdict::stats::Resampling;
use llama_quant::verdict::stats::interval::SEED;
use llama_quant::verdict::{report, table};
use llama_quant::{Error, Result};

use self::run::{Again, Ran, run_each};

/// What quantising a Llama model costs in quality and buys in memory and speed.
///
/// Without a command: compares FP16, INT8, NF4 and FP4 on the model and the
/// questions that ship with the project.
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run experiments on CoQA and compare them with FP16
    Compare(CompareArguments),
    /// Measure load, prefill and decode speed of a model in every format
    Bench(BenchArguments),
    /// Write the report on records: tables, figures, Markdown and one HTML page
    Report(ReportArguments),
    /// Download a model or a data set into the cache, for machines without network
    Fetch(FetchArguments),
    /// Write a checkpoint of random weights, for other programs to load
    Synth(SynthArguments),
    /// Print the size of a model in every format, from its config.json alone
    Size(SizeArguments),
}

impl Default for Command {
    fn default() -> Self {
        let Cli { command } = Cli::parse_from(["llama-quant", "compare"]);
        command.expect("the arguments name a command")
    }
}

#[derive(Args, Debug, PartialEq)]
pub struct CompareArguments {
    /// Checkpoint folder with config.json, tokenizer.json and safetensors, or
    /// ORG/NAME[@REVISION] on the hub [default: the tiny Llama of the project]
    #[arg(long, value_name = "DIR or ID")]
    model: Option<PathBuf>,
    /// CoQA as JSON, or the hub data set EleutherAI/coqa as JSON lines or
    /// parquet, or its id, or `hub` for it [default: the project's own small
    /// data set]
    #[arg(long, value_name = "FILE or ID")]
    dataset: Option<PathBuf>,
    /// Experiments to run [default: fp16_baseline fp16_control bnb_8bit
    /// bnb_4bit_nf4 bnb_4bit_fp4]
    #[arg(long, value_name = "NAME", num_args = 1.., conflicts_with = "all")]
    experiment: Vec<String>,
    /// Run every experiment
    #[arg(long)]
    all: bool,
    /// Experiments that are not run and count as failed: with this a process
    /// that has lost its GPU lets a new one go on
    #[arg(long, value_name = "NAME", num_args = 1..)]
    given_up: Vec<String>,
    /// Only the first N stories
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Which turns of a story are asked: last or all
    #[arg(long, default_value = "last")]
    turns: Turns,
    /// Rule that combines several references: lm_eval, official or max
    #[arg(long, default_value = "lm_eval")]
    scoring: Scoring,
    /// Leave out the beginning-of-text token before each prompt
    #[arg(long)]
    no_bos: bool,
    /// Generate until the stop string as lm-evaluation-harness does, instead of
    /// ending after the first line; slower, same scores
    #[arg(long)]
    reference_stop: bool,
    /// Do not measure speed
    #[arg(long)]
    no_speed: bool,
    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u64,
    /// Folder for the records [default: reports/records/<date>-<device>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What runs the model: auto, cpu or cuda:N, or several GPUs, each with a copy
    /// of it and a part of the stories, as cuda:0,1 or cuda:all
    #[arg(long, default_value = "auto")]
    device: Devices,
}

#[derive(Args)]
pub struct ReportArguments {
    /// Folder of the records, searched with its subfolders
    #[arg(value_name = "RECORDS", default_value = "reports/records")]
    records: PathBuf,
    /// Folder that the report is written to
    #[arg(long, value_name = "DIR", default_value = "reports")]
    out: PathBuf,
    /// Write nothing; fail if the report there does not agree with its records
    #[arg(long)]
    check: bool,
}

#[derive(Args, Debug, PartialEq)]
pub struct BenchArguments {
    /// Checkpoint folder, or ORG/NAME[@REVISION] on the hub [default: the tiny
    /// Llama of the project]
    #[arg(long, value_name = "DIR or ID")]
    model: Option<PathBuf>,
    /// checkpoint, or random[:SEED] in its place: the folder then needs only its
    /// config.json
    #[arg(long, default_value = "checkpoint")]
    weights: Weights,
    /// Seconds that the energy of each batch is measured for; 0 for none
    #[arg(long, value_name = "SECONDS")]
    energy: Option<f64>,
    /// Tokens that each sequence holds before it decodes; batches for which that
    /// leaves no room are left out [default: 128]
    #[arg(long, value_name = "TOKENS")]
    cached: Option<usize>,
    /// Numbers of sequences that decode together; documents and stories are then
    /// left out [default: those of the device]
    #[arg(long, value_name = "N", num_args = 1..)]
    sequences: Vec<NonZeroUsize>,
    /// Experiments to measure [default: all but the control]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    experiment: Vec<String>,
    /// Experiments that are not run and count as failed: with this a process
    /// that has lost its GPU lets a new one go on
    #[arg(long, value_name = "NAME", num_args = 1..)]
    given_up: Vec<String>,
    /// Folder for the records [default: reports/records/<date>-<device>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What runs the model: auto, cpu or cuda:N, or several GPUs as cuda:0,1 or
    /// cuda:all: documents and stories are read by all, the rest is measured on the first
    #[arg(long, default_value = "auto")]
    device: Devices,
}

#[derive(Args)]
pub struct FetchArguments {
    /// Model on the hub: ORG/NAME[@REVISION]
    #[arg(long, value_name = "ID")]
    model: Option<Id>,
    /// Data set on the hub: ORG/NAME[@REVISION], or `hub` for EleutherAI/coqa
    #[arg(long, value_name = "ID")]
    dataset: Option<String>,
    /// How often a request is sent again that fails in passing
    #[arg(long, value_name = "N", default_value_t = 4)]
    retries: u32,
}

#[derive(Args)]
pub struct SynthArguments {
    /// Folder with the config.json that gives the shape
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// random[:SEED]
    #[arg(long, default_value = "random")]
    weights: Weights,
    /// Folder to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Args)]
pub struct SizeArguments {
    /// Folder with the config.json, or ORG/NAME[@REVISION] on the hub [default:
    /// the tiny Llama of the project]
    #[arg(long, value_name = "DIR or ID")]
    model: Option<PathBuf>,
}

/// Shows warnings, or what `RUST_LOG` asks for, on standard error.
pub fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .finish();
    // Not `init`, which would add what libraries write with the `log` crate:
    // the HTTP library writes whole addresses, and redirects carry signatures.
    tracing::subscriber::set_global_default(subscriber)
        .expect("nothing before this has set up logging");
}

/// Lets the first SIGINT or SIGTERM end the run after its item, and the second
/// end it at once.
fn stop_after_an_item() {
    let handler = || {
        if measure::interrupt() {
            std::process::exit(130);
        }
        eprintln!("finishing the item; once more ends at once");
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        tracing::warn!("an interrupt will end the run at once: {e}");
    }
}

/// Runs the experiments, writes their records and prints the comparison.
pub fn compare(arguments: &CompareArguments) -> Result<()> {
    stop_after_an_item();
    let experiments = experiments(arguments)?;
    let given_up = named(&arguments.given_up)?;
    let options = arguments.options()?;
    check_baseline(&options.model.path)?;
    let shared = Shared::open(options.clone())?;
    let wanted = without(&experiments, &given_up);
    let mut ran = run_each(&wanted, &given_up, |experiment| {
        let progress = progress_bar(experiment.name);
        let outcome = evaluate(experiment, &shared, &progress);
        progress.finish_and_clear();
        outcome
    })?;
    ran.go_on(&options.out, |ran| {
        arguments.again(&options, &experiments, &ran.failed)
    })?;
    let (paths, records): (Vec<_>, Vec<_>) = std::mem::take(&mut ran.done).into_iter().unzip();
    let resampling = Resampling {
        seed: arguments.seed,
        ..Resampling::default()
    };
    for comparison in comparisons(&records, resampling)? {
        println!("{}", table::text(&comparison));
    }
    for path in paths {
        println!("record: {}", path.display());
    }
    ran.outcome("the same command goes on with them and keeps the records that are finished")
}

impl CompareArguments {
    fn options(&self) -> Result<Options> {
        Ok(Options {
            model: model(Kind::Model, self.model.as_deref())?,
            dataset: dataset(self.dataset.as_deref())?,
            turns: self.turns,
            scoring: self.scoring,
            limit: self.limit,
            bos: !self.no_bos,
            first_line: !self.reference_stop,
            devices: self.device.clone(),
            speed: !self.no_speed,
            out: folder(self.out.as_ref(), &self.device),
        })
    }

    /// The same for a new process, in which `failed` are given up and what is
    /// finished is read from its records.
    fn again(
        &self,
        options: &Options,
        experiments: &[Experiment],
        failed: &[&str],
    ) -> Vec<OsString> {
        // Every option by name, so that none is forgotten.
        let Self {
            model,
            dataset,
            experiment: _,
            all: _,
            given_up: _,
            limit,
            turns,
            scoring,
            no_bos,
            reference_stop,
            no_speed,
            seed,
            out: _,
            device,
        } = self;
        let experiments: Vec<&str> = experiments.iter().map(|e| e.name).collect();
        Again::new("compare")
            .with_located("--model", model.as_deref(), &options.model)
            .with_located("--dataset", dataset.as_deref(), &options.dataset)
            .with_each("--experiment", &experiments)
            .with_each("--given-up", failed)
            .with_some("--limit", limit.map(|n| n.to_string()))
            .with("--turns", turns.to_string())
            .with("--scoring", scoring.to_string())
            .with_flag("--no-bos", *no_bos)
            .with_flag("--reference-stop", *reference_stop)
            .with_flag("--no-speed", *no_speed)
            .with("--seed", seed.to_string())
            .with("--out", &options.out)
            .with("--device", device.to_string())
            .arguments()
    }
}

/// The experiments of these names.
fn named(names: &[String]) -> Result<Vec<Experiment>> {
    names.iter().map(|name| Experiment::named(name)).collect()
}

/// Those of `experiments` that are not `given_up`.
fn without(experiments: &[Experiment], given_up: &[Experiment]) -> Vec<Experiment> {
    let wanted = experiments.iter().filter(|e| !given_up.contains(e));
    wanted.copied().collect()
}

/// Where records go if nobody says so: a folder for each day and engine.
fn folder(wanted: Option<&PathBuf>, devices: &Devices) -> PathBuf {
    let default = || {
        PathBuf::from(format!(
            "reports/records/{}-{}",
            today(),
            devices.first().engine()
        ))
    };
    wanted.cloned().unwrap_or_else(default)
}

/// What of a model `--model` names: a folder, or one of the hub.
fn model(kind: Kind, given: Option<&Path>) -> Result<Located> {
    match given {
        None => embedded::model().map(Located::local),
        Some(given) => located(kind, given),
    }
}

/// The data set that `--dataset` names: a file, or one of the hub.
fn dataset(given: Option<&Path>) -> Result<Located> {
    match given {
        None => embedded::dataset().map(Located::local),
        Some(given) => located(Kind::Dataset, given),
    }
}

fn located(kind: Kind, given: &Path) -> Result<Located> {
    let progress = download_bar();
    let located = hub::resolve(kind, given, &progress);
    progress.finish_and_clear();
    located
}

fn experiments(arguments: &CompareArguments) -> Result<Vec<Experiment>> {
    if arguments.all {
        return Ok(EXPERIMENTS.to_vec());
    }
    if arguments.experiment.is_empty() {
        return Ok(EXPERIMENTS.into_iter().filter(|e| e.default).collect());
    }
    let named = named(&arguments.experiment)?;
    if named.iter().all(|e| e.name != BASELINE) {
        tracing::warn!("without {BASELINE} there is nothing to compare with");
    }
    // In the order of the table, each once.
    Ok(EXPERIMENTS
        .into_iter()
        .filter(|e| named.contains(e))
        .collect())
}

fn progress_bar(name: &'static str) -> ProgressBar {
    bar("{prefix:24} {bar:30} {pos}/{len} {eta} left").with_prefix(name)
}

fn download_bar() -> ProgressBar {
    bar("{prefix:32} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left")
}

/// A bar on standard error, hidden where that is no terminal.
fn bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    ProgressBar::with_draw_target(None, target).with_style(style)
}

/// Writes the report, or checks the one that is there.
pub fn report(arguments: &ReportArguments) -> Result<()> {
    let records = report::open(&arguments.records)?;
    let files = report::files(&records)?;
    let out = arguments.out.display();
    if arguments.check {
        report::check(&arguments.out, &files)?;
        println!("{out}: agrees with its {} records", records.len());
    } else {
        let changed = report::write(&arguments.out, &files)?;
        println!(
            "{out}: {} files from {} records, {changed} changed",
            files.len(),
            records.len()
        );
    }
    Ok(())
}

/// Measures the speed of a model in every format, writes a record for each and
/// prints what they say.
pub fn bench(arguments: &BenchArguments) -> Result<()> {
    let kind = match arguments.weights {
        Weights::Checkpoint => Kind::Model,
        Weights::Random { .. } => Kind::Config,
    };
    let model = model(kind, arguments.model.as_deref())?;
    let benched = Benched::open(arguments.device.clone(), &model, arguments.weights)?;
    let mut plan = Plan::long(arguments.device.first());
    plan.energy_seconds = arguments.energy.unwrap_or(plan.energy_seconds);
    if let Some(tokens) = arguments.cached {
        plan.cached_tokens = tokens;
        benched.check_cached(&plan)?;
    }
    if !arguments.sequences.is_empty() {
        let mut batches: Vec<usize> = arguments.sequences.iter().map(|n| n.get()).collect();
        batches.sort_unstable();
        batches.dedup();
        (plan.batches, plan.documents, plan.stories) = (batches, 0, 0);
    }
    let out = folder(arguments.out.as_ref(), &arguments.device);
    let experiments: Vec<Experiment> = match &arguments.experiment[..] {
        // The control would be the baseline's format once more.
        [] => EXPERIMENTS
            .into_iter()
            .filter(|e| e.name != CONTROL)
            .collect(),
        names => named(names)?,
    };
    let given_up = named(&arguments.given_up)?;
    let experiments = without(&experiments, &given_up);
    let mut ran = run_each(&experiments, &given_up, |experiment| {
        let progress = progress_bar(experiment.name);
        progress.set_length(experiments.len() as u64);
        let at = experiments.iter().position(|e| e == experiment);
        progress.set_position(at.unwrap_or_default() as u64);
        let outcome = benched.bench(experiment, &plan);
        progress.finish_and_clear();
        let bench = outcome?;
        Ok((bench.write(&out)?, bench))
    })?;
    // A new process measures nothing again, and prints what it measures itself.
    print_speeds(&mut ran)?;
    ran.go_on(&out, |ran| arguments.again(&model, &out, ran))?;
    ran.outcome("pass them to --experiment to measure them alone")
}

fn print_speeds(ran: &mut Ran<(PathBuf, Bench)>) -> Result<()> {
    let (paths, benches): (Vec<_>, Vec<_>) = std::mem::take(&mut ran.done).into_iter().unzip();
    if benches.is_empty() {
        return Ok(());
    }
    println!("{}", table::speed(&benches)?);
    for path in paths {
        println!("record: {}", path.display());
    }
    Ok(())
}

impl BenchArguments {
    /// The same for a new process, which measures what is left.
    fn again<T>(&self, located: &Located, out: &Path, ran: &Ran<T>) -> Vec<OsString> {
        // Every option by name, so that none is forgotten.
        let Self {
            model,
            weights,
            energy,
            cached,
            sequences,
            experiment: _,
            given_up: _,
            out: _,
            device,
        } = self;
        let sequences: Vec<String> = sequences.iter().map(ToString::to_string).collect();
        let sequences: Vec<&str> = sequences.iter().map(String::as_str).collect();
        Again::new("bench")
            .with_located("--model", model.as_deref(), located)
            .with("--weights", weights.to_string())
            .with_some("--energy", energy.map(|seconds| seconds.to_string()))
            .with_some("--cached", cached.map(|tokens| tokens.to_string()))
            .with_each("--sequences", &sequences)
            .with_each("--experiment", &ran.left)
            .with_each("--given-up", &ran.failed)
            .with("--out", out)
            .with("--device", device.to_string())
            .arguments()
    }
}

/// Fills the cache and prints what a machine without network needs.
pub fn fetch(arguments: &FetchArguments) -> Result<()> {
    if arguments.model.is_none() && arguments.dataset.is_none() {
        return Err(Error::usage(
            "fetch",
            "--model, --dataset or both",
            "neither",
            "name what to download, such as --model meta-llama/Llama-3.2-1B --dataset hub",
        ));
    }
    let settings = Settings {
        attempts: arguments.retries.saturating_add(1),
        ..Settings::from_env()?
    };
    let hub = Hub::new(settings)?.verifying();
    let progress = download_bar();
    let dataset = arguments.dataset.as_deref().map(|given| match given {
        "hub" => hub::COQA.parse(),
        id => id.parse(),
    });
    let mut fetched = Vec::new();
    if let Some(id) = &arguments.model {
        fetched.push(("--model", hub.model(id, &progress)?));
    }
    if let Some(id) = dataset {
        fetched.push(("--dataset", hub.dataset(&id?, &progress)?));
    }
    progress.finish_and_clear();
    let mut command = "llama-quant compare".to_owned();
    for (option, located) in &fetched {
        let (bytes, files) = hub::size(&located.path)?;
        let revision = located.revision.as_deref().unwrap_or_default();
        let id = format!("{}@{revision}", located.name);
        println!("{id}\n    {}", located.path.display());
        println!(
            "    {files} files, {bytes} bytes ({:.3} GB)",
            bytes as f64 / 1e9
        );
        command += &format!(" {option} {id}");
    }
    let cache = hub.settings().cache.canonicalize();
    let cache = cache.unwrap_or_else(|_| hub.settings().cache.clone());
    println!("\nOn a machine without network, with this folder copied or mounted there:\n");
    println!("export HF_HUB_CACHE={}", cache.display());
    println!("export HF_HUB_OFFLINE=1\n{command}");
    Ok(())
}

/// Writes a checkpoint of random weights.
pub fn synth(arguments: &SynthArguments) -> Result<()> {
    let Weights::Random { seed } = arguments.weights else {
        return Err(Error::usage(
            "--weights",
            "random or random:SEED",
            "checkpoint",
            "name a seed; a checkpoint is there already",
        ));
    };
    let path = measure::synth::synth(&arguments.model, seed, &arguments.out)?;
    println!("{}", path.display());
    Ok(())
}

/// Prints the size of a model in every format.
pub fn size(arguments: &SizeArguments) -> Result<()> {
    let model = model(Kind::Config, arguments.model.as_deref())?;
    let config = Config::open(&model.path)?;
    println!(
        "{:24} {:>12} {:>12}",
        "experiment", "MiB weights", "MiB + state"
    );
    for Experiment { name, format, .. } in EXPERIMENTS {
        let bytes = model_bytes(&config, format);
        let mib = |bytes: u64| bytes as f64 / MIB;
        println!(
            "{name:24} {:>12.3} {:>12.3}",
            mib(bytes.parameters),
            mib(bytes.with_state)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: impl IntoIterator<Item = OsString>) -> Command {
        let all = std::iter::once("llama-quant".into()).chain(arguments);
        let cli = Cli::try_parse_from(all).unwrap_or_else(|e| panic!("{e}"));
        cli.command.expect("a command")
    }

    fn words(text: &str) -> impl Iterator<Item = OsString> {
        text.split_whitespace().map(OsString::from)
    }

    /// As the hub locates what it is asked for.
    fn located() -> Located {
        Located {
            path: "cache/snapshot".into(),
            name: "org/name".to_owned(),
            revision: Some("0123abc".to_owned()),
        }
    }

    #[test]
    fn a_new_process_goes_on_with_the_same_comparison() {
        for given in [
            "compare --out records",
            "compare --all --limit 3 --turns all --scoring max --no-bos --no-speed \
             --reference-stop --seed 7 --device cuda:1 --out=-o --model ./-m --dataset ./f.json",
        ] {
            let Command::Compare(arguments) = parsed(words(given)) else {
                panic!("{given}")
            };
            let options = arguments.options().expect("options");
            let experiments = experiments(&arguments).expect("experiments");
            let again = arguments.again(&options, &experiments, &["bnb_8bit"]);
            let Command::Compare(again) = parsed(again) else {
                panic!("another command for {given}")
            };
            let names = experiments.iter().map(|e| e.name.to_owned());
            let wanted = CompareArguments {
                experiment: names.collect(),
                all: false,
                given_up: vec!["bnb_8bit".to_owned()],
                ..arguments
            };
            assert_eq!(again, wanted);
        }
    }

    #[test]
    fn a_new_process_goes_on_with_the_same_bench_at_the_same_revision() {
        let given = "bench --model org/name --weights random:3 --energy 0.25 --cached 8192 \
                     --sequences 1 4 --device cuda:0,1";
        let Command::Bench(arguments) = parsed(words(given)) else {
            panic!("{given}")
        };
        let ran: Ran<()> = Ran {
            done: Vec::new(),
            failed: vec!["bnb_8bit", "bnb_4bit_nf4"],
            left: vec!["bnb_4bit_fp4"],
        };
        let again = arguments.again(&located(), Path::new("records"), &ran);
        let Command::Bench(again) = parsed(again) else {
            panic!("another command")
        };
        let wanted = BenchArguments {
            model: Some("org/name@0123abc".into()),
            experiment: vec!["bnb_4bit_fp4".to_owned()],
            given_up: vec!["bnb_8bit".to_owned(), "bnb_4bit_nf4".to_owned()],
            out: Some("records".into()),
            ..arguments
        };
        assert_eq!(again, wanted);
    }
}
