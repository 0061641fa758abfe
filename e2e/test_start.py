"""The start of `serve`. Time and memory are measured and printed, not asserted."""

import contextlib
import http.client
import re
from pathlib import Path

import pytest

from support import BINARY, Process


def test_ready_line_names_addresses_and_key(start, capsys):
    """Stdout has one line of JSON once the service is ready. The log goes to stderr."""
    services = [start("--in-memory") for _ in range(3)]
    service = services[-1]
    assert set(service.ready) == {"api", "dynamodb", "account", "api_key", "tables"}
    assert set(service.ready["tables"]) == {"jobs", "webhooks", "deliveries"}
    assert service.ready["account"] == "demo"
    assert service.read_output().count("\n") == 1
    assert service.api.list_webhooks().data == []
    seconds = [service.start_seconds for service in services]
    status = Path(f"/proc/{service.popen.pid}/status")
    # Only Linux has this file.
    memory = (
        int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) / 1024
        if status.exists()
        else float("nan")
    )
    with capsys.disabled():
        print(
            f"\nserve --in-memory: ready in {min(seconds):.3f} to {max(seconds):.3f} s, "
            f"idle memory {memory:.1f} MiB"
        )


@pytest.mark.parametrize(
    "env, prefix", [({}, BINARY), ({"CARGO": "cargo"}, "cargo run --quiet --")]
)
def test_welcome_prints_runnable_commands(tmp_path, env, prefix):
    """The printed commands start as the user started the service: directly or with Cargo."""
    ports = ["--listen", "127.0.0.1:0", "--dynamodb-listen", "127.0.0.1:0"]
    welcome = Process(["serve", "--in-memory", *ports], tmp_path / "log", env)
    with contextlib.ExitStack() as closing:
        closing.callback(welcome.kill)
        job = welcome.wait_for_line(" job complete ")
        assert job.startswith(f"  {prefix} job complete --dynamodb-endpoint http://127.0.0.1:")
        assert f"  {prefix} listen --secret my-secret-key\n" in welcome.read_output()


def test_health_check_needs_no_key(service):
    assert service.api.call("GET", "/healthz", headers={"Authorization": None}).status == 200


def test_root_redirects_to_portal(service):
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        response = connection.getresponse()
        assert (response.status, response.headers["Location"]) == (307, "/portal")


def test_given_key_belongs_to_demo_account(service, start):
    """The option `--api-key` sets the key of the account `demo`."""
    key = service.create_account().key
    other = start("--in-memory", "--api-key", key)
    assert (other.api.key, other.api.account) == (key, "demo")
    assert other.api.list_webhooks().status == 200
