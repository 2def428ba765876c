//! The command line: one file per subcommand, each thin; what they share is in `job_args`, `edit_args`, `format` and `progress`.
//! Results go to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 usage.

mod analyze;
mod bench;
mod doctor;
mod edit_args;
mod extract;
mod format;
mod generate;
mod inspect;
mod job_args;
mod model_info;
mod plan;
mod progress;
mod store_taps;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs Mistral-family language models over datasets and reads any activation at full speed.
#[derive(Debug, Parser)]
#[command(name = "streamgauge", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Doctor(doctor::DoctorArgs),
    Model(model_info::ModelArgs),
    Plan(plan::PlanArgs),
    Extract(extract::ExtractArgs),
    Generate(generate::GenerateArgs),
    Inspect(inspect::InspectArgs),
    Verify(verify::VerifyArgs),
    Analyze(analyze::AnalyzeArgs),
    Bench(bench::BenchArgs),
}

/// A command line that makes no sense, found after clap was done with it: exit status 2.
#[derive(Debug)]
struct Usage(String);

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    Usage(Usage),
    Failed(Box<crate::Error>),
    /// What the command itself finds wrong with its input.
    Refused(String),
    /// What went wrong is already on stdout (as `verify` tells it).
    Told,
}

impl<E: Into<crate::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Failed(Box::new(error.into()))
    }
}

impl From<Usage> for Failure {
    fn from(usage: Usage) -> Self {
        Failure::Usage(usage)
    }
}

type CliResult = Result<(), Failure>;

/// Parses the command line, runs the command, and says in one line what failed.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Doctor(args) => doctor::run(&args),
        Command::Model(args) => model_info::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Extract(args) => extract::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Analyze(args) => analyze::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Told) => ExitCode::from(1),
        Err(Failure::Failed(error)) => complain(&error.to_string(), 1),
        Err(Failure::Refused(message)) => complain(&message, 1),
        Err(Failure::Usage(Usage(message))) => complain(&message, 2),
    }
}

fn complain(message: &str, status: u8) -> ExitCode {
    // A message of several lines would not be one that a log shows whole.
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let _ = writeln!(std::io::stderr(), "error: {line}");
    ExitCode::from(status)
}

/// Prints to stdout; a reader that has gone away (`| head`) is no error.
fn out(text: impl std::fmt::Display) {
    let _ = write!(std::io::stdout(), "{text}");
}
