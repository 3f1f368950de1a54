//! Writes the ring of a made-up run, to try the program without a trainer:
//!
//! ```text
//! cargo run -p forgetscope-cli --example demo -- /tmp/demo.ring
//! cargo run -p forgetscope-cli -- report /tmp/demo.ring
//! ```

#[path = "../tests/common/made_up.rs"]
mod made_up;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give the path of the ring that is to be written")?;
    let published = made_up::Run::new(path).write()?;
    println!("{} records", published.len());
    Ok(())
}
