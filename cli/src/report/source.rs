//! Where the records come from: a ring, of which the latest records are left, or a recording, which has all.

use std::path::Path;

use anyhow::{Result, bail};
use forgetscope::ring::{COUNTERS, Poll, Reader};

use super::data::Data;
use crate::names::Names;
use crate::recording::Recording;
use crate::recording::catalog::{Catalog, Facts};
use crate::run::state_name;

/// Reads everything there is now.
pub fn read(path: &Path, rank: Option<u32>) -> Result<Data> {
    match path.is_dir() {
        true if !Recording::is_at(path) => {
            bail!("{} is a directory, but holds no recording; make one with `forgetscope record --out`", path.display())
        }
        true => recording(path, rank),
        false => ring(path),
    }
}

fn ring(path: &Path) -> Result<Data> {
    let mut reader = Reader::open(path)?;
    let header = reader.header().clone();
    let end = reader.published();
    let mut facts = Facts {
        pid: header.pid,
        rank: header.rank,
        world: header.world,
        created_realtime_ns: header.created_realtime_ns,
        state: state_name(reader.state()).into(),
        overwritten: reader.position(),
        ..Facts::default()
    };
    let mut records = Vec::new();
    let mut names = Names::default();
    let mut data = Data::default();
    loop {
        let is_behind = reader.position() < end;
        match if is_behind { reader.poll()? } else { Poll::Empty } {
            Poll::Record(record) => records.push(record),
            Poll::Lost(count) => facts.lost += count,
            Poll::Empty | Poll::Closed => {
                // Records come in before the names that are in the catalog by then.
                names.refresh(&mut reader)?;
                break;
            }
        }
    }
    facts.records = records.len() as u64;
    for record in &mut records {
        record.time_ns = header.realtime_ns(record.time_ns);
        data.absorb(&names, record);
    }
    let counters = names.counters.keys().max().map_or(0, |&last| (usize::from(last) + 1).min(COUNTERS));
    let counters = (0..counters).map(|index| reader.counter(index)).collect();
    data.catalog = Catalog { facts, names, counters };
    data.source = path.display().to_string();
    data.finish();
    Ok(data)
}

fn recording(path: &Path, rank: Option<u32>) -> Result<Data> {
    let recording = Recording::open(path, rank)?;
    let mut data = Data::default();
    let names = &recording.catalog.names;
    recording.records(&super::data::KINDS, |record| data.absorb(names, record))?;
    data.is_recording = true;
    data.ranks = recording.ranks.clone();
    data.catalog = recording.catalog;
    data.source = path.display().to_string();
    data.finish();
    Ok(data)
}
