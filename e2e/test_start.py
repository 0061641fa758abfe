"""How it starts. Time and memory are measured and printed; a busy machine is no failure."""

import re
from pathlib import Path

import pytest

from support import command


def test_it_says_in_one_line_of_json_where_it_is_and_starts_quickly(start, capsys):
    seconds, service = [], None
    for _ in range(3):
        service = start("--in-memory")
        seconds.append(service.start_seconds)
    assert set(service.ready) == {"api", "dynamodb", "account", "api_key", "tables"}
    assert set(service.ready["tables"]) == {"jobs", "webhooks", "deliveries"}
    assert service.ready["account"] == "demo"
    assert service.read().count("\n") == 1, "logs go to stderr"
    assert service.api.list().data == []
    status = Path(f"/proc/{service.popen.pid}/status")
    # Only Linux tells a process's memory in a file.
    memory = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) / 1024 if status.exists() else float("nan")
    with capsys.disabled():
        print(
            f"\nserve --in-memory: ready after {min(seconds):.3f} to {max(seconds):.3f} s, idle memory {memory:.1f} MiB"
        )


def test_nobody_needs_a_key_to_see_that_it_is_well(service):
    assert service.api.call("GET", "/healthz", headers={"Authorization": None}).status == 200


def test_the_key_that_is_given_is_the_key_of_account_demo(service, start):
    key = service.new_account().key
    other = start("--in-memory", "--api-key", key)
    assert (other.api.key, other.api.account) == (key, "demo")
    assert other.api.list().status == 200


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--targets", "private"], "--targets"),
        (["--allow-cidr", "office"], "--allow-cidr"),
        (["--retry-schedule", "soon"], "--retry-schedule"),
        (["--api-key", "sk-typo"], "--api-key"),
        (["--listen", "nowhere"], "--listen"),
        (["--unknown"], "--unknown"),
    ],
)
def test_a_malformed_option_stops_the_start_and_is_named(options, names):
    done = command("serve", "--in-memory", *options, check=False)
    assert done.returncode != 0 and names in done.stderr, done.stderr
    assert "panicked" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TARGETS", "private"),
        ("ALLOW_CIDRS", "office"),
        ("RETRY_SCHEDULE", "soon"),
        ("RETENTION_DAYS", "0"),
        ("WEBHOOKS_PER_ACCOUNT", "many"),
        ("RATE_LIMIT_PER_MINUTE", "-1"),
        ("RATE_LIMIT_PER_DAY", "1.5"),
        ("EXTRA_CA_FILE", "does-not-exist.pem"),
    ],
)
def test_a_malformed_setting_of_the_environment_stops_the_start_and_is_named(name, value):
    listen = ("--listen", "127.0.0.1:0", "--dynamodb-listen", "127.0.0.1:0")
    done = command("serve", "--in-memory", *listen, env={name: value}, check=False)
    assert done.returncode != 0 and name in done.stderr, done.stderr
    assert "panicked" not in done.stderr
