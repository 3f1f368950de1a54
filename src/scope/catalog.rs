//! The catalog: tensors, the slices they are measured in, and where their data lies at present.

use super::error::invalid;
use super::heads::{Band, HeadLayout, HeadMap};
use super::schedule::Schedule;
use super::schema::{Role, head_slice};
use super::shard::{Shard, View, segments};
use super::{Error, Options, Result};
use crate::device::{Memory, Segment, SliceRead, Strided};
use crate::ring::{Entry, TensorEntry};
use crate::sketch::{Layout, hash};

/// A 1-D tensor up to this many elements is sketched exactly: norms and biases are small and matter one by one.
const EXACT_VECTOR: u64 = 1 << 16;

/// The tensor's data also lives on other ranks.
pub const REPLICATED: u32 = 1 << 0;
/// The tensor shares its data with another one.
pub const TIED: u32 = 1 << 1;
/// The tensor belongs to one expert of a mixture.
pub const EXPERT: u32 = 1 << 2;

/// What the trainer says of a tensor.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    pub name: String,
    pub role: Role,
    pub layer: Option<u32>,
    pub expert: Option<u32>,
    pub group: u32,
    /// Elements of the unsharded tensor.
    pub numel: u64,
    /// Unsharded shape, if known now: rows × cols = numel.
    pub shape: Option<(u64, u64)>,
    pub heads: HeadMap,
    pub flags: u32,
    /// Which of several equal copies this is. Only copy 0 is measured.
    pub replica: u32,
    /// Tensor that this one shares its data with. Not measured: it counts once.
    pub tied_to: Option<u32>,
    /// The tensor is the first of so many layers that lie in one stacked buffer; 1 if it stands alone.
    pub stack: u32,
}

/// What a binding is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Gradient,
    Parameter,
    /// fp32 master copy of the parameters: measured instead of them, since bf16 weights hide small updates.
    Master,
}

/// One slice of the model: the finest unit that is measured.
#[derive(Clone, Debug)]
pub struct Slice {
    pub tensor: u32,
    pub role: Role,
    pub head: Option<u32>,
    pub layer: Option<u32>,
    pub layout: Layout,
    /// Where its buckets begin in a sketch of the whole model.
    pub sketch_offset: usize,
}

impl Slice {
    /// The slice's part of a sketch of the whole model.
    pub fn buckets(&self) -> std::ops::Range<usize> {
        self.sketch_offset..self.sketch_offset + self.layout.buckets
    }
}

/// Data that a call hands over.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    pub memory: Memory,
    pub view: View,
    /// First dimension, and all others together.
    pub shape: (u64, u64),
}

/// Local data of a tensor.
#[derive(Clone, Debug)]
pub struct Binding {
    memory: Memory,
    view: View,
    shard: Shard,
    /// Per slice of the tensor.
    segments: Vec<Vec<Segment>>,
}

/// A registered tensor.
#[derive(Debug)]
pub struct Tensor {
    pub spec: TensorSpec,
    pub schedule: Schedule,
    /// Known once the shape is.
    bands: Vec<Band>,
    cols: u64,
    /// First slice and number of slices.
    slices: std::ops::Range<usize>,
    gradient: Option<Binding>,
    parameter: Option<Binding>,
    master: Option<Binding>,
}

/// All tensors and slices of a scope.
#[derive(Debug, Default)]
pub struct Catalog {
    pub tensors: Vec<Tensor>,
    pub slices: Vec<Slice>,
    /// Buckets of a sketch of the whole model.
    pub buckets: usize,
    changes: u64,
}

impl Catalog {
    /// Adds a tensor. Its slices are fixed now if its shape is known or not needed, else when it is first bound.
    pub fn register(&mut self, spec: TensorSpec, options: &Options) -> Result<u32> {
        self.check_name(&spec.name)?;
        if let Some(tied_to) = spec.tied_to {
            self.tensor(tied_to).map_err(|_| invalid!("tensor.tied_to: there is no tensor with the id {tied_to}"))?;
        }
        let schedule = Schedule::of(options, &spec.name)?;
        let id = self.tensors.len() as u32;
        // Bands of rows follow from the number of elements alone.
        let shape = spec.shape.or((spec.heads.axis == 0).then_some((spec.numel, 1)));
        let mut tensor = Tensor {
            spec,
            schedule,
            bands: Vec::new(),
            cols: 0,
            slices: 0..0,
            gradient: None,
            parameter: None,
            master: None,
        };
        if let Some((rows, cols)) = shape {
            tensor.bands = tensor.spec.heads.bands(tensor.spec.role, rows, cols)?;
            tensor.cols = cols;
            self.add_slices(&mut tensor, id, options);
        }
        self.tensors.push(tensor);
        self.changes += 1;
        Ok(id)
    }

