//! `forgetscope ctl`: says something to a trainer that runs, on all its ranks at the same step.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use forgetscope::control::{Answer, Client, Command, ControlError, Identity, Status};
use forgetscope::ring::{Discovered, WriterState};

use crate::format::{plural, printable};
use crate::run::Place;

/// How long to wait between two looks at the answers.
const PAUSE: Duration = Duration::from_millis(10);
/// Steps that all ranks have left before a command is carried out: ranks are at most one apart.
const LEAD: u64 = 2;

/// Tell a running trainer that a task begins or ends
///
/// For trainers that libforgetscope_preload.so is loaded into. The command goes to every rank of the run on this machine
/// and is carried out by all of them before the same step.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Path, process id, name or beginning of the name of a run
    run: String,
    #[command(flatten)]
    place: Place,
    /// Carry it out before this step begins [default: two steps from now]
    #[arg(long, value_name = "STEP", global = true)]
    at_step: Option<u64>,
    /// How long to wait for the answers
    #[arg(long, value_name = "SECONDS", default_value_t = 60, global = true)]
    timeout: u64,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// A task begins or ends
    Task {
        #[command(subcommand)]
        event: TaskEvent,
    },
    /// Keep the parameters as they are: drift is measured from here
    Snapshot,
    /// Sample every so many steps from now on; 0: none
    Every { steps: u64 },
    /// Take back a command that still waits for its step
    Cancel,
}

#[derive(Debug, clap::Subcommand)]
enum TaskEvent {
    /// Training of the task begins; the one before ends
    Begin { name: String },
    /// Training of the current task ends
    End,
}

