//! What the numbers in a record are called, from the catalog of its ring.
//!
//! Nothing here knows the library's own table of kinds: a ring says everything itself, so this program also reads rings
//! of earlier and later versions. An id without a name is shown as `#7`.

use std::collections::BTreeMap;

use forgetscope::ring::{Entry, NONE16, NONE32, Reader, Record, RingError, TensorEntry, VALUES};

/// The catalog, by id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names {
    pub kinds: BTreeMap<u16, Kind>,
    pub levels: BTreeMap<u8, String>,
    /// By mask.
    pub flags: BTreeMap<u32, String>,
    pub roles: BTreeMap<u16, String>,
    pub tensors: BTreeMap<u32, TensorEntry>,
    pub slices: BTreeMap<(u32, u32), Slice>,
    pub tasks: BTreeMap<u16, String>,
    pub metrics: BTreeMap<u16, Metric>,
    pub counters: BTreeMap<u8, String>,
    pub attributes: BTreeMap<String, String>,
}

/// A kind of record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    pub name: String,
    pub values: Vec<String>,
}

/// A slice of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub name: String,
    pub role: u16,
    pub numel: u64,
}

/// A metric by which tasks are evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: String,
    pub higher_is_better: bool,
}

/// What a record is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub tensor: Option<u32>,
    pub layer: Option<u32>,
    pub expert: Option<u32>,
    pub role: Option<u16>,
    pub head: Option<u32>,
}

/// What happened, in a record of the kind `task`; the catalog has no names for these.
const EVENTS: [&str; 4] = ["begin", "end", "reference", "snapshot"];

