//! A real trainer on real MPI, examples/mpi_trainer: with the library preloaded it trains as without, and what is measured
//! from outside is what a program that is linked with forgetscope measures from inside.

mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use forgetscope::scope::schema::{kind, level::MODEL};
use support::{Mpi, Plan, Records, Run, said_by};

const STEPS: u64 = 60;
/// Elements of both buckets of tests/c/collectives.c.
const ELEMENTS: f64 = 4096.0 + 8192.0;
/// Steps before this are not sampled: without a layout file the first ones are not seen.
const START: u64 = 20;

/// The example with a small model on two texts, which travel with the repository.
fn plan(mpi: Mpi, program: &str, ranks: usize, collective: &str) -> Plan {
    let steps = STEPS.to_string();
    sized_plan(mpi, program, ranks, collective, &steps)
}

fn sized_plan(mpi: Mpi, program: &str, ranks: usize, collective: &str, steps: &str) -> Plan {
    let plan = Plan::new(mpi, mpi.trainer(program), ranks);
    let losses = plan.directory().join("losses");
    let plan = plan.variable("FGS_EVERY", "5").variable("FGS_START_STEP", START.to_string());
    // On a busy machine steps would be left out.
    let plan = plan.variable("FGS_PRELOAD_FLUSH", "1").arguments(["--flush", "1"]);
    let plan = plan.arguments(["--task", "prose=docs/ring.md", "--task", "code=examples/trainer/model.cpp"]);
    let plan = plan.arguments(["--batch", "2", "--context", "32", "--width", "32", "--heads", "4", "--layers", "2"]);
    let plan = plan.arguments(["--bucket-bytes", "20000", "--steps", steps, "--collective", collective]);
    plan.arguments(["--losses".into(), losses.into_os_string()])
}

/// Both tasks, as the linked program begins them.
fn tasks() -> String {
    format!("prose@0,code@{STEPS}")
}

/// The file that says which tensors lie in which bucket.
fn layout() -> &'static str {
    static LAYOUT: OnceLock<(tempfile::TempDir, String)> = OnceLock::new();
    let (_, path) = LAYOUT.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("layout.json").to_str().unwrap().to_owned();
        sized_plan(Mpi::Open, "trainer_mpi", 1, "allreduce", "1").arguments(["--layout", &path]).run().succeeded();
        (directory, path)
    });
    path
}

/// The linked program: what is compared with. Of all-reduce with two ranks, and reduce-scatter with four.
fn linked(collective: &str, ranks: usize) -> &'static Run {
    static RUNS: [OnceLock<Run>; 2] = [const { OnceLock::new() }; 2];
    let run = &RUNS[usize::from(collective == "reduce_scatter")];
    run.get_or_init(|| {
        let run = plan(Mpi::Open, "trainer_mpi_linked", ranks, collective).run().succeeded();
        assert_eq!(run.messages(), [] as [&str; 0]);
        run
    })
}

#[track_caller]
fn assert_measured(records: &Records, from: u64) {
    let steps: Vec<u64> = (from..2 * STEPS).step_by(5).collect();
    assert_eq!(records.steps(), steps);
    assert_eq!(records.of(kind::FAULT).count(), 0);
}

/// The program that is preloaded into knows nothing of forgetscope.
#[test]
fn the_trainer_is_not_linked_with_the_library() {
    let program = Mpi::Open.trainer("trainer_mpi");
    let symbols = said_by(Command::new("nm").arg(&program));
    assert!(symbols.contains("MPI_Allreduce") && !symbols.to_lowercase().contains("fgs_"), "{symbols}");
    let libraries = said_by(Command::new("ldd").arg(&program));
    assert!(libraries.contains("libmpi") && !libraries.contains("forgetscope"), "{libraries}");
}