impl Verb {
    fn command(&self) -> Command {
        match self {
            Self::Task { event: TaskEvent::Begin { name } } => Command::TaskBegin(name.clone()),
            Self::Task { event: TaskEvent::End } => Command::TaskEnd,
            Self::Snapshot => Command::Snapshot,
            Self::Every { steps } => Command::Every(*steps),
            Self::Cancel => Command::Cancel,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Task { event: TaskEvent::Begin { name } } => format!("task begin {}", printable(name)),
            Self::Task { event: TaskEvent::End } => "task end".into(),
            Self::Snapshot => "snapshot".into(),
            Self::Every { steps } => format!("every {steps}"),
            Self::Cancel => "cancel".into(),
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let Ranks { mut clients, strangers } = ranks(args)?;
    let world = clients.iter().map(|client| client.identity().world).max().unwrap_or(1);
    let mut errors = anstream::stderr().lock();
    if clients.len() < world as usize {
        let here = plural(clients.len() as u64, "rank");
        let hint = match strangers {
            0 => "on other machines run the same command with the same --at-step".into(),
            _ => format!(
                "another job of that size runs here ({}): if it is the same one, start all with the same FGS_PRELOAD_JOB",
                plural(strangers as u64, "rank")
            ),
        };
        writeln!(errors, "forgetscope: warning: {here} of {world} can be reached here; {hint}")?;
    }
    let at = match args.command {
        Verb::Cancel => 0,
        _ => args.at_step.map_or_else(|| soon(&clients), Ok)?,
    };
    send(&mut clients, &args.command.command(), at)?;
    let answers = answers(&clients, Duration::from_secs(args.timeout), at)?;

    let refused = |(_, answer): &&(u32, Answer)| answer.status == Status::Refused;
    if let Some((rank, answer)) = answers.iter().find(refused) {
        let count = answers.iter().filter(refused).count();
        bail!("{} refused `{}`: rank {rank}: {}", plural(count as u64, "rank"), args.command.name(), answer.text);
    }
    let mut out = anstream::stdout().lock();
    let (first, last) = steps(&answers);
    let ranks = plural(answers.len() as u64, "rank");
    writeln!(out, "{}: {ranks}, before step {first}", args.command.name())?;
    // What is taken back is taken back whenever that is.
    if first != last && !matches!(args.command, Verb::Cancel) {
        for (rank, answer) in &answers {
            writeln!(out, "  rank {rank}: before step {}", answer.step)?;
        }
        let hint = "give a later --at-step the next time";
        writeln!(errors, "forgetscope: warning: not all ranks did it before the same step; {hint}")?;
    }
    let mut remarks: Vec<&str> = answers.iter().map(|(_, answer)| answer.text.as_str()).collect();
    remarks.sort_unstable();
    remarks.dedup();
    for remark in remarks.into_iter().filter(|remark| !remark.is_empty()) {
        writeln!(out, "  {}", printable(remark))?;
    }
    Ok(())
}

/// The step before which all ranks can do it.
fn soon(clients: &[Client]) -> Result<u64> {
    let step = clients.iter().map(Client::step).max().unwrap_or(0);
    step.checked_add(LEAD)
        .ok_or_else(|| anyhow!("a rank says that it is at step {step}, which none can be; its page is damaged"))
}

/// The first and the last step before which something was carried out.
fn steps(answers: &[(u32, Answer)]) -> (u64, u64) {
    let steps = || answers.iter().map(|(_, answer)| answer.step);
    (steps().min().unwrap_or(0), steps().max().unwrap_or(0))
}

/// Who is spoken to.
struct Ranks {
    /// The pages of all ranks of the run that is meant, in order of rank.
    clients: Vec<Client>,
    /// Ranks that are missing, and run here in another job of the same size.
    strangers: usize,
}

fn ranks(args: &Args) -> Result<Ranks> {
    // As a directory lists them, so that they can be compared.
    let canonical = |path: PathBuf| path.canonicalize().map_err(|error| anyhow!("{}: {error}", path.display()));
    let found = args.place.find_all(&args.run)?.into_iter().map(canonical).collect::<Result<Vec<_>>>()?;
    let directory = found[0].parent().unwrap_or(Path::new("/"));
    let open = |ring: &Discovered| Client::open(&ring.path, ring.header.instance);
    let all = forgetscope::ring::discover(Some(directory));
    let mut clients = Vec::new();
    let (meant, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|ring| found.contains(&ring.path));
    for ring in &meant {
        match open(ring) {
            Ok(client) => clients.push(client),
            // A run of the same name that is over.
            Err(ControlError::Ended { .. }) if meant.len() > 1 => {}
            Err(_) if meant.len() > 1 && ring.state != WriterState::Running => {}
            Err(error) => return Err(error.into()),
        }
    }
    if clients.is_empty() && meant.is_empty() {
        // A path that is not called as rings are.
        let reader = forgetscope::ring::Reader::open(&found[0])?;
        clients.push(Client::open(&found[0], reader.header().instance)?);
    }
    let Some(first) = clients.first().map(|client| client.identity().clone()) else {
        bail!("all runs called `{}` have ended", args.run);
    };
    let belongs = |identity: &Identity| (&identity.job, identity.world) == (&first.job, first.world);
    if !clients.iter().all(|client| belongs(client.identity())) {
        bail!("`{}` fits several jobs; name a rank of one of them: `forgetscope ls` lists them", args.run);
    }
    let running = others.iter().filter(|ring| ring.state == WriterState::Running && ring.header.world == first.world);
    let mut strangers = Vec::new();
    for ring in running {
        // Somebody else may be talking to another job.
        let client = match Client::look(&ring.path, ring.header.instance) {
            Ok(identity) if belongs(&identity) => open(ring),
            Ok(identity) => {
                strangers.extend((identity.world == first.world).then_some(identity.rank));
                continue;
            }
            Err(error) => Err(error),
        };
        match client {
            Ok(client) => clients.push(client),
            // Runs of other trainers, some of which take no commands.
            Err(ControlError::Missing { .. } | ControlError::Ended { .. } | ControlError::Unusable { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    clients.sort_by_key(|client| client.identity().rank);
    strangers.retain(|rank| clients.iter().all(|client| client.identity().rank != *rank));
    match clients.windows(2).find(|pair| pair[0].identity().rank == pair[1].identity().rank) {
        Some(pair) => bail!("there are two rings of rank {} of this job; prune old ones", pair[0].identity().rank),
        None => Ok(Ranks { clients, strangers: strangers.len() }),
    }
}

/// Sends to all or to none.
fn send(clients: &mut [Client], command: &Command, at: u64) -> Result<()> {
    for index in 0..clients.len() {
        if let Err(error) = clients[index].send(command, at) {
            for client in &mut clients[..index] {
                client.send(&Command::Cancel, 0)?;
            }
            return Err(error.into());
        }
    }
    Ok(())
}

/// Waits for the answers of all ranks.
fn answers(clients: &[Client], timeout: Duration, at: u64) -> Result<Vec<(u32, Answer)>> {
    let begun = Instant::now();
    let mut answers: Vec<Option<Answer>> = vec![None; clients.len()];
    loop {
        for (client, answer) in clients.iter().zip(&mut answers) {
            if answer.is_none() {
                *answer = client.answer().map_err(|error| anyhow!("rank {}: {error}", client.identity().rank))?;
            }
        }
        let missing: Vec<String> = (clients.iter().zip(&answers))
            .filter(|(_, answer)| answer.is_none())
            .map(|(client, _)| format!("rank {} (at step {})", client.identity().rank, client.step()))
            .collect();
        if missing.is_empty() {
            let ranks = clients.iter().map(|client| client.identity().rank);
            return Ok(ranks.zip(answers.into_iter().flatten()).collect());
        }
        if begun.elapsed() > timeout {
            bail!(
                "no answer within {} s from {}; the command waits for step {at}, and `cancel` takes it back",
                timeout.as_secs(),
                missing.join(", ")
            );
        }
        sleep(PAUSE);
    }
}
