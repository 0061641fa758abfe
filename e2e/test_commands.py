"""The commands `demo`, `keys`, `job` and `listen`."""

import contextlib
import http.client
import json
import os
import pty
import re
import signal
import socket
import subprocess
import time
import urllib.parse

import pytest

from support import (
    BINARY,
    PLAIN_SECRET,
    Process,
    build_environment,
    run_command,
    verify_signatures,
)


def test_demo_shows_two_verified_webhooks():
    completed = run_command("demo")
    assert completed.stdout.count("✓ X-Nano-Signature") == 2, completed.stdout
    assert completed.stdout.count("✓ webhook-signature") == 2
    assert "✗" not in completed.stdout
    assert "job.completed" in completed.stdout and "job.failed" in completed.stdout


@pytest.fixture
def keys(service):
    """`keys(subcommand, *options)` on the tables of the service."""

    def keys(subcommand, *options, **settings):
        return run_command(
            "keys", subcommand, "--dynamodb-endpoint", service.dynamodb, *options, **settings
        )

    return keys


def list_keys(keys, account):
    return [
        json.loads(line)
        for line in keys("list", "--account", account, "--json").stdout.splitlines()
    ]


def test_key_is_created_listed_and_revoked(service, keys):
    """The list shows the prefix of a key, never the key.

    Revoking takes the key or its prefix, at once.
    """
    created = json.loads(keys("create", "--account", "operated", "--json").stdout)
    assert set(created) == {"account", "api_key"} and created["account"] == "operated"
    first = created["api_key"]
    assert first.startswith("sk-") and len(first) == 3 + 32 + 6
    second = keys("create", "--account", "operated").stdout.strip()
    assert second.startswith("sk-") and second != first
    assert first not in str(service.scan("webhooks"))

    request_with = lambda key: service.api.call("GET", "/api/v1/webhooks", key=key).status
    assert request_with(first) == request_with(second) == 200
    listed = list_keys(keys, "operated")
    assert len(listed) == 2
    for entry in listed:
        assert any(key.startswith(entry["prefix"]) for key in (first, second))
        assert len(entry["prefix"]) < 20 and entry["created_at"].endswith("Z")
    text = keys("list", "--account", "operated").stdout
    assert first not in text and second not in text
    header, *rows = text.splitlines()
    assert header.split() == ["KEY", "CREATED", "LAST", "USED"] and len(rows) == 2
    created_at = header.index("CREATED")
    assert all(re.match(r"20\d\d-", row[created_at:]) for row in rows), text

    revoked = json.loads(keys("revoke", "--account", "operated", first, "--json").stdout)
    assert revoked["account"] == "operated" and first.startswith(revoked["prefix"])
    assert (request_with(first), request_with(second)) == (401, 200)
    keys(
        "revoke",
        "--account",
        "operated",
        next(entry["prefix"] for entry in list_keys(keys, "operated")),
    )
    assert request_with(second) == 401
    assert list_keys(keys, "operated") == []


def test_keys_are_listed_newest_first(keys):
    create = lambda: keys("create", "--account", "ordered").stdout.strip()
    created = [create() for _ in range(6)]
    prefixes = [entry["prefix"] for entry in list_keys(keys, "ordered")]
    newest_first = reversed(created)
    assert len(prefixes) == 6
    assert all(key.startswith(prefix) for key, prefix in zip(newest_first, prefixes))


