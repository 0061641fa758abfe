"""The start of `serve`. Time and memory are measured and printed, not asserted."""

import re
from pathlib import Path


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


def test_health_check_needs_no_key(service):
    assert service.api.call("GET", "/healthz", headers={"Authorization": None}).status == 200


def test_given_key_belongs_to_demo_account(service, start):
    """The option `--api-key` sets the key of the account `demo`."""
    key = service.create_account().key
    other = start("--in-memory", "--api-key", key)
    assert (other.api.key, other.api.account) == (key, "demo")
    assert other.api.list_webhooks().status == 200
