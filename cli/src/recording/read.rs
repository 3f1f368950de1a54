//! Records from files: the inverse of `columns`, kind by kind, in the order in which they were published.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampNanosecondType, UInt32Type};
use arrow_array::{Array, RecordBatch};
use forgetscope::ring::{NONE16, NONE32, Record};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::catalog::Catalog;
use super::columns::Table;

/// One rank of a recording.
pub struct Recording {
    directory: PathBuf,
    pub catalog: Catalog,
    /// All ranks that the recording has.
    pub ranks: Vec<u32>,
}

impl Recording {
    /// Whether the directory looks like a recording.
    pub fn is_at(directory: &Path) -> bool {
        directory.join("catalog").is_dir()
    }

    /// Opens a rank, by default the lowest.
    pub fn open(directory: &Path, rank: Option<u32>) -> Result<Self> {
        let ranks = if Self::is_at(directory) { ranks(directory)? } else { Vec::new() };
        let Some(&lowest) = ranks.first() else {
            bail!("{} holds no recording; make one with `forgetscope record --out`", directory.display());
        };
        let rank = rank.unwrap_or(lowest);
        if !ranks.contains(&rank) {
            let list: Vec<String> = ranks.iter().map(u32::to_string).collect();
            bail!("{} has no rank {rank}; it has {}", directory.display(), list.join(", "));
        }
        let catalog = Catalog::read(&directory.join("catalog").join(format!("rank={rank}.json")))?;
        Ok(Recording { directory: directory.into(), catalog, ranks })
    }

    /// Every record of these kinds that has a name in the catalog. Times are nanoseconds since 1970.
    pub fn records(&self, kinds: &[&str], mut each: impl FnMut(&Record)) -> Result<()> {
        let ids = Ids::of(&self.catalog);
        let rank = self.catalog.facts.rank;
        for (&kind, known) in self.catalog.names.kinds.iter().filter(|(_, kind)| kinds.contains(&kind.name.as_str())) {
            let table = Table::of(&self.catalog.names, kind);
            for path in parts(&self.directory.join(format!("kind={}", known.name)).join(format!("rank={rank}"))) {
                let failed = |error: &dyn std::fmt::Display| {
                    anyhow!("cannot read {}: {error}; remove it to go on without its records", path.display())
                };
                let file = File::open(&path).map_err(|error| failed(&error))?;
                let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| failed(&error))?;
                for batch in builder.build().map_err(|error| failed(&error))? {
                    let batch = batch.map_err(|error| failed(&error))?;
                    let rows =
                        Rows::of(&batch, &table).ok_or_else(|| failed(&"its columns are not those of this kind"))?;
                    (0..batch.num_rows()).for_each(|row| each(&rows.record(row, kind, rank, &ids)));
                }
            }
        }
        Ok(())
    }
}

fn ranks(directory: &Path) -> Result<Vec<u32>> {
    let catalogs = directory.join("catalog");
    let listing = fs::read_dir(&catalogs).map_err(|error| anyhow!("cannot read {}: {error}", catalogs.display()))?;
    let rank = |name: &str| name.strip_prefix("rank=")?.strip_suffix(".json")?.parse().ok();
    let mut ranks: Vec<u32> = listing.filter_map(|file| rank(file.ok()?.file_name().to_str()?)).collect();
    ranks.sort_unstable();
    Ok(ranks)
}

/// The complete parts in a directory, in order; none if it is not there.
fn parts(directory: &Path) -> Vec<PathBuf> {
    let is_part = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("part-") && name.ends_with(".parquet"))
    };
    let listing = fs::read_dir(directory).into_iter().flatten();
    let mut parts: Vec<PathBuf> = listing.filter_map(|file| Some(file.ok()?.path())).filter(is_part).collect();
    parts.sort();
    parts
}

/// Ids by name.
struct Ids<'a> {
    levels: BTreeMap<&'a str, u8>,
    tasks: BTreeMap<&'a str, u16>,
    tensors: BTreeMap<&'a str, u32>,
}

