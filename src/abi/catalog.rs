//! Registering tensors.

use super::boundary::{Failure, Outcome, guard};
use super::handle::{fgs_scope, scope, with_front};
use super::status::fgs_status;
use super::text::{check_struct, required};
use crate::scope::schema::Role;
use crate::scope::{EXPERT, Front, HeadLayout, HeadMap, REPLICATED, TIED, TensorSpec};
use std::ffi::c_char;

/// What a tensor does in the model. Decides the default head map, and sums are taken per role.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fgs_role {
    /// Anything else.
    FGS_ROLE_OTHER = 0,
    /// Token embedding.
    FGS_ROLE_EMBEDDING = 1,
    /// Learned position embedding.
    FGS_ROLE_POSITION = 2,
    /// Query projection; heads are bands of rows.
    FGS_ROLE_QUERY = 3,
    /// Key projection; heads are bands of rows.
    FGS_ROLE_KEY = 4,
    /// Value projection; heads are bands of rows.
    FGS_ROLE_VALUE = 5,
    /// Query, key and value in one tensor: see fgs_head_layout.
    FGS_ROLE_QKV = 6,
    /// Attention output projection; heads are bands of columns.
    FGS_ROLE_OUTPUT = 7,
    /// Attention output gate; heads are bands of rows.
    FGS_ROLE_GATE = 8,
    /// First matrix of the MLP.
    FGS_ROLE_MLP_IN = 9,
    /// Last matrix of the MLP.
    FGS_ROLE_MLP_OUT = 10,
    /// Gate matrix of a gated MLP.
    FGS_ROLE_MLP_GATE = 11,
    /// Scale or shift of a normalisation.
    FGS_ROLE_NORM = 12,
    /// Router of a mixture of experts.
    FGS_ROLE_ROUTER = 13,
    /// Output head.
    FGS_ROLE_LM_HEAD = 14,
    /// Bias that is not split into heads.
    FGS_ROLE_BIAS = 15,
}

/// How the heads of a tensor lie along its head axis.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fgs_head_layout {
    /// By role, if head_count is set: QKV concatenated; query, key, value, gate and output separate; else none.
    FGS_HEADS_AUTO = 0,
    /// The tensor is one slice.
    FGS_HEADS_NONE = 1,
    /// One head after another, all of the tensor's own role.
    FGS_HEADS_SEPARATE = 2,
    /// All query heads, then all key heads, then all value heads (GPT-2, llm.c).
    FGS_HEADS_CONCATENATED = 3,
    /// Per query group: its query heads, its key head, its value head (Megatron's linear_qkv).
    FGS_HEADS_INTERLEAVED = 4,
    /// Per query group: its query heads, as many gate heads, its key head, its value head.
    FGS_HEADS_INTERLEAVED_GATED = 5,
}

/// Bits of fgs_tensor.flags.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fgs_tensor_flag {
    /// Other ranks hold the same data; only the copy with `replica` 0 is measured, so that it counts once.
    FGS_TENSOR_REPLICATED = 1,
    /// The tensor is another name of `tied_to`; it is not measured, so that the data counts once.
    FGS_TENSOR_TIED = 2,
    /// The tensor belongs to one expert of a mixture of experts.
    FGS_TENSOR_EXPERT = 4,
}

