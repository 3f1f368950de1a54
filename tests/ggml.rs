//! ggml's optimizer, measured through its eval callback (examples/ggml): real ggml, real texts, plain SGD, for which the
//! update has to be the fed gradient times the learning rate, and losses that are the same bits without the instrument.

mod abi_support;

use abi_support::{library, printed_by, root};
use forgetscope::ring::{Poll, Reader, Record};
use forgetscope::scope::schema::{kind, level};
use std::path::Path;
use std::process::Command;

const STEPS: u64 = 30;
const EVERY: u64 = 7;
/// What main.cpp trains with.
const RATE: f64 = 0.5;

fn train(program: &Path, directory: &Path, disabled: bool) -> (String, Vec<Record>) {
    let (ring, losses) = (directory.join("ring"), directory.join("losses"));
    let mut command = Command::new(program);
    command.current_dir(root()).env("FGS_RING", &ring).env("FGS_EVERY", EVERY.to_string());
    command.args(["--task", "prose=docs/statistics/landscape.md", "--task", "code=examples/trainer/model.cpp"]);
    command.args(["--steps", &STEPS.to_string(), "--losses"]).arg(&losses);
    if disabled {
        command.env("FGS_DISABLE", "1");
    }
    let said = printed_by(&mut command, "the example");
    assert!(said.contains("after code"), "{said}");
    let losses = std::fs::read_to_string(losses).expect("losses");
    let mut records = Vec::new();
    if !disabled {
        let mut reader = Reader::open(&ring).expect("ring");
        while let Poll::Record(record) = reader.poll().expect("a sound ring") {
            records.push(record);
        }
    }
    (losses, records)
}

#[test]
fn gradients_come_through_the_callback() {
    let build = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ggml");
    std::fs::create_dir_all(&build).expect("directory");
    for name in ["libforgetscope.so", "libforgetscope.so.0"] {
        let link = build.join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(library(), link).expect("link");
    }
    let mut make = Command::new("make");
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").args(["-s", "-C"]).arg(root().join("examples/ggml"));
    make.args([format!("BUILD={0}", build.display()), format!("FGS_LIB={}", build.display())]);
    printed_by(&mut make, "make");
    let program = build.join("ggml_feed");

    let runs = tempfile::tempdir().expect("directory");
    let (without, _) = train(&program, runs.path(), true);
    let (with, records) = train(&program, runs.path(), false);
    assert_eq!(with, without, "the instrument changes no loss");

    let of = |step: u64, what: u16| {
        let found = records.iter().filter(|r| (r.step, r.kind, r.level) == (step, what, level::TENSOR));
        found.map(|r| (r.tensor, r.values)).collect::<std::collections::BTreeMap<_, _>>()
    };
    // The first graph is watched only.
    let sampled: Vec<u64> = (1..2 * STEPS).filter(|step| step % EVERY == 0).collect();
    assert!(of(0, kind::GRADIENT).is_empty());
    for step in sampled {
        let (gradients, updates) = (of(step, kind::GRADIENT), of(step, kind::UPDATE));
        assert_eq!((gradients.len(), updates.len()), (4, 4), "step {step}");
        for (tensor, gradient) in gradients {
            let (squares, moved) = (gradient[1], updates[&tensor][1]);
            assert!(squares > 0.0, "step {step}, tensor {tensor}");
            // An element moves by the rate times its gradient, rounded to fp32 at the weight's own size: at most half a unit
            // in the last place of a weight, whose energy is bounded by 2⁻⁴⁸ times that of the weights.
            let rounding = (updates[&tensor][2] * 2f64.powi(-48)).sqrt();
            let error = (moved.sqrt() - RATE * squares.sqrt()).abs();
            assert!(error <= rounding + 1e-6 * moved.sqrt(), "step {step}, tensor {tensor}: off by {error}");
        }
    }
    let interference = records.iter().filter(|r| r.kind == kind::INTERFERENCE && r.level == level::MODEL).count();
    assert!(interference >= 4, "the second task is compared with the first");
}
