//! Messages to the person who started the trainer: lines on standard error that begin with `forgetscope:` and the rank.

use std::io::Write;
use std::sync::OnceLock;

/// Prints a line. Each fault is said once: callers see to that.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}

/// Rank and number of ranks as the launcher says; `None` if there is none.
pub fn launched() -> Option<(u32, u32)> {
    static LAUNCHED: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *LAUNCHED.get_or_init(|| {
        const LAUNCHERS: [(&str, &str); 5] = [
            ("FGS_RANK", "FGS_WORLD_SIZE"),
            ("RANK", "WORLD_SIZE"),
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
            ("PMI_RANK", "PMI_SIZE"),
            ("SLURM_PROCID", "SLURM_NTASKS"),
        ];
        let number = |name: &str| std::env::var(name).ok()?.trim().parse::<u32>().ok();
        LAUNCHERS
            .iter()
            .find_map(|(rank, size)| Some((number(rank)?, number(size)?)).filter(|(rank, size)| rank < size))
    })
}

/// One write, so that lines of several ranks do not mix.
pub fn line(text: std::fmt::Arguments) {
    let line = match launched() {
        Some((rank, _)) => format!("forgetscope: rank {rank}: {text}\n"),
        None => format!("forgetscope: {text}\n"),
    };
    // Standard error may be closed; there is nobody to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