    /// Counts what was registered, bound and unbound. Binding again what is bound counts for nothing.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Names identify tensors: each is registered once.
    pub fn check_name(&self, name: &str) -> Result<()> {
        if self.tensors.iter().any(|tensor| tensor.spec.name == name) {
            return Err(invalid!("tensor.name: '{name}' is registered already"));
        }
        Ok(())
    }

    fn add_slices(&mut self, tensor: &mut Tensor, id: u32, options: &Options) {
        let first = self.slices.len();
        let spec = &tensor.spec;
        for band in &tensor.bands {
            let numel = spec.numel / tensor.bands.len() as u64;
            let is_vector = match spec.shape {
                Some((_, cols)) => cols == 1,
                None => band.head.is_none(),
            } && numel <= EXACT_VECTOR;
            let buckets = match band.head {
                _ if is_vector => numel as usize,
                Some(_) => options.sketch_head as usize,
                None => options.sketch_matrix as usize,
            };
            let seed = hash::seed(&spec.name, band.role as u32, band.head.unwrap_or(u32::MAX));
            let layout = Layout::new(numel, buckets, seed);
            let (role, head, layer) = (band.role, band.head, spec.layer);
            self.slices.push(Slice { tensor: id, role, head, layer, layout, sketch_offset: self.buckets });
            self.buckets += layout.buckets;
        }
        tensor.slices = first..self.slices.len();
    }

    pub fn tensor(&self, id: u32) -> Result<&Tensor> {
        let count = self.tensors.len();
        let missing =
            || Error::NotFound(format!("tensor: there is no tensor with the id {id}; {count} are registered"));
        self.tensors.get(id as usize).ok_or_else(missing)
    }

    /// Says where a tensor's local data lies. `shard`: `None` for all of it. Returns whether the slices became known now.
    ///
    /// Binding the same shape to another address costs two comparisons.
    pub fn bind(
        &mut self,
        id: u32,
        source: Source,
        data: Data,
        shard: Option<Shard>,
        options: &Options,
    ) -> Result<bool> {
        self.tensor(id)?;
        let mut tensor = std::mem::replace(&mut self.tensors[id as usize], Tensor::vacant());
        let whereabouts = |tensor: &Tensor| tensor.bound(source).map(|bound| (bound.memory, bound.view, bound.shard));
        let before = whereabouts(&tensor);
        let resolved = tensor.bind(source, data, shard);
        self.changes += u64::from(whereabouts(&tensor) != before);
        if let Ok(true) = resolved {
            self.add_slices(&mut tensor, id, options);
        }
        self.tensors[id as usize] = tensor;
        resolved
    }

    /// What is bound of a tensor.
    pub fn bound(&self, id: u32, source: Source) -> Result<&Binding> {
        let tensor = self.tensor(id)?;
        let unbound = || invalid!("ids: nothing is bound of '{}' (id {id}); call fgs_bind first", tensor.spec.name);
        tensor.bound(source).ok_or_else(unbound)
    }

    /// What is bound of a tensor lies at another address.
    ///
    /// # Safety
    /// As for [`Memory::moved`].
    pub unsafe fn rebind(&mut self, id: u32, source: Source, base: *const u8) -> Result<()> {
        if self.bound(id, source)?.memory.is_first(base) {
            return Ok(());
        }
        if let Some(binding) = self.tensors[id as usize].slot(source) {
            // SAFETY: the caller's promise.
            binding.memory = unsafe { binding.memory.moved(base) };
            self.changes += 1;
        }
        Ok(())
    }

    /// Forgets where a tensor's data lies.
    pub fn unbind(&mut self, id: u32, source: Source) -> Result<()> {
        self.tensor(id)?;
        *self.tensors[id as usize].slot(source) = None;
        self.changes += 1;
        Ok(())
    }

