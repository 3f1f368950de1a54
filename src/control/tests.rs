//! Both halves together, pages that lie, and a client that is killed in the middle of a request.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::page::word;
use super::*;
use proptest::prelude::*;

const INSTANCE: [u8; 16] = *b"0123456789abcdef";

fn identity() -> Identity {
    Identity { instance: INSTANCE, rank: 3, world: 4, job: "job".into() }
}

/// A directory, and a ring in it that need not exist.
fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let ring = directory.path().join("forgetscope-1-0-a.ring");
    (directory, ring)
}

fn error(ring: &Path) -> String {
    Client::open(ring, INSTANCE).unwrap_err().to_string()
}

/// Changes one word of a page.
fn set(ring: &Path, index: usize, value: u64) {
    let file = fs::OpenOptions::new().write(true).open(page_path(ring)).unwrap();
    file.write_all_at(&value.to_le_bytes(), 8 * index as u64).unwrap();
}

#[test]
fn a_command_is_carried_out_at_its_step() {
    let (_directory, ring) = place();
    let mut server = Server::create(&ring, &identity()).unwrap();
    assert_eq!(fs::metadata(server.path()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(server.poll(7), None);
    let mut client = Client::open(&ring, INSTANCE).unwrap();
    assert_eq!((client.identity(), client.step(), client.waiting()), (&identity(), 7, None));
    let command = Command::TaskBegin("légal texts".into());
    client.send(&command, 9).unwrap();
    assert_eq!((client.answer().unwrap(), client.waiting()), (None, Some(9)));
    assert_eq!(server.poll(8), None);
    assert_eq!(server.poll(9), Some(command));
    assert_eq!(server.poll(10), None, "once");
    let answer = Answer::done(9, "as it was said");
    server.answer(&answer);
    assert_eq!((client.answer().unwrap(), client.waiting()), (Some(answer), None));
    // The next one, which asks for a step that is over.
    client.send(&Command::Every(5), 3).unwrap();
    assert_eq!(server.poll(11), Some(Command::Every(5)));
    let answer = Answer::refused(11, "ä".repeat(400));
    server.answer(&answer);
    assert_eq!(client.answer().unwrap().unwrap(), Answer { text: "ä".repeat(255), ..answer });
}

#[test]
fn a_command_that_waits_can_be_taken_back() {
    let (_directory, ring) = place();
    let mut server = Server::create(&ring, &identity()).unwrap();
    Client::open(&ring, INSTANCE).unwrap().send(&Command::TaskEnd, 100).unwrap();
    server.poll(1);
    let mut client = Client::open(&ring, INSTANCE).unwrap();
    let refused = client.send(&Command::Snapshot, 2).unwrap_err();
    assert!(matches!(refused, ControlError::Waiting { rank: 3, step: 100 }), "{refused}");
    client.send(&Command::Cancel, 0).unwrap();
    assert_eq!(server.poll(2), None);
    assert_eq!(client.answer().unwrap(), Some(Answer::done(2, "")));
    assert_eq!(server.poll(200), None);
}

#[test]
fn clients_take_turns() {
    let (_directory, ring) = place();
    let _server = Server::create(&ring, &identity()).unwrap();
    let first = Client::open(&ring, INSTANCE).unwrap();
    assert!(matches!(Client::open(&ring, INSTANCE), Err(ControlError::Locked { .. })));
    drop(first);
    Client::open(&ring, INSTANCE).unwrap();
}

/// Whose page it is can be known while somebody else uses it.
#[test]
fn looking_needs_no_turn() {
    let (_directory, ring) = place();
    let _server = Server::create(&ring, &identity()).unwrap();
    let _client = Client::open(&ring, INSTANCE).unwrap();
    assert_eq!(Client::look(&ring, INSTANCE).unwrap(), identity());
    assert!(Client::look(&ring, [0; 16]).unwrap_err().to_string().contains("another ring"));
}

#[test]
fn long_names_of_jobs_stay_different() {
    let long = |end: &str| format!("{}{end}", "ä".repeat(60));
    let short = |job: &str| page::short_job(job).into_owned();
    assert_eq!(short(&"x".repeat(63)), "x".repeat(63));
    assert_eq!(short(&"x".repeat(64)), format!("{}~b96a5acbb56db825", "x".repeat(46)));
    assert!(short(&long("1")).len() <= 63 && short(&long("1")) == short(&long("1")));
    assert_ne!(short(&long("1")), short(&long("2")));
    let (_directory, ring) = place();
    let _server = Server::create(&ring, &Identity { job: long("1"), ..identity() }).unwrap();
    assert_eq!(Client::look(&ring, INSTANCE).unwrap().job, short(&long("1")));
}

/// A client in another language may send what ours does not.
#[test]
fn names_that_cannot_be_ones_are_refused() {
    let (_directory, ring) = place();
    let mut server = Server::create(&ring, &identity()).unwrap();
    let mut client = Client::open(&ring, INSTANCE).unwrap();
    for (name, length) in [(*b"a\0b.....", 3), (*b"a\x1b[31m..", 6), (*b"........", 0)] {
        client.send(&Command::TaskBegin("a".into()), 0).unwrap();
        set(&ring, word::NAME, length);
        set(&ring, word::NAME + 1, u64::from_le_bytes(name));
        assert_eq!(server.poll(1), None);
        let answer = client.answer().unwrap().unwrap();
        assert!(answer.status == Status::Refused && answer.text.starts_with("the name "), "{answer:?}");
    }
}

#[test]
fn a_server_that_ended_is_noticed() {
    let (_directory, ring) = place();
    let server = Server::create(&ring, &identity()).unwrap();
    let mut client = Client::open(&ring, INSTANCE).unwrap();
    client.send(&Command::TaskEnd, 0).unwrap();
    drop(server);
    assert!(matches!(client.answer(), Err(ControlError::Ended { .. })));
    drop(client);
    assert!(error(&ring).contains("has ended"));
    // Killed: the page still says that it is open.
    set(&ring, word::STATE, 1);
    set(&ring, word::PID_START_TIME, 1);
    assert!(error(&ring).contains("has ended"));
}

#[test]
fn names_have_to_fit() {
    let (_directory, ring) = place();
    let mut server = Server::create(&ring, &identity()).unwrap();
    let mut client = Client::open(&ring, INSTANCE).unwrap();
    for name in [String::new(), "x".repeat(LONGEST_NAME + 1), "a\0b".into(), "\x1b[31mred".into(), "a\nb".into()] {
        assert!(matches!(client.send(&Command::TaskBegin(name), 0), Err(ControlError::Name { .. })));
    }
    let longest = Command::TaskBegin("x".repeat(LONGEST_NAME));
    client.send(&longest, 0).unwrap();
    assert_eq!(server.poll(0), Some(longest));
}

#[test]
fn pages_that_cannot_be_used_are_refused() {
    let (directory, ring) = place();
    let page = page_path(&ring);
    assert!(error(&ring).contains("does not exist"));
    symlink("/dev/null", &page).unwrap();
    assert!(error(&ring).contains("not a regular file"));
    assert!(Server::create(&ring, &identity()).is_err(), "a file that is there is never used");
    fs::remove_file(&page).unwrap();
    fs::create_dir(&page).unwrap();
    assert!(error(&ring).contains("not a regular file"));
    fs::remove_dir(&page).unwrap();
    for (content, reason) in [(vec![0; 100], "100 bytes"), (vec![0; 4096], "being created"), (vec![7; 4096], "magic")] {
        fs::write(&page, content).unwrap();
        assert!(error(&ring).contains(reason), "{}", error(&ring));
    }
    fs::remove_file(&page).unwrap();
    let _server = Server::create(&ring, &identity()).unwrap();
    assert!(Client::open(&ring, [0; 16]).unwrap_err().to_string().contains("another ring"));
    for (index, value, reason) in [
        (word::VERSION, 2, "version 2"),
        (word::PAGE_BYTES, 8192, "page_bytes"),
        (word::RANK, 1 << 40, "rank"),
        (word::PID, u64::MAX, "pid"),
        (word::JOB, 64, "job"),
        (word::JOB, u64::MAX, "job"),
    ] {
        let kept = fs::read(&page).unwrap();
        set(&ring, index, value);
        assert!(error(&ring).contains(reason), "{}", error(&ring));
        let file = fs::OpenOptions::new().write(true).open(&page).unwrap();
        file.write_all_at(&kept, 0).unwrap();
    }
    drop(directory);
}

/// A client that dies before it has sent everything leaves nothing behind that matters.
#[test]
fn half_a_request_is_none() {
    let (_directory, ring) = place();
    let mut server = Server::create(&ring, &identity()).unwrap();
    set(&ring, word::KIND, 2);
    set(&ring, word::NAME, u64::MAX);
    assert_eq!(server.poll(1), None);
    let mut client = Client::open(&ring, INSTANCE).unwrap();
    assert_eq!(client.waiting(), None);
    client.send(&Command::TaskBegin("a".into()), 0).unwrap();
    assert_eq!(server.poll(2), Some(Command::TaskBegin("a".into())));
}

proptest! {
    /// Whatever is in the words that a client writes, the server goes on; whatever a server writes, a client does.
    #[test]
    fn neither_side_believes_the_other(
        words in prop::collection::vec((prop::sample::select(vec![0u64, 1, 2, 3, 4, 255, 256, 1 << 20, u64::MAX]), any::<bool>()), 384),
    ) {
        let (_directory, ring) = place();
        let mut server = Server::create(&ring, &identity()).unwrap();
        let mut client = Client::open(&ring, INSTANCE).unwrap();
        client.send(&Command::TaskEnd, 0).unwrap();
        for (index, (value, is_written)) in words.into_iter().enumerate() {
            if is_written {
                set(&ring, word::REQUEST + index, value);
            }
        }
        for step in 0..4 {
            if server.poll(step).is_some() {
                server.answer(&Answer::done(step, ""));
            }
        }
        let _ = client.answer();
        client.send(&Command::Cancel, 0).unwrap();
        server.poll(5);
        prop_assert_eq!(client.answer().unwrap().unwrap().status, Status::Done);
    }
}
