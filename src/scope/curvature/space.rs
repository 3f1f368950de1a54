//! Which parameters a run moves, and vectors over them: flat, one slice after another.
//!
//! A run needs every element of each tensor, both of the parameters and of the gradient, in fp32 memory that nothing else
//! shares: checked once, when it begins. Random vectors come from a hash of the slice's name and the element's index, so
//! they do not depend on threads, addresses or the order of registration.

use super::claim::Claim;
use crate::device::{DType, Gather, GatherJob, Perturb, ScatterJob, Segment, SliceRead, Values, Writable};
use crate::scope::catalog::{Binding, Catalog, REPLICATED, Source, Tensor};
use crate::scope::error::invalid;
use crate::scope::{Error, Result};
use crate::sketch::hash::mix;
use std::ops::Range;

/// A slice that is moved.
#[derive(Clone, Debug)]
pub struct Part {
    pub slice: usize,
    pub tensor: u32,
    seed: u64,
    target: Writable,
    segments: Vec<Segment>,
    /// Its elements in a vector.
    pub range: Range<usize>,
}

/// The slices that vectors are over.
#[derive(Clone, Debug, Default)]
pub struct Space {
    pub parts: Vec<Part>,
    pub elements: usize,
    /// Where the first of them lies in vectors over the whole model.
    pub offset: usize,
}

/// Which family of random vectors: they are independent of each other.
#[derive(Clone, Copy, Debug)]
pub enum Family {
    Trace = 1,
    Relative = 2,
    BlockLanczos = 3,
    Capture = 4,
    Residual = 5,
}

impl Space {
    /// Every tensor that is measured and bound. The second value: not every registered tensor is among them. The third is
    /// to be kept for as long as the parameters are moved.
    ///
    /// # Safety
    /// The parameters that are bound must be writable, and used by nobody else during calls, for as long as the space is
    /// handed to a device.
    pub unsafe fn of(catalog: &Catalog, ranks: u32) -> Result<(Self, bool, Claim)> {
        let mut space = Self::default();
        let mut is_partial = false;
        let mut places = Vec::new();
        for (id, tensor) in (0..).zip(&catalog.tensors) {
            if tensor.spec.tied_to.is_some() {
                check_tied(catalog, tensor)?;
                continue;
            }
            let Some(parameters) = movable(tensor, ranks)? else {
                is_partial |= tensor.counts();
                continue;
            };
            // SAFETY: the caller's promise.
            let target = unsafe { parameters.memory().writable() };
            let target = target.ok_or_else(|| not_fp32(&tensor.spec.name, parameters.memory().dtype))?;
            places.extend(parameters.runs().map(|run| (run, id)));
            for (slice, segments) in tensor.slices().zip(parameters.segments()) {
                let layout = &catalog.slices[slice].layout;
                let range = space.elements..space.elements + layout.numel as usize;
                space.elements = range.end;
                let (seed, segments) = (layout.seed, segments.clone());
                space.parts.push(Part { slice, tensor: id, seed, target, segments, range });
            }
        }
        if space.parts.is_empty() {
            return Err(invalid!(
                "fgs_curvature_begin: no fp32 parameter is bound with its gradient; call fgs_bind with FGS_PARAM and \
                 FGS_GRAD first"
            ));
        }
        let claim = Claim::take(apart(catalog, places)?).ok_or_else(|| {
            Error::WrongPhase(
                "fgs_curvature_begin: another scope of this process is in a curvature run and has moved these parameters; \
                 end that run first"
                    .into(),
            )
        })?;
        Ok((space, is_partial, claim))
    }

    /// One tensor by itself.
    pub fn of_tensor(&self, tensor: u32) -> Option<Self> {
        let mut parts: Vec<Part> = self.parts.iter().filter(|part| part.tensor == tensor).cloned().collect();
        let offset = parts.first()?.range.start;
        let elements = parts.iter().map(|part| part.range.len()).sum();
        parts.iter_mut().for_each(|part| part.range = part.range.start - offset..part.range.end - offset);
        Some(Self { parts, elements, offset: self.offset + offset })
    }

