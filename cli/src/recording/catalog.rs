//! The catalog of a recording: `catalog/rank=R.json`.
//!
//! What ids and names mean and what is known of the run, in one small file that people can read too. It is written when
//! the recording begins and whenever a part is completed.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Result, anyhow};
use forgetscope::ring::{Entry, TensorEntry};
use serde_json::{Map, Value, json};

use crate::names::Names;

/// What is known of a recorded run beside its records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    pub facts: Facts,
    pub names: Names,
    /// Values of the ring's counters, in the order of their indices.
    pub counters: Vec<u64>,
}

/// Facts that the ring's header knows, and the recorder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The ring's random id, in hexadecimal.
    pub instance: String,
    pub pid: u32,
    pub rank: u32,
    pub world: u32,
    pub created_realtime_ns: u64,
    pub schema_hash: u64,
    /// running, closed or died.
    pub state: String,
    /// Records that are in the files or, for a ring, in the ring.
    pub records: u64,
    /// Records that were overwritten before the recording began.
    pub overwritten: u64,
    /// Records that were overwritten while the recorder was behind.
    pub lost: u64,
}

impl Catalog {
    /// Writes the file; readers see the old one or the new one.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed =
            |error| anyhow!("cannot write {}: {error}; check the directory and its free space", path.display());
        let temporary = path.with_extension("json.tmp");
        let text = serde_json::to_string_pretty(&self.to_json())?;
        let write = || {
            let mut file = fs::File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().map_err(failed)
    }

    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|error| anyhow!("cannot read {}: {error}", path.display()))?;
        let json = serde_json::from_str(&text);
        json.ok().and_then(|json| Self::from_json(&json)).ok_or_else(|| {
            anyhow!(
                "{} is not the catalog of a recording; record the run again, or give the directory of another",
                path.display()
            )
        })
    }

    fn to_json(&self) -> Value {
        let (facts, names) = (&self.facts, &self.names);
        let list = |entries: Vec<Value>| Value::Array(entries);
        let named = |id: u64, name: &str| json!({ "id": id, "name": name });
        json!({
            "instance": facts.instance,
            "pid": facts.pid,
            "rank": facts.rank,
            "world": facts.world,
            "created_realtime_ns": facts.created_realtime_ns,
            "schema_hash": format!("{:016x}", facts.schema_hash),
            "state": facts.state,
            "records": facts.records,
            "overwritten": facts.overwritten,
            "lost": facts.lost,
            "attributes": names.attributes.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<Map<_, _>>(),
            "tasks": list(names.tasks.iter().map(|(id, name)| named(u64::from(*id), name)).collect()),
            "metrics": list(names.metrics.iter().map(|(id, metric)| json!({
                "id": id, "name": metric.name, "higher_is_better": metric.higher_is_better,
            })).collect()),
            "counters": list(self.counters.iter().enumerate().map(|(index, value)| {
                json!({ "id": index, "name": names.counters.get(&(index as u8)), "value": value })
            }).collect()),
            "tensors": list(names.tensors.values().map(tensor_json).collect()),
            "slices": list(names.slices.iter().map(|((tensor, slice), found)| json!({
                "tensor": tensor, "slice": slice, "name": found.name, "role": found.role, "numel": found.numel,
            })).collect()),
            "kinds": list(names.kinds.iter().map(|(id, kind)| json!({
                "id": id, "name": kind.name, "values": kind.values,
            })).collect()),
            "levels": list(names.levels.iter().map(|(id, name)| named(u64::from(*id), name)).collect()),
            "flags": list(names.flags.iter().map(|(mask, name)| named(u64::from(*mask), name)).collect()),
            "roles": list(names.roles.iter().map(|(id, name)| named(u64::from(*id), name)).collect()),
        })
    }

    fn from_json(json: &Value) -> Option<Self> {
        let mut names = Names::default();
        for (key, value) in json["attributes"].as_object()? {
            names.add(Entry::Attribute { key: key.clone(), value: value.as_str()?.into() });
        }
        let mut counters = Vec::new();
        for item in items(json, "counters")? {
            counters.push(item["value"].as_u64()?);
            if let Some(name) = item["name"].as_str() {
                names.add(Entry::Counter { index: narrow(&item["id"])?, name: name.into() });
            }
        }
        for item in items(json, "tasks")? {
            names.add(Entry::Task { id: narrow(&item["id"])?, name: text(&item["name"])? });
        }
        for item in items(json, "metrics")? {
            let higher_is_better = item["higher_is_better"].as_bool()?;
            names.add(Entry::Metric { id: narrow(&item["id"])?, name: text(&item["name"])?, higher_is_better });
        }
        for item in items(json, "tensors")? {
            names.add(Entry::Tensor(tensor_from_json(item)?));
        }
        for item in items(json, "slices")? {
            names.add(Entry::Slice {
                tensor: narrow(&item["tensor"])?,
                slice: narrow(&item["slice"])?,
                name: text(&item["name"])?,
                role: narrow(&item["role"])?,
                numel: item["numel"].as_u64()?,
            });
        }
        for item in items(json, "kinds")? {
            let values = items(item, "values")?.iter().map(text).collect::<Option<_>>()?;
            names.add(Entry::Kind { kind: narrow(&item["id"])?, name: text(&item["name"])?, values });
        }
        for item in items(json, "levels")? {
            names.add(Entry::Level { id: narrow(&item["id"])?, name: text(&item["name"])? });
        }
        for item in items(json, "flags")? {
            names.add(Entry::Flag { bit: narrow(&item["id"])?, name: text(&item["name"])? });
        }
        for item in items(json, "roles")? {
            names.add(Entry::Role { id: narrow(&item["id"])?, name: text(&item["name"])? });
        }
        let facts = Facts {
            instance: text(&json["instance"])?,
            pid: narrow(&json["pid"])?,
            rank: narrow(&json["rank"])?,
            world: narrow(&json["world"])?,
            created_realtime_ns: json["created_realtime_ns"].as_u64()?,
            schema_hash: u64::from_str_radix(json["schema_hash"].as_str()?, 16).ok()?,
            state: text(&json["state"])?,
            records: json["records"].as_u64()?,
            overwritten: json["overwritten"].as_u64()?,
            lost: json["lost"].as_u64()?,
        };
        Some(Catalog { facts, names, counters })
    }
}