impl<'a> Ids<'a> {
    fn of(catalog: &'a Catalog) -> Self {
        let names = &catalog.names;
        Ids {
            levels: names.levels.iter().map(|(id, name)| (name.as_str(), *id)).collect(),
            tasks: names.tasks.iter().map(|(id, name)| (name.as_str(), *id)).collect(),
            tensors: names.tensors.iter().map(|(id, tensor)| (tensor.name.as_str(), *id)).collect(),
        }
    }
}

/// The id of a name, or the number that stands for a name that is missing.
fn id<T: Copy + std::str::FromStr>(ids: &BTreeMap<&str, T>, name: &str) -> Option<T> {
    ids.get(name).copied().or_else(|| name.strip_prefix('#')?.parse().ok())
}

/// The columns of a batch that make a record.
struct Rows<'a> {
    time: &'a [i64],
    step: &'a [i64],
    flags: &'a [u32],
    slice: &'a arrow_array::UInt32Array,
    level: Words<'a>,
    task: Words<'a>,
    reference: Words<'a>,
    tensor: Words<'a>,
    /// `None`: this part was written before the kind had such a value.
    values: Vec<Option<&'a [f64]>>,
}

impl<'a> Rows<'a> {
    fn of(batch: &'a RecordBatch, table: &Table) -> Option<Self> {
        let column = |name: &str| batch.column_by_name(name);
        let values =
            table.values().iter().map(|name| Some(&**column(name)?.as_primitive_opt::<Float64Type>()?.values()));
        let values = values.collect();
        Some(Rows {
            time: column("time")?.as_primitive_opt::<TimestampNanosecondType>()?.values(),
            step: column("step")?.as_primitive_opt::<Int64Type>()?.values(),
            flags: column("flags")?.as_primitive_opt::<UInt32Type>()?.values(),
            slice: column("slice")?.as_primitive_opt::<UInt32Type>()?,
            level: Words::of(column("level")?)?,
            task: Words::of(column("task")?)?,
            reference: Words::of(column("reference")?)?,
            tensor: Words::of(column("tensor")?)?,
            values,
        })
    }

    fn record(&self, row: usize, kind: u16, rank: u32, ids: &Ids) -> Record {
        let mut record = Record {
            time_ns: self.time[row] as u64,
            step: self.step[row] as u64,
            kind,
            level: self.level.get(row).and_then(|name| id(&ids.levels, name)).unwrap_or(u8::MAX),
            flags: self.flags[row],
            rank,
            task: self.task.get(row).and_then(|name| id(&ids.tasks, name)).unwrap_or(NONE16),
            reference: self.reference.get(row).and_then(|name| id(&ids.tasks, name)).unwrap_or(NONE16),
            tensor: self.tensor.get(row).and_then(|name| id(&ids.tensors, name)).unwrap_or(NONE32),
            slice: if self.slice.is_null(row) { NONE32 } else { self.slice.value(row) },
            ..Record::default()
        };
        for (value, column) in record.values.iter_mut().zip(&self.values) {
            *value = column.map_or(f64::NAN, |column| column[row]);
        }
        record
    }
}

/// A column of text with a dictionary.
struct Words<'a> {
    keys: &'a arrow_array::Int32Array,
    words: &'a arrow_array::StringArray,
}

impl<'a> Words<'a> {
    fn of(column: &'a arrow_array::ArrayRef) -> Option<Self> {
        let dictionary = column.as_dictionary_opt::<Int32Type>()?;
        Some(Words { keys: dictionary.keys(), words: dictionary.values().as_string_opt::<i32>()? })
    }

    fn get(&self, row: usize) -> Option<&'a str> {
        let key = (!self.keys.is_null(row)).then(|| self.keys.value(row))?;
        Some(self.words.value(usize::try_from(key).ok()?))
    }
}
