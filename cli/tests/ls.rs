//! `forgetscope ls`: which runs there are, and which are over.

mod common;

use common::made_up::Run;
use common::program::{failure, forgetscope, stdout, text};
use serde_json::Value;

#[test]
fn runs_are_listed_with_their_state_and_task() {
    let directory = tempfile::tempdir().unwrap();
    let published = Run::in_directory(directory.path()).write().unwrap().len();
    let mut running =
        Run { name: "second".into(), rank: 1, world: 2, ..Run::in_directory(directory.path()) }.create().unwrap();
    let task = forgetscope::ring::Entry::Task { id: 0, name: "legal".into() };
    running.writer.append(&task).unwrap();
    running.begin(0);
    drop(Run::in_directory(directory.path()).create().unwrap());

    let place = text(directory.path());
    let json: Value = serde_json::from_str(&stdout(&["ls", "--json", "-D", place])).unwrap();
    let states: Vec<&str> = json.as_array().unwrap().iter().map(|run| run["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["closed", "running", "died"]);
    assert_eq!(json[0]["records"], published);
    assert_eq!((&json[0]["step"], &json[0]["tensors"], &json[0]["task"]), (&599.into(), &24.into(), &Value::Null));
    assert_eq!((&json[1]["task"], &json[1]["run"], &json[1]["rank"]), (&"legal".into(), &"second".into(), &1.into()));
    assert_eq!(json[1]["pid"], std::process::id());

    let table = stdout(&["ls", "-D", place]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[0].starts_with("RUN ") && lines[2].contains(" 1/2 ") && lines[2].contains("legal"), "{table}");
    assert!(!table.contains('\x1b'), "colour is for terminals");
}

#[test]
fn prune_removes_what_is_over_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let place = text(directory.path());
    let closed = Run::in_directory(directory.path());
    closed.write().unwrap();
    let running = Run::in_directory(directory.path());
    let story = running.create().unwrap();
    let died = Run::in_directory(directory.path());
    drop(died.create().unwrap());

    let said = stdout(&["ls", "--prune", "-D", place]);
    assert!(said.contains(&format!("removing {} (closed, ", closed.path.display())), "{said}");
    assert!(said.contains(&format!("removing {} (died, 0 records)", died.path.display())), "{said}");
    assert!(!closed.path.exists() && !died.path.exists() && running.path.exists());
    assert!(stdout(&["ls", "--prune", "-D", place]).contains("no run has ended"));
    drop(story);
}

#[test]
fn no_run_is_no_error_for_a_list_but_for_everything_else() {
    let directory = tempfile::tempdir().unwrap();
    let place = text(directory.path());
    assert!(stdout(&["ls", "-D", place]).starts_with("No runs."));
    assert_eq!(stdout(&["ls", "--json", "-D", place]).trim(), "[]");
    for command in [vec!["tail"], vec!["record", "--out", "/nonexistent/x"], vec!["report"]] {
        let arguments: Vec<&str> = command.iter().copied().chain(["-D", place]).collect();
        assert!(failure(&arguments).contains("there is no run in"));
    }
}

#[test]
fn files_that_are_no_rings_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let stranger = directory.path().join("forgetscope-1-0-stranger.ring");
    std::fs::write(&stranger, vec![7; 8192]).unwrap();
    assert!(stdout(&["ls", "--prune", "-D", text(directory.path())]).contains("Nothing to remove"));
    assert!(stranger.exists());
    assert!(failure(&["tail", text(&stranger)]).contains("is not a ring"));
}

#[test]
fn wrong_usage_has_another_exit_code() {
    assert_eq!(forgetscope(&["ls", "--nonsense"]).status.code(), Some(2));
    assert_eq!(forgetscope(&[]).status.code(), Some(2));
    assert!(stdout(&["--version"]).starts_with("forgetscope "));
    assert!(stdout(&["--help"]).contains("Examples:"));
    assert!(stdout(&["completions", "bash"]).contains("forgetscope"));
}
