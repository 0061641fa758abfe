//! Parses the command line of this process.

use std::ffi::OsString;

use clap::{
    CommandFactory, Parser,
    error::{ContextKind, ContextValue},
};
use nano_webhooks::config::env_var;

use crate::{args::Cli, terminal::print_remark};

/// Parses the arguments of this process. Prints a usage error and exits with status 2 if they are
/// malformed.
pub fn parse_process_args() -> Cli {
    let args = default_to_serve(std::env::args_os().collect());
    match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => exit_with(&error, &args),
    }
}

/// Prints the error, or the help that was asked for. Names the environment variable that a
/// malformed value is from, because the user did not type the option that the error names.
fn exit_with(error: &clap::Error, args: &[OsString]) -> ! {
    // The output has no reader if this fails.
    let _ = error.print();
    if let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg)
        && let Some(variable) = find_variable(&built_command(), option, args)
    {
        print_remark(format_args!(
            "The value is from the environment variable {variable}."
        ));
    }
    std::process::exit(error.exit_code());
}

/// The definition of the command line, complete enough to print its options.
fn built_command() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// Finds the variable that the value of an option is from. `option` is as errors print it, such as
/// `--targets <TARGETS>`.
fn find_variable(command: &clap::Command, option: &str, args: &[OsString]) -> Option<String> {
    let has_option = |arg: &&clap::Arg| arg.to_string() == option && arg.get_env().is_some();
    let Some(arg) = command.get_arguments().find(has_option) else {
        let mut subcommands = command.get_subcommands();
        return subcommands.find_map(|subcommand| find_variable(subcommand, option, args));
    };
    let variable = arg.get_env()?.to_str()?;
    let flag = format!("--{}", arg.get_long()?);
    let is_set = matches!(env_var(variable), Ok(Some(_)) | Err(_));
    if is_set && !args.iter().any(|arg| names_flag(arg, &flag)) {
        return Some(variable.to_owned());
    }
    None
}

/// Whether an argument is `--flag` or `--flag=value`.
fn names_flag(arg: &OsString, flag: &str) -> bool {
    match arg.to_string_lossy().strip_prefix(flag) {
        Some(rest) => rest.is_empty() || rest.starts_with('='),
        None => false,
    }
}

/// Inserts `serve` if the arguments name no command and ask neither for help nor for the version.
pub fn default_to_serve(mut args: Vec<OsString>) -> Vec<OsString> {
    let is_serve = match args.get(1) {
        None => true,
        Some(first) => {
            first.as_encoded_bytes().starts_with(b"-")
                && !["--help", "-h", "--version", "-V"]
                    .iter()
                    .any(|flag| first == flag)
        }
    };
    if is_serve {
        args.insert(args.len().min(1), "serve".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn missing_command_means_serve() {
        for (args, expected) in [
            (&["nano-webhooks"][..], &["nano-webhooks", "serve"][..]),
            (
                &["nano-webhooks", "--json"],
                &["nano-webhooks", "serve", "--json"],
            ),
            (&["nano-webhooks", "--help"], &["nano-webhooks", "--help"]),
            (&["nano-webhooks", "demo"], &["nano-webhooks", "demo"]),
        ] {
            assert_eq!(
                default_to_serve(args.iter().map(Into::into).collect()),
                expected
            );
        }
    }
}
