//! A layout file that the Python package writes is one that is read.

mod support;

use std::process::Command;

use support::{Mpi, Plan, library, root, said_by};

/// Of a chunk as Megatron-Core has it.
#[test]
fn a_layout_of_megatron_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout.json");
    let mut python = Command::new(root().join("build/torch/bin/python"));
    python.arg(root().join("bindings/preload/tests/python/layout.py")).arg(&layout);
    python.env("PYTHONPATH", root().join("bindings/python/src")).env("FGS_LIB", library("libforgetscope.so"));
    said_by(&mut python);
    let plan = Plan::new(Mpi::Open, Mpi::Open.program("habits"), 2).arguments(["buckets"]).preloaded();
    let run = plan.variable("FGS_PRELOAD_LAYOUT", layout.to_str().unwrap()).run().succeeded();
    let said = run.messages().join("\n");
    assert!(said.contains("a step is 2 buckets of 6144 elements in 2 collectives; measuring from step 1"), "{said}");
    let names = ["linear_qkv.weight", "linear_qkv.bias", "linear_proj.weight", "linear_proj.bias"];
    assert_eq!(run.ranks[0].tensors, names.map(|name| format!("decoder.layers.0.self_attention.{name}")));
}
