//! Whether memory can be read, asked before it is: a buffer that the trainer has freed, or that only a device can read, would
//! end the process.
//!
//! It cannot be asked and read at the same time. Memory that another thread gives back in between is read all the same.

use std::fs;
use std::ops::Range;

/// A byte can be read: the kernel is asked, for whom it is an argument that it copies. 0.1 µs.
pub fn is_readable(address: usize) -> bool {
    const NO_SUCH_OPERATION: libc::c_int = -1;
    // A signal set is 8 bytes, which do not cross a page.
    let set = (address & !7) as *const libc::c_void;
    // SAFETY: the kernel copies the set, whatever its address is, and then refuses: there is no such operation on masks.
    let status = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, NO_SUCH_OPERATION, set, 0usize, 8usize) };
    status == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}

/// The memory of the process that can be read, at this moment.
#[derive(Debug, Default)]
pub struct Readable {
    /// In ascending order; none touches the next.
    ranges: Vec<Range<usize>>,
}

impl Readable {
    /// Asks the system: a microsecond or less for each mapping. Without /proc nothing is known to be readable.
    pub fn now() -> Self {
        let maps = fs::read("/proc/self/maps").unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&maps))
    }

    /// Lines as `5581c0000-5581c1000 r-xp …`.
    fn parse(maps: &str) -> Self {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for line in maps.lines() {
            let (range, rest) = line.split_once(' ').unwrap_or_default();
            let number = |text| usize::from_str_radix(text, 16).ok();
            let ends = range.split_once('-').and_then(|(start, end)| Some(number(start)?..number(end)?));
            match (ends.filter(|_| rest.starts_with('r')), ranges.last_mut()) {
                (Some(next), Some(last)) if last.end == next.start => last.end = next.end,
                (Some(next), _) => ranges.push(next),
                (None, _) => {}
            }
        }
        Self { ranges }
    }

    /// Every byte of the range can be read.
    pub fn has(&self, range: &Range<usize>) -> bool {
        let after = self.ranges.partition_point(|known| known.start <= range.start);
        range.is_empty() || after > 0 && range.end <= self.ranges[after - 1].end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_ranges() {
        let maps = "1000-3000 r-xp 0 0 0 /a\n3000-4000 rw-p 0\n4000-5000 ---p 0\n5000-6000 r--p 0\nvsyscall\n";
        let readable = Readable::parse(maps);
        assert_eq!(readable.ranges, [0x1000..0x4000, 0x5000..0x6000]);
        for (range, expected) in [
            (0x1000..0x4000, true),
            (0x2fff..0x3001, true),
            (0x0fff..0x2000, false),
            (0x3fff..0x4001, false),
            (0x4000..0x5001, false),
            (0x5000..0x6000, true),
            (0x7000..0x7001, false),
            (0x7000..0x7000, true),
        ] {
            assert_eq!(readable.has(&range), expected, "{range:x?}");
        }
    }

    #[test]
    fn what_is_given_back_cannot_be_read() {
        const BYTES: usize = 1 << 20;
        // SAFETY: new memory, which nobody else knows.
        let start = unsafe {
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(std::ptr::null_mut(), BYTES, access, kind, -1, 0)
        };
        assert_ne!(start, libc::MAP_FAILED);
        let range = start as usize..start as usize + BYTES;
        assert!(Readable::now().has(&range) && is_readable(range.start) && is_readable(range.end - 1));
        // SAFETY: as above; it is not used any more.
        unsafe { libc::mprotect(start.byte_add(BYTES / 2), 4096, libc::PROT_NONE) };
        assert!(!Readable::now().has(&range) && is_readable(range.start) && !is_readable(range.start + BYTES / 2));
        // SAFETY: as above. Not unmapped: another test might get the addresses.
        unsafe { libc::mprotect(start, BYTES, libc::PROT_NONE) };
        assert!(!Readable::now().has(&range) && !is_readable(range.start) && !is_readable(8) && !is_readable(0));
    }
}
