//! Saying where a tensor's data lies.

use super::boundary::{Failure, Outcome};
use super::handle::{call, fgs_scope};
use super::status::fgs_status;
use super::tensor::{check_range, fgs_dltensor, fgs_shard, local_tensor, shard};
use crate::scope::Source;
use std::ffi::c_void;

/// Which data of a tensor is meant.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fgs_data {
    /// Gradient.
    FGS_GRAD = 0,
    /// Parameters as the model uses them.
    FGS_PARAM = 1,
    /// fp32 master copy of the parameters; measured instead of FGS_PARAM where bound, since bf16 hides small updates.
    FGS_MASTER = 2,
}

fn source(what: u32) -> Outcome<Source> {
    match what {
        0 => Ok(Source::Gradient),
        1 => Ok(Source::Parameter),
        2 => Ok(Source::Master),
        other => Err(Failure::invalid(format!("what: {other} is not an fgs_data"))),
    }
}

/// Says where all of a tensor's data lies: `what` is FGS_GRAD, FGS_PARAM or FGS_MASTER.
///
/// The data is read later, inside `fgs_gradients_ready`, `fgs_step_end`, `fgs_reference_add`, `fgs_snapshot`,
/// `fgs_task_end`, `fgs_probe_head_output` and the functions of a curvature run, and never outside them. A curvature run also
/// writes to FGS_PARAM. The data must stay readable until it is bound to something else or unbound with `tensor` NULL.
/// Binding again costs little when only the address changes, so it may be done in every step; `fgs_rebind` does it for many
/// tensors at once.
///
/// Accepted: float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, in host memory, row-major or any strides that
/// amount to at most two dimensions. With layer_count > 1 at registration, the whole stacked buffer may be bound to the first id: its first
/// dimension is the layer (or layer × rows). Unbinding the first id, with `tensor` NULL or without elements, unbinds all
/// layers, however they were bound. Errors: FGS_ERROR_NOT_FOUND (id), FGS_ERROR_INVALID (what, shape),
/// FGS_ERROR_UNSUPPORTED (device, dtype, strides).
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `tensor` must be NULL or describe readable memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_bind(
    scope: *mut fgs_scope,
    id: u32,
    what: u32,
    tensor: *const fgs_dltensor,
) -> fgs_status {
    // SAFETY: the same promise.
    unsafe { fgs_bind_shard(scope, id, what, tensor, std::ptr::null()) }
}

/// Says where this rank's part of a tensor lies. `shard` tells which elements of the unsharded tensor it is; NULL: all.
///
/// Whatever is not covered belongs to other ranks and is never read here. Data that was cut at any place is fine, also in
/// the middle of a row or head. With a shard `id` is one tensor, never a stack. Otherwise as `fgs_bind`.
///
/// # Safety
/// As for `fgs_bind`; `shard` must be NULL or readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_bind_shard(
    scope: *mut fgs_scope,
    id: u32,
    what: u32,
    tensor: *const fgs_dltensor,
    shard: *const fgs_shard,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe {
        call(scope, |front| {
            let source = source(what)?;
            let (stack, numel) = front.stack(id)?;
            // As with data: no shard means the whole stack, a shard is of one layer.
            let layers = if shard.is_null() { stack } else { 1 };
            let mut unbind = || Ok((id..id + layers).try_for_each(|id| front.unbind(id, source))?);
            if tensor.is_null() {
                return unbind();
            }
            let data = local_tensor(tensor)?;
            let shard = self::shard(shard, data.numel())?;
            if data.numel() == 0 {
                return unbind();
            }
            if stack > 1 && shard.is_none() && data.numel() == numel * u64::from(stack) {
                for layer in 0..stack {
                    let Some(part) = data.layer(layer, stack) else {
                        return Err(Failure::invalid(format!(
                            "tensor.shape: the first dimension does not hold {stack} layers of equal size"
                        )));
                    };
                    front.bind(id + layer, source, part.data()?, None)?;
                }
                return Ok(());
            }
            Ok(front.bind(id, source, data.data()?, shard)?)
        })
    }
}

/// Says that the data of `count` tensors lies at other addresses: `data[i]` is the first element of tensor `ids[i]` from now
/// on. Everything else is as it was bound: shape, strides, dtype, device, shard. A NULL address unbinds the tensor, which
/// then needs `fgs_bind` again; an address that is bound already costs nothing.
///
/// For trainers that allocate gradients anew in every step (PyTorch's `zero_grad(set_to_none=True)`): one call instead of
/// one per tensor, needed only where `fgs_step_sampled` says so. All or nothing. Errors: FGS_ERROR_NULL,
/// FGS_ERROR_NOT_FOUND (id), FGS_ERROR_INVALID (what; a tensor that is not bound; alignment), FGS_ERROR_UNSUPPORTED
/// (device).
///
/// # Safety
/// `scope` must come from `fgs_open` and not have been closed; `ids` and `data` must be readable up to `count`, or count 0;
/// addresses must be of readable memory, as for `fgs_bind`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fgs_rebind(
    scope: *mut fgs_scope,
    what: u32,
    ids: *const u32,
    data: *const *mut c_void,
    count: u64,
) -> fgs_status {
    // SAFETY: the caller's promise.
    unsafe {
        call(scope, |front| {
            let source = source(what)?;
            if count == 0 {
                return Ok(());
            }
            if ids.is_null() {
                return Err(Failure::null("ids"));
            }
            if data.is_null() {
                return Err(Failure::null("data"));
            }
            let ids = std::slice::from_raw_parts(ids, count as usize);
            let data = std::slice::from_raw_parts(data, count as usize);
            let moves = ids.iter().zip(data).map(|(&id, data)| (id, data.cast_const().cast::<u8>()));
            for (id, address) in moves.clone() {
                let (memory, bytes) = front.bound(id, source)?;
                if !address.is_null() && !memory.is_first(address) {
                    check_range(address, bytes, memory.dtype, memory.place)?;
                }
            }
            for (id, address) in moves {
                match address.is_null() {
                    true => front.unbind(id, source)?,
                    false => front.rebind(id, source, address)?,
                }
            }
            Ok(())
        })
    }
}
