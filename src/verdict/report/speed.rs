//! Latency, throughput, the bandwidth limit, energy and memory: the same for
//! the runs of a comparison and for benches.

use serde_json::Value;

use super::charts;
use super::findings::{Benched, Speeds};
use super::page::{Block, Section};
use super::table::{Column, FILES, Layout, PROPERTIES, Table, column, lookup};
use crate::error::Result;
use crate::verdict::figure::Picture;
use crate::verdict::number::Unit;

const FORMAT: Column = column("Format", &["name"], Unit::Text);
const SEQUENCES: Column = column("sequences", &["sequences"], Unit::Count);

/// Writes what one set of speeds says.
pub(super) struct Writer<'a> {
    /// All findings, as JSON, and the key of the speeds in them.
    pub findings: &'a Value,
    pub key: String,
    /// Begins the names of files.
    pub slug: &'a str,
    pub speeds: &'a Speeds,
}

/// The sections about benches of one model on one machine, at `place` in the
/// findings.
pub(super) fn sections(findings: &Value, place: usize, benched: &Benched) -> Result<Vec<Section>> {
    let slug = &benched.slug;
    let writer = Writer {
        findings,
        key: format!("benches.{place}.speeds"),
        slug,
        speeds: &benched.speeds,
    };
    let section = |id: &str, title: &str, blocks| Section {
        id: format!("{slug}-{id}"),
        title: title.to_owned(),
        blocks,
    };
    let listed = |name: &str, caption: &str, columns: &[Column], length| {
        let row = |i| format!("benches.{place}.{name}.{i}");
        let rows: Vec<String> = (0..length).map(row).collect();
        let name = format!("{slug}-{name}");
        Table::new(findings, name, caption, &rows, columns)
    };
    let sources = [
        FORMAT,
        column("started (UTC)", &["started"], Unit::Text),
        column("record", &["record"], Unit::Text),
    ];
    let machine = listed(
        "machine",
        "The machine and the program.",
        &PROPERTIES,
        benched.machine.len(),
    );
    let files = listed("files", "What was read.", &FILES, benched.files.len());
    let sources = listed("sources", "The records.", &sources, benched.sources.len());
    Ok(vec![
        section("speed", TITLE, writer.blocks()?),
        section(
            "environment",
            "Environment",
            vec![
                machine.laid_out(Layout::Facts).into(),
                files.laid_out(Layout::Facts).into(),
                sources.into(),
            ],
        ),
    ])
}

/// Of the section, in every chapter.
pub(super) const TITLE: &str = "Latency, throughput and the bandwidth limit";