fn tensor_json(tensor: &TensorEntry) -> Value {
    json!({
        "id": tensor.id, "name": tensor.name, "role": tensor.role, "layer": tensor.layer, "expert": tensor.expert,
        "head_count": tensor.head_count, "kv_head_count": tensor.kv_head_count,
        "rows": tensor.rows, "cols": tensor.cols, "group": tensor.group, "flags": tensor.flags,
    })
}

fn tensor_from_json(json: &Value) -> Option<TensorEntry> {
    Some(TensorEntry {
        id: narrow(&json["id"])?,
        name: text(&json["name"])?,
        role: narrow(&json["role"])?,
        layer: i32::try_from(json["layer"].as_i64()?).ok()?,
        expert: i32::try_from(json["expert"].as_i64()?).ok()?,
        head_count: narrow(&json["head_count"])?,
        kv_head_count: narrow(&json["kv_head_count"])?,
        rows: json["rows"].as_u64()?,
        cols: json["cols"].as_u64()?,
        group: narrow(&json["group"])?,
        flags: narrow(&json["flags"])?,
    })
}

fn items<'a>(json: &'a Value, key: &str) -> Option<&'a Vec<Value>> {
    json[key].as_array()
}

fn text(json: &Value) -> Option<String> {
    json.as_str().map(String::from)
}

fn narrow<T: TryFrom<u64>>(json: &Value) -> Option<T> {
    T::try_from(json.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_survives_the_round_trip() {
        let mut names = Names::default();
        names.add(Entry::Kind { kind: 3, name: "interference".into(), values: vec!["cosine".into()] });
        names.add(Entry::Level { id: 0, name: "head".into() });
        names.add(Entry::Flag { bit: 1 << 31, name: "odd".into() });
        names.add(Entry::Role { id: 3, name: "q".into() });
        names.add(Entry::Task { id: 0, name: "legal \"quoted\"\n".into() });
        names.add(Entry::Metric { id: 0, name: "loss".into(), higher_is_better: false });
        names.add(Entry::Counter { index: 1, name: "faults".into() });
        names.add(Entry::Attribute { key: "every".into(), value: "10".into() });
        names.add(Entry::Tensor(TensorEntry {
            id: 9,
            name: "h".into(),
            layer: -1,
            rows: 1 << 40,
            ..Default::default()
        }));
        names.add(Entry::Slice { tensor: 9, slice: 1, name: "q.1".into(), role: 3, numel: 64 });
        let facts = Facts { instance: "ab".into(), schema_hash: u64::MAX, lost: 3, ..Facts::default() };
        let catalog = Catalog { facts, names, counters: vec![0, 7] };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rank=0.json");
        catalog.write(&path).unwrap();
        assert_eq!(Catalog::read(&path).unwrap(), catalog);
    }

    #[test]
    fn another_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rank=0.json");
        fs::write(&path, "{\"tasks\": 3}").unwrap();
        assert!(Catalog::read(&path).unwrap_err().to_string().contains("is not the catalog of a recording"));
    }
}
