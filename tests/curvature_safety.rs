//! The parameters end as they began, to the last bit, wherever a run is given up; and what cannot be measured is refused.

mod curvature_support;

use curvature_support::{Quadratic, Run, bits, data, of_kind, spec, start};
use forgetscope::device::{DType, Memory};
use forgetscope::ring::Record;
use forgetscope::scope::schema::{Fault, kind};
use forgetscope::scope::{
    CurvatureSettings, CurvatureWant, Data, Error, Options, REPLICATED, Shard, Source, TIED, TensorSpec,
};

const N: usize = 60;

fn small() -> CurvatureSettings {
    CurvatureSettings {
        lanczos_steps: 4,
        trace_vectors: 2,
        eigenvectors: 2,
        path_points: 3,
        block_vectors: 2,
        blocks: vec![1],
        ..CurvatureSettings::default()
    }
}

/// A task with a base and a drift, so that every kind of request comes.
fn prepared(quadratic: &Quadratic, options: Options) -> Run {
    let mut run = Run::new(&[40, 20], start(N), options);
    run.scope.front().task_begin("a").unwrap();
    run.measure("a", small(), &|x| quadratic.loss_and_gradient(x));
    run.scope.front().task_end().unwrap();
    run.scope.front().task_begin("b").unwrap();
    run.scope.front().step_begin(1).unwrap();
    run.scope.front().gradients_ready(1.0, false).unwrap();
    run.parameters.iter_mut().for_each(|x| *x *= 1.01);
    run.scope.front().step_end(true).unwrap();
    run.scope.flush().unwrap();
    run
}

/// Answers `count` requests; `true`: asks for the next one and leaves it unanswered.
fn answer(run: &mut Run, quadratic: &Quadratic, count: u32, asks: bool) {
    run.begin("a", small()).unwrap();
    for _ in 0..count {
        let request = run.scope.front().curvature_next().unwrap();
        let loss = run.compute(&|x| quadratic.loss_and_gradient(x), request.want);
        run.scope.front().curvature_submit(loss, 1.0).unwrap();
    }
    if asks {
        assert_ne!(run.scope.front().curvature_next().unwrap().want, CurvatureWant::Done);
    }
}

fn count_of_requests(run: &mut Run, quadratic: &Quadratic) -> u32 {
    let mut count = 0;
    let before = bits(&run.parameters);
    run.begin("a", small()).unwrap();
    loop {
        let request = run.scope.front().curvature_next().unwrap();
        if request.want == CurvatureWant::Done {
            break;
        }
        if count > 0 && request.want == CurvatureWant::Gradient {
            assert_ne!(bits(&run.parameters), before, "request {count} is about other parameters");
        }
        let loss = run.compute(&|x| quadratic.loss_and_gradient(x), request.want);
        run.scope.front().curvature_submit(loss, 1.0).unwrap();
        count += 1;
    }
    assert_eq!(bits(&run.parameters), before);
    count
}

fn faults(records: &[Record]) -> usize {
    of_kind(records, kind::FAULT).iter().filter(|r| r.values[0] == f64::from(Fault::Curvature as u8)).count()
}

