//! `forgetscope study`: what was planted is found, risks are calibrated, and mistakes say what to do.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::made_up::{Run, Story};
use common::program::{failure, forgetscope, stdout, text};
use forgetscope::ring::{Entry, Record};
use serde_json::Value;

/// Steps of each task.
const STEPS: u64 = 100;

/// Forgetting in each of twelve runs.
const RISES: [f64; 12] = [0.91, 0.12, 0.55, 0.74, 0.33, 1.12, 0.21, 0.47, 0.83, 0.05, 0.64, 0.39];

/// A recorded run of two tasks in which weights drift early by as much as is forgotten later, give or take a little, and
/// the cosine of gradients has nothing to do with it.
fn recording(directory: &Path, index: usize) -> PathBuf {
    let run =
        Run { name: format!("run {index}"), ..Run::new(directory.join(format!("forgetscope-{index}-0-aa.ring"))) };
    let mut story = run.create().unwrap();
    for (id, name) in [(0, "legal"), (1, "code")] {
        story.writer.append(&Entry::Task { id, name: name.into() }).unwrap();
    }
    story.writer.append(&Entry::Metric { id: 0, name: "loss".into(), higher_is_better: false }).unwrap();
    let rise = RISES[index];
    for task in 0..2 {
        story.begin(task);
        for step in u64::from(task) * STEPS + 1..=u64::from(task + 1) * STEPS {
            story.step = step;
            let step_record = story.record(1, &[1.0, 1.0, 1.0, 0.0, 100.0, 1.0, 1.0, 1e-4]);
            story.publish(step_record);
            if task == 1 && step % 5 == 0 {
                compare(&mut story, index, rise);
            }
        }
        evaluate(&mut story, if task == 0 { 2.0 } else { 2.0 + rise });
        story.end(task);
    }
    story.close();
    let out = directory.join(format!("recording-{index}"));
    assert!(forgetscope(&["record", text(&run.path), "--out", text(&out)]).status.success());
    out
}

fn compare(story: &mut Story, index: usize, rise: f64) {
    let noise = 0.05 * (index as f64 * 2.4).sin();
    let drift = story.compared(8, 0, &[(rise + noise).exp() * 1e-3]);
    story.publish(drift);
    let cosine = story.compared(3, 0, &[0.1 * (index as f64 * 1.7).cos()]);
    story.publish(cosine);
}

fn evaluate(story: &mut Story, loss: f64) {
    let evaluation = story.record(10, &[loss, f64::NAN, f64::NAN, f64::NAN, f64::NAN, 0.0]);
    story.publish(Record { reference: 0, ..evaluation });
}

fn study(directory: &Path, runs: usize, more: &[&str]) -> String {
    let recordings: Vec<PathBuf> = (0..runs).map(|index| recording(directory, index)).collect();
    let paths: Vec<&str> = recordings.iter().map(|path| text(path)).collect();
    stdout(&[&["study"], &paths[..], more].concat())
}

#[test]
fn a_planted_relation_is_found_and_foretold() {
    let directory = tempfile::tempdir().unwrap();
    let forecast = directory.path().join("forecast.json");
    let found: Value =
        serde_json::from_str(&study(directory.path(), 12, &["--json", "--forecast", text(&forecast)])).unwrap();
    let relation = |name: &str| {
        let all = found["relations"].as_array().unwrap();
        all.iter().find(|relation| relation["measure"] == name).unwrap_or_else(|| panic!("no {name}"))
    };
    let drift = relation("drift");
    assert_eq!((&drift["cases"], &drift["runs"]), (&12.into(), &12.into()));
    assert!(
        drift["pearson"]["value"].as_f64().unwrap() > 0.9 && drift["spearman"]["low"].as_f64().unwrap() > 0.8,
        "{drift}"
    );
    let unrelated = relation("interference");
    let (low, high) = (&unrelated["spearman"]["low"], &unrelated["spearman"]["high"]);
    assert!(low.as_f64().unwrap() < 0.0 && high.as_f64().unwrap() > 0.0, "{unrelated}");
    let made = &found["forecast"];
    // Half of the cases are beyond the median; always saying so scores about one quarter.
    assert_eq!((made["rate"].as_f64(), made["runs"].as_u64()), (Some(0.5), Some(12)));
    let (brier, base) =
        (made["brier_leave_one_run_out"].as_f64().unwrap(), made["brier_of_the_rate"].as_f64().unwrap());
    assert!(brier < 0.6 * base && base > 0.2, "{brier} {base}");
    for (case, rise) in found["cases"].as_array().unwrap().iter().zip(RISES) {
        assert!((case["forgetting"].as_f64().unwrap() - rise).abs() < 1e-12);
        assert_eq!(case["early_steps"], 15);
        assert!(case["measures"]["cka_drop"].is_null(), "nobody measured it");
        let risk = case["risk"].as_f64().unwrap();
        assert!(
            (rise - 0.51).abs() < 0.2 || (risk > 0.5) == (rise > 0.51),
            "far from the threshold the side is right: {case}"
        );
    }
    let written: Value = serde_json::from_str(&fs::read_to_string(&forecast).unwrap()).unwrap();
    assert_eq!(written["calibrated_on"][3]["run"], "run 3");
    assert_eq!(written["calibrated_on"][0]["tasks"], serde_json::json!(["legal", "code"]));
}