impl Writer<'_> {
    /// Every table and picture for which there are measurements.
    pub fn blocks(&self) -> Result<Vec<Block>> {
        if self.speeds.runs.is_empty() {
            let text = "Speed was not measured in these records.";
            return Ok(vec![Block::text(text)]);
        }
        let mut blocks = Vec::new();
        self.single(&mut blocks)?;
        self.batches(&mut blocks)?;
        self.bandwidth(&mut blocks)?;
        self.prefill(&mut blocks)?;
        self.documents(&mut blocks);
        self.turns(&mut blocks);
        self.energy(&mut blocks);
        self.memory(&mut blocks);
        self.card(&mut blocks);
        Ok(blocks)
    }

    fn single(&self, blocks: &mut Vec<Block>) -> Result<()> {
        let caption = "A decode step of a single sequence: every measurement (light), their median \
                       and its interval (thick).";
        blocks.extend(self.figure("speed", caption, charts::decode(self.speeds)?));
        let columns = [
            FORMAT,
            column(
                "ms/token, one sequence [95 %]",
                &[
                    "speed.single.seconds.value",
                    "speed.single.seconds.limits.0",
                    "speed.single.seconds.limits.1",
                ],
                Unit::Milliseconds,
            ),
            column("p95, ms", &["speed.single.seconds.p95"], Unit::Milliseconds),
            column(
                "tokens/s",
                &["speed.single.tokens_per_second"],
                Unit::PerSecond,
            ),
            column(
                "steps measured",
                &["speed.single.seconds.samples"],
                Unit::Count,
            ),
            column("load, s", &["load_seconds"], Unit::Seconds),
            column("evaluation, s", &["evaluate_seconds"], Unit::Seconds),
        ];
        let caption = "Median of the decode steps of a single sequence with its interval between \
                       two of them, and the time that 95 % of them stay within. Load and \
                       evaluation were timed once each; an evaluation that went on after a kill \
                       counts only what it still had to do.";
        self.table("speed", caption, "runs", &columns, blocks);
        Ok(())
    }

    fn batches(&self, blocks: &mut Vec<Block>) -> Result<()> {
        let caption = "Tokens a second of all sequences together, by their number. Logarithmic \
                       both ways.";
        blocks.extend(self.figure("throughput", caption, charts::throughput(self.speeds)?));
        let caption = "Time of a decode step, which gives each sequence one token, by the number \
                       of sequences. Logarithmic both ways.";
        blocks.extend(self.figure("latency", caption, charts::latency(self.speeds)?));
        let columns = [
            FORMAT,
            SEQUENCES,
            column(
                "tokens/s [95 %]",
                &[
                    "tokens_per_second",
                    "tokens_per_second_limits.0",
                    "tokens_per_second_limits.1",
                ],
                Unit::PerSecond,
            ),
            column(
                "ms/step [95 %]",
                &["seconds.value", "seconds.limits.0", "seconds.limits.1"],
                Unit::Milliseconds,
            ),
            column("p95, ms", &["seconds.p95"], Unit::Milliseconds),
            column("tokens cached by each", &["cached_tokens"], Unit::Count),
            column(
                "% of the copy's bandwidth",
                &["bandwidth_share"],
                Unit::Percent,
            ),
        ];
        let caption = "Decode by number of sequences: medians and their intervals.";
        self.table("batches", caption, "decode", &columns, blocks);
        Ok(())
    }

    fn bandwidth(&self, blocks: &mut Vec<Block>) -> Result<()> {
        let caption = "How much of the memory's bandwidth a decode step of a single sequence \
                       uses: the bytes that it has to read, over those that a large copy moves in \
                       the same time.";
        blocks.extend(self.figure("bandwidth", caption, charts::bandwidth(self.speeds)?));
        let columns = [
            FORMAT,
            column(
                "MiB that a step reads",
                &["speed.single.bytes"],
                Unit::Mebibytes,
            ),
            column(
                "of these weights",
                &["speed.step_weights_bytes"],
                Unit::Mebibytes,
            ),
            column(
                "copy, GB/s",
                &["speed.copy_bytes_per_second"],
                Unit::Bandwidth,
            ),
            column(
                "% of the copy's bandwidth",
                &["speed.single.bandwidth_share"],
                Unit::Percent,
            ),
            column(
                "FP16 product, TFLOP/s",
                &["speed.flops_per_second"],
                Unit::Teraflops,
            ),
        ];
        let caption = "A step reads every weight but the embedding, unless that is the head as \
                       well, and the keys and values of the tokens before. The copy's bytes are \
                       those it reads and those it writes. A model that fits into a cache can use \
                       more than the copy's bandwidth.";
        self.table("bandwidth", caption, "runs", &columns, blocks);
        Ok(())
    }

    fn prefill(&self, blocks: &mut Vec<Block>) -> Result<()> {
        let caption = "Time from an empty slot to the first new token of a single sequence, by the \
                       length of its prompt. Logarithmic both ways.";
        blocks.extend(self.figure("prefill", caption, charts::prefill(self.speeds)?));
        let columns = [
            FORMAT,
            column("prompt tokens", &["tokens"], Unit::Count),
            column(
                "ms [95 %]",
                &["seconds.value", "seconds.limits.0", "seconds.limits.1"],
                Unit::Milliseconds,
            ),
            column("p95, ms", &["seconds.p95"], Unit::Milliseconds),
            column("tokens/s", &["tokens_per_second"], Unit::PerSecond),
            column(
                "of the matrix product",
                &["arithmetic_share"],
                Unit::Percent,
            ),
        ];
        let runs = self.speeds.runs.iter();
        let mut prefills = runs.flat_map(|run| &run.speed.prefill);
        let caption = if prefills.any(|p| p.arithmetic_share.is_some()) {
            "Prefill: medians and their intervals, and the share of what a large FP16 matrix \
             product reaches on the same device, attention not counted."
        } else {
            "Prefill: medians and their intervals."
        };
        self.table("prefill", caption, "prefill", &columns, blocks);
        Ok(())
    }

    fn documents(&self, blocks: &mut Vec<Block>) {
        let columns = [
            FORMAT,
            column("prompts", &["count"], Unit::Count),
            column("prompt tokens", &["prompt_tokens"], Unit::Count),
            column("new tokens each", &["new_tokens"], Unit::Count),
            column("s", &["seconds"], Unit::Seconds),
            column("prompts/s", &["documents_per_second"], Unit::Plain(1)),
        ];
        let caption = "Prompts of the lengths of CoQA's, read and continued together: one run of an \
                       evaluation without its scores.";
        self.table("documents", caption, "documents", &columns, blocks);
    }

    fn turns(&self, blocks: &mut Vec<Block>) {
        let columns = [
            FORMAT,
            column("stories", &["stories"], Unit::Count),
            column("turns", &["count"], Unit::Count),
            column(
                "tokens of the last prompts",
                &["prompt_tokens"],
                Unit::Count,
            ),
            column("new tokens each", &["new_tokens"], Unit::Count),
            column("s", &["seconds"], Unit::Seconds),
            column("turns/s", &["turns_per_second"], Unit::Plain(1)),
        ];
        let caption = "All turns of stories of the lengths of CoQA's, asked together: the prompt of \
                       a story's last turn is read, the other turns start from its cache. One run \
                       of an evaluation of all turns without its scores and divergences.";
        self.table("turns", caption, "turns", &columns, blocks);
    }

    fn energy(&self, blocks: &mut Vec<Block>) {
        let columns = [
            FORMAT,
            SEQUENCES,
            column("J/token", &["joules_per_token"], Unit::Joules),
            column("W", &["watts"], Unit::Plain(1)),
            column("window, s", &["seconds"], Unit::Seconds),
        ];
        let caption = "Energy of the whole device while it decodes.";
        self.table("energy", caption, "energy", &columns, blocks);
        if self.speeds.energy.is_empty() {
            let mut reasons: Vec<&str> = Vec::new();
            for run in &self.speeds.runs {
                let reason = run.speed.energy_missing.as_deref();
                reasons.extend(reason.filter(|r| !reasons.contains(r)));
            }
            let why = match &reasons[..] {
                [] => "no reason is recorded".to_owned(),
                some => some.join("; "),
            };
            blocks.push(Block::Text {
                text: format!("Energy was not measured: {why}."),
            });
        }
    }

    fn memory(&self, blocks: &mut Vec<Block>) {
        let columns = [
            FORMAT,
            column("weights by formula", &["formula_bytes"], Unit::Mebibytes),
            column("weights held", &["weights_bytes"], Unit::Mebibytes),
            column("cache", &["cache_bytes"], Unit::Mebibytes),
            column("workspace", &["workspace_bytes"], Unit::Mebibytes),
            column("allocated", &["allocated_bytes"], Unit::Mebibytes),
            column("peak", &["peak_bytes"], Unit::Mebibytes),
            column(
                "cache, bytes/token",
                &["cache_bytes_per_token"],
                Unit::Count,
            ),
        ];
        let caption = "MiB that the engine counted, next to what the shapes of the weights say. The \
                       cache is that of all slots, used or not.";
        self.table("held", caption, "memory", &columns, blocks);
    }

    fn card(&self, blocks: &mut Vec<Block>) {
        let columns = [
            FORMAT,
            column("when", &["when"], Unit::Text),
            column("SM clock, MHz", &["sm_clock_mhz"], Unit::Count),
            column("memory clock, MHz", &["memory_clock_mhz"], Unit::Count),
            column("temperature, °C", &["temperature_celsius"], Unit::Count),
            column("power, W", &["power_watts"], Unit::Plain(1)),
        ];
        let caption = "The card before and after the measurements.";
        self.table("card", caption, "card", &columns, blocks);
    }

    /// A table with a row for each of a list of the speeds; none if it is empty.
    fn table(
        &self,
        name: &str,
        caption: &str,
        list: &str,
        columns: &[Column],
        blocks: &mut Vec<Block>,
    ) {
        let list = format!("{}.{list}", self.key);
        let length = lookup(self.findings, &list).and_then(Value::as_array);
        let length = length.map_or(0, Vec::len);
        if length == 0 {
            return;
        }
        let rows: Vec<String> = (0..length).map(|i| format!("{list}.{i}")).collect();
        let name = format!("{}-{name}", self.slug);
        let table = Table::new(self.findings, name, caption, &rows, columns);
        blocks.push(table.without_empty_columns().into());
    }

    fn figure(&self, name: &str, caption: &str, picture: Option<Picture>) -> Option<Block> {
        picture.map(|picture| Block::Figure {
            file: format!("{}-{name}", self.slug),
            caption: caption.to_owned(),
            svg: picture.svg,
        })
    }
}
