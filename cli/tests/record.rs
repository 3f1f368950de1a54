//! `forgetscope record`: what is in the files is what was published, whatever happened to the recorder.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampNanosecondType, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use common::made_up::{KINDS, ROLES, Run, TASKS, UNKNOWN_KIND};
use common::program::{command, eventually, failure, forgetscope, text};
use forgetscope::ring::{NONE16, NONE32, Reader, Record};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

fn parts(directory: &Path, kind: &str) -> Vec<PathBuf> {
    let listing = fs::read_dir(directory.join(format!("kind={kind}")).join("rank=0")).into_iter().flatten();
    let mut parts: Vec<PathBuf> = listing.map(|file| file.unwrap().path()).collect();
    parts.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    parts.sort();
    parts
}

fn batches(directory: &Path, kind: &str) -> Vec<RecordBatch> {
    let read =
        |path: PathBuf| ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    parts(directory, kind).into_iter().flat_map(read).map(Result::unwrap).collect()
}

fn catalog(directory: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(directory.join("catalog/rank=0.json")).unwrap()).unwrap()
}

fn rows(directory: &Path) -> u64 {
    let kinds = KINDS.iter().map(|(_, name, _)| (*name).to_string()).chain([format!("kind_{UNKNOWN_KIND}")]);
    kinds.flat_map(|kind| batches(directory, &kind)).map(|batch| batch.num_rows() as u64).sum()
}

/// A column of text, `None` for null.
fn words(batch: &RecordBatch, name: &str) -> Vec<Option<String>> {
    let dictionary = batch.column_by_name(name).unwrap().as_dictionary::<Int32Type>();
    let words = dictionary.values().as_string::<i32>();
    dictionary.keys().iter().map(|key| key.map(|key| words.value(key as usize).to_string())).collect()
}

fn name_of_tensor(id: u32) -> String {
    format!("h.{}.{}.weight", id / 6, ROLES[id as usize % 6].1)
}

/// Compares a row with the record that was published, field by field and bit by bit.
fn check(batch: &RecordBatch, row: usize, values: &[String], record: &Record, realtime: u64) {
    let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
    assert_eq!(column("time").as_primitive::<TimestampNanosecondType>().value(row), realtime as i64);
    assert_eq!(column("step").as_primitive::<Int64Type>().value(row), record.step as i64);
    assert_eq!(column("flags").as_primitive::<UInt32Type>().value(row), record.flags);
    let task = |id: u16| (id != NONE16).then(|| TASKS[usize::from(id)].to_string());
    assert_eq!(words(batch, "task")[row], task(record.task));
    assert_eq!(words(batch, "reference")[row], task(record.reference));
    let tensor = (record.tensor != NONE32).then(|| name_of_tensor(record.tensor));
    assert_eq!(words(batch, "tensor")[row], tensor);
    let slice = column("slice").as_primitive::<UInt32Type>();
    assert_eq!(if slice.is_null(row) { NONE32 } else { slice.value(row) }, record.slice);
    for (name, expected) in values.iter().zip(record.values) {
        let value = column(name).as_primitive::<Float64Type>().value(row);
        assert_eq!(value.to_bits(), expected.to_bits(), "{name}");
    }
}

#[test]
fn files_hold_exactly_what_was_published() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    let published = run.write().unwrap();
    let header = Reader::open(&run.path).unwrap().header().clone();
    let out = directory.path().join("recording");
    let output = forgetscope(&["record", text(&run.path), "--out", text(&out), "--part-rows", "700"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("none lost"), "{said}");

    let mut seen = 0;
    let known =
        KINDS.iter().map(|(id, name, values)| (*id, (*name).into(), values.iter().map(|v| (*v).into()).collect()));
    let unknown = (UNKNOWN_KIND, format!("kind_{UNKNOWN_KIND}"), (0..10).map(|i| format!("value_{i}")).collect());
    for (kind, name, values) in known.chain([unknown]) {
        let values: Vec<String> = values;
        let mut expected = published.iter().enumerate().filter(|(_, record)| record.kind == kind);
        for batch in batches(&out, &name) {
            let numbers = batch.column_by_name("number").unwrap().as_primitive::<UInt64Type>().clone();
            for row in 0..batch.num_rows() {
                let (index, record) = expected.next().expect("no more rows than records");
                assert_eq!(numbers.value(row), index as u64 + 1);
                check(&batch, row, &values, record, header.realtime_ns(record.time_ns));
                seen += 1;
            }
        }
        assert_eq!(expected.count(), 0, "{name}");
    }
    assert_eq!(seen, published.len());
    assert!(parts(&out, "interference").len() > 3, "parts are bounded");
    let catalog = catalog(&out);
    assert_eq!(
        (&catalog["records"], &catalog["lost"], &catalog["state"]),
        (&published.len().into(), &0.into(), &"closed".into())
    );
    assert_eq!(catalog["counters"][1]["value"], 2);
    assert_eq!(catalog["tensors"].as_array().unwrap().len(), 24);
}

