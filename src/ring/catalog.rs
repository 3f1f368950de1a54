//! The catalog: what the ids in the records mean, so that a reader needs the file and nothing else.
//!
//! It is append-only: the writer stores an entry and then publishes the new length with Release, so a reader sees an
//! entry entirely or not at all. An entry may come again for the same id and then replaces the earlier one.
//!
//! Readers skip types that they do not know and ignore what follows the fields that they do know, so both can be added
//! without a new layout version. A type's number and the order of its fields are for ever.

use super::codec::{Decoder, Encoder};

/// One fact about the records.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Entry {
    /// The name of a kind of record, and of its values in order; unused values at the end have no name.
    Kind { kind: u16, name: String, values: Vec<String> },
    /// The name of a granularity.
    Level { id: u8, name: String },
    /// The name of a flag; `bit` is the mask, with one bit set.
    Flag { bit: u32, name: String },
    /// The name of a role that tensors and slices have.
    Role { id: u16, name: String },
    /// A tensor.
    Tensor(TensorEntry),
    /// A part of a tensor that is measured by itself, for example the query matrix of one head.
    Slice { tensor: u32, slice: u32, name: String, role: u16, numel: u64 },
    /// A task of the training sequence.
    Task { id: u16, name: String },
    /// A metric by which tasks are evaluated.
    Metric { id: u16, name: String, higher_is_better: bool },
    /// The name of one of the header's counters.
    Counter { index: u8, name: String },
    /// Anything else that is worth knowing of the run, such as versions and options.
    Attribute { key: String, value: String },
}

/// What is known of a tensor. Sizes are those of the unsharded tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorEntry {
    pub id: u32,
    pub name: String,
    pub role: u16,
    /// Negative: belongs to no layer.
    pub layer: i32,
    /// Negative: belongs to no expert.
    pub expert: i32,
    pub head_count: u32,
    pub kv_head_count: u32,
    pub rows: u64,
    pub cols: u64,
    pub group: u32,
    pub flags: u32,
}

/// The types of entries, as numbers in the file.
mod code {
    pub const KIND: u16 = 1;
    pub const LEVEL: u16 = 2;
    pub const FLAG: u16 = 3;
    pub const ROLE: u16 = 4;
    pub const TENSOR: u16 = 5;
    pub const SLICE: u16 = 6;
    pub const TASK: u16 = 7;
    pub const METRIC: u16 = 8;
    pub const COUNTER: u16 = 9;
    pub const ATTRIBUTE: u16 = 10;
}

impl Entry {
    /// The entry as words, its frame first; `None` if it is larger than any catalog.
    pub(super) fn encode(&self) -> Option<Vec<u64>> {
        let mut out = Encoder::default();
        let code = match self {
            Entry::Kind { kind, name, values } => {
                out.u16(*kind).text(name).u32(values.len() as u32);
                for value in values {
                    out.text(value);
                }
                code::KIND
            }
            Entry::Level { id, name } => {
                out.u8(*id).text(name);
                code::LEVEL
            }
            Entry::Flag { bit, name } => {
                out.u32(*bit).text(name);
                code::FLAG
            }
            Entry::Role { id, name } => {
                out.u16(*id).text(name);
                code::ROLE
            }
            Entry::Tensor(tensor) => {
                out.u32(tensor.id)
                    .text(&tensor.name)
                    .u16(tensor.role)
                    .u32(tensor.layer as u32)
                    .u32(tensor.expert as u32)
                    .u32(tensor.head_count)
                    .u32(tensor.kv_head_count)
                    .u64(tensor.rows)
                    .u64(tensor.cols)
                    .u32(tensor.group)
                    .u32(tensor.flags);
                code::TENSOR
            }
            Entry::Slice { tensor, slice, name, role, numel } => {
                out.u32(*tensor).u32(*slice).text(name).u16(*role).u64(*numel);
                code::SLICE
            }
            Entry::Task { id, name } => {
                out.u16(*id).text(name);
                code::TASK
            }
            Entry::Metric { id, name, higher_is_better } => {
                out.u16(*id).text(name).u8(u8::from(*higher_is_better));
                code::METRIC
            }
            Entry::Counter { index, name } => {
                out.u8(*index).text(name);
                code::COUNTER
            }
            Entry::Attribute { key, value } => {
                out.text(key).text(value);
                code::ATTRIBUTE
            }
        };
        out.finish(code)
    }

