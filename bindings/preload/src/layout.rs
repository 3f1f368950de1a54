//! The layout file: which tensors lie where in each bucket.
//!
//! ```json
//! {"version": 1, "buckets": [{"numel": 66048, "tensors": [
//!   {"name": "blocks.0.attn.qkv.weight", "offset": 0, "numel": 49152, "shape": [384, 128],
//!    "role": "qkv", "layer": 0, "heads": 4}]}]}
//! ```
//!
//! Buckets are in the order in which they are reduced, offsets in elements; what no tensor covers is padding. Checked as a
//! whole when it is read: an error names the field.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use forgetscope::scope::schema::Role;
use serde::Deserialize;

use crate::instrument::Spec;

/// Bytes of a file: what is larger is something else.
const LARGEST: u64 = 256 << 20;

/// A layout, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub buckets: Vec<Bucket>,
}

/// What lies in one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub numel: u64,
    pub tensors: Vec<Placed>,
}

/// A tensor, and where in the bucket it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub offset: u64,
    pub spec: Spec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    buckets: Vec<FileBucket>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileBucket {
    numel: u64,
    tensors: Vec<FileTensor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTensor {
    name: String,
    offset: u64,
    numel: u64,
    #[serde(default)]
    shape: Vec<u64>,
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    layer: Option<u32>,
    #[serde(default)]
    expert: Option<u32>,
    #[serde(default)]
    group: u32,
    #[serde(default)]
    heads: u32,
    #[serde(default)]
    kv_heads: u32,
    #[serde(default)]
    head_offset: u32,
    #[serde(default)]
    kv_head_offset: u32,
    #[serde(default)]
    head_layout: HeadLayout,
    #[serde(default)]
    head_axis: Option<HeadAxis>,
}

/// Numbers of `fgs_head_layout`.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum HeadLayout {
    #[default]
    Auto = 0,
    None = 1,
    Separate = 2,
    Concatenated = 3,
    Interleaved = 4,
    InterleavedGated = 5,
}

/// Heads are bands of these.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum HeadAxis {
    Rows = 0,
    Columns = 1,
}

impl Layout {
    pub fn read(path: &str) -> Result<Self, String> {
        let failed = |error| format!("cannot be read: {error}");
        // O_NONBLOCK, or opening a FIFO would wait for its other end.
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err("is not a regular file".into());
        }
        if metadata.len() > LARGEST {
            return Err(format!("has {} bytes, and may have {LARGEST}", metadata.len()));
        }
        let mut text = String::new();
        file.take(LARGEST).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text)
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if file.version != 1 {
            return Err(format!("version: {} is not 1, the only one that is known", file.version));
        }
        if file.buckets.is_empty() {
            return Err("buckets: there are none".into());
        }
        let buckets = file.buckets.into_iter().enumerate().map(|(n, bucket)| check(n, bucket));
        let buckets = buckets.collect::<Result<Vec<Bucket>, String>>()?;
        let mut names: Vec<&str> =
            buckets.iter().flat_map(|bucket| &bucket.tensors).map(|t| t.spec.name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(twice) => Err(format!("name: there are two tensors called '{}'", twice[0])),
            None => Ok(Self { buckets }),
        }
    }

    /// Elements of each bucket.
    pub fn counts(&self) -> Vec<u64> {
        self.buckets.iter().map(|bucket| bucket.numel).collect()
    }
}

fn check(n: usize, bucket: FileBucket) -> Result<Bucket, String> {
    let FileBucket { numel, tensors } = bucket;
    if numel == 0 || numel > 1 << 48 {
        return Err(format!("buckets[{n}].numel: {numel} is not between 1 and 2^48"));
    }
    let mut end = 0;
    let mut placed = Vec::with_capacity(tensors.len());
    for (k, tensor) in tensors.into_iter().enumerate() {
        let at = |field: &str| format!("buckets[{n}].tensors[{k}].{field}");
        if tensor.offset < end {
            return Err(format!("{}: {} lies in the tensor before, which ends at {end}", at("offset"), tensor.offset));
        }
        end = match tensor.offset.checked_add(tensor.numel) {
            Some(end) if tensor.numel > 0 && end <= numel => end,
            _ => {
                let (first, count) = (tensor.offset, tensor.numel);
                let text = format!("{count} elements from {first} on are not within the bucket's {numel}");
                return Err(format!("{}: {text}", at("numel")));
            }
        };
        placed.push(Placed { offset: tensor.offset, spec: spec(tensor).map_err(|(field, text)| at(field) + &text)? });
    }
    Ok(Bucket { numel, tensors: placed })
}

