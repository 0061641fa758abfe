//! The examples at the end of the commands' help. A test parses each of them.

pub const PROGRAM: &str = "\
Examples:
  nano-webhooks demo
  nano-webhooks --in-memory
  nano-webhooks listen --secret my-secret-key
  nano-webhooks job complete";

pub const SERVE: &str = "\
Examples:
  nano-webhooks serve
  nano-webhooks serve --in-memory --listen 127.0.0.1:0 --json
  nano-webhooks serve --retry-schedule 1s,10s,1m
  nano-webhooks serve --targets public --allow-cidr 127.0.0.0/8";

pub const LISTEN: &str = "\
Examples:
  nano-webhooks listen --secret my-secret-key
  nano-webhooks listen --port 9001 --respond 503 --delay 2
  nano-webhooks listen --json";

pub const CREATE_KEY: &str = "\
Examples:
  nano-webhooks keys create --account acme
  nano-webhooks keys create --account acme --aws";

pub const LIST_KEYS: &str = "\
Examples:
  nano-webhooks keys list --account acme
  nano-webhooks keys list --account acme --json";

pub const REVOKE_KEY: &str = "\
Example:
  nano-webhooks keys revoke --account acme sk-AbCdEfGh";

pub const JOB: &str = "\
Examples:
  nano-webhooks job complete
  nano-webhooks job complete --data '{\"url\":\"https://cdn.example.com/image.png\"}'
  nano-webhooks job fail --account acme --task-id task_1 --type video";

pub const RE_ENCRYPT: &str = "\
Examples:
  nano-webhooks secrets re-encrypt
  nano-webhooks secrets re-encrypt --new-key --aws";

pub const LIST_POISON: &str = "\
Examples:
  nano-webhooks poison list
  nano-webhooks poison list --day 2024-12-23 --json";

pub const REDRIVE_POISON: &str = "\
Examples:
  nano-webhooks poison redrive --all
  nano-webhooks poison redrive --all --day 2024-12-23";

pub const LIST_DELIVERIES: &str = "\
Examples:
  nano-webhooks deliveries list --account acme
  nano-webhooks deliveries list --account acme --webhook 1 --status failed
  nano-webhooks deliveries list --account acme --event job.failed --limit 1000 --json";

pub const SHOW_DELIVERY: &str = "\
Example:
  nano-webhooks deliveries show --account acme --webhook 1 evt_01JFSFB4807P0XDV4PAY2Y4PMB";

pub const RETRY_DELIVERY: &str = "\
Example:
  nano-webhooks deliveries retry --account acme --webhook 1 evt_01JFSFB4807P0XDV4PAY2Y4PMB";

pub const STATS: &str = "\
Examples:
  nano-webhooks stats
  nano-webhooks stats --account acme";

pub const COMPLETIONS: &str = "\
Examples:
  nano-webhooks completions bash > ~/.local/share/bash-completion/completions/nano-webhooks
  nano-webhooks completions fish > ~/.config/fish/completions/nano-webhooks.fish";

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::{Command, CommandFactory, Parser};

    use crate::{args::Cli, command_line::default_to_serve};

    /// The width of a usual terminal.
    const MAX_LINE: usize = 100;

    /// The commands that run something, each with its whole name.
    fn collect_commands(command: &Command, name: &str, found: &mut Vec<(String, Command)>) {
        for subcommand in command.get_subcommands() {
            let name = format!("{name} {}", subcommand.get_name());
            if subcommand.has_subcommands() {
                collect_commands(subcommand, &name, found);
            } else {
                found.push((name, subcommand.clone()));
            }
        }
    }

    /// Splits an example as a shell does. No example has spaces in quotes.
    fn split_example(line: &str) -> Vec<String> {
        let (command, _redirection) = line.split_once(" > ").unwrap_or((line, ""));
        let words = command.split_whitespace();
        words
            .map(|word| word.trim_matches('\'').to_owned())
            .collect()
    }

    fn assert_examples_parse(help: &str) {
        let mut lines = help.lines();
        assert!(lines.next().unwrap().starts_with("Example"), "{help}");
        for line in lines {
            assert!(line.len() < MAX_LINE, "{line}");
            let args = split_example(line)
                .into_iter()
                .map(OsString::from)
                .collect();
            if let Err(error) = Cli::try_parse_from(default_to_serve(args)) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn examples_parse_and_name_their_command() {
        assert_examples_parse(super::PROGRAM);
        let mut commands = Vec::new();
        collect_commands(&Cli::command(), "nano-webhooks", &mut commands);
        // `demo` has no options.
        commands.retain(|(name, _)| name != "nano-webhooks demo");
        assert!(commands.len() > 10);
        for (name, command) in commands {
            let help = command.get_after_help().expect(&name).to_string();
            assert_examples_parse(&help);
            assert!(help.contains(&name), "{name}");
        }
    }
}
