//! mpi4py, which looks for functions of MPI 4 and finds ours where the library has none: they have to work.

mod support;

use std::fs;

use forgetscope::scope::schema::kind;
use support::{Mpi, Plan, root};

#[test]
fn python_reduces_as_without() {
    let python = root().join("build/mpi4py/bin/python");
    assert!(python.is_file(), "no {}: run `make mpi4py`", python.display());
    let script = root().join("bindings/preload/tests/python/reduce.py");
    assert!(fs::exists(&script).unwrap());
    // Debian's MPICH has not the name that mpi4py is built for.
    let plan = || Plan::new(Mpi::Open, python.clone(), 2).arguments([script.as_os_str()]);
    let result = |said: &str| said.matches(" of 2: Open MPI, 2").count();
    let without = plan().run().succeeded();
    assert_eq!(result(&without.said), 2, "{}", without.said);
    let inert = plan().inert().run().succeeded();
    assert!(result(&inert.said) == 2 && inert.messages().is_empty() && inert.ranks.is_empty(), "{}", inert.said);
    let run = plan().preloaded().variable("FGS_EVERY", "1").variable("FGS_PRELOAD_FLUSH", "1").run().succeeded();
    assert_eq!(result(&run.said), 2, "{}", run.said);
    assert!(
        run.messages().join("\n").contains("a step is 3 buckets of 21000 elements in 5 collectives"),
        "{}",
        run.said
    );
    assert!(run.ranks[0].of(kind::STEP).count() > 80, "{}", run.said);
}
