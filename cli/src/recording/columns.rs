//! Records of one kind as columns, with names for everything that has one.

use std::sync::Arc;

use anyhow::Result;
use arrow_array::builder::StringDictionaryBuilder;
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, TimestampNanosecondArray, UInt32Array, UInt64Array,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use forgetscope::ring::{Header, NONE32, Record};

use crate::names::{Names, Place};

/// A record and its number in the ring.
pub type Numbered = (u64, Record);

/// What every table has before the values of its kind. `true`: may be null.
fn common() -> Vec<Field> {
    let text = || DataType::Dictionary(DataType::Int32.into(), DataType::Utf8.into());
    let time = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
    vec![
        Field::new("number", DataType::UInt64, false),
        Field::new("time", time, false),
        Field::new("step", DataType::Int64, false),
        Field::new("level", text(), false),
        Field::new("flags", DataType::UInt32, false),
        Field::new("flag_names", text(), false),
        Field::new("task", text(), true),
        Field::new("reference", text(), true),
        Field::new("tensor", text(), true),
        Field::new("layer", DataType::Int32, true),
        Field::new("expert", DataType::Int32, true),
        Field::new("role", text(), true),
        Field::new("head", DataType::Int32, true),
        Field::new("slice", DataType::UInt32, true),
    ]
}

/// The table of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The kind's name.
    pub kind: String,
    /// Columns of the values, in the order of the record's values.
    values: Vec<String>,
    /// Positions of values that are ids: each gets a column with what it stands for.
    ids: Vec<usize>,
    pub schema: SchemaRef,
}

impl Table {
    /// The table for records of this kind, as the catalog has it now.
    pub fn of(names: &Names, kind: u16) -> Self {
        let mut fields = common();
        let mut values: Vec<String> = Vec::new();
        for name in names.values(kind) {
            // A name that is taken already would make the file unreadable.
            let taken = |name: &str| values.iter().any(|v| v == name) || fields.iter().any(|f| f.name() == name);
            let name = if taken(&name) { format!("{name}_{}", values.len()) } else { name };
            values.push(name);
        }
        let text = || DataType::Dictionary(DataType::Int32.into(), DataType::Utf8.into());
        fields.extend(values.iter().map(|name| Field::new(name, DataType::Float64, false)));
        let kind = names.kind(kind);
        let ids: Vec<usize> = (0..values.len()).filter(|&i| Names::is_id(&kind, &values[i])).collect();
        fields.extend(ids.iter().map(|&i| Field::new(format!("{}_name", values[i]), text(), true)));
        Table { kind, values, ids, schema: Arc::new(Schema::new(fields)) }
    }

    /// The values' columns, in the order of the record's values.
    pub fn values(&self) -> &[String] {
        &self.values
    }

    /// The rows of these records.
    pub fn batch(&self, names: &Names, header: &Header, records: &[Numbered]) -> Result<RecordBatch> {
        let places: Vec<Place> = records.iter().map(|(_, record)| names.place(record)).collect();
        let text = |of: &dyn Fn(&Record, &Place) -> Option<String>| -> ArrayRef {
            let mut builder = StringDictionaryBuilder::<Int32Type>::new();
            for ((_, record), place) in records.iter().zip(&places) {
                builder.append_option(of(record, place));
            }
            Arc::new(builder.finish())
        };
        let small = |of: &dyn Fn(&Place) -> Option<u32>| -> ArrayRef {
            Arc::new(Int32Array::from_iter(places.iter().map(|place| of(place).map(|id| id as i32))))
        };
        let time = records.iter().map(|(_, record)| header.realtime_ns(record.time_ns) as i64);
        let slice = records.iter().map(|(_, record)| (record.slice != NONE32).then_some(record.slice));
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(records.iter().map(|(number, _)| *number))),
            Arc::new(TimestampNanosecondArray::from_iter_values(time).with_timezone("UTC")),
            Arc::new(Int64Array::from_iter_values(records.iter().map(|(_, record)| record.step as i64))),
            text(&|record, _| Some(names.level(record.level))),
            Arc::new(UInt32Array::from_iter_values(records.iter().map(|(_, record)| record.flags))),
            text(&|record, _| Some(names.flags(record.flags).join(" "))),
            text(&|record, _| names.task(record.task)),
            text(&|record, _| names.task(record.reference)),
            text(&|record, _| names.tensor(record.tensor)),
            small(&|place| place.layer),
            small(&|place| place.expert),
            text(&|_, place| place.role.map(|role| names.role(role))),
            small(&|place| place.head),
            Arc::new(UInt32Array::from_iter(slice)),
        ];
        for index in 0..self.values.len() {
            columns
                .push(Arc::new(Float64Array::from_iter_values(records.iter().map(|(_, record)| record.values[index]))));
        }
        for &index in &self.ids {
            columns.push(text(&|record, _| names.meaning(&self.kind, &self.values[index], record.values[index])));
        }
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgetscope::ring::Entry;

    #[test]
    fn a_value_named_like_a_column_gets_another_name() {
        let mut names = Names::default();
        let values = ["step", "cosine", "cosine"].map(String::from).to_vec();
        names.add(Entry::Kind { kind: 1, name: "odd".into(), values });
        let table = Table::of(&names, 1);
        assert_eq!(table.values(), ["step_0", "cosine", "cosine_2"]);
    }

    #[test]
    fn ids_bring_a_column_with_names() {
        let mut names = Names::default();
        names.add(Entry::Kind { kind: 10, name: "evaluation".into(), values: vec!["value".into(), "metric".into()] });
        let table = Table::of(&names, 10);
        assert_eq!(table.schema.fields().last().unwrap().name(), "metric_name");
    }

    #[test]
    fn an_unknown_kind_has_numbered_values() {
        let table = Table::of(&Names::default(), 99);
        assert_eq!((table.kind.as_str(), table.values().len()), ("kind_99", 10));
    }
}