/// The tensor as it is registered; else the field and what is wrong with it.
fn spec(tensor: FileTensor) -> Result<Spec, (&'static str, String)> {
    if tensor.name.is_empty() {
        return Err(("name", ": it is empty".into()));
    }
    let role = match tensor.role.as_deref() {
        None => Role::Other,
        Some(name) => match Role::ALL.iter().find(|(_, known)| *known == name) {
            Some((role, _)) => *role,
            None => {
                let known = Role::ALL.map(|(_, name)| name).join(", ");
                return Err(("role", format!(": '{name}' is none of {known}")));
            }
        },
    };
    let product = tensor.shape.iter().try_fold(1u64, |product, &length| product.checked_mul(length));
    if !tensor.shape.is_empty() && product != Some(tensor.numel) {
        return Err(("shape", format!(": {:?} does not have {} elements", tensor.shape, tensor.numel)));
    }
    // The first dimension, and all others together.
    let shape = tensor.shape.first().map_or((0, 0), |&rows| (rows, tensor.numel / rows));
    Ok(Spec {
        name: tensor.name,
        numel: tensor.numel,
        shape,
        role: role as u32,
        layer: tensor.layer,
        expert: tensor.expert,
        group: tensor.group,
        head_layout: tensor.head_layout as u32,
        head_axis: tensor.head_axis.map(|axis| axis as u32),
        heads: tensor.heads,
        kv_heads: tensor.kv_heads,
        head_offset: tensor.head_offset,
        kv_head_offset: tensor.kv_head_offset,
        replica: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_read() {
        let text = r#"{"version": 1, "buckets": [{"numel": 20, "tensors": [
            {"name": "qkv", "offset": 0, "numel": 12, "shape": [6, 2], "role": "qkv", "layer": 3, "heads": 2,
             "kv_heads": 1, "head_layout": "interleaved"},
            {"name": "bias", "offset": 16, "numel": 2}]}]}"#;
        let layout = Layout::parse(text).unwrap();
        let [qkv, bias] = &layout.buckets[0].tensors[..] else { panic!("{layout:?}") };
        assert_eq!((qkv.spec.shape, qkv.spec.role, qkv.spec.layer), ((6, 2), Role::Qkv as u32, Some(3)));
        assert_eq!((qkv.spec.heads, qkv.spec.kv_heads, qkv.spec.head_layout), (2, 1, 4));
        assert_eq!((bias.offset, bias.spec.numel, bias.spec.shape), (16, 2, (0, 0)));
    }

    #[test]
    fn mistakes_are_named() {
        let bucket =
            |tensors: &str| format!(r#"{{"version": 1, "buckets": [{{"numel": 20, "tensors": [{tensors}]}}]}}"#);
        for (text, named) in [
            ("{".into(), "EOF"),
            (r#"{"version": 2, "buckets": []}"#.into(), "version: 2"),
            (r#"{"version": 1, "buckets": []}"#.into(), "buckets: there are none"),
            (r#"{"version": 1, "bucket": []}"#.into(), "unknown field `bucket`"),
            (r#"{"version": 1, "buckets": [{"numel": 0, "tensors": []}]}"#.into(), "buckets[0].numel: 0"),
            (bucket(r#"{"offset": 0, "numel": 2}"#), "missing field `name`"),
            (bucket(r#"{"name": "", "offset": 0, "numel": 2}"#), "buckets[0].tensors[0].name"),
            (bucket(r#"{"name": "a", "offset": 19, "numel": 2}"#), "buckets[0].tensors[0].numel: 2 elements from 19"),
            (bucket(r#"{"name": "a", "offset": 0, "numel": 0}"#), "buckets[0].tensors[0].numel"),
            (bucket(r#"{"name": "a", "offset": 18446744073709551615, "numel": 2}"#), "numel: 2 elements"),
            (bucket(r#"{"name": "a", "offset": 0, "numel": 4, "shape": [3, 1]}"#), "shape: [3, 1]"),
            (bucket(r#"{"name": "a", "offset": 0, "numel": 4, "role": "key"}"#), "role: 'key' is none of other"),
            (bucket(r#"{"name": "a", "offset": 0, "numel": 4, "head_layout": "x"}"#), "unknown variant `x`"),
            (
                bucket(r#"{"name": "a", "offset": 0, "numel": 4}, {"name": "b", "offset": 3, "numel": 4}"#),
                "buckets[0].tensors[1].offset: 3 lies in the tensor before",
            ),
            (
                bucket(r#"{"name": "a", "offset": 0, "numel": 4}, {"name": "a", "offset": 4, "numel": 4}"#),
                "two tensors called 'a'",
            ),
        ] {
            let error = Layout::parse(&text).unwrap_err();
            assert!(error.contains(named), "{error} does not name {named}");
        }
    }
}