#[test]
fn given_up_at_every_request() {
    let quadratic = Quadratic::like_a_network(N);
    let mut run = prepared(&quadratic, Options::default());
    let requests = count_of_requests(&mut run, &quadratic);
    // The gradient, 4 Lanczos steps, a sample, two relative ones, drift, two old eigenvectors, a tensor, three losses.
    assert_eq!(requests, 1 + 2 * (4 + 1 + 2 + 1 + 2 + (4 + 6)) + 3);
    let before = bits(&run.parameters);
    type End = fn(&mut Run);
    let ends: [(&str, End); 6] = [
        ("fgs_curvature_end", |run| run.scope.front().curvature_end().expect("put back")),
        ("fgs_step_begin", |run| {
            run.scope.front().step_begin(2).unwrap();
            run.scope.front().step_end(false).unwrap();
        }),
        ("fgs_task_end", |run| {
            run.scope.front().task_end().unwrap();
            run.scope.front().task_begin("b").unwrap();
        }),
        ("a loss that is not finite", |run| {
            let error = run.scope.front().curvature_submit(f64::NAN, 1.0).unwrap_err();
            assert!(matches!(&error, Error::InvalidArgument(text) if text.starts_with("loss")), "{error}");
        }),
        ("a gradient that is not finite", |run| {
            run.gradients[50] = f32::INFINITY;
            // Losses alone do not look at it.
            if run.scope.front().curvature_submit(1.0, 1.0).is_ok() {
                run.scope.front().curvature_end().unwrap();
            }
        }),
        ("other parameters", |run| run.scope.front().unbind(0, Source::Parameter).unwrap()),
    ];
    let mut given_up = 0;
    for (name, end) in ends {
        for count in 0..requests {
            let asks = name.starts_with("a ");
            for asks in [asks, true] {
                answer(&mut run, &quadratic, count, asks);
                end(&mut run);
                assert_eq!(bits(&run.parameters), before, "{name} after {count} answers");
                given_up += 1;
                let error = run.scope.front().curvature_next().unwrap_err();
                assert!(matches!(error, Error::WrongPhase(_)), "{name}: {error}");
                let again = data(&mut run.parameters, 0, 40);
                run.scope.front().bind(0, Source::Parameter, again, None).unwrap();
            }
        }
    }
    let records = run.close();
    // The last loss is the last request: with it the run is complete, whatever the gradient is.
    assert_eq!(faults(&records), given_up - 2);
    let complete = of_kind(&records, kind::CURVATURE).iter().filter(|r| r.tensor == u32::MAX).count();
    assert_eq!(complete, 2 + 2, "runs that were given up publish nothing");
}

#[test]
fn the_scope_closes_at_every_request() {
    let quadratic = Quadratic::like_a_network(N);
    let mut run = prepared(&quadratic, Options::default());
    let requests = count_of_requests(&mut run, &quadratic);
    for count in 0..requests {
        let mut run = prepared(&quadratic, Options { ring_slots: 1024, ..Options::default() });
        let before = bits(&run.parameters);
        answer(&mut run, &quadratic, count, true);
        let (records, parameters) = run.close_keeping();
        assert_eq!(bits(&parameters), before, "after {count} answers");
        assert_eq!(faults(&records), 1);
    }
}

#[test]
fn calls_that_read_parameters_are_refused_meanwhile() {
    let quadratic = Quadratic::like_a_network(N);
    let mut run = prepared(&quadratic, Options::default());
    answer(&mut run, &quadratic, 2, true);
    let phase = |result: Result<(), Error>, word: &str| match result {
        Err(Error::WrongPhase(text)) => assert!(text.contains(word), "{text}"),
        other => panic!("{other:?}, not {word}"),
    };
    phase(run.scope.front().snapshot(Some("a")), "fgs_curvature_end");
    phase(run.scope.front().reference_add("a", 1, 1.0), "fgs_curvature_end");
    phase(run.scope.front().task_begin("c"), "fgs_curvature_end");
    phase(run.begin("a", small()), "fgs_curvature_end");
    phase(run.scope.front().curvature_next().map(drop), "fgs_curvature_submit");
    let loss = run.compute(&|x| quadratic.loss_and_gradient(x), CurvatureWant::Gradient);
    let front = || run.scope.front();
    assert!(matches!(front().curvature_submit(loss, 0.0), Err(Error::InvalidArgument(_))));
    // Gradients may move and even be away for a moment; the request stands.
    front().unbind(1, Source::Gradient).unwrap();
    let refused = front().curvature_submit(loss, 1.0);
    assert!(matches!(&refused, Err(Error::InvalidArgument(text)) if text.contains("'t1'")), "{refused:?}");
    let mut elsewhere = run.gradients[40..].to_vec();
    run.scope.front().bind(1, Source::Gradient, data(&mut elsewhere, 0, 20), None).unwrap();
    run.scope.front().curvature_submit(loss, 1.0).unwrap();
    phase(run.scope.front().curvature_submit(loss, 1.0), "fgs_curvature_next");
    run.scope.front().curvature_end().unwrap();
    run.scope.front().curvature_end().unwrap();
    phase(run.scope.front().curvature_next().map(drop), "fgs_curvature_begin");
    run.scope.front().step_begin(3).unwrap();
    phase(run.begin("a", small()), "fgs_step_end");
    run.scope.front().step_end(false).unwrap();
    let gradient = data(&mut run.gradients, 0, 40);
    run.scope.front().unbind(0, Source::Gradient).unwrap();
    run.scope.front().reference_feed("a", 0, gradient, None, 1.0).unwrap();
    phase(run.begin("a", small()), "fgs_reference_add");
    run.close();
}