impl Names {
    /// Takes in what the ring's catalog has gained. Damaged entries are passed over: they cost names, nothing else.
    /// Returns whether anything is new.
    pub fn refresh(&mut self, reader: &mut Reader) -> Result<bool, RingError> {
        let mut changed = false;
        let mut damaged_at = None;
        loop {
            match reader.poll_catalog() {
                Ok(Some(entry)) => {
                    self.add(entry);
                    changed = true;
                }
                // The reader goes on behind a damaged entry, but not behind one whose end is unknown.
                Err(RingError::Catalog { offset, .. }) if damaged_at != Some(offset) => damaged_at = Some(offset),
                Ok(None) | Err(RingError::Catalog { .. }) => return Ok(changed),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes in one entry; a later one for the same id replaces the earlier.
    pub fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Kind { kind, name, mut values } => {
                values.truncate(VALUES);
                self.kinds.insert(kind, Kind { name, values });
            }
            Entry::Level { id, name } => drop(self.levels.insert(id, name)),
            Entry::Flag { bit, name } => drop(self.flags.insert(bit, name)),
            Entry::Role { id, name } => drop(self.roles.insert(id, name)),
            Entry::Tensor(tensor) => drop(self.tensors.insert(tensor.id, tensor)),
            Entry::Slice { tensor, slice, name, role, numel } => {
                self.slices.insert((tensor, slice), Slice { name, role, numel });
            }
            Entry::Task { id, name } => drop(self.tasks.insert(id, name)),
            Entry::Metric { id, name, higher_is_better } => {
                self.metrics.insert(id, Metric { name, higher_is_better });
            }
            Entry::Counter { index, name } => drop(self.counters.insert(index, name)),
            Entry::Attribute { key, value } => drop(self.attributes.insert(key, value)),
            // A type of a later version.
            _ => {}
        }
    }

    /// The kind's name; for one without a name `kind_99`, which is also fit for a directory.
    pub fn kind(&self, kind: u16) -> String {
        self.kinds.get(&kind).map_or_else(|| format!("kind_{kind}"), |found| found.name.clone())
    }

    /// The names of the kind's values: all ten, numbered, if the kind is unknown.
    pub fn values(&self, kind: u16) -> Vec<String> {
        let numbered = || (0..VALUES).map(|index| format!("value_{index}")).collect();
        self.kinds.get(&kind).map_or_else(numbered, |found| found.values.clone())
    }

    pub fn level(&self, level: u8) -> String {
        or_number(self.levels.get(&level), level)
    }

    pub fn role(&self, role: u16) -> String {
        or_number(self.roles.get(&role), role)
    }

    /// The names of the flags that are set, the lowest bit first.
    pub fn flags(&self, flags: u32) -> Vec<String> {
        let set = (0..u32::BITS).map(|bit| 1 << bit).filter(|mask| flags & mask != 0);
        set.map(|mask| or_number(self.flags.get(&mask), mask)).collect()
    }

    pub fn has_flag(&self, record: &Record, name: &str) -> bool {
        self.flags.iter().any(|(mask, known)| record.flags & mask != 0 && known == name)
    }

    /// The task's name; `None` where the record says none.
    pub fn task(&self, task: u16) -> Option<String> {
        (task != NONE16).then(|| or_number(self.tasks.get(&task), task))
    }

    pub fn tensor(&self, tensor: u32) -> Option<String> {
        (tensor != NONE32).then(|| or_number(self.tensors.get(&tensor).map(|t| &t.name), tensor))
    }

    pub fn metric(&self, metric: u16) -> String {
        or_number(self.metrics.get(&metric).map(|m| &m.name), metric)
    }

    pub fn counter(&self, index: u8) -> String {
        or_number(self.counters.get(&index), index)
    }

    /// A value of the record by its name; NaN if this kind has none of that name.
    pub fn value(&self, record: &Record, name: &str) -> f64 {
        let index = self.kinds.get(&record.kind).and_then(|kind| kind.values.iter().position(|value| value == name));
        index.map_or(f64::NAN, |index| record.values[index])
    }

    /// What a value that is really an id stands for: the metric's, the fault's or the event's name.
    pub fn meaning(&self, kind: &str, name: &str, value: f64) -> Option<String> {
        let whole = value >= 0.0 && value == value.trunc() && value < 65_536.0;
        match (kind, name) {
            (_, "metric") if whole => Some(self.metric(value as u16)),
            ("fault", "code") if whole && value < 256.0 => Some(self.counter(value as u8)),
            ("task", "event") if whole => EVENTS.get(value as usize).map(|&event| event.into()),
            _ => None,
        }
    }

    /// Whether a value of that name is an id, so that [`meaning`](Names::meaning) may have something to say.
    pub fn is_id(kind: &str, name: &str) -> bool {
        matches!((kind, name), (_, "metric") | ("fault", "code") | ("task", "event"))
    }

    /// What the record is about, read according to its level.
    pub fn place(&self, record: &Record) -> Place {
        let level = self.levels.get(&record.level).map(String::as_str);
        let slice = (record.slice != NONE32).then_some(record.slice);
        match level {
            Some("role") => Place { role: slice.and_then(|role| u16::try_from(role).ok()), ..Place::default() },
            Some("layer") => Place { layer: slice, ..Place::default() },
            Some("model") => Place::default(),
            Some("attention_head") => Place {
                layer: slice.map(|slice| slice >> 16),
                head: slice.map(|slice| slice & 0xffff),
                ..Place::default()
            },
            _ if record.tensor == NONE32 => Place::default(),
            _ => {
                let known = |number: i32| u32::try_from(number).ok();
                let entry = self.tensors.get(&record.tensor);
                let head = slice.filter(|_| level == Some("head"));
                let of_head = head.map(|slice| {
                    let named = self.slices.get(&(record.tensor, slice)).map(|found| found.role);
                    named.unwrap_or((slice >> 16) as u16)
                });
                Place {
                    tensor: Some(record.tensor),
                    layer: entry.and_then(|tensor| known(tensor.layer)),
                    expert: entry.and_then(|tensor| known(tensor.expert)),
                    role: of_head.or(entry.map(|tensor| tensor.role)),
                    head: head.map(|slice| slice & 0xffff),
                }
            }
        }
    }

    /// The place in a few characters: `layer 2`, `layer 2 q.3`, a tensor's name.
    pub fn place_text(&self, record: &Record) -> String {
        let place = self.place(record);
        let role = place.role.map(|role| self.role(role));
        match (self.level(record.level).as_str(), place) {
            ("head", Place { layer: Some(layer), head: Some(head), .. }) => {
                format!("layer {layer} {}.{head}", role.unwrap_or_default())
            }
            ("head", Place { tensor: Some(tensor), head: Some(head), .. }) => {
                format!("{} {}.{head}", self.tensor(tensor).unwrap_or_default(), role.unwrap_or_default())
            }
            ("role", _) => role.unwrap_or_default(),
            ("layer", Place { layer: Some(layer), .. }) => format!("layer {layer}"),
            ("attention_head", Place { layer: Some(layer), head: Some(head), .. }) => {
                format!("layer {layer} head {head}")
            }
            ("model", _) => "model".into(),
            (_, Place { tensor: Some(tensor), .. }) => self.tensor(tensor).unwrap_or_default(),
            (level, _) => level.into(),
        }
    }
}

/// The name, or the id where there is none.
fn or_number<T: std::fmt::Display>(name: Option<&String>, id: T) -> String {
    name.cloned().unwrap_or_else(|| format!("#{id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        for (id, name) in ["head", "tensor", "role", "layer", "model", "attention_head"].iter().enumerate() {
            names.add(Entry::Level { id: id as u8, name: (*name).into() });
        }
        names.add(Entry::Role { id: 3, name: "q".into() });
        names.add(Entry::Flag { bit: 32, name: "undetermined".into() });
        names.add(Entry::Kind { kind: 10, name: "evaluation".into(), values: vec!["value".into(), "metric".into()] });
        names.add(Entry::Metric { id: 0, name: "loss".into(), higher_is_better: false });
        names.add(Entry::Tensor(TensorEntry { id: 5, name: "h.2.q".into(), role: 3, layer: 2, ..Default::default() }));
        names
    }

    #[test]
    fn a_head_is_placed_by_its_tensor_and_slice() {
        let record = Record { level: 0, tensor: 5, slice: 3 << 16 | 7, ..Record::default() };
        let place = names().place(&record);
        assert_eq!((place.layer, place.role, place.head), (Some(2), Some(3), Some(7)));
        assert_eq!(names().place_text(&record), "layer 2 q.7");
    }

    #[test]
    fn other_levels_read_the_slice_differently() {
        let names = names();
        let at = |level, slice| Record { level, slice, ..Record::default() };
        assert_eq!(names.place_text(&at(2, 3)), "q");
        assert_eq!(names.place_text(&at(3, 3)), "layer 3");
        assert_eq!(names.place_text(&at(4, NONE32)), "model");
        assert_eq!(names.place_text(&at(5, 2 << 16 | 7)), "layer 2 head 7");
        let place = names.place(&at(5, 2 << 16 | 7));
        assert_eq!((place.layer, place.head, place.tensor), (Some(2), Some(7), None));
        assert_eq!(names.place_text(&at(9, 1)), "#9");
    }

    #[test]
    fn what_has_no_name_is_a_number() {
        let names = names();
        assert_eq!(names.kind(99), "kind_99");
        assert_eq!(names.values(99).len(), VALUES);
        assert_eq!((names.task(7), names.task(NONE16)), (Some("#7".into()), None));
        assert_eq!(names.flags(32 | 64), ["undetermined", "#64"]);
    }

    #[test]
    fn values_are_found_by_name() {
        let mut record = Record { kind: 10, ..Record::default() };
        record.values[1] = 0.0;
        assert_eq!(names().value(&record, "metric"), 0.0);
        assert!(names().value(&record, "missing").is_nan());
        assert_eq!(names().meaning("evaluation", "metric", 0.0), Some("loss".into()));
        assert_eq!(names().meaning("evaluation", "metric", f64::NAN), None);
    }
}
