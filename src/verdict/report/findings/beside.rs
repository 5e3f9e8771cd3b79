//! The original study beside the records.

use serde::Serialize;

use super::Group;
use crate::quant::size::MIB;
use crate::verdict::study;

/// One format in the study and here.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Beside {
    pub format: String,
    /// Number of the group, from 1.
    pub comparison: usize,
    pub study: Side,
    pub here: Side,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    pub f1: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// Parameters only, the way the study counts.
    pub mebibytes: f64,
    pub decode_milliseconds: Option<f64>,
}

pub(super) fn beside(study: &study::Judged, groups: &[Group]) -> Vec<Beside> {
    let of_group = |(place, group): (usize, &Group)| {
        let rows = study.systems.iter().filter_map(move |judged| {
            let system = &judged.system;
            let mut entries = group.entries.iter();
            let entry = entries.find(|e| e.row.experiment == system.experiment)?;
            let single = entry.row.speed.as_ref().and_then(|s| s.single.as_ref());
            Some(Beside {
                format: system.name.clone(),
                comparison: place + 1,
                study: Side {
                    f1: system.f1,
                    low: Some(judged.interval[0]),
                    high: Some(judged.interval[1]),
                    mebibytes: system.size_mib,
                    decode_milliseconds: Some(system.decode_milliseconds),
                },
                here: Side {
                    f1: entry.row.f1.value,
                    low: entry.row.f1.interval.map(|i| i.low),
                    high: entry.row.f1.interval.map(|i| i.high),
                    mebibytes: entry.row.size.parameters as f64 / MIB,
                    decode_milliseconds: single.map(|d| 1e3 * d.seconds.median.value),
                },
            })
        });
        rows.collect::<Vec<Beside>>()
    };
    groups.iter().enumerate().flat_map(of_group).collect()
}
