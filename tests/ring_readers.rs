//! Readers that are too slow, in threads and in processes: what they received and what they lost is, exactly, what was
//! published.

mod ring_support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use forgetscope::ring::{Poll, Reader, Writer, WriterOptions};
use ring_support::{Tally, directory, record};

/// How a reader spends its time.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// Polls without a pause.
    Eager,
    /// Sleeps after so many records.
    Sleeps { every: u64 },
    /// Computes a little after each record: a steady speed below the writer's.
    Labours,
}

const PACES: [Pace; 4] = [Pace::Eager, Pace::Sleeps { every: 100 }, Pace::Sleeps { every: 5000 }, Pace::Labours];

/// Reads to the end of the ring.
fn read(reader: &mut Reader, pace: Pace) -> Tally {
    let mut tally = Tally::default();
    loop {
        let poll = reader.poll().unwrap();
        tally.note(poll);
        assert_eq!(reader.position(), tally.total());
        match (poll, pace) {
            (Poll::Closed, _) => return tally,
            (Poll::Empty, _) => std::thread::yield_now(),
            (_, Pace::Sleeps { every }) if tally.received % every == 0 => {
                std::thread::sleep(Duration::from_micros(500));
            }
            (_, Pace::Labours) => {
                std::hint::black_box((0..200u64).fold(1, |a, b| std::hint::black_box(a ^ b)));
            }
            _ => {}
        }
    }
}

/// Publishes `total` records: at full speed, yielding now and then so that readers get a turn on a machine with few
/// cores, and with a pause less often that lets them catch up.
fn write(mut writer: Writer, total: u64) {
    for number in 1..=total {
        writer.publish(&record(number));
        if number % 50_000 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        } else if number % 300 == 0 {
            std::thread::yield_now();
        }
    }
    writer.close();
}

fn create(path: &Path, slots: u64) -> Writer {
    Writer::create(&WriterOptions { slots, ..WriterOptions::new(path) }).unwrap()
}

#[test]
fn threads() {
    const TOTAL: u64 = 3_000_000;
    for slots in [1, 2, 64, 4096] {
        let directory = directory();
        let path = directory.path().join("threads.ring");
        let writer = create(&path, slots);
        let tallies: Vec<Tally> = std::thread::scope(|scope| {
            let readers: Vec<_> = PACES
                .into_iter()
                .map(|pace| {
                    let mut reader = Reader::open(&path).unwrap();
                    scope.spawn(move || read(&mut reader, pace))
                })
                .collect();
            write(writer, TOTAL);
            readers.into_iter().map(|reader| reader.join().unwrap()).collect()
        });
        for (tally, pace) in tallies.iter().zip(PACES) {
            assert_eq!(tally.total(), TOTAL, "{slots} slots, {pace:?}: {tally:?}");
            assert_ne!(tally.received, 0, "{slots} slots, {pace:?}");
        }
        let lost: u64 = tallies.iter().map(|tally| tally.lost).sum();
        assert_ne!(lost, 0, "the test must make readers lose records");
        println!("{slots} slots: {tallies:?}");
    }
}

/// Set for the processes that `processes` starts; they run `reading_process` and nothing else.
const RING: &str = "FORGETSCOPE_TEST_RING";
const PACE: &str = "FORGETSCOPE_TEST_PACE";

#[test]
fn processes() {
    const TOTAL: u64 = 3_000_000;
    let directory = directory();
    let path = directory.path().join("processes.ring");
    let writer = create(&path, 1024);
    let mut readers: Vec<(Child, _)> = (0..PACES.len())
        .map(|pace| {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "reading_process", "--nocapture"])
                .env(RING, &path)
                .env(PACE, pace.to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let output = BufReader::new(child.stdout.take().unwrap()).lines();
            (child, output)
        })
        .collect();
    let mut answer = |word: &str| -> Vec<String> {
        readers
            .iter_mut()
            .map(|(_, output)| {
                // The test harness of the child writes to the same stream.
                let line = output.find_map(|line| {
                    let line = line.unwrap();
                    line.find(word).map(|at| line[at + word.len()..].to_owned())
                });
                line.expect("the reading process failed")
            })
            .collect()
    };
    answer("ready");
    write(writer, TOTAL);
    for tally in answer("tally ") {
        let (received, lost) = tally.split_once(' ').unwrap();
        let (received, lost): (u64, u64) = (received.parse().unwrap(), lost.parse().unwrap());
        assert_eq!(received + lost, TOTAL);
        println!("received {received}, lost {lost}");
    }
    for (mut child, _) in readers {
        assert!(child.wait().unwrap().success());
    }
}

/// The body of the processes; as a test of its own it does nothing.
#[test]
fn reading_process() {
    let (Some(path), Ok(pace)) = (std::env::var_os(RING), std::env::var(PACE)) else {
        return;
    };
    let mut reader = Reader::open(PathBuf::from(path)).unwrap();
    println!("ready");
    std::io::stdout().flush().unwrap();
    let tally = read(&mut reader, PACES[pace.parse::<usize>().unwrap()]);
    println!("tally {} {}", tally.received, tally.lost);
}