@pytest.mark.parametrize("settings", [{}, {"NO_COLOR": "1"}])
def test_log_has_colors_unless_turned_off(settings):
    """The log of `serve` on a terminal has colors, unless `NO_COLOR` is set."""
    terminal, stderr = pty.openpty()
    with subprocess.Popen(
        [BINARY, "serve", "--in-memory", *("--listen", "127.0.0.1:0"), "--json"]
        + ["--dynamodb-listen", "127.0.0.1:0"],
        env=build_environment({"TERM": "xterm", "RUST_LOG": "nano_webhooks=debug"} | settings),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        os.close(stderr)
        api = urllib.parse.urlsplit(json.loads(process.stdout.readline())["api"])
        connection = http.client.HTTPConnection(api.netloc, timeout=20)
        connection.request("GET", "/api/v1/webhooks")
        assert connection.getresponse().status == 401
        connection.close()
        log = os.read(terminal, 65536).decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    os.close(terminal)
    assert log
    assert ("\x1b[" in log) == (not settings), log


def test_revoke_rejects_key_of_other_account(service, keys):
    key = json.loads(keys("create", "--account", "owner", "--json").stdout)["api_key"]
    for account, other_key in (("thief", key), ("owner", "sk-nothing")):
        completed = keys("revoke", "--account", account, other_key, check=False)
        assert completed.returncode == 1, completed
        assert completed.stderr == (
            f"nano-webhooks: account {account} has no key {other_key[:11]}…; "
            "list its keys with `keys list`\n"
        )
    assert service.api.call("GET", "/api/v1/webhooks", key=key).status == 200


def test_job_command_writes_job(service, api, receiver):
    """`job complete` and `job fail` write jobs as a worker does. Numbers keep their digits."""
    api.subscribe(f"{receiver.url}/job", PLAIN_SECRET)
    options = ("--dynamodb-endpoint", service.dynamodb, "--account", api.account)
    data = '{"10":1,"9":[12345678901234567890,1.50,null,true],"s":"\\u2028\\"é"}'
    run_command(
        "job", "complete", *options, "--task-id", "by-hand", "--type", "video", "--data", data
    )
    written = json.loads(run_command("job", "fail", *options, "--json").stdout)
    assert (written["account"], written["status"]) == (api.account, "failed")
    requests = receiver.wait_for("/job", 2)
    verify_signatures(requests, PLAIN_SECRET)
    completed, failed = sorted(requests, key=lambda request: request.json["event"])
    assert completed.json["task_id"] == "by-hand" and completed.json["task_type"] == "video"
    assert (
        '"data":{"9":["12345678901234567890",1.5,null,true],"10":1,"s":"\u2028\\"é"}'
        in completed.body.decode()
    )
    assert (
        failed.json["event"] == "job.failed"
        and failed.json["task_id"] == written["task_id"]
        and failed.json["data"] == {}
        and failed.json["task_type"] == "image"
    )


def test_command_without_service_fails_briefly():
    """Without a service at the endpoint a command fails with one line."""
    completed = run_command(
        "job", "complete", "--dynamodb-endpoint", "http://127.0.0.1:9", check=False
    )
    assert completed.returncode == 1 and completed.stderr.count("\n") == 1, completed.stderr
    assert "panicked" not in completed.stderr


@pytest.fixture
def listen(tmp_path):
    """`listen(*options)` starts `listen` on a free port, and returns the process and its URL."""
    processes = []

    def listen(*options):
        process = Process(["listen", "--port", "0", *options], tmp_path / "log")
        processes.append(process)
        url = re.search(r'http://[^ "]+', process.wait_for_line("http://")).group()
        return process, url

    yield listen
    for process in processes:
        process.kill()


def test_listen_reports_signature_status(service, api, listen):
    """The signatures are marked valid, invalid, or not checked if there is no secret."""
    right, right_url = listen("--secret", PLAIN_SECRET)
    wrong, wrong_url = listen("--secret", "another secret")
    unchecked, unchecked_url = listen()
    for url in (right_url, wrong_url, unchecked_url):
        api.subscribe(url, PLAIN_SECRET)
    service.put_job(f"{api.account}-listen", api.account)
    for process, mark in ((right, "✓"), (wrong, "✗")):
        assert mark in process.wait_for_line("X-Nano-Signature ")
        assert mark in process.wait_for_line("webhook-signature ")
    for name in ("X-Nano-Signature ", "webhook-signature "):
        line = unchecked.wait_for_line(name)
        assert "✓" not in line and "✗" not in line, line
    assert f'"task_id":"{api.account}-listen"' in right.read_output()
    assert right.signal(signal.SIGTERM) == 0


def test_listen_prints_json(service, api, listen):
    """With `--json` the URL and each request are one line."""
    process, url = listen("--secret", PLAIN_SECRET, "--json")
    assert json.loads(process.wait_for_line("http://")) == {"url": url}
    api.subscribe(url, PLAIN_SECRET)
    service.put_job(f"{api.account}-json", api.account)
    line = json.loads(process.wait_for_line('"x_nano_signature"'))
    assert line["x_nano_signature"] == line["webhook_signature"] == {"status": "valid"}
    assert (line["method"], line["uri"], line["stale_by_seconds"]) == ("POST", "/", None)
    assert line["headers"]["X-Nano-Event"] == "job.completed" and line["rotated_secret"] is None
    assert json.loads(line["body"])["task_id"] == f"{api.account}-json"


def test_listen_explains_rotation(service, api, listen):
    """During the grace time the previous secret makes X-Nano-Signature, and `listen` says so."""
    new_secret = "the-new-secret"
    previous, previous_url = listen("--secret", PLAIN_SECRET)
    new, new_url = listen("--secret", new_secret)
    for url in (previous_url, new_url):
        webhook = api.subscribe(url, PLAIN_SECRET)
        rotation = {"secret_key": new_secret, "grace_hours": 1}
        response = api.call("POST", f"/api/v1/webhooks/{webhook}/rotate-secret", rotation)
        assert response.status == 200, response.text
    service.put_job(f"{api.account}-rotated", api.account)
    assert "✓" in previous.wait_for_line("X-Nano-Signature ")
    assert "made by an older secret" in new.wait_for_line("X-Nano-Signature ")
    for process in (previous, new):
        assert "✓" in process.wait_for_line("webhook-signature ")
    assert "the previous one" in previous.wait_for_line("the secret was rotated")
    assert "a newer one" in new.wait_for_line("the secret was rotated")


def send_raw(url, body=b"", target=b"/", headers=b""):
    """Sends a POST request as it stands, and waits for the first part of the response."""
    address = urllib.parse.urlsplit(url)
    head = b"POST " + target + b" HTTP/1.1\r\nHost: x\r\n" + headers
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        connection.recv(4096)


def test_listen_escapes_text_of_requests(listen):
    """Nothing that a request contains can control the terminal."""
    process, url = listen()
    hostile = ["\x1b[2J", "\x07", "\rx", "\u009b2J", "\u202etxt", "\u2066x", "\u061cx"]
    for text in hostile:
        send_raw(url, body=f"body {text} end".encode())
    send_raw(url, target="/\u009b2J\u202epath".encode())
    send_raw(url, headers="X-Nano-Event: \u202eheader\r\n".encode())
    process.wait_for_line("(not text)")
    output = process.read_output()
    assert output.count("body ") == len(hostile) and r"body \u{1b}[2J end" in output
    assert r"/\u{9b}2J\u{202e}path" in output
    assert not any(text in output for text in hostile)


def test_listen_ends_when_reader_closes_pipe(listen):
    """`listen | head` ends at the first request after `head` has ended, without a message."""
    process, url = listen()
    process.popen.stdout.close()
    with contextlib.suppress(OSError):
        send_raw(url)
    assert process.popen.wait(timeout=20) == 0
    assert process.read_log() == ""


def test_listen_responds_with_status_and_delay(listen):
    _, url = listen("--respond", "418", "--delay", "0.3")
    connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=20)
    started = time.monotonic()
    connection.request("POST", "/", body=b"{}")
    assert connection.getresponse().status == 418
    assert time.monotonic() - started >= 0.3
    connection.close()