/// Without the library, with it and not told anything, and measured in every step: the same losses to the last bit.
#[test]
fn losses_are_the_same_bits() {
    for (mpi, ranks, collective) in [
        (Mpi::Open, 2, "allreduce"),
        (Mpi::Open, 4, "iallreduce"),
        (Mpi::Open, 4, "reduce_scatter"),
        (Mpi::Mpich, 2, "iallreduce"),
    ] {
        let plan = || plan(mpi, "trainer_mpi", ranks, collective);
        let without = plan().run().succeeded();
        let inert = plan().inert().run().succeeded();
        assert!(inert.messages().is_empty() && inert.ranks.is_empty(), "{}", inert.said);
        let told_not_to = plan().inert().variable("FGS_PRELOAD", "0").run().succeeded();
        assert!(told_not_to.messages().is_empty() && told_not_to.ranks.is_empty(), "{}", told_not_to.said);
        let disabled = plan().preloaded().variable("FGS_DISABLE", "1").run().succeeded();
        assert!(disabled.messages().is_empty() && disabled.ranks.is_empty(), "{}", disabled.said);
        let measured = plan().preloaded().variable("FGS_EVERY", "1").variable("FGS_PRELOAD_PARAMETERS", "1");
        let measured = measured.variable("FGS_PRELOAD_TASKS", tasks()).run().succeeded();
        assert!(measured.ranks[0].steps().len() > 90, "{:?} {collective}: {}", mpi, measured.said);
        for run in [&inert, &told_not_to, &disabled, &measured] {
            assert_eq!(without.file("losses"), run.file("losses"), "{mpi:?} {collective}");
        }
    }
}

/// With a layout file: names, heads, every statistic of gradients, on the first rank.
#[test]
fn reduced_gradients_are_those_of_the_linked_program() {
    let linked = &linked("allreduce", 2).ranks[0];
    assert_measured(linked, START);
    for mpi in Mpi::ALL {
        let run = plan(mpi, "trainer_mpi", 2, "allreduce").preloaded();
        let run = run.variable("FGS_PRELOAD_LAYOUT", layout()).variable("FGS_PRELOAD_TASKS", tasks());
        let run = run.run().succeeded();
        assert_measured(&run.ranks[0], START);
        assert_eq!(run.ranks[0].tensors, linked.tensors);
        let compared = run.ranks[0].assert_same(linked);
        let counts: BTreeMap<u16, usize> = [kind::GRADIENT, kind::INTERFERENCE, kind::CORRECTED, kind::PROJECTION]
            .into_iter()
            .map(|kind| (kind, linked.of(kind).count()))
            .collect();
        for (kind, count) in counts {
            assert!(count > 0 && compared.get(&kind) == Some(&count), "kind {kind}: {count} and {compared:?}");
        }
        // All ranks have the same gradients; one of them measures.
        assert_eq!(run.ranks[1].of(kind::GRADIENT).count(), 0);
    }
}

/// However a trainer waits for its requests.
#[test]
fn requests_are_seen_to_complete() {
    let linked = &linked("allreduce", 2).ranks[0];
    for (mpi, waiting) in ["all", "each", "any", "some", "test"]
        .map(|waiting| (Mpi::Open, waiting))
        .into_iter()
        .chain([(Mpi::Mpich, "all"), (Mpi::Mpich, "test")])
    {
        let run = plan(mpi, "trainer_mpi", 2, "iallreduce").arguments(["--waiting", waiting]).preloaded();
        let run = run.variable("FGS_PRELOAD_LAYOUT", layout()).variable("FGS_PRELOAD_TASKS", tasks());
        let run = run.run().succeeded();
        assert_measured(&run.ranks[0], START);
        let compared = run.ranks[0].assert_same(linked);
        assert!(compared[&kind::INTERFERENCE] == linked.of(kind::INTERFERENCE).count(), "{mpi:?} {waiting}");
    }
}

