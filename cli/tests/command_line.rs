//! The built binary with settings from the command line and the environment. The tests in `e2e/`
//! cover the running service and its commands.

use std::process::{Command, Output};

const PROXY_VARIABLES: [&str; 5] = [
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "HTTPS_PROXY",
];

fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nano-webhooks"))
}

/// `serve` in memory on free ports.
fn serve() -> Command {
    let mut command = binary();
    command.args(["serve", "--in-memory"]);
    command.args(["--listen", "127.0.0.1:0"]);
    command.args(["--dynamodb-listen", "127.0.0.1:0"]);
    command
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Asserts that a command ends with this status and an error that contains `name`.
fn assert_rejected(mut command: Command, status: i32, name: &str) {
    let output = command.output().unwrap();
    let printed = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{command:?}: {printed}");
    assert!(printed.contains(name), "{command:?}: {printed}");
}

/// The demo ignores proxies, AWS settings and the variables of `serve`.
#[test]
fn environment_does_not_change_demo() {
    let mut demo = binary();
    for variable in PROXY_VARIABLES {
        demo.env(variable, "http://127.0.0.1:9");
    }
    let demo = demo
        .arg("demo")
        .env("NANO_WEBHOOKS_API_KEY", "not-an-api-key")
        .env("NANO_WEBHOOKS_LISTEN", "not-an-address")
        .env("TARGETS", "all")
        .env("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:9")
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .unwrap();
    assert!(demo.status.success(), "{}", stderr(&demo));
}

/// A command whose output has no reader ends silently, whether it runs for long or not.
#[test]
fn closed_pipe_ends_command_silently() {
    let commands = [
        &["demo"][..],
        &[
            "serve",
            "--in-memory",
            "--listen",
            "127.0.0.1:0",
            "--dynamodb-listen",
            "127.0.0.1:0",
        ],
        &["listen", "--port", "0"],
        &["--help"],
        &["--version"],
        &["completions", "bash"],
    ];
    for args in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = binary().args(args).stdout(writer).output().unwrap();
        assert_eq!(stderr(&output), "", "{args:?}");
        assert!(output.status.success(), "{args:?}: {}", output.status);
    }
}

#[test]
fn completions_name_commands() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = binary().args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{shell}");
        for name in ["nano-webhooks", "deliveries", "in-memory"] {
            assert!(script.contains(name), "{shell}: {name}");
        }
    }
}

/// Lines of help fit into 100 columns.
#[test]
fn help_is_wrapped() {
    for args in [&["--help"][..], &["serve", "--help"], &["stats", "--help"]] {
        let output = binary().args(args).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains("Example"), "{help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
}

#[test]
fn malformed_option_is_usage_error() {
    for (args, name) in [
        (&["serve", "--targets", "private"][..], "--targets"),
        (&["serve", "--retry-schedule", "soon"], "--retry-schedule"),
        (&["serve", "--allow-cidr", "office"], "--allow-cidr"),
        (&["serve", "--deny-cidr", "10.1.0.0"], "--deny-cidr"),
        (&["serve", "--listen", "here"], "--listen"),
        (&["keys", "create", "--account", ""], "--account"),
        (&["job", "complete", "--data", "[1]"], "--data"),
        (&["serve", "--api-key", "sk-123"], "--api-key"),
        (&["listen", "--secret", "short"], "--secret"),
        (&["keys"], "Usage: "),
        (&["keys", "list"], "--account"),
        (&["completions", "dash"], "dash"),
        (&["start"], "start"),
        (&["serve", "--port", "1"], "--port"),
    ] {
        let mut command = binary();
        command.args(args);
        assert_rejected(command, 2, name);
    }
}

/// A value that only the command itself can check has status 1.
#[test]
fn rejected_option_is_named() {
    let mut missing_file = serve();
    missing_file.args(["--ca-file", "/no/such/file"]);
    assert_rejected(missing_file, 1, "--ca-file");
}

/// A key is a secret, so the error does not repeat it.
#[test]
fn malformed_api_key_is_not_printed() {
    let variable = "NANO_WEBHOOKS_API_KEY";
    let output = serve().env(variable, "not-an-api-key").output().unwrap();
    let printed = stderr(&output);
    assert_eq!(output.status.code(), Some(2));
    let expected = "invalid value for '--api-key <API_KEY>': expected `sk-`";
    assert!(printed.contains(expected), "{printed}");
    assert!(!printed.contains("not-an-api-key"));
    assert!(printed.contains(variable), "{printed}");
}

#[test]
fn malformed_variable_is_named() {
    for (variable, value) in [
        ("WEBHOOKS_PER_ACCOUNT", "many"),
        ("RATE_LIMIT_PER_MINUTE", "-1"),
        ("NANO_WEBHOOKS_EXTRA_CA_FILE", "/no/such/file"),
    ] {
        let mut command = serve();
        command.env(variable, value);
        assert_rejected(command, 1, variable);
    }
}

#[test]
fn occupied_port_names_option() {
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = occupied.local_addr().unwrap();
    let port = address.port().to_string();
    let free = "127.0.0.1:0";
    let listen = address.to_string();
    for (args, option) in [
        (
            &["serve", "--in-memory", "--listen", &listen][..],
            "--listen",
        ),
        (
            &[
                "serve",
                "--in-memory",
                "--listen",
                free,
                "--dynamodb-listen",
                &listen,
            ],
            "--dynamodb-listen",
        ),
        (&["listen", "--port", &port], "--port"),
    ] {
        let mut command = binary();
        command.args(args);
        let message = format!("choose another address or port with {option}: ");
        assert_rejected(command, 1, &message);
    }
}

/// A malformed variable of an option of `serve` is a usage error that names the variable, unless
/// the option was given too.
#[test]
fn malformed_option_variable_is_named() {
    for (variable, value) in [
        ("NANO_WEBHOOKS_LISTEN", "here"),
        ("NANO_WEBHOOKS_TARGETS", "all"),
        ("NANO_WEBHOOKS_ALLOW_CIDRS", "10.0.0.0/8,office"),
        ("NANO_WEBHOOKS_RETRY_SCHEDULE", "hourly"),
    ] {
        let mut command = binary();
        command.arg("serve").env(variable, value);
        assert_rejected(command, 2, variable);
    }
    let output = binary()
        .args(["serve", "--targets=private"])
        .env("NANO_WEBHOOKS_TARGETS", "all")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!stderr(&output).contains("NANO_WEBHOOKS_TARGETS"));
}

