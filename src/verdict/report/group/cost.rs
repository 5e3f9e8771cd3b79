//! What a format costs and buys: memory, part by part, and speed.

use super::{FORMAT, Writer, not_control};
use crate::error::Result;
use crate::verdict::number::Unit;
use crate::verdict::report::page::Section;
use crate::verdict::report::table::column;
use crate::verdict::report::{charts, speed};

impl Writer<'_> {
    pub(super) fn memory(&self) -> Result<Section> {
        let caption = "Bytes of the weights, part by part.";
        let mut blocks =
            Vec::from_iter(self.figure("memory", caption, charts::memory(self.group)?));
        let columns = [
            FORMAT,
            column("embedding", &["parts.embedding"], Unit::Mebibytes),
            column("head", &["parts.head"], Unit::Mebibytes),
            column("norms", &["parts.norms"], Unit::Mebibytes),
            column("linears", &["parts.linears"], Unit::Mebibytes),
            column("quantisation state", &["parts.state"], Unit::Mebibytes),
            column("all", &["size.with_state"], Unit::Mebibytes),
            column("without state", &["size.parameters"], Unit::Mebibytes),
        ];
        let caption = "MiB. The state is what unpacking needs: block maxima, row scales. The \
                       original study counts without it. A head of 0 is the embedding itself.";
        blocks.push(self.table("memory", caption, &columns, not_control).into());
        Ok(self.section("memory", "Memory, part by part", blocks))
    }

    pub(super) fn speed(&self) -> Result<Section> {
        let writer = speed::Writer {
            findings: self.findings,
            key: format!("groups.{}.speeds", self.place),
            slug: &self.group.slug,
            speeds: &self.group.speeds,
        };
        Ok(self.section("speed", speed::TITLE, writer.blocks()?))
    }
}
