//! Head maps: which rows or columns of a tensor belong to which attention head.
//!
//! Every head of every layout in use is one band of consecutive rows, or of consecutive columns where the layout is
//! transposed or the heads are inputs (the output projection).

use super::schema::Role;
use super::{Result, error::invalid};

/// How heads are arranged along their axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadLayout {
    /// Not split: the tensor is one slice.
    None,
    /// One head after another, all of the tensor's own role.
    Separate,
    /// All query heads, then all key heads, then all value heads.
    Concatenated,
    /// Per query group: its query heads, its key head, its value head (Megatron's linear_qkv).
    Interleaved,
    /// Per query group: its query heads, as many gate heads, its key head, its value head.
    InterleavedGated,
}

/// The heads of one tensor. Counts are those of the registered tensor: with tensor parallelism, of this rank's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadMap {
    pub layout: HeadLayout,
    /// 0: heads are bands of rows; 1: of columns.
    pub axis: u32,
    pub heads: u32,
    /// Key and value heads; equal to `heads` without grouping.
    pub kv_heads: u32,
    /// Number of the first query head in the whole model.
    pub head_offset: u32,
    /// Number of the first key/value head in the whole model.
    pub kv_head_offset: u32,
}

/// Consecutive rows (axis 0) or columns (axis 1) that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    pub role: Role,
    /// Number of the head in the whole model; `None` for a tensor that is not split.
    pub head: Option<u32>,
    pub axis: u32,
    pub start: u64,
    pub length: u64,
}

impl HeadMap {
    /// A tensor that is one slice.
    pub const WHOLE: Self =
        Self { layout: HeadLayout::None, axis: 0, heads: 0, kv_heads: 0, head_offset: 0, kv_head_offset: 0 };

    /// Heads along the axis, counting every kind.
    fn bands_along_axis(&self) -> u64 {
        let (heads, kv_heads) = (u64::from(self.heads), u64::from(self.kv_heads));
        match self.layout {
            HeadLayout::None => 1,
            HeadLayout::Separate => heads,
            HeadLayout::Concatenated | HeadLayout::Interleaved => heads + 2 * kv_heads,
            HeadLayout::InterleavedGated => 2 * heads + 2 * kv_heads,
        }
    }

    /// The bands of a tensor of `rows` × `cols`, covering all of it.
    pub fn bands(&self, role: Role, rows: u64, cols: u64) -> Result<Vec<Band>> {
        let extent = if self.axis == 0 { rows } else { cols };
        if self.layout == HeadLayout::None {
            return Ok(vec![Band { role, head: None, axis: 0, start: 0, length: rows }]);
        }
        let count = self.bands_along_axis();
        if !extent.is_multiple_of(count) {
            let axis = if self.axis == 0 { "rows" } else { "columns" };
            return Err(invalid!(
                "head_count: {extent} {axis} cannot be split evenly into the {count} heads of this layout; check \
                 head_count, kv_head_count, head_layout and head_axis"
            ));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(invalid!(
                "kv_head_count: {} query heads cannot share {} key/value heads evenly",
                self.heads,
                self.kv_heads
            ));
        }
        let length = extent / count;
        let order = self.order(role);
        let bands = order.into_iter().zip(0..).map(|((role, head), position)| Band {
            role,
            head: Some(head),
            axis: self.axis,
            start: position * length,
            length,
        });
        Ok(bands.collect())
    }

    /// Role and number of each head in the order in which they lie along the axis.
    fn order(&self, role: Role) -> Vec<(Role, u32)> {
        let query = |k: u32| (Role::Query, self.head_offset + k);
        let key = |k: u32| (Role::Key, self.kv_head_offset + k);
        let value = |k: u32| (Role::Value, self.kv_head_offset + k);
        match self.layout {
            HeadLayout::None => vec![],
            HeadLayout::Separate => {
                let offset =
                    if matches!(role, Role::Key | Role::Value) { self.kv_head_offset } else { self.head_offset };
                (0..self.heads).map(|k| (role, offset + k)).collect()
            }
            HeadLayout::Concatenated => (0..self.heads)
                .map(query)
                .chain((0..self.kv_heads).map(key))
                .chain((0..self.kv_heads).map(value))
                .collect(),
            HeadLayout::Interleaved | HeadLayout::InterleavedGated => {
                let per_group = self.heads / self.kv_heads;
                let gated = self.layout == HeadLayout::InterleavedGated;
                let mut order = Vec::new();
                for group in 0..self.kv_heads {
                    let heads = group * per_group..(group + 1) * per_group;
                    order.extend(heads.clone().map(query));
                    if gated {
                        order.extend(heads.map(|k| (Role::Gate, self.head_offset + k)));
                    }
                    order.extend([key(group), value(group)]);
                }
                order
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(layout: HeadLayout, axis: u32, heads: u32, kv_heads: u32) -> HeadMap {
        HeadMap { layout, axis, heads, kv_heads, head_offset: 0, kv_head_offset: 0 }
    }

    fn names(map: HeadMap, role: Role, rows: u64, cols: u64) -> Vec<String> {
        let bands = map.bands(role, rows, cols).unwrap();
        bands.iter().map(|b| format!("{}{}@{}+{}", b.role.name(), b.head.unwrap_or(99), b.start, b.length)).collect()
    }

    #[test]
    fn every_layout() {
        assert_eq!(names(map(HeadLayout::Separate, 1, 2, 2), Role::Output, 8, 6), ["o0@0+3", "o1@3+3"]);
        assert_eq!(
            names(map(HeadLayout::Concatenated, 0, 2, 1), Role::Qkv, 8, 4),
            ["q0@0+2", "q1@2+2", "k0@4+2", "v0@6+2"]
        );
        assert_eq!(
            names(map(HeadLayout::Interleaved, 0, 4, 2), Role::Qkv, 16, 4),
            ["q0@0+2", "q1@2+2", "k0@4+2", "v0@6+2", "q2@8+2", "q3@10+2", "k1@12+2", "v1@14+2"]
        );
        assert_eq!(
            names(map(HeadLayout::InterleavedGated, 0, 2, 1), Role::Qkv, 6, 4),
            ["q0@0+1", "q1@1+1", "gate0@2+1", "gate1@3+1", "k0@4+1", "v0@5+1"]
        );
    }

    #[test]
    fn offsets_number_heads_in_the_whole_model() {
        let map = HeadMap { head_offset: 8, kv_head_offset: 2, ..map(HeadLayout::Interleaved, 0, 4, 1) };
        assert_eq!(names(map, Role::Qkv, 6, 1), ["q8@0+1", "q9@1+1", "q10@2+1", "q11@3+1", "k2@4+1", "v2@5+1"]);
    }

    #[test]
    fn uneven_splits_are_refused_with_the_argument() {
        let error = map(HeadLayout::Separate, 0, 3, 3).bands(Role::Query, 8, 8).unwrap_err();
        assert!(error.to_string().starts_with("head_count: 8 rows"), "{error}");
        let error = map(HeadLayout::Concatenated, 0, 3, 2).bands(Role::Qkv, 14, 8).unwrap_err();
        assert!(error.to_string().starts_with("kv_head_count"), "{error}");
    }
}