/// Variables without the prefix belong to other tools or to the functions.
#[test]
fn variables_without_prefix_do_not_change_serve() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = serve()
        .envs([
            ("API_KEY", "key-of-another-tool"),
            ("LISTEN", "unix:/run/other.sock"),
            ("TARGETS", "all"),
            ("ALLOW_CIDRS", "corporate"),
            ("DENY_CIDRS", "corporate"),
            ("RETRY_SCHEDULE", "hourly"),
            ("EXTRA_CA_FILE", "/no/such/file"),
            ("JSON", "true"),
        ])
        // Without a reader `serve` ends when it is ready.
        .stdout(writer)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let mut operator_command = binary();
    operator_command.args(["stats", "--dynamodb-endpoint", "http://127.0.0.1:9"]);
    operator_command.env("TARGETS", "all");
    assert_rejected(operator_command, 1, "cannot reach DynamoDB");
}

/// An unreachable engine is explained with the last cause only.
#[test]
fn unreachable_engine_is_explained() {
    let output = binary()
        .args(["stats", "--dynamodb-endpoint", "http://127.0.0.1:9"])
        .output()
        .unwrap();
    let printed = stderr(&output);
    let explanation = "nano-webhooks: cannot reach DynamoDB at http://127.0.0.1:9 \
                       (is `nano-webhooks serve` running?): ";
    let cause = printed.strip_prefix(explanation).expect(printed);
    assert!(!cause.contains(": "), "{printed}");
}

/// With `--aws` a table that no setting names is an error, not the table of local mode.
#[test]
fn aws_option_requires_table_names() {
    let tables = [("WEBHOOKS_TABLE", "w"), ("DELIVERIES_TABLE", "d")];
    for (args, settings, missing) in [
        (&["stats"][..], &tables[1..], "WEBHOOKS_TABLE"),
        (
            &["keys", "list", "--account", "a"],
            &tables[..1],
            "DELIVERIES_TABLE",
        ),
        (&["secrets", "re-encrypt"], &[], "WEBHOOKS_TABLE"),
        (&["job", "complete"], &tables, "JOBS_TABLE"),
    ] {
        let mut command = binary();
        for variable in ["WEBHOOKS_TABLE", "DELIVERIES_TABLE", "JOBS_TABLE"] {
            command.env_remove(variable);
        }
        command
            .args(args)
            .arg("--aws")
            .envs(settings.iter().copied());
        let message = format!("{missing}: missing, expected the name of a table");
        assert_rejected(command, 1, &message);
    }
}
