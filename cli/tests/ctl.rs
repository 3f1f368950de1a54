//! `forgetscope ctl`: what is said reaches every rank of a run, and what does not is told apart.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::made_up::{Run, Story};
use common::program::{failure, forgetscope, stdout, text};
use forgetscope::control::{Answer, Client, Command, Identity, Server, page_path};
use forgetscope::ring::Reader;

/// A trainer with several ranks: a ring and a page for each, in one directory.
struct Job {
    directory: tempfile::TempDir,
    ranks: Vec<(Story, Server)>,
}

impl Job {
    fn new(name: &str, world: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ranks = (0..world).map(|rank| Self::rank(directory.path(), name, rank, world, name)).collect();
        Self { directory, ranks }
    }

    fn rank(directory: &Path, name: &str, rank: u32, world: u32, job: &str) -> (Story, Server) {
        let run = Run { name: name.into(), rank, world, ..Run::in_directory(directory) };
        let story = run.create().unwrap();
        let instance = Reader::open(&run.path).unwrap().header().instance;
        let server = Server::create(&run.path, &Identity { instance, rank, world, job: job.into() }).unwrap();
        (story, server)
    }

    fn place(&self) -> &str {
        text(self.directory.path())
    }

    fn ring(&self, rank: usize) -> PathBuf {
        let page = self.ranks[rank].1.path().to_str().unwrap();
        page.strip_suffix(".ctl").unwrap().into()
    }

    /// All ranks take steps, from `first` on, until `done`; each answers as `answer` says. Returns what each was told.
    fn trains<T>(
        &mut self,
        first: u64,
        answer: impl Fn(u32, &Command, u64) -> Answer + Sync,
        done: impl FnOnce() -> T,
    ) -> (T, Vec<Vec<(u64, Command)>>) {
        let (is_over, answer) = (AtomicBool::new(false), &answer);
        // Until all have published a step.
        let begun = Barrier::new(self.ranks.len() + 1);
        let (is_over, begun) = (&is_over, &begun);
        thread::scope(|threads| {
            let ranks: Vec<_> = (0..)
                .zip(&mut self.ranks)
                .map(|(rank, (_, server))| {
                    threads.spawn(move || {
                        let mut told = Vec::new();
                        for step in first.. {
                            if let Some(command) = server.poll(step) {
                                server.answer(&answer(rank, &command, step));
                                told.push((step, command));
                            }
                            if step == first {
                                begun.wait();
                            }
                            if is_over.load(Ordering::Relaxed) {
                                break;
                            }
                            thread::sleep(Duration::from_millis(5));
                        }
                        told
                    })
                })
                .collect();
            begun.wait();
            let end = End(is_over);
            let outcome = done();
            drop(end);
            (outcome, ranks.into_iter().map(|rank| rank.join().unwrap()).collect())
        })
    }
}

/// Ends the ranks when dropped, also by a test that fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn done(_: u32, _: &Command, step: u64) -> Answer {
    Answer::done(step, "")
}

#[test]
fn all_ranks_are_told_at_the_same_step() {
    let mut job = Job::new("run", 4);
    // Others in the same place: of another job, and one that takes no commands.
    let other = Job::rank(job.directory.path(), "other", 0, 4, "other");
    let _deaf = Run::in_directory(job.directory.path()).create().unwrap();
    let place = job.place().to_owned();
    let ring = job.ring(2);
    // Somebody is talking to the other one all the time.
    let path: PathBuf = text(other.1.path()).strip_suffix(".ctl").unwrap().into();
    let _talks = Client::open(&path, Reader::open(&path).unwrap().header().instance).unwrap();
    let (said, told) = job.trains(100, done, || {
        let begun = stdout(&["ctl", "run", "task", "begin", "légal", "-D", &place, "--at-step", "400"]);
        // By one rank's ring as well.
        let every = stdout(&["ctl", text(&ring), "every", "3", "--at-step", "700"]);
        (begun, every)
    });
    assert_eq!(said.0, "task begin légal: 4 ranks, before step 400\n");
    assert_eq!(said.1, "every 3: 4 ranks, before step 700\n");
    for rank in &told {
        assert_eq!(rank[0], (400, Command::TaskBegin("légal".into())));
        assert_eq!(rank[1..], [(700, Command::Every(3))]);
    }
}