/// Every function that is interposed, with numbers that are known beforehand.
#[test]
fn every_form_of_a_collective_is_measured() {
    const BOTH: [(&str, &str); 12] = [
        ("Allreduce", "none"),
        ("Iallreduce", "none"),
        ("Allreduce", "Bcast"),
        ("Iallreduce", "Ibcast"),
        ("Reduce_scatter", "Allgather"),
        ("Reduce_scatter", "Allgatherv"),
        ("Reduce_scatter_block", "Allgather"),
        ("Reduce_scatter_block", "Iallgather"),
        ("Ireduce_scatter", "Allgatherv"),
        ("Ireduce_scatter_block", "Iallgatherv"),
        ("Ireduce_scatter", "Iallgather"),
        ("Ireduce_scatter_block", "Iallgather"),
    ];
    // With counts of 64 bits, which the other has not.
    const MPICH: [(&str, &str); 3] =
        [("Allreduce_c", "Bcast_c"), ("Iallreduce_c", "none"), ("Reduce_scatter_block_c", "Allgather_c")];
    let open = BOTH.iter().map(|forms| (Mpi::Open, forms));
    for (mpi, &(reduction, gathering)) in open.chain(BOTH.iter().chain(&MPICH).map(|forms| (Mpi::Mpich, forms))) {
        // One rank: what is started is complete at once, and all requests are the same.
        for ranks in [1, 2] {
            let plan = Plan::new(mpi, mpi.program("collectives"), ranks).preloaded().arguments([reduction, gathering]);
            let plan =
                plan.variable("FGS_EVERY", "3").variable("FGS_START_STEP", "21").variable("FGS_PRELOAD_FLUSH", "1");
            let parameters = if gathering == "none" { "0" } else { "1" };
            let run = plan.variable("FGS_PRELOAD_PARAMETERS", parameters).run().succeeded();
            let context = format!("{mpi:?} {reduction} {gathering} {ranks}: {}", run.said);
            let sum = |kind, index: usize, step| -> f64 {
                let records = run.ranks.iter().flat_map(|rank| rank.of(kind));
                let of_step = records.filter(|(subject, _)| subject.2 == step && subject.1 == MODEL);
                // A rank that has only copies of what another measures says NaN.
                of_step.map(|(_, values)| values[index]).filter(|value| !value.is_nan()).sum()
            };
            for step in [21, 24, 27, 30, 33, 36] {
                let each = (ranks * (ranks + 1) / 2) as f64 * (step + 1) as f64;
                // Whole numbers, whose sums in float32 are exact up to a rounding of each block's.
                let expected = ELEMENTS * each * each;
                let squares = sum(kind::STEP, 1, step);
                assert!((squares - expected).abs() <= 6e-8 * expected, "step {step}: {squares} {expected} {context}");
                if gathering != "none" {
                    assert_eq!(sum(kind::UPDATE, 1, step), ELEMENTS, "step {step}: {context}");
                }
            }
            assert!(run.ranks.iter().all(|rank| rank.of(kind::FAULT).count() == 0), "{context}");
        }
    }
}

/// Without a layout file: buckets by number, and the same sum over all of them.
#[test]
fn steps_are_found_without_a_layout() {
    let linked = &linked("allreduce", 2).ranks[0];
    let run = plan(Mpi::Open, "trainer_mpi", 2, "allreduce").preloaded().variable("FGS_PRELOAD_TASKS", tasks());
    let run = run.run().succeeded();
    let said = run.messages().join("\n");
    assert!(said.contains("a step is 9 buckets of 42880 elements in 9 collectives"), "{said}");
    assert_measured(&run.ranks[0], START);
    assert_eq!(run.ranks[0].tensors, (0..9).map(|n| format!("bucket.{n}")).collect::<Vec<_>>());
    let squares = |records: &Records| -> Vec<f64> { records.of(kind::STEP).map(|(_, values)| values[1]).collect() };
    for (ours, theirs) in squares(&run.ranks[0]).into_iter().zip(squares(linked)) {
        // The same numbers in other blocks, within which they are summed in float32: a rounding of the sum is 2^-24 of it.
        assert!((ours - theirs).abs() <= 6e-8 * theirs, "{ours} and {theirs}");
    }
}

