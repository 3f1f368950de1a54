//! The layout of every struct and the number of every constant, in Rust and in C, checked by both compilers.
//!
//! tests/c/layout.c holds the same list for the header. The two are compared, and each is complete: a field or variant
//! that is missing here does not compile, and one that is missing there differs from here.

#![allow(non_camel_case_types)]

mod abi_support;

use abi_support::{C_COMPILERS, CXX_COMPILERS, WITH_AND_WITHOUT_DLPACK, sources};
use forgetscope::abi::*;
use std::collections::BTreeSet;
use std::mem::offset_of;

/// The name of a field in C: its own, or another one that is given.
macro_rules! name_in_c {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $name:literal) => {
        $name
    };
}

/// Asserts sizes and offsets, and lists them as tests/c/layout.c does.
macro_rules! structs {
    ($($type:ident $size:literal { $($field:ident $(as $name:literal)? at $offset:literal),* $(,)? })*) => {
        const _: () = {
            $(
                assert!(size_of::<$type>() == $size);
                $(assert!(offset_of!($type, $field) == $offset);)*
                // Names every field: one that is added has to be added here.
                let _ = |all: $type| { let $type { $($field: _),* } = all; };
            )*
        };
        fn structs() -> Vec<String> {
            vec![$(
                format!("SIZE({}, {})", stringify!($type), $size),
                $(format!("FIELD({}, {}, {})", stringify!($type), name_in_c!($field $($name)?), $offset),)*
            )*]
        }
        /// Structs with their fields as they are called in C.
        const FIELDS: &[(&str, &[&str])] = &[$((stringify!($type), &[$(name_in_c!($field $($name)?)),*])),*];
    };
}

/// Asserts the numbers of constants, and lists them likewise.
macro_rules! enums {
    ($($type:ident { $($variant:ident = $value:literal),* $(,)? })*) => {
        const _: () = {
            $(
                assert!(size_of::<$type>() == 4);
                $(assert!($type::$variant as i64 == $value);)*
                // Names every variant, likewise.
                let _ = |one: $type| match one { $($type::$variant => ()),* };
            )*
        };
        fn enums() -> Vec<String> {
            vec![$(
                format!("SIZE({}, 4)", stringify!($type)),
                $(format!("VALUE({}, {})", stringify!($variant), $value),)*
            )*]
        }
    };
}

structs! {
    fgs_options 112 {
        size at 0, magic at 4, run at 8, ring_path at 16, include at 24, exclude at 32, ring_slots at 40, every at 48,
        start_step at 56, end_step at 64, budget_bytes at 72, reference_budget at 80, threads at 88, rank at 92,
        world_size at 96, sketch_head at 100, sketch_matrix at 104, window at 108,
    }
    fgs_tensor 96 {
        size at 0, magic at 4, name at 8, numel at 16, rows at 24, cols at 32, role at 40, layer at 44, expert at 48,
        group at 52, head_layout at 56, head_axis at 60, head_count at 64, kv_head_count at 68, head_offset at 72,
        kv_head_offset at 76, flags at 80, replica at 84, tied_to at 88, layer_count at 92,
    }
    fgs_shard 40 { size at 0, magic at 4, offset at 8, run_length at 16, run_step at 24, run_count at 32 }
    fgs_curvature 72 {
        size at 0, magic at 4, task at 8, lanczos_steps at 16, trace_vectors at 20, density_vectors at 24,
        eigenvectors at 28, path_points at 32, block_vectors at 36, blocks at 40, block_count at 48, relative_step at 56,
        seed at 64,
    }
    fgs_curvature_request 20 { size at 0, magic at 4, want at 8, index at 12, total at 16 }
    fgs_dltensor 48 {
        data at 0, device_type as "device.device_type" at 8, device_id as "device.device_id" at 12, ndim at 16,
        dtype_code as "dtype.code" at 20, dtype_bits as "dtype.bits" at 21, dtype_lanes as "dtype.lanes" at 22,
        shape at 24, strides at 32, byte_offset at 40,
    }
    fgs_probe 32 { size at 0, magic at 4, task at 8, continued_updates at 16, flags at 24, run at 28 }
    fgs_attention 72 {
        size at 0, magic at 4, probabilities at 8, query at 16, key at 24, log_sum_exp at 32, scale at 40, softcap at 48,
        mask at 56, window at 60, first_head at 64, reserved at 68,
    }
    fgs_record 120 {
        time_ns at 0, step at 8, kind at 16, level at 18, reserved at 19, flags at 20, rank at 24, task at 28,
        reference at 30, tensor at 32, slice at 36, values at 40,
    }
}

