//! What the ring asks of the kernel beside memory: two clocks, random bytes, files and their room, and whether a process still
//! lives.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Nanoseconds of `CLOCK_MONOTONIC`: the clock of every record and heartbeat, the same for all processes of a machine.
#[inline]
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds of `CLOCK_REALTIME`: since 1970, and adjusted while the machine runs.
pub(super) fn realtime_ns() -> u64 {
    clock_ns(libc::CLOCK_REALTIME)
}

#[inline]
fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to. Both clocks exist on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// 16 bytes from the kernel's generator.
pub(super) fn random_bytes() -> io::Result<[u8; 16]> {
    let mut bytes = [0u8; 16];
    // SAFETY: the pointer and the length describe `bytes`.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // Requests of up to 256 bytes are never cut short.
    if filled == bytes.len() as isize { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// Creates a file that only its owner may read and write. One that is already there, symbolic links included, is an error.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
}

/// Obtains the blocks behind a range of a file, so that stores to its mapping cannot fail.
pub(crate) fn obtain(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open; the call touches no memory of this process.
        let status = unsafe {
            let (offset, bytes) = (offset as libc::off_t, bytes as libc::off_t);
            libc::posix_fallocate(file.as_raw_fd(), offset, bytes)
        };
        match status {
            0 => return Ok(()),
            libc::EINTR => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

/// A process, named so that a later process with the same number is not mistaken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub pid: u32,
    /// Clock ticks after boot, from `/proc/<pid>/stat`; 0 if unknown.
    pub start_time: u64,
    /// The inode of the pid namespace, outside of which `pid` means nothing; 0 if unknown.
    pub namespace: u64,
}

impl Process {
    pub fn current() -> Self {
        let pid = std::process::id();
        Process { pid, start_time: Stat::of(pid).map_or(0, |stat| stat.start_time), namespace: current_namespace() }
    }

    /// Whether the process still runs; `None` if it cannot be seen from here, being in another pid namespace.
    ///
    /// About 20 µs: it reads two entries of `/proc`.
    pub fn is_running(&self) -> Option<bool> {
        if self.namespace != 0 && self.namespace != current_namespace() {
            return None;
        }
        Some(match Stat::of(self.pid) {
            Some(stat) => !stat.is_over() && (self.start_time == 0 || stat.start_time == self.start_time),
            // Either the process is gone or /proc is not mounted; the kernel knows.
            None => exists(self.pid),
        })
    }
}

/// The inode number of this process's pid namespace.
fn current_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self/ns/pid").map_or(0, |metadata| metadata.ino())
}

fn exists(pid: u32) -> bool {
    // 0 would ask about this process's group.
    let Some(pid) = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0) else {
        return false;
    };
    // SAFETY: signal 0 only asks whether the process exists; nothing is delivered.
    let status = unsafe { libc::kill(pid, 0) };
    status == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// The three fields of `/proc/<pid>/stat` that tell whether a process lives.
struct Stat {
    state: u8,
    threads: u64,
    start_time: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(line: &[u8]) -> Option<Self> {
        // The second field is the program's name in parentheses and may itself contain spaces and parentheses.
        let name_end = line.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(&line[name_end + 1..]).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Stat {
            state: *fields.next()?.as_bytes().first()?, // field 3
            threads: fields.nth(16)?.parse().ok()?,     // field 20
            start_time: fields.nth(1)?.parse().ok()?,   // field 22
        })
    }

    /// A killed process stays in `/proc` as a zombie until its parent collects it. A zombie with several threads is
    /// only a main thread that ended before the others.
    fn is_over(&self) -> bool {
        matches!(self.state, b'Z' | b'X') && self.threads <= 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_and_its_namesake_does_not() {
        let me = Process::current();
        assert_ne!(me.start_time, 0);
        assert_eq!(me.is_running(), Some(true));
        let namesake = Process { start_time: me.start_time + 1, ..me };
        assert_eq!(namesake.is_running(), Some(false));
        let foreign = Process { namespace: me.namespace + 1, ..me };
        assert_eq!(foreign.is_running(), None);
    }

    #[test]
    fn a_zombie_does_not_run() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let start_time = Stat::of(child.id()).unwrap().start_time;
        let process = Process { pid: child.id(), start_time, namespace: 0 };
        while process.is_running() == Some(true) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(process.is_running(), Some(false));
    }

    #[test]
    fn the_name_of_a_program_may_look_like_the_fields_after_it() {
        let line = b"7 (a) Z 1 (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 1 18 4242 20";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.state, stat.threads, stat.start_time), (b'S', 1, 4242));
        assert!(Stat::parse(b"7 (cut) S 1").is_none());
        assert!(Stat::parse(b"").is_none());
    }

    #[test]
    fn clocks_advance_and_randomness_differs() {
        assert!(monotonic_ns() <= monotonic_ns());
        assert!(realtime_ns() > 1_600_000_000_000_000_000);
        assert_ne!(random_bytes().unwrap(), random_bytes().unwrap());
    }
}