/// A tensor of the model, as it is without sharding. Initialise with `FGS_TENSOR_INIT`.
///
/// Needed: name, numel. Everything else has a default. Names identify tensors across ranks and runs: the seed of a
/// tensor's sketch is made of its name, so that sketches of shards add up.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct fgs_tensor {
    /// sizeof(fgs_tensor); set by FGS_TENSOR_INIT.
    pub size: u32,
    /// FGS_MAGIC; set by FGS_TENSOR_INIT.
    pub magic: u32,
    /// Unique name, UTF-8, copied. With layer_count > 1 it must contain "{layer}", which is replaced by the number.
    pub name: *const c_char,
    /// Elements of the unsharded tensor.
    pub numel: u64,
    /// Rows and columns of the unsharded tensor, row-major; both 0: taken from the data when it is first bound whole.
    /// Needed for heads that are bands of columns if only shards are bound.
    pub rows: u64,
    /// See rows.
    pub cols: u64,
    /// fgs_role.
    pub role: u32,
    /// Number of the layer, or −1.
    pub layer: i32,
    /// Number of the expert, or −1. Sets FGS_TENSOR_EXPERT.
    pub expert: i32,
    /// A label of the trainer's choice, such as the optimizer's parameter group.
    pub group: u32,
    /// fgs_head_layout.
    pub head_layout: u32,
    /// 0: heads are bands of rows; 1: of columns; FGS_UNSET_U32: by role (columns for FGS_ROLE_OUTPUT).
    pub head_axis: u32,
    /// Query heads in this tensor; 0: not split.
    pub head_count: u32,
    /// Key/value heads in this tensor; 0: as many as head_count. A separate key or value projection has only these.
    pub kv_head_count: u32,
    /// Number of the first query head in the whole model: tensor parallelism with a tensor registered per rank.
    pub head_offset: u32,
    /// Number of the first key/value head in the whole model.
    pub kv_head_offset: u32,
    /// Bits of fgs_tensor_flag.
    pub flags: u32,
    /// Which of several equal copies this is, with FGS_TENSOR_REPLICATED.
    pub replica: u32,
    /// Id of the tensor that this one is another name of, with FGS_TENSOR_TIED.
    pub tied_to: u32,
    /// Layers stacked in one buffer (llm.c): registers as many tensors, with consecutive ids and layers.
    pub layer_count: u32,
}

/// Adds a tensor to the catalog. Its id in `*id` is used in all other calls; with layer_count > 1 it is the first of
/// layer_count consecutive ids.
///
/// May be called at any time, also during training. Nothing is measured before data is bound or fed. Errors:
/// FGS_ERROR_NULL, FGS_ERROR_STRUCT, FGS_ERROR_INVALID (the sentence names the field).
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `tensor` must be NULL or readable, with a terminated name;
/// `id` must be NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_register(scope: *mut fgs_scope, tensor: *const fgs_tensor, id: *mut u32) -> fgs_status {
    guard(|| {
        // SAFETY: the caller's promise, for all.
        let (handle, tensor, id) = unsafe { (self::scope(scope)?, tensor.as_ref(), id.as_mut()) };
        let tensor = tensor.ok_or_else(|| Failure::null("tensor"))?;
        let id = id.ok_or_else(|| Failure::null("id"))?;
        check_struct(tensor.size, tensor.magic, size_of::<fgs_tensor>(), "fgs_tensor")?;
        // SAFETY: the caller's promise.
        let name = unsafe { required(tensor.name, "tensor.name") }?;
        let spec = specification(tensor, name)?;
        if handle.is_none() {
            *id = 0;
        }
        let register = |front: &mut Front| {
            if tensor.layer_count == 1 {
                *id = front.register(spec)?;
                return Ok(());
            }
            let layers = (0..tensor.layer_count).map(|layer| {
                let number = tensor.layer as u32 + layer;
                let name = spec.name.replace("{layer}", &number.to_string());
                let stack = if layer == 0 { tensor.layer_count } else { 1 };
                TensorSpec { name, layer: Some(number), stack, ..spec.clone() }
            });
            *id = front.register_all(layers.collect())?;
            Ok(())
        };
        // SAFETY: the caller's promise.
        unsafe { with_front(scope, register) }
    })
}

