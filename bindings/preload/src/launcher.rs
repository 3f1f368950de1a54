//! What launchers tell a process: which rank it is, and what all ranks of a job have in common.

use std::fs;
use std::sync::OnceLock;

use crate::environment::text;

/// Variables of rank and number of ranks.
const RANKS: [(&str, &str); 5] = [
    ("FGS_RANK", "FGS_WORLD_SIZE"),
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
];
/// Variables that have one value in all ranks of a job, and another in other jobs.
const JOBS: [&[&str]; 5] = [
    &["FGS_PRELOAD_JOB"],
    &["PMIX_NAMESPACE"],
    &["TORCHELASTIC_RUN_ID", "MASTER_PORT"],
    &["SLURM_JOB_ID", "SLURM_STEP_ID"],
    &["MASTER_ADDR", "MASTER_PORT"],
];
/// Shells and wrappers between a rank and its launcher that are looked through.
const WRAPPERS: usize = 16;

/// Rank and number of ranks as the launcher says; `None` if there is none.
pub fn launched() -> Option<(u32, u32)> {
    static LAUNCHED: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *LAUNCHED.get_or_init(|| {
        let number = |name: &str| text(name)?.trim().parse::<u32>().ok();
        let said = RANKS.iter().filter_map(|(rank, size)| Some((number(rank)?, number(size)?)));
        said.into_iter().find(|(rank, size)| rank < size)
    })
}

/// Whether this process speaks for its job: what is the same in every rank is said by one.
pub fn is_first() -> bool {
    launched().is_none_or(|(rank, _)| rank == 0)
}

/// What all ranks of a job on this machine have in common and other jobs do not: as launchers say, else the process that
/// started them.
pub fn job() -> String {
    let variable = |name: &str| text(name).filter(|value| !value.is_empty());
    let joined = |names: &[&str]| names.iter().map(|name| variable(name)).collect::<Option<Vec<_>>>();
    let said = JOBS.iter().find_map(|names| joined(names)).map(|values| values.join("."));
    said.unwrap_or_else(|| format!("parent {}", starter()))
}

/// The nearest process above that is no rank itself: MPICH's proxy, not the shell in between that binds ranks to cores.
fn starter() -> u32 {
    let mut process = std::os::unix::process::parent_id();
    for _ in 0..WRAPPERS {
        let Some(parent) = parent(process).filter(|_| is_rank(process)) else { break };
        process = parent;
    }
    process
}

/// Whether a process was told its rank.
fn is_rank(process: u32) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{process}/environ")) else { return false };
    environment.split(|&byte| byte == 0).any(|entry| {
        let name = entry.split(|&byte| byte == b'=').next().unwrap_or_default();
        RANKS.iter().any(|(rank, _)| rank.as_bytes() == name)
    })
}

fn parent(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may hold anything; behind it come state and parent.
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(1)?.parse().ok().filter(|&parent| parent > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_those_of_the_system() {
        assert_eq!(parent(std::process::id()), Some(std::os::unix::process::parent_id()).filter(|&id| id > 1));
        assert_eq!(parent(u32::MAX), None);
    }

    #[test]
    fn a_process_that_was_told_its_rank_is_one() {
        let mut told = std::process::Command::new("sleep").arg("60").env("PMI_RANK", "1").spawn().unwrap();
        let mut plain =
            std::process::Command::new("sleep").arg("60").env_remove("RANK").env("RANKS", "1").spawn().unwrap();
        // The environment is that of the program once it has begun.
        let begun = std::time::Instant::now();
        while !is_rank(told.id()) && begun.elapsed().as_secs() < 10 {
            std::thread::yield_now();
        }
        assert!(is_rank(told.id()) && !is_rank(plain.id()));
        for child in [&mut told, &mut plain] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
