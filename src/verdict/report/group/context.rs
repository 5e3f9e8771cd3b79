//! How it was measured, and where.

use super::{Writer, turns};
use crate::coqa::Scoring;
use crate::verdict::number::Unit;
use crate::verdict::number::points;
use crate::verdict::report::page::{Block, Section};
use crate::verdict::report::table::{Column, FILES, Layout, PROPERTIES, column};
use crate::verdict::stats::Unit as Resampled;

impl Writer<'_> {
    pub(super) fn methods(&self) -> Section {
        let c = &self.group.comparison;
        let task = &c.task;
        let stop: Vec<String> = task.stop.iter().map(|s| format!("{s:?}")).collect();
        let asked = format!(
            "Each question is put to {} behind its story and the dialogue before it with its gold \
             answers, in the layout of lm-evaluation-harness, {} the beginning-of-text token. \
             Questions asked: {}. Answers are generated greedily, {} new tokens at most, and end before {}{}. The rule \
             that combines several references is {}: {}.",
            c.model.name,
            if task.bos { "after" } else { "without" },
            turns(task.turns),
            task.max_new_tokens,
            stop.join(" or "),
            if task.first_line {
                " or after the first line"
            } else {
                ""
            },
            task.scoring,
            scoring(task.scoring),
        );
        let unit = match c.rows.first().and_then(|r| r.f1.interval) {
            Some(i) if i.unit == Resampled::Item => "questions, one a story",
            _ => "stories, since questions about one story hang together",
        };
        let statistics = format!(
            "Intervals of F1 and EM are bias-corrected and accelerated bootstrap intervals with {} \
             resamples from seed {}; what is resampled are {unit}. Differences are taken question \
             by question; their intervals are t intervals with standard errors clustered by story, \
             and their p values come from flipping the signs of the stories' differences. Holm's \
             adjustment is over the formats. The margin of {} was committed before the run.",
            c.resampling.resamples,
            c.resampling.seed,
            points(c.margin),
        );
        let blocks = vec![
            Block::Text { text: asked },
            Block::Text { text: statistics },
        ];
        self.section("methods", "Methods", blocks)
    }

    pub(super) fn environment(&self) -> Section {
        let runs = [
            column("Run", &["experiment"], Unit::Text),
            column("started (UTC)", &["started"], Unit::Text),
            column("sequences together", &["slots"], Unit::Count),
            column("record", &["record"], Unit::Text),
        ];
        let facts = |name, caption, columns: &[Column], list, length| {
            let rows = self.listed(list, length);
            let table = self.with_rows(name, caption, columns, &rows);
            Block::Table(table.laid_out(Layout::Facts))
        };
        let (machine, read) = (self.group.machine.len(), self.group.files.len());
        let blocks = vec![
            facts(
                "machine",
                "The machine and the program.",
                &PROPERTIES,
                "machine",
                machine,
            ),
            facts("files", "What was read.", &FILES, "files", read),
            self.table("runs", "The runs.", &runs, |_| true).into(),
        ];
        self.section("environment", "Environment", blocks)
    }
}

fn scoring(scoring: Scoring) -> &'static str {
    match scoring {
        Scoring::LmEval => "references that differ in case alone count once, then leave-one-out",
        Scoring::Official => "every annotator's answer counts, then leave-one-out",
        Scoring::Max => "the best score over all references",
    }
}
