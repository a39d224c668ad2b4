//! The `floe` command: one file a verb under `verbs`, each arguments -> request -> one library call -> rendering.

#![forbid(unsafe_code)]

mod act;
mod behalf;
mod failure;
mod front;
mod output;
mod progress;
mod verbs;

use behalf::Handed;
use clap::{Parser, Subcommand, ValueEnum};
use floe_sandbox::StateDir;
use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

/// Freeze a running process tree, save it into one compressed file, and bring it back with the same PIDs.
#[derive(Debug, Parser)]
#[command(name = "floe", version, max_term_width = 100)]
struct Arguments {
    /// Where sandboxes are kept [default: /run/floe, or $XDG_RUNTIME_DIR/floe for ordinary users].
    #[arg(long, global = true, env = "FLOE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Tell more on standard error; twice for everything.
    #[arg(long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// As --verbose, before the verb: behind run it names a volume.
    #[arg(short, action = clap::ArgAction::Count)]
    v: u8,
    /// How diagnostics are written, a failure among them: for people, or as one JSON object a line.
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// What root's floe has handed to this one, which it has started as an ordinary user.
    #[arg(long, hide = true, value_name = "FDS")]
    handed: Option<behalf::Numbers>,
    /// From where paths count that root's floe was given.
    #[arg(long, hide = true, value_name = "DIR", requires = "handed")]
    handed_at: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<verbs::run::Run>),
    Ps(verbs::ps::Ps),
    Ns(verbs::ns::Ns),
    Pid(verbs::pid::Translate),
    Exec(verbs::exec::Exec),
    Attach(verbs::attach::Attach),
    Freeze(verbs::freeze::Freeze),
    Thaw(verbs::freeze::Thaw),
    Kill(verbs::kill::Kill),
    Wait(verbs::wait::Wait),
    Logs(verbs::logs::Logs),
    Rm(verbs::rm::Rm),
    Checkpoint(verbs::checkpoint::Checkpoint),
    Restore(verbs::restore::Restore),
    Inspect(verbs::inspect::Inspect),
    Verify(verbs::verify::Verify),
    Image(verbs::image::Image),
    Check(verbs::check::Check),
    Migrate(verbs::migrate::Migrate),
    Receive(verbs::receive::Receive),
    Keys(verbs::keys::ShowKeys),
    Demo(verbs::demo::Demo),
    #[command(hide = true)]
    DemoWorker(verbs::demo::DemoWorker),
}

/// What verbs get besides their own arguments.
#[derive(Debug)]
struct Context {
    state_dir: StateDir,
    log_format: LogFormat,
    /// Whether that was said by the user.
    state_dir_is_given: bool,
    /// By root's floe, where that has started this one.
    handed: Option<Handed>,
}

impl Context {
    /// Says something on standard error that is no failure.
    fn tell(&self, text: &str) {
        match self.log_format {
            LogFormat::Text => output::error(text),
            LogFormat::Json => output::error(&serde_json::json!({ "level": "INFO", "message": text }).to_string()),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.verbose.max(arguments.v), arguments.log_format);
    let format = arguments.log_format;
    let handed = match arguments.handed.as_ref().map(Handed::take).transpose() {
        Ok(handed) => handed,
        Err(error) => {
            failure::Failure::from(error).report(format);
            return ExitCode::FAILURE;
        }
    };
    let context = Context {
        log_format: format,
        state_dir_is_given: arguments.state_dir.is_some(),
        state_dir: StateDir::new(state_dir(arguments.state_dir, arguments.handed_at)),
        handed,
    };
    let result = match arguments.verb {
        Verb::Run(verb) => verb.run(&context),
        Verb::Ps(verb) => verb.run(&context),
        Verb::Ns(verb) => verb.run(&context),
        Verb::Pid(verb) => verb.run(&context),
        Verb::Exec(verb) => verb.run(&context),
        Verb::Attach(verb) => verb.run(&context),
        Verb::Freeze(verb) => verb.run(&context),
        Verb::Thaw(verb) => verb.run(&context),
        Verb::Kill(verb) => verb.run(&context),
        Verb::Wait(verb) => verb.run(&context),
        Verb::Logs(verb) => verb.run(&context),
        Verb::Rm(verb) => verb.run(&context),
        Verb::Checkpoint(verb) => verb.run(&context),
        Verb::Restore(verb) => verb.run(&context),
        Verb::Inspect(verb) => verb.run(),
        Verb::Verify(verb) => verb.run(),
        Verb::Image(verb) => verb.run(&context),
        Verb::Check(verb) => verb.run(&context),
        Verb::Migrate(verb) => verb.run(&context),
        Verb::Receive(verb) => verb.run(&context),
        Verb::Keys(verb) => verb.run(),
        Verb::Demo(verb) => verb.run(),
        Verb::DemoWorker(verb) => verb.run(),
    };
    match result {
        Ok(status) => ExitCode::from(u8::try_from(status & 0xff).unwrap_or(1)),
        Err(failure) => {
            failure.report(format);
            ExitCode::from(failure.status)
        }
    }
}

/// From the root on, as the monitor works there.
fn state_dir(given: Option<PathBuf>, at: Option<PathBuf>) -> PathBuf {
    let path = given.unwrap_or_else(default_state_dir);
    let path = at.map_or_else(|| path.clone(), |at| at.join(&path));
    std::path::absolute(&path).unwrap_or(path)
}

fn default_state_dir() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !nix::unistd::geteuid().is_root());
    runtime.map_or_else(
        || PathBuf::from("/run/floe"),
        |directory| PathBuf::from(directory).join("floe"),
    )
}

fn start_log(verbose: u8, format: LogFormat) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .without_time()
            .with_target(false)
            .init(),
        LogFormat::Json => builder.json().init(),
    }
}
