//! `forgetscope tail`: records as lines and as JSON, now and as they come.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use common::made_up::{Run, UNKNOWN_KIND};
use common::program::{command, failure, stdout, text};
use serde_json::Value;

fn json(arguments: &[&str]) -> Vec<Value> {
    let all: Vec<&str> = [&["tail", "--json", "--no-follow"], arguments].concat();
    stdout(&all).lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn json_has_every_record_and_every_value() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    let published = run.write().unwrap();
    let lines = json(&[text(&run.path), "--from-start"]);
    assert_eq!(lines.len(), published.len());
    for (index, (line, record)) in lines.iter().zip(&published).enumerate() {
        assert_eq!(line["number"], index + 1);
        assert_eq!(line["step"], record.step);
        let values = line["values"].as_object().unwrap();
        let named = values.iter().filter(|(name, _)| !name.ends_with("_name"));
        for ((name, value), expected) in named.zip(record.values) {
            match expected.is_nan() {
                true => assert!(value.is_null(), "{name}: NaN is null"),
                false => assert_eq!(value.as_f64(), Some(expected), "{name}"),
            }
        }
    }
}

#[test]
fn names_come_from_the_catalog() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let path = text(&run.path);
    let heads = json(&[path, "--from-start", "--kind", "interference", "--level", "head"]);
    let planted = heads.iter().find(|line| line["layer"] == 2 && line["role"] == "q" && line["head"] == 1).unwrap();
    assert_eq!((&planted["task"], &planted["reference"]), (&"medical".into(), &"legal".into()));
    assert_eq!(planted["tensor"], "h.2.q.weight");
    assert_eq!(planted["flags"], serde_json::json!(["exact", "frozen"]));
    assert!(planted["values"]["cosine"].as_f64().unwrap() < -0.3);
    let evaluations = json(&[path, "-k", "evaluation", "-n", "1"]);
    assert_eq!(evaluations[0]["values"]["metric_name"], "accuracy");
    let unknown = json(&[path, "-n", "2"]);
    assert_eq!(unknown[0]["kind"], format!("kind_{UNKNOWN_KIND}"));
    assert_eq!(unknown[0]["values"]["value_9"], 1.5);
    assert_eq!(unknown[1]["values"]["code_name"], "sampled steps with NaN or infinite values");
}

#[test]
fn lines_are_for_people() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let all = stdout(&["tail", text(&run.path), "--no-follow", "--from-start"]);
    assert!(!all.contains('\x1b'), "colour is for terminals");
    assert!(all.lines().all(|line| !line.contains("NaN") || line.contains("  fault  ")), "what is missing is left out");
    assert!(all.contains("── training medical ──"));
    assert!(all.contains("layer 2 q.1"));
    let undetermined: Vec<&str> = all.lines().filter(|line| line.contains("undetermined")).collect();
    assert!(!undetermined.is_empty() && undetermined.iter().all(|line| !line.contains(" cosine ")));
    assert!(all.contains("legal       loss  value 2.083  best"), "ids are shown as what they stand for");
    assert_eq!(stdout(&["tail", text(&run.path), "--no-follow", "-n", "3", "-k", "step"]).lines().count(), 4);
}

#[test]
fn lost_records_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run { slots: 256, ..Run::in_directory(directory.path()) };
    let lost = run.write().unwrap().len() as u64 - 256;
    let path = text(&run.path);
    let said = stdout(&["tail", path, "--no-follow", "--from-start"]);
    let grouped = format!("{},{:03}", lost / 1000, lost % 1000);
    assert!(said.starts_with(&format!("… {grouped} records lost\n")), "{}", said.lines().next().unwrap());
    assert_eq!(json(&[path, "--from-start"])[0], serde_json::json!({ "lost": lost }));
}

#[test]
fn a_run_is_followed_until_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    let mut story = run.create().unwrap();
    let mut tail = command(&["tail", text(&run.path)]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines().map(Result::unwrap);
    for step in 0..3 {
        story.step = step;
        let record = story.record(1, &[0.5]);
        story.publish(record);
        if step == 0 {
            assert_eq!(lines.next().unwrap(), "── between tasks ──");
        }
        let line = lines.next().unwrap();
        assert!(
            line.trim_start().starts_with(&format!("{step}  step")) && line.ends_with("gradient_norm 0.5"),
            "{line}"
        );
    }
    story.close();
    assert_eq!(lines.next().unwrap(), "── the run has ended, 3 records in all ──");
    assert!(tail.wait().unwrap().success());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let script =
        format!("'{}' tail --from-start '{}' | head -n 1", env!("CARGO_BIN_EXE_forgetscope"), run.path.display());
    let output = Command::new("bash").args(["-c", &format!("set -o pipefail; {script}")]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn runs_are_named_in_many_ways() {
    let directory = tempfile::tempdir().unwrap();
    let place = text(directory.path());
    let first = Run { name: "alpha".into(), ..Run::new(directory.path().join("forgetscope-1-0-aa11.ring")) };
    first.write().unwrap();
    assert_eq!(json(&["-D", place, "-n", "1"]).len(), 1, "the only run need not be named");
    Run { name: "beta".into(), ..Run::new(directory.path().join("forgetscope-1-0-ab22.ring")) }.write().unwrap();
    for name in ["alpha", "1-0-aa", "forgetscope-1-0-aa11.ring", text(&first.path)] {
        assert_eq!(json(&["-D", place, "-n", "1", name]).len(), 1, "{name}");
    }
    for ambiguous in [vec![], vec!["1-0-a"], vec!["forgetscope-"]] {
        let said = failure(&[&["tail", "-D", place], &ambiguous[..]].concat());
        assert!(said.contains("name one of them") && said.contains("1-0-aa11") && said.contains("beta"), "{said}");
    }
    assert!(failure(&["tail", "-D", place, "gamma"]).contains("no run is called `gamma`; there are:"));
    let pid = std::process::id().to_string();
    assert!(failure(&["tail", "-D", place, &pid]).contains("fits 2 runs"));
}

#[test]
fn filters_that_match_nothing_are_mistakes() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let said = failure(&["tail", text(&run.path), "--kind", "interferense"]);
    assert!(said.contains("no kind `interferense`; choose among step, gradient, interference"), "{said}");
    assert!(failure(&["tail", text(&run.path), "--level", "neuron"]).contains("choose among head, tensor"));
    assert!(failure(&["tail", "/nonexistent/a.ring"]).contains("could not open"));
}
