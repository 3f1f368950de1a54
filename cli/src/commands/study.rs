//! `forgetscope study`: many recordings, one table.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};

use crate::recording::Recording;
use crate::study::{self, Origin};

/// Say what goes with forgetting over many runs, and how well the first steps of a task foretell it
///
/// Takes recordings of runs that have ended, each with two or more tasks whose losses were recorded (fgs_record_loss). Each
/// earlier task while a later one was trained is a case. The table gives Pearson's and Spearman's correlation of what was
/// measured with what was forgotten, and a forecast that is judged on runs it has not seen.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directories of recordings, made with `forgetscope record --out`
    #[arg(required = true, value_name = "RECORDING")]
    recordings: Vec<PathBuf>,
    /// Forgetting, as a rise of the loss, that the forecast is of [default: the median of all cases]
    #[arg(long, value_name = "RISE")]
    threshold: Option<f64>,
    /// Share of a task's steps that the forecast looks at
    #[arg(long, default_value_t = study::EARLY, value_name = "SHARE")]
    early: f64,
    /// Leave out earlier tasks with another one in between: they have been forgotten already
    #[arg(long)]
    next_only: bool,
    /// Write the forecast, fitted to all runs, for `forgetscope report --forecast`
    #[arg(long, value_name = "FILE")]
    forecast: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if !(args.early > 0.0 && args.early <= 1.0) {
        bail!("--early: {} is not a share above 0 and up to 1", args.early);
    }
    if let Some(threshold) = args.threshold.filter(|threshold| !threshold.is_finite()) {
        bail!("--threshold: {threshold} is not a finite number");
    }
    let (mut cases, mut origins) = (Vec::new(), Vec::<Origin>::new());
    let names: Vec<String> = args.recordings.iter().map(|path| path.display().to_string()).collect();
    for (run, (path, name)) in args.recordings.iter().zip(&names).enumerate() {
        if stderr().is_terminal() {
            let _ = write!(stderr(), "\rreading {} of {}", run + 1, names.len());
        }
        let recording = Recording::open(path, None)?;
        let origin = Origin::of(&recording.catalog);
        // Runs are left out one at a time: a run that is there twice would foretell itself.
        if let Some(twice) = origins.iter().position(|other| other.instance == origin.instance) {
            bail!("{} and {name} are recordings of the same run; give one of them", names[twice]);
        }
        origins.push(origin);
        cases.extend(study::cases_of(&recording, run, args.early).map_err(|error| anyhow!("{name}: {error}"))?);
    }
    if stderr().is_terminal() {
        let _ = write!(stderr(), "\r\x1b[K");
    }
    cases.retain(|case| case.is_next || !args.next_only);
    if cases.is_empty() {
        bail!("no recording has the loss of the task right before another; leave out --next-only");
    }
    let threshold = args.threshold.unwrap_or_else(|| study::median_forgetting(&cases));
    let relations = study::relations(&cases);
    let forecast = study::forecast(&cases, threshold, args.early, origins);
    let out = if args.json {
        format!("{:#}\n", study::json(&names, &cases, &relations, forecast.as_ref()))
    } else {
        study::text(&names, &cases, &relations, forecast.as_ref())
    };
    stdout().write_all(out.as_bytes())?;
    let Some(path) = &args.forecast else { return Ok(()) };
    let Some((forecast, _)) = forecast else {
        bail!("there is no forecast to write: it takes recordings of at least two runs")
    };
    std::fs::write(path, format!("{:#}\n", forecast.to_json()))
        .map_err(|error| anyhow!("cannot write {}: {error}; choose another file with --forecast", path.display()))
}