/// The tensor's description, checked.
fn specification(tensor: &fgs_tensor, name: &str) -> Outcome<TensorSpec> {
    let invalid = |text: String| Err(Failure::invalid(text));
    let Some(role) = Role::from_number(tensor.role) else {
        return invalid(format!("tensor.role: {} is not an fgs_role", tensor.role));
    };
    if name.is_empty() {
        return invalid("tensor.name is empty".into());
    }
    if tensor.numel == 0 || tensor.numel > 1 << 48 {
        return invalid(format!("tensor.numel: {} is not between 1 and 2^48", tensor.numel));
    }
    let shape = match (tensor.rows, tensor.cols) {
        (0, 0) => None,
        (rows, cols) if rows.checked_mul(cols) == Some(tensor.numel) => Some((rows, cols)),
        (rows, cols) => {
            return invalid(format!("tensor.rows: {rows} rows of {cols} columns are not {} elements", tensor.numel));
        }
    };
    let known = REPLICATED | TIED | EXPERT;
    if tensor.flags & !known != 0 {
        return invalid(format!("tensor.flags: {:#x} has bits that are no fgs_tensor_flag", tensor.flags));
    }
    let is_tied = tensor.flags & TIED != 0;
    if is_tied != (tensor.tied_to != u32::MAX) {
        return invalid("tensor.tied_to: FGS_TENSOR_TIED and an id in tied_to belong together".into());
    }
    if tensor.replica > 0 && tensor.flags & REPLICATED == 0 {
        return invalid(format!("tensor.replica: {} needs FGS_TENSOR_REPLICATED", tensor.replica));
    }
    if tensor.layer_count == 0 || tensor.layer_count > 1 << 16 {
        return invalid(format!("tensor.layer_count: {} is not between 1 and 65536", tensor.layer_count));
    }
    if tensor.layer_count > 1 && (!name.contains("{layer}") || tensor.layer < 0) {
        return invalid(
            "tensor.layer_count: several layers need a name that contains {layer}, and the number of the first layer"
                .into(),
        );
    }
    Ok(TensorSpec {
        name: name.into(),
        role,
        layer: u32::try_from(tensor.layer).ok(),
        expert: u32::try_from(tensor.expert).ok(),
        group: tensor.group,
        numel: tensor.numel,
        shape,
        heads: head_map(tensor, role)?,
        flags: tensor.flags | if tensor.expert >= 0 { EXPERT } else { 0 },
        replica: tensor.replica,
        tied_to: is_tied.then_some(tensor.tied_to),
        stack: 1,
    })
}

fn head_map(tensor: &fgs_tensor, role: Role) -> Outcome<HeadMap> {
    // A separate key or value projection is split into key/value heads, of which the model may have fewer.
    let is_separate = matches!(tensor.head_layout, 0 | 2);
    let heads = match role {
        Role::Key | Role::Value if is_separate && tensor.kv_head_count > 0 => tensor.kv_head_count,
        _ => tensor.head_count,
    };
    let is_split = heads > 0;
    let layout = match tensor.head_layout {
        0 if !is_split => HeadLayout::None,
        0 => match role {
            Role::Qkv => HeadLayout::Concatenated,
            Role::Query | Role::Key | Role::Value | Role::Gate | Role::Output => HeadLayout::Separate,
            _ => HeadLayout::None,
        },
        1 => HeadLayout::None,
        2 => HeadLayout::Separate,
        3 => HeadLayout::Concatenated,
        4 => HeadLayout::Interleaved,
        5 => HeadLayout::InterleavedGated,
        other => return Err(Failure::invalid(format!("tensor.head_layout: {other} is not an fgs_head_layout"))),
    };
    if layout == HeadLayout::None {
        return Ok(HeadMap::WHOLE);
    }
    let kv_heads = if tensor.kv_head_count == 0 { heads } else { tensor.kv_head_count };
    for (argument, count, offset) in
        [("tensor.head_count", heads, tensor.head_offset), ("tensor.kv_head_count", kv_heads, tensor.kv_head_offset)]
    {
        if count == 0 || count.checked_add(offset).is_none_or(|end| end > 1 << 16) {
            let text = format!("{argument}: {count} heads from number {offset} on are not between 1 and 65536");
            return Err(Failure::invalid(text));
        }
    }
    let axis = match tensor.head_axis {
        u32::MAX => u32::from(role == Role::Output),
        axis @ (0 | 1) => axis,
        other => return Err(Failure::invalid(format!("tensor.head_axis: {other} is neither 0 nor 1"))),
    };
    Ok(HeadMap {
        layout,
        axis,
        heads,
        kv_heads,
        head_offset: tensor.head_offset,
        kv_head_offset: tensor.kv_head_offset,
    })
}

const _: () = {
    assert!(fgs_role::FGS_ROLE_BIAS as u32 == Role::Bias as u32);
    assert!(fgs_role::FGS_ROLE_OUTPUT as u32 == Role::Output as u32);
    assert!(fgs_role::FGS_ROLE_QKV as u32 == Role::Qkv as u32);
    assert!(fgs_tensor_flag::FGS_TENSOR_REPLICATED as u32 == REPLICATED);
    assert!(fgs_tensor_flag::FGS_TENSOR_TIED as u32 == TIED);
    assert!(fgs_tensor_flag::FGS_TENSOR_EXPERT as u32 == EXPERT);
};