    /// Decodes the body of an entry: `Ok(None)` for a type of a later version, `Err` with the reason for damage.
    pub(super) fn decode(code: u16, body: &[u8]) -> Result<Option<Entry>, &'static str> {
        let mut body = Decoder::new(body);
        Ok(Some(match code {
            code::KIND => Entry::Kind {
                kind: body.u16()?,
                name: body.text()?,
                values: {
                    // The count is not trusted: the body ends before a false one is reached.
                    let count = body.u32()?;
                    (0..count).map(|_| body.text()).collect::<Result<_, _>>()?
                },
            },
            code::LEVEL => Entry::Level { id: body.u8()?, name: body.text()? },
            code::FLAG => Entry::Flag { bit: body.u32()?, name: body.text()? },
            code::ROLE => Entry::Role { id: body.u16()?, name: body.text()? },
            code::TENSOR => Entry::Tensor(TensorEntry {
                id: body.u32()?,
                name: body.text()?,
                role: body.u16()?,
                layer: body.u32()? as i32,
                expert: body.u32()? as i32,
                head_count: body.u32()?,
                kv_head_count: body.u32()?,
                rows: body.u64()?,
                cols: body.u64()?,
                group: body.u32()?,
                flags: body.u32()?,
            }),
            code::SLICE => Entry::Slice {
                tensor: body.u32()?,
                slice: body.u32()?,
                name: body.text()?,
                role: body.u16()?,
                numel: body.u64()?,
            },
            code::TASK => Entry::Task { id: body.u16()?, name: body.text()? },
            code::METRIC => Entry::Metric { id: body.u16()?, name: body.text()?, higher_is_better: body.u8()? != 0 },
            code::COUNTER => Entry::Counter { index: body.u8()?, name: body.text()? },
            code::ATTRIBUTE => Entry::Attribute { key: body.text()?, value: body.text()? },
            _ => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::Frame;
    use super::*;
    use proptest::prelude::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let name = || any::<String>();
        let tensor =
            ((any::<u32>(), name(), any::<u16>(), any::<i32>(), any::<i32>()), any::<[u32; 4]>(), any::<[u64; 2]>())
                .prop_map(|((id, name, role, layer, expert), small, large)| {
                    Entry::Tensor(TensorEntry {
                        id,
                        name,
                        role,
                        layer,
                        expert,
                        head_count: small[0],
                        kv_head_count: small[1],
                        rows: large[0],
                        cols: large[1],
                        group: small[2],
                        flags: small[3],
                    })
                });
        prop_oneof![
            (any::<u16>(), name(), proptest::collection::vec(name(), 0..11))
                .prop_map(|(kind, name, values)| Entry::Kind { kind, name, values }),
            (any::<u8>(), name()).prop_map(|(id, name)| Entry::Level { id, name }),
            (any::<u32>(), name()).prop_map(|(bit, name)| Entry::Flag { bit, name }),
            (any::<u16>(), name()).prop_map(|(id, name)| Entry::Role { id, name }),
            tensor,
            (any::<[u32; 2]>(), name(), any::<u16>(), any::<u64>())
                .prop_map(|([tensor, slice], name, role, numel)| Entry::Slice { tensor, slice, name, role, numel }),
            (any::<u16>(), name()).prop_map(|(id, name)| Entry::Task { id, name }),
            (any::<u16>(), name(), any::<bool>())
                .prop_map(|(id, name, higher_is_better)| { Entry::Metric { id, name, higher_is_better } }),
            (any::<u8>(), name()).prop_map(|(index, name)| Entry::Counter { index, name }),
            (name(), name()).prop_map(|(key, value)| Entry::Attribute { key, value }),
        ]
    }

    /// The body of encoded words, and its type.
    fn body(words: &[u64]) -> (u16, Vec<u8>) {
        let frame = Frame::from_word(words[0]);
        assert_eq!(words.len(), 1 + frame.body_words());
        (frame.code, frame.body(words[1..].iter().copied()))
    }

    proptest! {
        #[test]
        fn an_entry_survives_the_round_trip(entry in entry()) {
            let (code, bytes) = body(&entry.encode().unwrap());
            prop_assert_eq!(Entry::decode(code, &bytes), Ok(Some(entry)));
        }

        #[test]
        fn an_entry_that_is_cut_short_is_damage(entry in entry(), cut in any::<prop::sample::Index>()) {
            let (code, bytes) = body(&entry.encode().unwrap());
            prop_assert!(Entry::decode(code, &bytes[..cut.index(bytes.len())]).is_err());
        }

        #[test]
        fn any_bytes_decode_to_something_or_nothing(code in 0..12u16, bytes in any::<Vec<u8>>()) {
            let _ = Entry::decode(code, &bytes);
        }

        #[test]
        fn fields_of_a_later_version_are_ignored(entry in entry(), more in any::<Vec<u8>>()) {
            let (code, mut bytes) = body(&entry.encode().unwrap());
            bytes.extend(more);
            prop_assert_eq!(Entry::decode(code, &bytes), Ok(Some(entry)));
        }
    }

    #[test]
    fn types_of_a_later_version_are_nothing() {
        assert_eq!(Entry::decode(999, b"whatever"), Ok(None));
    }
}