    /// What to read of each slice: of gradients or parameters, of the tensors that `wanted` names and that count.
    pub fn reads(&self, of_gradients: bool, wanted: impl Fn(usize, &Tensor) -> bool) -> Vec<Option<SliceRead<'_>>> {
        let mut reads = vec![None; self.slices.len()];
        for (id, tensor) in self.tensors.iter().enumerate() {
            if !tensor.counts() || !wanted(id, tensor) {
                continue;
            }
            let binding = if of_gradients { tensor.gradient.as_ref() } else { tensor.parameters() };
            if let Some(binding) = binding {
                self.read(tensor, binding, &mut reads);
            }
        }
        reads
    }

    /// What to read of one kind of data, of the tensors that `wanted` names.
    pub fn reads_of(&self, source: Source, wanted: impl Fn(u32) -> bool) -> Vec<Option<SliceRead<'_>>> {
        let mut reads = vec![None; self.slices.len()];
        for (id, tensor) in (0..).zip(&self.tensors) {
            if let Some(binding) = tensor.bound(source).filter(|_| wanted(id)) {
                self.read(tensor, binding, &mut reads);
            }
        }
        reads
    }

    /// Fills in what to read of one binding, leaving out slices of which nothing is local.
    pub fn read<'a>(&self, tensor: &Tensor, binding: &'a Binding, reads: &mut [Option<SliceRead<'a>>]) {
        for (slice, segments) in tensor.slices.clone().zip(&binding.segments) {
            if !segments.is_empty() {
                reads[slice] = Some(SliceRead { layout: self.slices[slice].layout, memory: binding.memory, segments });
            }
        }
    }

    /// The bound output projection of a layer as model width × (heads · width), if it is there as a whole and has these
    /// heads.
    pub fn output_projection(&self, layer: u32, heads: u32, first_head: u32) -> Option<Strided> {
        let fits = |tensor: &&Tensor| {
            let TensorSpec { role, layer: of, heads: map, .. } = &tensor.spec;
            (*role, *of, map.heads, map.head_offset) == (Role::Output, Some(layer), heads, first_head)
                && map.layout == HeadLayout::Separate
        };
        let tensor = self.tensors.iter().find(|tensor| fits(tensor) && tensor.parameters().is_some())?;
        let (rows, cols) = tensor.spec.shape?;
        let Binding { memory, view, shard, .. } = tensor.parameters()?;
        if *shard != Shard::whole(tensor.spec.numel) {
            return None;
        }
        // A matrix without gaps is a single row of the view; one with gaps inside its rows has other rows than the view.
        let row_step = match view.rows {
            1 => cols as i64 * view.col_step,
            found if found == rows => view.row_step,
            _ => return None,
        };
        let matrix = Strided::new(*memory, [(rows, row_step), (cols, view.col_step)])?;
        Some(if tensor.spec.heads.axis == 1 { matrix } else { matrix.transposed() })
    }

    /// Explicit mantissa bits of the parameters of a slice as they are bound now.
    pub fn mantissa_bits(&self, slice: usize) -> i32 {
        let tensor = &self.tensors[self.slices[slice].tensor as usize];
        tensor.parameters().map_or(23, Binding::mantissa_bits)
    }

    /// A binding that is used once and not kept: data that is fed.
    pub fn transient(&self, id: u32, data: Data, shard: Option<Shard>) -> Result<Binding> {
        let tensor = self.tensor(id)?;
        if tensor.bands.is_empty() {
            return Err(invalid!(
                "tensor.cols: '{}' must be registered with rows and cols to be fed",
                tensor.spec.name
            ));
        }
        let shard = tensor.check(data.view, shard)?;
        Ok(tensor.binding(data, shard))
    }

    /// The catalog entries of a tensor and its slices.
    pub fn entries(&self, id: u32) -> Vec<Entry> {
        let tensor = &self.tensors[id as usize];
        let spec = &tensor.spec;
        let (rows, cols) = spec.shape.unwrap_or((spec.numel, 1));
        let mut entries = vec![Entry::Tensor(TensorEntry {
            id,
            name: spec.name.clone(),
            role: spec.role as u16,
            layer: spec.layer.map_or(-1, |layer| layer as i32),
            expert: spec.expert.map_or(-1, |expert| expert as i32),
            head_count: spec.heads.heads,
            kv_head_count: spec.heads.kv_heads,
            rows,
            cols,
            group: spec.group,
            flags: spec.flags,
        })];
        for slice in &self.slices[tensor.slices.clone()] {
            if let Some(head) = slice.head {
                entries.push(Entry::Slice {
                    tensor: id,
                    slice: head_slice(slice.role, head),
                    name: format!("{}.{head}", slice.role.name()),
                    role: slice.role as u16,
                    numel: slice.layout.numel,
                });
            }
        }
        entries
    }
}

impl Tensor {
    /// Stands in for a tensor while it is taken out.
    fn vacant() -> Self {
        let spec = TensorSpec {
            name: String::new(),
            role: Role::Other,
            layer: None,
            expert: None,
            group: 0,
            numel: 0,
            shape: None,
            heads: HeadMap { layout: HeadLayout::None, ..HeadMap::WHOLE },
            flags: 0,
            replica: 0,
            tied_to: None,
            stack: 1,
        };
        let schedule = Schedule { every: 0, start: 0, end: 0 };
        Self { spec, schedule, bands: Vec::new(), cols: 0, slices: 0..0, gradient: None, parameter: None, master: None }
    }