#[test]
fn the_budget_says_how_much_is_missing() {
    // Four vectors of 60 elements; Hutch++ in a tensor of 40 needs five of those beside the original.
    let options = |bytes| Options { budget_bytes: Some(bytes), snapshot_at_task_end: false, ..Options::default() };
    let run = Run::new(&[40, 20], start(N), options(4 * 240 - 7));
    let error = run.begin("a", CurvatureSettings { blocks: vec![], ..small() }).unwrap_err();
    assert!(matches!(&error, Error::Config(text) if text.starts_with("budget_bytes: 7 bytes are missing")), "{error}");
    let hutch = || CurvatureSettings { blocks: vec![0], block_vectors: 3, ..small() };
    let error = run.begin("a", hutch()).unwrap_err();
    assert!(error.to_string().contains("87 bytes are missing"), "{error}");
    // What was refused or given up is free again.
    let run = Run::new(&[40, 20], start(N), options(240 + 5 * 160));
    for _ in 0..3 {
        run.begin("a", hutch()).unwrap();
        run.scope.front().curvature_end().unwrap();
    }
    run.close();
}

#[test]
fn arguments_are_checked() {
    let run = Run::new(&[40, 20], start(N), Options::default());
    let refused = |change: fn(&mut CurvatureSettings), word: &str| {
        let mut settings = small();
        change(&mut settings);
        let error = run.begin("a", settings).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(|s| s.lanczos_steps = 0, "curvature.lanczos_steps");
    refused(|s| s.trace_vectors = 1 << 20, "curvature.trace_vectors");
    refused(|s| (s.lanczos_steps, s.density_vectors) = (4096, 4096), "more than 1048576");
    refused(|s| s.path_points = 1, "curvature.path_points");
    refused(|s| s.block_vectors = 0, "curvature.block_vectors");
    refused(|s| s.relative_step = 0.0, "curvature.relative_step");
    refused(|s| s.relative_step = f64::NAN, "curvature.relative_step");
    refused(|s| s.relative_step = 0.5, "curvature.relative_step");
    refused(|s| s.blocks = vec![9], "9");
    refused(|s| s.blocks = vec![1, 1], "curvature.blocks");
    assert!(run.begin("", small()).unwrap_err().to_string().contains("name"));
    run.scope.front().unbind(0, Source::Gradient).unwrap();
    refused(|_| (), "'t0' is bound and no FGS_GRAD");
    run.scope.front().unbind(0, Source::Parameter).unwrap();
    refused(|s| s.blocks = vec![0], "curvature.blocks");
    run.scope.front().unbind(1, Source::Parameter).unwrap();
    refused(|_| (), "'t1' is bound and no FGS_PARAM");
    run.scope.front().unbind(1, Source::Gradient).unwrap();
    refused(|_| (), "no fp32 parameter");
    run.close();
}

#[test]
fn parameters_that_are_not_finite_are_refused() {
    let mut run = Run::new(&[40, 20], start(N), Options::default());
    run.parameters[7] = f32::NAN;
    let error = run.begin("a", small()).unwrap_err();
    assert!(error.to_string().contains("1 parameters are not finite"), "{error}");
    run.parameters[7] = 1.0;
    run.begin("a", small()).unwrap();
    run.close();
}

/// A tensor more, whose parameters and gradient are bound as `bind` says; the refusal that follows.
fn refusal_with(options: Options, change: impl FnOnce(&mut TensorSpec), bind: impl FnOnce(&mut Run, u32)) -> String {
    let mut run = Run::new(&[40, 20], start(N), options);
    let mut spec = spec("more", 20);
    change(&mut spec);
    let id = run.scope.front().register(spec).unwrap();
    bind(&mut run, id);
    let before = bits(&run.parameters);
    let error = run.begin("a", CurvatureSettings { blocks: vec![], ..small() });
    assert_eq!(bits(&run.parameters), before);
    let text = error.map_or_else(|error| error.to_string(), |()| String::new());
    run.scope.front().curvature_end().unwrap();
    run.close();
    text
}

fn bind(run: &Run, id: u32, source: Source, data: Data) {
    run.scope.front().bind(id, source, data, None).unwrap();
}

#[test]
fn memory_that_cannot_be_moved_alike_is_refused() {
    let (mut values, mut slopes) = (vec![0.5f32; 64], vec![0.0f32; 64]);
    let text = refusal_with(
        Options::default(),
        |_| (),
        |run, id| {
            // SAFETY: the buffer outlives the run.
            let memory = unsafe { Memory::new(values.as_mut_ptr().cast(), DType::Bf16) };
            bind(run, id, Source::Parameter, Data { memory, ..data(&mut slopes, 0, 20) });
            bind(run, id, Source::Gradient, data(&mut slopes, 0, 20));
            bind(run, id, Source::Master, data(&mut values, 20, 20));
        },
    );
    assert!(text.contains("FGS_PARAM of 'more' is bfloat16") && text.contains("FGS_MASTER"), "{text}");
    let text = refusal_with(
        Options::default(),
        |_| (),
        |run, id| {
            bind(run, id, Source::Master, data(&mut values, 0, 20));
            bind(run, id, Source::Gradient, data(&mut slopes, 0, 20));
        },
    );
    assert!(text.contains("only FGS_MASTER"), "{text}");
    let text = refusal_with(
        Options::default(),
        |_| (),
        |run, id| {
            let half = Shard { offset: 0, length: 10, step: 10, runs: 1 };
            run.scope.front().bind(id, Source::Parameter, data(&mut values, 0, 10), Some(half)).unwrap();
            bind(run, id, Source::Gradient, data(&mut slopes, 0, 20));
        },
    );
    assert!(text.contains("covers 10 of 20 elements"), "{text}");
    let text = refusal_with(
        Options::default(),
        |_| (),
        |run, id| {
            let part = data(&mut run.parameters, 30, 20);
            bind(run, id, Source::Parameter, part);
            bind(run, id, Source::Gradient, data(&mut slopes, 0, 20));
        },
    );
    assert!(text.contains("'t0' and 'more' share memory"), "{text}");
    // A transposed view has its columns side by side: nothing is shared.
    let text = refusal_with(
        Options::default(),
        |spec| spec.shape = Some((4, 5)),
        |run, id| {
            let mut transposed = data(&mut values, 0, 20);
            (transposed.view.rows, transposed.view.cols) = (4, 5);
            (transposed.view.row_step, transposed.view.col_step) = (1, 4);
            bind(run, id, Source::Parameter, transposed);
            bind(run, id, Source::Gradient, data(&mut slopes, 0, 20));
        },
    );
    assert_eq!(text, "");
    let text = refusal_with(Options { world_size: 2, ..Options::default() }, |_| (), |_, _| ());
    assert!(text.contains("not FGS_TENSOR_REPLICATED"), "{text}");
    let replica = |spec: &mut TensorSpec| (spec.flags, spec.replica) = (REPLICATED, 1);
    let text = refusal_with(Options::default(), replica, |run, id| {
        bind(run, id, Source::Parameter, data(&mut values, 0, 20));
        bind(run, id, Source::Gradient, data(&mut slopes, 0, 20));
    });
    assert!(text.contains("replica 1"), "{text}");
}

#[test]
fn another_name_moves_with_the_tensor_only_in_the_same_memory() {
    let tied = |spec: &mut TensorSpec| (spec.flags, spec.tied_to) = (TIED, Some(1));
    let mut elsewhere = vec![0.5f32; 20];
    let text = refusal_with(Options::default(), tied, |run, id| {
        bind(run, id, Source::Parameter, data(&mut elsewhere, 0, 20));
    });
    assert!(text.contains("FGS_PARAM of 'more' is tied to 't1'"), "{text}");
    let text = refusal_with(Options::default(), tied, |run, id| {
        let same = data(&mut run.parameters, 40, 20);
        bind(run, id, Source::Parameter, same);
        bind(run, id, Source::Gradient, data(&mut elsewhere, 0, 20));
    });
    assert!(text.contains("FGS_GRAD of 'more' is tied to 't1'"), "{text}");
    let text = refusal_with(Options::default(), tied, |run, id| {
        let same = data(&mut run.parameters, 40, 20);
        bind(run, id, Source::Parameter, same);
    });
    assert_eq!(text, "", "the same memory under two names counts once");
}
