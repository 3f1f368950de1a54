//! From slices to heads, tensors, roles, layers and the model: which sums are added into which.

use crate::ring::NONE32;
use crate::scope::catalog::Slice;
use crate::scope::schema::{head_slice, level};
use std::collections::BTreeMap;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    pub level: u8,
    pub tensor: u32,
    pub slice: u32,
}

impl Subject {
    pub const MODEL: Self = Self { level: level::MODEL, tensor: NONE32, slice: NONE32 };
}

/// Membership of slices in subjects.
#[derive(Debug, Default)]
pub struct Rollup {
    subjects: Vec<Subject>,
    index: BTreeMap<Subject, usize>,
    /// Per slice: the subjects that it is part of.
    members: Vec<Vec<usize>>,
}

impl Rollup {
    /// Takes a slice in; slices come in the order of their numbers.
    pub fn add(&mut self, slice: &Slice) {
        let subject = |level, tensor, slice| Subject { level, tensor, slice };
        let head = slice.head.map(|head| subject(level::HEAD, slice.tensor, head_slice(slice.role, head)));
        let layer = slice.layer.map(|layer| subject(level::LAYER, NONE32, layer));
        let tensor = subject(level::TENSOR, slice.tensor, NONE32);
        let role = subject(level::ROLE, NONE32, slice.role as u32);
        let all = head.into_iter().chain([tensor, role]).chain(layer).chain([Subject::MODEL]);
        let members = all.map(|subject| self.number(subject)).collect();
        self.members.push(members);
    }

    fn number(&mut self, subject: Subject) -> usize {
        *self.index.entry(subject).or_insert_with(|| {
            self.subjects.push(subject);
            self.subjects.len() - 1
        })
    }

    /// Adds what `of` gives for each slice into every subject that the slice is part of. Subjects of which no slice gave
    /// anything are left out.
    pub fn sum<T: Default>(
        &self,
        mut of: impl FnMut(usize) -> Option<T>,
        mut add: impl FnMut(&mut T, &T),
    ) -> Vec<(Subject, T)> {
        let mut totals: Vec<Option<T>> = Vec::new();
        totals.resize_with(self.subjects.len(), || None);
        for (slice, members) in self.members.iter().enumerate() {
            let Some(part) = of(slice) else { continue };
            for &member in members {
                add(totals[member].get_or_insert_default(), &part);
            }
        }
        self.subjects.iter().zip(totals).filter_map(|(&subject, total)| Some((subject, total?))).collect()
    }
}
