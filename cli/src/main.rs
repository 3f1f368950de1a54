//! The program `forgetscope`: watches, records and reports what a forgetscope in a trainer measures.
//!
//! It only reads: a run is a ring in shared memory, which any number of readers may follow without the trainer noticing.
//! `ctl` alone writes, into the page beside the ring of a trainer that takes commands.
//!
//! | module | concept |
//! |---|---|
//! | `commands` | one file for each subcommand |
//! | `run` | which run is meant |
//! | `names` | what the numbers in a record are called |
//! | `recording` | a run as Parquet files, written and read |
//! | `report` | a run as one HTML page |
//! | `study` | many runs: what goes with forgetting, and how well it can be foretold |
//! | `manual` | manual pages |
//! | `format` | numbers, times and sizes as text |

mod commands;
mod format;
mod manual;
mod names;
mod recording;
mod report;
mod run;
mod study;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  forgetscope ls                            runs on this machine
  forgetscope tail                          follow the only run
  forgetscope tail 4711 --kind evaluation   follow one kind of record of process 4711
  forgetscope tail --json | jq .values      the same for programs
  forgetscope record --out runs/legal       write Parquet until the run ends
  forgetscope report runs/legal             one HTML page that says what is being forgotten
  forgetscope study runs/*                  what goes with forgetting over many runs
  forgetscope ctl 4711 task begin code      say so to a trainer that does not know of tasks

A run is named by the path of its ring, its process id, its own name, or the beginning of
the name that `forgetscope ls` shows. If there is only one, it need not be named.";

/// Watch, record and report what training on a new task does to the tasks before it.
#[derive(Debug, Parser)]
#[command(name = "forgetscope", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ls(commands::ls::Args),
    Tail(commands::tail::Args),
    Record(commands::record::Args),
    Report(commands::report::Args),
    Study(commands::study::Args),
    Ctl(commands::ctl::Args),
    /// Print a script that completes commands and options in a shell
    Completions {
        shell: clap_complete::Shell,
    },
    /// Write manual pages, one for each subcommand
    #[command(hide = true)]
    Manual {
        /// Where they go
        directory: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Ls(args) => commands::ls::run(&args),
        Command::Tail(args) => commands::tail::run(&args),
        Command::Record(args) => commands::record::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Study(args) => commands::study::run(&args),
        Command::Ctl(args) => commands::ctl::run(&args),
        Command::Completions { shell } => completions(shell),
        Command::Manual { directory } => manual::write(Cli::command(), &directory),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough of it.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(anstream::stderr(), "forgetscope: {error}");
            ExitCode::FAILURE
        }
    }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "forgetscope", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