/// ZeRO-1: each rank has a part of every bucket, cut anywhere, and parameters are gathered.
#[test]
fn scattered_gradients_and_gathered_parameters_are_those_of_the_linked_program() {
    let linked = linked("reduce_scatter", 4);
    for (mpi, variable) in [(Mpi::Open, "1"), (Mpi::Mpich, "1")] {
        let run = plan(mpi, "trainer_mpi", 4, "reduce_scatter").preloaded();
        let run = run.variable("FGS_PRELOAD_LAYOUT", layout()).variable("FGS_PRELOAD_TASKS", tasks());
        let run = run.variable("FGS_PRELOAD_PARAMETERS", variable).run().succeeded();
        assert_eq!(run.messages().iter().filter(|line| !line.contains("rank 0: ")).count(), 0, "{}", run.said);
        // MPICH may add in another order, which changes training.
        if mpi == Mpi::Open {
            for (ours, theirs) in run.ranks.iter().zip(&linked.ranks) {
                assert_measured(ours, START);
                let compared = ours.assert_same(theirs);
                for kind in [kind::GRADIENT, kind::INTERFERENCE, kind::UPDATE, kind::ALIGNMENT, kind::DRIFT] {
                    let count = theirs.of(kind).count();
                    assert!(count > 0 && compared.get(&kind) == Some(&count), "kind {kind}: {count} and {compared:?}");
                }
            }
        }
        // Parts add up to the whole: the gradients' elements, each once.
        let elements: f64 = (run.ranks.iter().flat_map(|rank| rank.of(kind::STEP)))
            .filter(|(subject, _)| subject.2 == START)
            .map(|(_, values)| values[4])
            .sum();
        assert_eq!(elements, 42880.0);
        assert!(run.ranks.iter().all(|rank| rank.of(kind::DRIFT).count() > 0));
    }
}

/// Only communicators of the size that is wanted count, and their tensors are told apart by the rank that they begin with.
#[test]
fn other_communicators_are_left_out() {
    for mpi in Mpi::ALL {
        let run = Plan::new(mpi, mpi.program("split"), 4).preloaded().variable("FGS_PRELOAD_RANKS", "2");
        let run = run
            .variable("FGS_EVERY", "1")
            .variable("FGS_PRELOAD_FLUSH", "1")
            .variable("FGS_PRELOAD_TASK", "a")
            .run()
            .succeeded();
        let names = |first: usize| (0..3).map(|n| format!("rank{first}.bucket.{n}")).collect::<Vec<_>>();
        for (rank, first) in [(0, 0), (1, 1), (2, 0), (3, 1)] {
            assert_eq!(run.ranks[rank].tensors, names(first), "{mpi:?}, rank {rank}");
        }
        // Gradients of rank 0 are 2 b + 2 in bucket b, of 8000, 3000 and 3000 elements.
        let squares = 8000.0 * 4.0 + 3000.0 * 16.0 + 3000.0 * 36.0;
        let measured: Vec<f64> = run.ranks[0].of(kind::STEP).map(|(_, values)| values[1]).collect();
        assert!(measured.len() >= 20 && measured.iter().all(|&step| step == squares), "{measured:?}");
        assert_eq!(run.ranks[2].of(kind::GRADIENT).count(), 0, "the second copy is not measured");
    }
}