    /// Of a vector.
    pub fn bytes(&self) -> u64 {
        4 * self.elements as u64
    }

    pub fn zeros(&self) -> Vec<f32> {
        vec![0.0; self.elements]
    }

    /// Slices and their elements: spaces with the same have the same vectors.
    pub fn layout(&self) -> Vec<(usize, usize)> {
        self.parts.iter().map(|part| (part.slice, part.range.len())).collect()
    }

    /// Cuts a vector into its parts.
    fn split<'a>(&self, vector: &'a mut [f32]) -> Vec<&'a mut [f32]> {
        let mut rest = vector;
        let cut = |part: &Part| rest.split_off_mut(..part.range.len()).unwrap_or_default();
        self.parts.iter().map(cut).collect()
    }

    /// A vector of this space from what is kept of each part, as `of` gives it. `false`: it lacks one.
    pub fn collect<'a>(&self, device: &dyn Perturb, out: &mut [f32], of: impl Fn(&Part) -> Option<&'a Values>) -> bool {
        self.parts.iter().all(|part| of(part).is_some_and(|values| device.read(values, &mut out[part.range.clone()])))
    }

    /// Fills a vector with fair signs times `scale`.
    pub fn signs(&self, device: &dyn Perturb, out: &mut [f32], family: Family, vector: u32, seed: u64, scale: f64) {
        let draw = mix(seed ^ mix((family as u64) << 32 | u64::from(vector)));
        let seeds: Vec<u64> = self.parts.iter().map(|part| mix(part.seed ^ draw)).collect();
        for (part, seed) in self.split(out).into_iter().zip(seeds) {
            device.signs(part, seed, scale as f32);
        }
    }

    /// Reads the parameters, or gradients, of all parts. Returns how many values are not finite afterwards.
    pub fn gather(
        &self,
        catalog: &Catalog,
        device: &dyn Perturb,
        source: Source,
        gather: Gather,
        out: &mut [f32],
    ) -> Result<u64> {
        let reads = catalog.reads_of(source, |id| self.parts.binary_search_by_key(&id, |part| part.tensor).is_ok());
        let mut jobs = Vec::with_capacity(self.parts.len());
        for (part, values) in self.parts.iter().zip(self.split(out)) {
            let fits = |read: &SliceRead| covers(read.segments, values.len()) && is_fine(read.memory.dtype);
            let read = reads[part.slice].filter(fits);
            let name = &catalog.tensors[part.tensor as usize].spec.name;
            let read = read.ok_or_else(|| {
                invalid!(
                    "FGS_GRAD of '{name}': the whole gradient must be bound, in fp32 or fp64; call fgs_bind with FGS_GRAD first"
                )
            })?;
            jobs.push(GatherJob { read, gather, values });
        }
        Ok(device.gather(&mut jobs))
    }

    /// Sets the parameters to `original` (over the whole model) plus `step` times `direction` (over this space, or empty).
    /// `false`: a device failed.
    #[must_use]
    pub fn scatter(&self, device: &dyn Perturb, original: &[f32], direction: &[f32], step: f64) -> bool {
        let original = &original[self.offset..];
        let jobs = self.parts.iter().map(|part| ScatterJob {
            target: part.target,
            segments: &part.segments,
            original: &original[part.range.clone()],
            direction: if direction.is_empty() { &[] } else { &direction[part.range.clone()] },
            step,
        });
        device.scatter(&mut jobs.collect::<Vec<_>>())
    }
}

/// Gradients in less than fp32 round their own differences away.
fn is_fine(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64)
}

fn covers(segments: &[Segment], elements: usize) -> bool {
    segments.iter().map(Segment::numel).sum::<u64>() == elements as u64
}