#[test]
fn refusals_and_remarks_are_passed_on() {
    let mut job = Job::new("run", 2);
    let place = job.place().to_owned();
    let answer = |rank: u32, command: &Command, step: u64| match command {
        Command::Snapshot if rank == 1 => Answer::refused(step, "no parameters are visible"),
        Command::TaskEnd => Answer::done(step + u64::from(rank), "drift is not measured"),
        _ => Answer::done(step, ""),
    };
    let (said, _) = job.trains(0, answer, || {
        let refused = failure(&["ctl", "run", "snapshot", "-D", &place]);
        let late = forgetscope(&["ctl", "run", "task", "end", "-D", &place]);
        (refused, String::from_utf8(late.stdout).unwrap(), String::from_utf8(late.stderr).unwrap())
    });
    assert!(said.0.contains("1 rank refused `snapshot`: rank 1: no parameters are visible"), "{}", said.0);
    assert!(said.1.contains("rank 1: before step") && said.1.ends_with("  drift is not measured\n"), "{}", said.1);
    assert!(said.2.contains("not all ranks did it before the same step"), "{}", said.2);
}

#[test]
fn a_command_that_waits_is_said_and_taken_back() {
    let mut job = Job::new("run", 2);
    let place = job.place().to_owned();
    let (said, told) = job.trains(0, done, || {
        let far = ["ctl", "run", "task", "end", "-D", &place, "--at-step", "1000000", "--timeout", "0"];
        let waits = failure(&far);
        let second = failure(&["ctl", "run", "every", "1", "-D", &place]);
        let back = stdout(&["ctl", "run", "cancel", "-D", &place]);
        (waits, second, back, stdout(&["ctl", "run", "every", "1", "-D", &place]))
    });
    assert!(said.0.contains("no answer within 0 s from rank 0 (at step ") && said.0.contains("rank 1"), "{}", said.0);
    assert!(said.1.contains("still waits for step 1000000"), "{}", said.1);
    assert!(said.2.starts_with("cancel: 2 ranks") && said.3.starts_with("every 1: 2 ranks"), "{said:?}");
    assert!(told.iter().all(|rank| rank.len() == 1), "{told:?}");
}

#[test]
fn who_cannot_be_told_is_said() {
    let mut job = Job::new("run", 2);
    let (place, ring) = (job.place().to_owned(), job.ring(0));
    let deaf = Run { name: "deaf".into(), ..Run::in_directory(job.directory.path()) };
    let _deaf = deaf.create().unwrap();
    assert!(failure(&["ctl", "deaf", "snapshot", "-D", &place]).contains("takes no commands"));
    assert!(failure(&["ctl", "nobody", "snapshot", "-D", &place]).contains("no run is called `nobody`"));
    assert!(failure(&["ctl", "run", "task", "begin", "", "-D", &place]).contains("the name has 0 bytes"));
    // A rank on another machine.
    let last = job.ranks.pop().unwrap();
    std::fs::remove_file(last.1.path()).unwrap();
    drop(last);
    let (output, _) = job.trains(7, done, || forgetscope(&["ctl", "run", "every", "2", "-D", &place]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 rank of 2 can be reached here"), "{output:?}");
    // One that was started through another shell, as far as can be seen.
    let _stranger = Job::rank(job.directory.path(), "run2", 1, 2, "elsewhere");
    let (output, _) = job.trains(7, done, || forgetscope(&["ctl", text(&ring), "every", "2"]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("another job of that size runs here (1 rank)") && said.contains("FGS_PRELOAD_JOB"), "{said}");
    // All over.
    job.ranks.clear();
    let said = failure(&["ctl", "run", "snapshot", "-D", &place]);
    assert!(said.contains("ended") || said.contains("takes no commands"), "{said}");
}

#[test]
fn pages_are_no_rings_and_go_with_theirs() {
    let mut job = Job::new("run", 1);
    let (ring, place) = (job.ring(0), job.place().to_owned());
    assert_eq!(stdout(&["ls", "--json", "-D", &place]).matches("\"path\"").count(), 1);
    assert!(page_path(&ring).exists());
    job.ranks.clear();
    stdout(&["ls", "--prune", "-D", &place]);
    assert!(!page_path(&ring).exists() && !ring.exists());
}

/// A page that says anything gives a sentence.
#[test]
fn a_step_that_cannot_be_is_said() {
    let mut job = Job::new("run", 1);
    job.ranks[0].1.poll(u64::MAX - 1);
    let said = failure(&["ctl", "run", "snapshot", "-D", job.place()]);
    assert!(said.contains("at step 18446744073709551614, which none can be"), "{said}");
    let said = failure(&["ctl", "run", "task", "begin", "a\u{1b}[31m", "-D", job.place(), "--at-step", "5"]);
    assert!(said.contains("has control characters"), "{said}");
}
