//! `streamgauge completions` and `streamgauge man`: the command line, as shells and `man` want it.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, CliResult, Failure, out};

/// Print a shell's completions of every command and flag.
///
/// For bash: streamgauge completions bash > ~/.local/share/bash-completion/completions/streamgauge
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Which shell.
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// Write the manual pages, one for each command.
///
/// For this user: streamgauge man --out ~/.local/share/man/man1, and then `man streamgauge-extract`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where they go; pages of the same names are replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn completions(args: &CompletionsArgs) -> CliResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "streamgauge", &mut script);
    out(String::from_utf8_lossy(&script));
    Ok(())
}

pub fn man(args: &ManArgs) -> CliResult {
    let refused = |e: std::io::Error| {
        let dir = args.out.display();
        Failure::Refused(format!(
            "--out {dir}: {e}; give a directory that can be written to"
        ))
    };
    std::fs::create_dir_all(&args.out).map_err(refused)?;
    clap_mangen::generate_to(Cli::command(), &args.out).map_err(refused)
}