/// The parameters of a tensor that takes part; `None` if it is not measured, or not bound at all.
fn movable(tensor: &Tensor, ranks: u32) -> Result<Option<&Binding>> {
    let spec = &tensor.spec;
    let name = &spec.name;
    let [parameter, master, gradient] =
        [Source::Parameter, Source::Master, Source::Gradient].map(|source| tensor.bound(source));
    if tensor.schedule.every == 0 || parameter.or(master).or(gradient).is_none() {
        return Ok(None);
    }
    let unsupported = |text: String| Err(Error::Unsupported(format!("fgs_curvature_begin: {text}")));
    if spec.replica > 0 {
        return unsupported(format!(
            "'{name}' is replica {} here; replica 0 is elsewhere and would not be moved. Run where replica 0 is",
            spec.replica
        ));
    }
    if ranks > 1 && spec.flags & REPLICATED == 0 {
        return unsupported(format!(
            "'{name}' is not FGS_TENSOR_REPLICATED, so the other {} ranks hold other parts of the model, and blocks of \
             the Hessian of several ranks would mix. Run where one rank holds the whole model",
            ranks - 1
        ));
    }
    let Some(parameter) = parameter else {
        return Err(match master {
            Some(_) => Error::Unsupported(format!(
                "fgs_curvature_begin: of '{name}' only FGS_MASTER is bound; the model computes with other memory"
            )),
            None => invalid!("fgs_curvature_begin: a gradient of '{name}' is bound and no FGS_PARAM"),
        });
    };
    let Some(gradient) = gradient else {
        return Err(invalid!(
            "fgs_curvature_begin: FGS_PARAM of '{name}' is bound and no FGS_GRAD; bind it, or unbind the parameters of a \
             tensor that is frozen"
        ));
    };
    if !is_fine(gradient.memory().dtype) {
        return unsupported(format!(
            "FGS_GRAD of '{name}' is {}, which rounds the differences of gradients away; bind fp32",
            gradient.memory().dtype.name()
        ));
    }
    for (what, binding) in [("FGS_PARAM", parameter), ("FGS_GRAD", gradient)] {
        let local: u64 = binding.segments().iter().flatten().map(Segment::numel).sum();
        if local != spec.numel {
            return unsupported(format!(
                "{what} of '{name}' covers {local} of {} elements; with shards, blocks of the Hessian of several ranks \
                 would mix",
                spec.numel
            ));
        }
    }
    Ok(Some(parameter))
}

fn not_fp32(name: &str, dtype: DType) -> Error {
    Error::Unsupported(format!(
        "fgs_curvature_begin: FGS_PARAM of '{name}' is {}; only fp32 parameters are moved, since steps are far below the \
         others' rounding, and moving FGS_MASTER does not move what the model computes with",
        dtype.name()
    ))
}

/// Another name of a tensor moves with it if its data is the same memory.
fn check_tied(catalog: &Catalog, tensor: &Tensor) -> Result<()> {
    let Some(original) = tensor.spec.tied_to.and_then(|id| catalog.tensor(id).ok()) else { return Ok(()) };
    for (source, what) in [(Source::Parameter, "FGS_PARAM"), (Source::Gradient, "FGS_GRAD")] {
        let at = |tensor: &Tensor| tensor.bound(source).map(|binding| binding.memory());
        if let (Some(own), Some(other)) = (at(tensor), at(original))
            && !own.is_at(other)
        {
            return Err(Error::Unsupported(format!(
                "fgs_curvature_begin: {what} of '{}' is tied to '{}' and lies in other memory, which would not move with \
                 it; bind the same memory or unbind it",
                tensor.spec.name, original.spec.name
            )));
        }
    }
    Ok(())
}

/// The places in order. No two elements share memory: moving one would move the other, and threads would write the same
/// place.
fn apart(catalog: &Catalog, mut places: Vec<(Range<usize>, u32)>) -> Result<impl Iterator<Item = Range<usize>>> {
    places.sort_by_key(|(run, id)| (run.start, *id));
    for pair in places.windows(2) {
        let [(one, first), (other, second)] = pair else { continue };
        if other.start < one.end {
            let name = |id: u32| &catalog.tensors[id as usize].spec.name;
            return Err(Error::Unsupported(format!(
                "fgs_curvature_begin: FGS_PARAM of '{}' and '{}' share memory; register one as FGS_TENSOR_TIED to the \
                 other",
                name(*first),
                name(*second)
            )));
        }
    }
    Ok(places.into_iter().map(|(run, _)| run))
}
