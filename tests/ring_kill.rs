//! 3,000 writers are killed in mid-stream, at whatever instruction they have reached; not one leaves a torn record, a
//! wrong count or a reader that hangs.
//!
//! Every record follows from its number, so a reader can tell a whole record from one that is mixed from two. One
//! reader follows the writer while it runs and one opens the ring after its death. The test also counts how often the
//! signal struck between the two stores of a sequence: if that never happened, it would have tested nothing.

mod ring_support;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use forgetscope::ring::{HEADER_BYTES, Reader, RingError, SLOT_BYTES, Writer, WriterOptions, WriterState};
use ring_support::{Tally, directory, record};

const KILLS: u64 = 3000;
/// Small, so that a writer laps it thousands of times before it dies.
const SLOTS: u64 = 64;

/// A forked writer, killed and collected when dropped.
struct Victim(libc::pid_t);

impl Victim {
    /// Starts a process that creates the ring and publishes until it is killed.
    fn spawn(path: &Path) -> Self {
        // SAFETY: the child never returns from this function. It allocates, which glibc permits after a fork from a
        // process with threads, and takes no lock that another thread could hold.
        match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            0 => publish_for_ever(path),
            pid => Victim(pid),
        }
    }

    fn kill(&self) {
        // SAFETY: the child has not been collected, so the number is still its own.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        // Until it is dead, but leaving the zombie in place, as a trainer's launcher may do for long.
        // SAFETY: siginfo_t is plain data, and the pointer is valid.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let options = libc::WEXITED | libc::WNOWAIT;
            libc::waitid(libc::P_PID, self.0 as libc::id_t, &mut info, options);
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // SAFETY: the child is ours and not yet collected.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

fn publish_for_ever(path: &Path) -> ! {
    let options = WriterOptions { slots: SLOTS, catalog_bytes: 0, ..WriterOptions::new(path) };
    let Ok(mut writer) = Writer::create(&options) else {
        // SAFETY: ends the process at once; a panic would unwind into the test harness.
        unsafe { libc::_exit(1) }
    };
    loop {
        writer.publish(&record(writer.published() + 1));
    }
}

/// Opens the ring as soon as its writer has finished the header.
fn open_soon(path: &Path) -> Reader {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Reader::open(path) {
            Ok(reader) => return reader,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    }
}

/// Whether the file holds a slot whose writer was killed between the two stores of its sequence.
fn has_unfinished_slot(path: &Path) -> bool {
    let file = std::fs::File::open(path).unwrap();
    (0..SLOTS).any(|slot| {
        let mut sequence = [0; 8];
        file.read_exact_at(&mut sequence, HEADER_BYTES + slot * SLOT_BYTES).unwrap();
        u64::from_le_bytes(sequence) % 2 == 1
    })
}

#[test]
fn no_kill_leaves_a_torn_record() {
    let directory = directory();
    let mut chance = 0x2545_f491_4f6c_dd1d_u64;
    let (mut unfinished, mut read, mut lost) = (0, 0, 0);
    for kill in 0..KILLS {
        let path = directory.path().join(format!("{kill}.ring"));
        let victim = Victim::spawn(&path);
        let mut reader = open_soon(&path);
        let mut tally = Tally { received: 0, lost: reader.position() };
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        let end = Instant::now() + Duration::from_micros(chance % 1500);
        while Instant::now() < end {
            tally.drain(&mut reader);
        }
        victim.kill();

        // What the writer left, for a reader that comes afterwards.
        let mut late = Reader::open(&path).unwrap();
        let published = late.published();
        let mut late_tally = Tally { received: 0, lost: late.position() };
        assert!(late_tally.drain(&mut late), "a dead writer's ring must be closed");
        assert_eq!(late.state(), WriterState::Died);
        // The writer may have finished a record without having counted it.
        let total = late_tally.total();
        assert!(total == published || total == published + 1, "{total} of {published}");
        // Of a full ring, at most the slot that was being overwritten is gone.
        assert!(late_tally.received >= total.min(SLOTS) - u64::from(total >= SLOTS));

        // The reader that followed comes to the same end. It believes for 50 ms that the writer lives, which would take
        // minutes in all: most of the time, only see that it has read everything.
        if kill % 50 == 0 {
            tally.finish(&mut reader);
        } else {
            tally.drain(&mut reader);
        }
        assert_eq!(tally.total(), total);

        unfinished += u64::from(has_unfinished_slot(&path));
        read += tally.received;
        lost += tally.lost;
        std::fs::remove_file(&path).unwrap();
    }
    println!("{KILLS} kills, {unfinished} within a record; {read} records read, {lost} lost");
    assert_ne!(unfinished, 0, "no writer was killed while it wrote");
}

/// Writers killed while they create the file: it is a ring, or an error that says so. How many get how far depends on
/// the machine, so that is printed and not asserted.
#[test]
fn a_ring_that_was_never_finished_is_an_error() {
    let directory = directory();
    let (mut rings, mut unfinished, mut missing) = (0, 0, 0);
    for kill in 0..400 {
        let path = directory.path().join(format!("{kill}.ring"));
        let victim = Victim::spawn(&path);
        // Every other victim is known to have begun.
        while kill % 2 == 0 && !path.exists() {
            std::thread::yield_now();
        }
        let end = Instant::now() + Duration::from_micros(kill);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        victim.kill();
        match Reader::open(&path) {
            Ok(mut reader) => {
                let mut tally = Tally { received: 0, lost: reader.position() };
                assert!(tally.drain(&mut reader));
                rings += 1;
            }
            Err(RingError::NotReady { .. }) => unfinished += 1,
            Err(RingError::Io { .. }) if !path.exists() => missing += 1,
            Err(error) => panic!("{error}"),
        }
    }
    println!("{rings} rings, {unfinished} unfinished ones, {missing} that were not begun");
}
