//! `forgetscope report`: a run as one HTML page.

use std::fs;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::report;
use crate::run::Place;
use crate::study::Forecast;

/// Write one HTML page that says what is being forgotten, where, and how sure that is
///
/// Of a running or finished run, the page shows what is still in its ring; of a recording, everything. The page is one
/// file that needs no network.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run (path, process id, name or beginning of its name) or the directory of a recording [default: the only run]
    run: Option<String>,
    /// Where to write the page; `-` is standard output
    #[arg(long, short, default_value = "report.html", value_name = "FILE")]
    out: PathBuf,
    /// Which rank of a recording [default: the lowest]
    #[arg(long, value_name = "RANK")]
    rank: Option<u32>,
    /// A forecast made with `forgetscope study --forecast`: shows its risks beside what happened
    #[arg(long, value_name = "FILE")]
    forecast: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: &Args) -> Result<()> {
    let path = match args.run.as_deref().map(Path::new) {
        Some(path) if path.is_dir() => path.to_owned(),
        _ => args.place.find(args.run.as_deref())?,
    };
    let mut data = report::read(&path, args.rank)?;
    data.forecast = args.forecast.as_deref().map(Forecast::read).transpose()?;
    let page = report::render(&data);
    if args.out == Path::new("-") {
        return Ok(std::io::stdout().write_all(page.as_bytes())?);
    }
    let out = args.out.display();
    fs::write(&args.out, page)
        .map_err(|error| anyhow!("cannot write {out}: {error}; choose another file with --out"))?;
    let _ = writeln!(stderr(), "wrote {out}");
    Ok(())
}