enums! {
    fgs_status {
        FGS_OK = 0, FGS_EMPTY = 1, FGS_CLOSED = 2, FGS_ERROR_NULL = -1, FGS_ERROR_INVALID = -2, FGS_ERROR_STRUCT = -3,
        FGS_ERROR_NOT_FOUND = -4, FGS_ERROR_PHASE = -5, FGS_ERROR_UNSUPPORTED = -6, FGS_ERROR_CONFIG = -7,
        FGS_ERROR_RING = -8, FGS_ERROR_SYSTEM = -9, FGS_ERROR_INTERNAL = -10, FGS_ERROR_FORKED = -11,
    }
    fgs_role {
        FGS_ROLE_OTHER = 0, FGS_ROLE_EMBEDDING = 1, FGS_ROLE_POSITION = 2, FGS_ROLE_QUERY = 3, FGS_ROLE_KEY = 4,
        FGS_ROLE_VALUE = 5, FGS_ROLE_QKV = 6, FGS_ROLE_OUTPUT = 7, FGS_ROLE_GATE = 8, FGS_ROLE_MLP_IN = 9,
        FGS_ROLE_MLP_OUT = 10, FGS_ROLE_MLP_GATE = 11, FGS_ROLE_NORM = 12, FGS_ROLE_ROUTER = 13, FGS_ROLE_LM_HEAD = 14,
        FGS_ROLE_BIAS = 15,
    }
    fgs_head_layout {
        FGS_HEADS_AUTO = 0, FGS_HEADS_NONE = 1, FGS_HEADS_SEPARATE = 2, FGS_HEADS_CONCATENATED = 3,
        FGS_HEADS_INTERLEAVED = 4, FGS_HEADS_INTERLEAVED_GATED = 5,
    }
    fgs_data { FGS_GRAD = 0, FGS_PARAM = 1, FGS_MASTER = 2 }
    fgs_tensor_flag { FGS_TENSOR_REPLICATED = 1, FGS_TENSOR_TIED = 2, FGS_TENSOR_EXPERT = 4 }
    fgs_gradient_flag { FGS_GRADIENTS_UNREDUCED = 1 }
    fgs_probe_flag { FGS_PROBE_BASE = 1 }
    fgs_mask { FGS_MASK_NONE = 0, FGS_MASK_CAUSAL = 1 }
    fgs_curvature_want { FGS_CURVATURE_DONE = 0, FGS_CURVATURE_GRADIENT = 1, FGS_CURVATURE_LOSS = 2 }
    fgs_name {
        FGS_NAME_KIND = 0, FGS_NAME_VALUE = 1, FGS_NAME_TASK = 2, FGS_NAME_TENSOR = 3, FGS_NAME_ROLE = 4,
        FGS_NAME_METRIC = 5, FGS_NAME_LEVEL = 6, FGS_NAME_FLAG = 7, FGS_NAME_FAULT = 8,
    }
}

fn source(name: &str) -> String {
    std::fs::read_to_string(sources().join(name)).expect("a file of tests/c")
}

#[test]
fn both_lists_are_the_same() {
    let here: BTreeSet<String> = structs().into_iter().chain(enums()).collect();
    let source = source("layout.c");
    let is_assertion = |line: &&str| ["SIZE(", "FIELD(", "VALUE("].iter().any(|word| line.starts_with(word));
    let there: BTreeSet<String> = source.lines().filter(is_assertion).map(str::to_owned).collect();
    assert_eq!(here.difference(&there).collect::<Vec<_>>(), Vec::<&String>::new(), "missing in tests/c/layout.c");
    assert_eq!(there.difference(&here).collect::<Vec<_>>(), Vec::<&String>::new(), "missing in tests/abi_layout.rs");
}

#[test]
fn compilers_agree() {
    let as_c = C_COMPILERS.map(|compiler| (compiler, "c", "c11"));
    let as_cxx = CXX_COMPILERS.map(|compiler| (compiler, "c++", "c++17"));
    for (compiler, language, standard) in as_c.into_iter().chain(as_cxx) {
        for dlpack in WITH_AND_WITHOUT_DLPACK {
            compiler.check("layout.c", standard, &["-x", language, dlpack]);
        }
    }
}

#[test]
fn initialisers_give_what_is_documented() {
    let source = source("initializers.c");
    for (name, fields) in FIELDS.iter().filter(|(_, fields)| fields.contains(&"magic")) {
        let variable = name.trim_start_matches("fgs_");
        for field in *fields {
            assert!(source.contains(&format!("CHECK({variable}.{field} ")), "initializers.c: {variable}.{field}");
        }
    }
    abi_support::run("initializers");
}