#[test]
fn derived_columns_say_what_ids_mean() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let out = directory.path().join("recording");
    assert!(forgetscope(&["record", text(&run.path), "--out", text(&out)]).status.success());
    let heads = &batches(&out, "interference")[0];
    let (levels, roles) = (words(heads, "level"), words(heads, "role"));
    let row = levels.iter().position(|level| level.as_deref() == Some("head")).unwrap();
    assert_eq!(roles[row].as_deref(), Some("q"));
    assert_eq!(heads.column_by_name("layer").unwrap().as_primitive::<Int32Type>().value(row), 0);
    assert_eq!(words(heads, "flag_names")[row].as_deref(), Some("exact frozen"));
    let evaluations = &batches(&out, "evaluation")[0];
    assert_eq!(words(evaluations, "metric_name")[..2], [Some("loss".into()), Some("accuracy".into())]);
    assert_eq!(words(&batches(&out, "task")[0], "event_name")[0].as_deref(), Some("begin"));
}

#[test]
fn what_is_lost_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run { slots: 64, ..Run::in_directory(directory.path()) };
    let mut story = run.create().unwrap();
    let out = directory.path().join("recording");
    let recorder = command(&["record", text(&run.path), "--out", text(&out)]).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the recording begins", || out.join("catalog/rank=0.json").exists());
    for step in 0..200_000 {
        story.step = step;
        let record = story.record(1, &[1.0]);
        story.publish(record);
    }
    let published = story.close().len() as u64;
    let output = recorder.wait_with_output().unwrap();
    assert!(output.status.success());
    let catalog = catalog(&out);
    let count = |key: &str| catalog[key].as_u64().unwrap();
    assert!(count("lost") > 0, "64 slots are not enough");
    assert_eq!(count("records") + count("lost") + count("overwritten"), published);
    assert_eq!(rows(&out), count("records"));
    assert!(String::from_utf8(output.stderr).unwrap().contains("lost because the recorder was behind"));
}

#[test]
fn an_interrupt_ends_the_recording_properly() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    let mut story = run.create().unwrap();
    story.tell();
    let out = directory.path().join("recording");
    let recorder = command(&["record", text(&run.path), "--out", text(&out)]).stderr(Stdio::piped()).spawn().unwrap();
    eventually("files appear", || out.join("kind=fault/rank=0").exists());
    assert!(Command::new("kill").args(["-INT", &recorder.id().to_string()]).status().unwrap().success());
    let output = recorder.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("; the run goes on."));
    assert_eq!(rows(&out), story.published.len() as u64);
    assert_eq!(catalog(&out)["state"], "running");
}

#[test]
fn a_recorder_that_is_killed_leaves_complete_parts() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    let mut story = run.create().unwrap();
    story.tell();
    let out = directory.path().join("recording");
    let arguments = ["record", text(&run.path), "--out", text(&out), "--part-rows", "100"];
    let mut recorder = command(&arguments).stderr(Stdio::null()).spawn().unwrap();
    eventually("parts are complete", || parts(&out, "interference").len() > 20);
    recorder.kill().unwrap();
    recorder.wait().unwrap();
    let found = batches(&out, "interference");
    assert!(found.iter().map(RecordBatch::num_rows).sum::<usize>() >= 2000, "every part that is there can be read");
    let page = directory.path().join("report.html");
    assert!(forgetscope(&["report", text(&out), "--out", text(&page)]).status.success());
}

#[test]
fn ranks_share_a_directory_and_recordings_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let place = text(directory.path());
    for rank in 0..2 {
        let name = format!("forgetscope-1-{rank}-x.ring");
        Run { rank, world: 2, ..Run::new(directory.path().join(name)) }.write().unwrap();
    }
    let out = directory.path().join("recording");
    let both = ["record", "1-0-x", "1-1-x", "-D", place, "--out", text(&out)];
    assert!(forgetscope(&both).status.success());
    for rank in 0..2 {
        assert!(out.join(format!("kind=interference/rank={rank}/part-00000.parquet")).exists());
    }
    let said = failure(&["record", "1-0-x", "-D", place, "--out", text(&out)]);
    assert!(said.contains("already holds a recording of rank 0"), "{said}");
    assert!(failure(&["report", text(&out), "--rank", "5"]).contains("has no rank 5; it has 0, 1"));
}

#[test]
fn a_directory_that_cannot_be_made_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let said = failure(&["record", text(&run.path), "--out", text(&file.join("below"))]);
    assert!(said.contains("cannot create") && said.contains("choose another directory"), "{said}");
}

/// A trainer and a recorder that are started together: the ring's file is there before the ring is.
#[test]
fn a_ring_that_is_still_being_created_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let (run, finished) =
        (Run::new(directory.path().join("forgetscope-1-0-aa.ring")), directory.path().join("finished"));
    Run { path: finished.clone(), ..Run::new(finished.clone()) }.create().unwrap().close();
    let out = directory.path().join("out");
    File::create(&run.path).unwrap();
    let recorder = command(&["record", text(&run.path), "--out", text(&out)]).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    fs::rename(&finished, &run.path).unwrap();
    let output = recorder.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(out.join("catalog/rank=0.json").is_file());
}
