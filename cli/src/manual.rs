//! Manual pages, one for the program and one for each subcommand, from the command line's own description.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

/// Writes `forgetscope.1`, `forgetscope-ls.1`, … into a directory.
pub fn write(command: Command, directory: &Path) -> Result<()> {
    let mut command = command.disable_help_subcommand(true);
    // Subcommands get the names that they are displayed by, such as "forgetscope-ls".
    command.build();
    page(&command, directory)?;
    command
        .get_subcommands()
        .filter(|subcommand| !subcommand.is_hide_set())
        .try_for_each(|command| page(command, directory))
}

fn page(command: &Command, directory: &Path) -> Result<()> {
    let man = Man::new(command.clone());
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    if let Some(examples) = command.get_after_help() {
        // As they stand: clap_mangen would fill the lines.
        let mut roff = Roff::new();
        roff.control("SH", ["EXAMPLES"]).control("nf", []);
        for line in examples.to_string().lines().filter(|line| *line != "Examples:") {
            roff.text([roman(line)]);
        }
        roff.control("fi", []).to_writer(&mut text)?;
    }
    if command.get_version().is_some() {
        man.render_version_section(&mut text)?;
    }
    let path = directory.join(man.get_filename());
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
