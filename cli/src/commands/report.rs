//! stub
use anyhow::Result;
#[derive(Debug, clap::Args)]
/// r
pub struct Args {}
pub fn run(_args: &Args) -> Result<()> {
    Ok(())
}
