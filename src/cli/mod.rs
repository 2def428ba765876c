//! The command line: one file per subcommand, each thin; what they share is in `job_args`, `prompt_args`, `model_args`, `edit_args`, `format`, `progress` and `results`.
//! Results go to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 usage; 130 or 143 where Ctrl-C or SIGTERM ended a run that can be resumed.

mod analyze;
mod bench;
mod ceilings;
mod devices;
mod doctor;
mod edit_args;
mod extract;
mod format;
mod generate;
mod inspect;
mod job_args;
mod lens;
mod merge;
mod model_args;
mod model_info;
mod patch;
mod plan;
mod progress;
mod prompt_args;
mod rank;
mod results;
mod score;
mod shell;
mod statistics;
mod store_taps;
mod study;
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
    Score(score::ScoreArgs),
    Patch(patch::PatchArgs),
    Inspect(inspect::InspectArgs),
    Verify(verify::VerifyArgs),
    Merge(merge::MergeArgs),
    Analyze(analyze::AnalyzeArgs),
    Lens(lens::LensArgs),
    Study(study::StudyArgs),
    Bench(bench::BenchArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
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
    /// A signal asked for the end, with this exit status.
    Stopped(String, u8),
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
    crate::sys::allow_many_files();
    // Where it is refused, a lost file ends the process by a signal, as it would anyway.
    let _ = crate::sys::lost::tell_of_lost_files();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error),
    };
    let result = match cli.command {
        Command::Doctor(args) => doctor::run(&args),
        Command::Model(args) => model_info::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Extract(args) => extract::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Patch(args) => patch::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Analyze(args) => analyze::run(&args),
        Command::Lens(args) => lens::run(&args),
        Command::Study(args) => study::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Told) => ExitCode::from(1),
        Err(Failure::Failed(error)) => complain(&error.to_string(), status_of(&error)),
        Err(Failure::Refused(message)) => complain(&message, 1),
        Err(Failure::Stopped(message, status)) => complain(&message, status),
        Err(Failure::Usage(Usage(message))) => complain(&message, 2),
    }
}

/// A number or a pair of flags that makes no sense is a matter of the command line, wherever it is found.
fn status_of(error: &crate::Error) -> u8 {
    match error {
        crate::Error::Engine(error) if error.is_of_the_command_line() => 2,
        _ => 1,
    }
}

/// What clap could not parse, or was asked to show. Its errors come in several paragraphs: the usage goes (`--help` has it),
/// the rest becomes one line.
fn not_parsed(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || error.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let text = error.to_string();
    let said: Vec<&str> = text
        .split("\n\n")
        .map(|paragraph| paragraph.trim().trim_start_matches("error: "))
        .filter(|p| !p.is_empty() && !p.starts_with("Usage:") && !p.starts_with("For more"))
        .collect();
    complain(&format!("{}; see --help", said.join("; ")), 2)
}

fn complain(message: &str, status: u8) -> ExitCode {
    // A message of several lines would not be one that a log shows whole.
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let _ = writeln!(std::io::stderr(), "error: {line}");
    ExitCode::from(status)
}

/// Prints to stdout; a reader that has gone away (`| head`) is no error. Anything else ends the process: a result that was lost
/// must not look like one that was given.
fn out(text: impl std::fmt::Display) {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            let _ = complain(&format!("cannot write to standard output: {error}"), 1);
            std::process::exit(1);
        }
        _ => {}
    }
}