/// What fails fails as before; a child that is forked leaves its parent's scope alone.
#[test]
fn failures_are_the_trainers_own() {
    for mpi in Mpi::ALL {
        let plan = || Plan::new(mpi, mpi.program("errors"), 1);
        let calls = |run: &Run| {
            let lines = run.said.lines().filter(|line| line.starts_with("call ") || line.starts_with("flag "));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let without = plan().run().succeeded();
        let measured =
            plan().preloaded().variable("FGS_EVERY", "1").variable("FGS_PRELOAD_FLUSH", "1").run().succeeded();
        assert_eq!(calls(&without).len(), 11, "{}", without.said);
        assert_eq!(calls(&without), calls(&measured));
        // Steps of an all-reduce, a reduce-scatter of one rank, and nothing of the calls that failed.
        let said = measured.messages().join("\n");
        assert!(said.contains("a step is 2 buckets of 8192 elements in 2 collectives"), "{said}");
        assert_eq!(measured.ranks.len(), 1, "{said}");
        assert_eq!(measured.ranks[0].steps().last(), Some(&23));
    }
}

/// A layout of another model is said, with numbers, and buckets are measured by number.
#[test]
fn a_layout_that_does_not_fit_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout.json");
    std::fs::write(&path, r#"{"version": 1, "buckets": [{"numel": 4711, "tensors": []}]}"#).unwrap();
    let run = plan(Mpi::Open, "trainer_mpi", 2, "allreduce").preloaded();
    let run = run.variable("FGS_PRELOAD_LAYOUT", path.to_str().unwrap()).run().succeeded();
    let said = run.messages().join("\n");
    let expected = "the layout has buckets of [4711] elements, and the trainer reduces [8192, 4320, ";
    assert!(said.contains(expected), "{said}");
    assert!(run.ranks[0].tensors.contains(&"bucket.0".into()) && run.ranks[0].steps().len() > 10, "{said}");
}

#[test]
fn mistakes_are_said_and_training_goes_on() {
    let run = plan(Mpi::Open, "trainer_mpi", 2, "allreduce").preloaded().variable("FGS_PRELOAD_SCALE", "much");
    let run = run.run().succeeded();
    let expected = "FGS_PRELOAD_SCALE: 'much' is not a finite number above zero; training is not measured";
    assert_eq!(run.messages().len(), 1, "by one rank: {}", run.said);
    assert!(run.messages().iter().all(|line| line.contains(expected)), "{}", run.said);
    assert!(run.ranks.is_empty());
}

/// Nothing that could be measured: the reason is guessed at, once, at the end or before.
#[test]
fn nothing_to_measure_is_said() {
    let no_step = |program: &str| plan(Mpi::Open, program, 2, "allreduce").preloaded();
    let helped = Plan::new(Mpi::Open, Mpi::Open.trainer("trainer_mpi"), 1).preloaded().arguments(["--help"]);
    // Whoever comes first, the thread that waits or the end of the process.
    let said = helped.variable("FGS_PRELOAD_PATIENCE", "0").run().succeeded().messages().join("\n");
    assert!(said.contains("no collective came through") && said.lines().count() == 1, "{said}");
    let small = no_step("trainer_mpi").variable("FGS_PRELOAD_MIN_ELEMENTS", "1000000").run().succeeded();
    let said = small.messages().join("\n");
    assert!(said.contains("the largest had 8192 elements") && said.lines().count() == 1, "{said}");
    let other = no_step("trainer_mpi").variable("FGS_PRELOAD_STEP", "1000").run().succeeded();
    let said = other.messages().join("\n");
    assert!(said.matches("no sequence of them repeated").count() == 1, "{said}");
}

/// From another process, while it trains: all ranks do it before the same step.
#[test]
fn commands_are_carried_out_by_all_ranks() {
    // Time enough for the commands, and room for all records.
    let run = sized_plan(Mpi::Open, "trainer_mpi", 2, "allreduce", "1500").preloaded();
    let run = run.variable("FGS_RING_SLOTS", (1 << 20).to_string());
    let run = run.variable("FGS_RUN", "commands").variable("FGS_PRELOAD_TASK", "prose").run_with(|directory| {
        let mut clients = clients(directory, 2);
        let at = clients.iter().map(forgetscope::control::Client::step).max().unwrap() + 500;
        let mut tell = |command: forgetscope::control::Command, at: u64| {
            clients.iter_mut().for_each(|client| client.send(&command, at).unwrap());
            clients.iter().map(wait).collect::<Vec<_>>()
        };
        use forgetscope::control::Command as Say;
        let begun = tell(Say::TaskBegin("code".into()), at);
        assert!(begun.iter().all(|answer| answer.step == at && answer.text.contains("not measured")), "{begun:?}");
        let every = tell(Say::Every(1), at + 30);
        assert!(every.iter().all(|answer| answer.step >= at + 30), "{every:?}");
        let refused = tell(Say::Snapshot, 0);
        assert!(refused.iter().all(|answer| answer.text.contains("no parameters are visible")), "{refused:?}");
        std::fs::write(directory.join("at"), at.to_string()).unwrap();
    });
    let run = run.succeeded();
    let at: u64 = run.file("at").parse().unwrap();
    let begun = run.ranks[0].of(kind::TASK).find(|(subject, _)| subject.5 == "code").map(|(subject, _)| subject.2);
    assert_eq!(begun, Some(at - 1), "a task's event has the number of the step before");
    let last = run.ranks[0].steps().into_iter().rev().take(20).collect::<Vec<_>>();
    assert!(last.windows(2).all(|pair| pair[0] == pair[1] + 1), "every step is sampled at the end: {last:?}");
}

/// Scripts between the launcher and the ranks do not make each of them a job of its own.
#[test]
fn ranks_that_are_started_by_a_shell_are_one_job() {
    for mpi in Mpi::ALL {
        let run = sized_plan(mpi, "trainer_mpi", 2, "allreduce", "1500").preloaded().through_a_shell();
        let run = run.run_with(|directory| {
            let clients = clients(directory, 2);
            assert_eq!(clients[0].identity().job, clients[1].identity().job, "{mpi:?}");
        });
        run.succeeded();
    }
}

/// Tasks that were over before the first step that could be measured, and variables that nobody reads.
#[test]
fn what_has_no_effect_is_said() {
    let run = plan(Mpi::Open, "trainer_mpi", 2, "allreduce").preloaded();
    let run = run.variable("FGS_PRELOAD_TASKS", "a@0,b@1,c@40").variable("FGS_PRELOAD_TAKS", "d@50");
    let run = run.variable("FGS_PRELOAD_PARAMETERS", "1").run().succeeded();
    let said = run.messages().join("\n");
    assert!(said.contains("FGS_PRELOAD_TAKS: there is no such variable"), "{said}");
    assert!(said.contains("after a was over"), "{said}");
    assert!(said.contains("FGS_PRELOAD_PARAMETERS: nothing is gathered or broadcast in a step"), "{said}");
    let tasks: Vec<&str> = run.ranks[0].of(kind::TASK).map(|(subject, _)| subject.5.as_str()).collect();
    assert!(!tasks.contains(&"a") && tasks.contains(&"b") && tasks.contains(&"c"), "{tasks:?}");
}

/// Clients of all ranks, as soon as they train.
fn clients(directory: &std::path::Path, ranks: usize) -> Vec<forgetscope::control::Client> {
    use forgetscope::control::Client;
    let begun = Instant::now();
    loop {
        let rings = forgetscope::ring::discover(Some(directory));
        let clients: Vec<_> =
            rings.iter().filter_map(|ring| Client::open(&ring.path, ring.header.instance).ok()).collect();
        if clients.len() == ranks && clients.iter().all(|client| client.step() > 2) {
            return clients;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the ranks do not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait(client: &forgetscope::control::Client) -> forgetscope::control::Answer {
    let begun = Instant::now();
    loop {
        if let Some(answer) = client.answer().unwrap() {
            return answer;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no answer");
        std::thread::sleep(Duration::from_millis(5));
    }
}