    /// The shard that `view` is, checked.
    fn check(&self, view: View, shard: Option<Shard>) -> Result<Shard> {
        let numel = self.spec.numel;
        if shard.is_none() && view.numel() != numel {
            return Err(invalid!(
                "tensor.shape: the data of '{}' has {} elements, the tensor was registered with {numel}; for a part of \
                 it use fgs_bind_shard",
                self.spec.name,
                view.numel()
            ));
        }
        let shard = shard.unwrap_or(Shard::whole(numel));
        shard.check(numel, view.numel())?;
        Ok(shard)
    }

    fn binding(&self, data: Data, shard: Shard) -> Binding {
        let segments = segments(&data.view, &shard, &self.bands, self.cols);
        Binding { memory: data.memory, view: data.view, shard, segments }
    }

    fn slot(&mut self, source: Source) -> &mut Option<Binding> {
        match source {
            Source::Gradient => &mut self.gradient,
            Source::Parameter => &mut self.parameter,
            Source::Master => &mut self.master,
        }
    }

    /// Returns whether the bands became known by it.
    fn bind(&mut self, source: Source, data: Data, shard: Option<Shard>) -> Result<bool> {
        let shard = self.check(data.view, shard)?;
        if let Some(binding) = self.slot(source)
            && (binding.view, binding.shard) == (data.view, shard)
        {
            binding.memory = data.memory;
            return Ok(false);
        }
        let unresolved = self.bands.is_empty();
        if unresolved {
            // A head map over columns needs the shape: whole data has it.
            let (rows, cols) = data.shape;
            if rows * cols != self.spec.numel || cols == 1 {
                return Err(invalid!(
                    "tensor.cols: the heads of '{}' are bands of columns; register it with rows and cols",
                    self.spec.name
                ));
            }
            self.bands = self.spec.heads.bands(self.spec.role, rows, cols)?;
            self.spec.shape = Some((rows, cols));
            self.cols = cols;
        }
        let binding = self.binding(data, shard);
        *self.slot(source) = Some(binding);
        Ok(unresolved)
    }

    /// The tensor enters the sums: it is neither a further copy nor another name of one that does.
    pub fn counts(&self) -> bool {
        self.spec.tied_to.is_none() && self.spec.replica == 0
    }

    /// A gradient is bound that enters the sums.
    pub fn has_gradient(&self) -> bool {
        self.counts() && self.gradient.is_some()
    }

    /// Where one kind of its data lies.
    pub fn bound(&self, source: Source) -> Option<&Binding> {
        match source {
            Source::Gradient => self.gradient.as_ref(),
            Source::Parameter => self.parameter.as_ref(),
            Source::Master => self.master.as_ref(),
        }
    }

    /// Parameters as they are measured: the master copy if there is one.
    pub fn parameters(&self) -> Option<&Binding> {
        self.master.as_ref().or(self.parameter.as_ref())
    }

    pub fn slices(&self) -> std::ops::Range<usize> {
        self.slices.clone()
    }
}

impl Binding {
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Bytes from the first element to the end of the last.
    pub fn bytes(&self) -> usize {
        let View { rows, cols, row_step, col_step } = self.view;
        let last = |count: u64, step| (count as i64 - 1) * step;
        self.memory.bytes(0, last(rows, row_step) + last(cols, col_step)).len()
    }

    /// Per slice of the tensor.
    pub fn segments(&self) -> &[Vec<Segment>] {
        &self.segments
    }

    /// Addresses of the elements, as ranges of bytes that have gaps only where elements lie apart in both dimensions.
    pub fn runs(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.segments.iter().flatten().flat_map(move |s| {
            let (rows, columns) = ((s.rows, s.row_step), (s.length, s.column_step));
            let is_transposed = s.rows > 1 && s.row_step < s.column_step;
            let ((count, step), (length, inner)) = match () {
                () if s.is_contiguous() => ((1, 0), (s.numel(), 1)),
                () if is_transposed => (columns, rows),
                () => (rows, columns),
            };
            (0..count as i64).map(move |k| {
                let first = s.offset + k * step;
                self.memory.bytes(first, first + (length as i64 - 1) * inner)
            })
        })
    }

    /// Explicit bits of the mantissa of the bound type.
    pub fn mantissa_bits(&self) -> i32 {
        self.memory.dtype.mantissa_bits()
    }
}