#[test]
fn the_table_is_for_people() {
    let directory = tempfile::tempdir().unwrap();
    let said = study(directory.path(), 4, &["--threshold", "0.6"]);
    assert!(said.starts_with("4 cases of 4 runs"), "{said}");
    assert!(
        said.contains("weight drift since then, ln")
            && said.contains("cosine of single gradients")
            && !said.contains("drop of CKA")
    );
    assert!(
        said.contains("legal → code") && said.contains("Forecast of a rise beyond 0.6 from the first 15 %"),
        "{said}"
    );
    assert!(said.contains("always saying the rate of the other runs"), "{said}");
    let recordings: Vec<PathBuf> = (0..4).map(|index| directory.path().join(format!("recording-{index}"))).collect();
    let paths: Vec<&str> = recordings.iter().map(|path| text(path)).collect();
    let next = stdout(&[&["study", "--next-only", "--threshold", "0.6"], &paths[..]].concat());
    assert_eq!(next, said, "of two tasks one is always next");
    let alone = stdout(&["study", text(&directory.path().join("recording-0"))]);
    assert!(alone.contains("[–, –]") && alone.contains("No forecast: it takes at least two runs."), "{alone}");
}

#[test]
fn a_report_shows_the_forecast_and_what_happened() {
    let directory = tempfile::tempdir().unwrap();
    let forecast = directory.path().join("forecast.json");
    study(directory.path(), 6, &["--forecast", text(&forecast)]);
    let report = |path: &Path| stdout(&["report", text(path), "--forecast", text(&forecast), "--out", "-"]);
    let known = report(&directory.path().join("recording-0"));
    assert!(
        known.contains("id=\"forecast\"")
            && known.contains("legal, while code")
            && known.contains("rose by 0.91: beyond")
    );
    assert!(known.contains("calibrated on 6 cases of 6 runs") && known.contains("This very run is among them"));
    assert!(known.contains("an average stands for it") && known.contains("drop of CKA"), "nobody probed");
    let another = report(&recording(directory.path(), 9));
    assert!(another.contains("models of the same size as this one") && another.contains("rose by 0.05<"), "not beyond");
    // A task that goes on: its risk is known before its end.
    let run = Run::new(directory.path().join("forgetscope-99-0-bb.ring"));
    let mut story = run.create().unwrap();
    story.begin(0);
    story.step = STEPS;
    story.end(0);
    story.begin(1);
    story.step = STEPS + 20;
    let step = story.record(1, &[1.0]);
    story.publish(step);
    assert!(report(&run.path).contains("not over yet"));
}

#[test]
fn mistakes_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (recording(directory.path(), 0), recording(directory.path(), 1));
    let (first, second) = (text(&first), text(&second));
    assert!(failure(&["study", first, second, first]).contains("are recordings of the same run; give one of them"));
    assert!(failure(&["study", text(directory.path())]).contains("make one with `forgetscope record --out`"));
    assert!(failure(&["study", first, "--early", "0"]).contains("--early: 0 is not a share"));
    assert!(failure(&["study", first, "--threshold", "NaN"]).contains("--threshold"));
    let nowhere = directory.path().join("nowhere/forecast.json");
    assert!(
        failure(&["study", first, "--forecast", text(&nowhere)]).contains("it takes recordings of at least two runs")
    );
    assert!(
        failure(&["study", first, second, "--forecast", text(&nowhere)])
            .contains("choose another file with --forecast")
    );
    let bare = Run { bare: true, ..Run::new(directory.path().join("bare.ring")) };
    bare.write().unwrap();
    let out = directory.path().join("bare");
    assert!(forgetscope(&["record", text(&bare.path), "--out", text(&out)]).status.success());
    assert!(failure(&["study", text(&out)]).contains("no earlier task whose loss was recorded (fgs_record_loss)"));
    let table = directory.path().join("table.txt");
    fs::write(&table, "not a forecast").unwrap();
    let said = failure(&["report", first, "--forecast", text(&table)]);
    assert!(
        said.contains("is no forecast that this version reads; make one with `forgetscope study --forecast`"),
        "{said}"
    );
}
