"""Restarts: acknowledged data survives the end of the process, by a signal or by a kill."""

import contextlib
import http.client
import signal
import threading
import time

import pytest

from support import (
    PLAIN_SECRET,
    respond_with,
    run_command,
    verify_signatures,
    wait_until,
)

EACH_END = pytest.mark.parametrize(
    "end", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"]
)
LISTEN = ("--listen", "127.0.0.1:0", "--dynamodb-listen", "127.0.0.1:0")


@pytest.fixture
def data_dir(tmp_path):
    return str(tmp_path / "data")


def list_delivered(service):
    return [item for item in service.scan("deliveries") if item["status"]["S"] == "delivered"]


@EACH_END
def test_restart_keeps_webhooks_keys_and_checkpoint(start, receiver, data_dir, end):
    """A restart keeps ids, keys and the position in the stream: a new webhook receives no earlier
    event.
    """
    first = start("--data-dir", data_dir)
    other = first.create_account()
    webhook = first.api.subscribe(f"{receiver.url}/kept", PLAIN_SECRET)
    # When the second delivery is recorded, the checkpoint is behind the first job.
    for count, task_id in enumerate(("before", "just-before"), 1):
        first.put_job(task_id, first.api.account)
        wait_until(
            lambda: len(first.scan("deliveries")) == count, f"{count} deliveries are recorded"
        )
    webhooks = first.api.list_webhooks().data
    first.signal(end)

    second = start("--data-dir", data_dir)
    assert second.api.key == first.api.key
    assert second.api.list_webhooks().data == webhooks
    assert second.api.call("GET", "/api/v1/webhooks", key=other.key).data == []
    assert second.api.subscribe(f"{receiver.url}/new") == webhook + 1
    second.put_job("after", second.api.account)
    for path in ("/kept", "/new"):
        wait_until(
            lambda: ("after", "job.completed") in receiver.events(path), f"the last job at {path}"
        )
    verify_signatures(receiver.requests_to("/kept"), PLAIN_SECRET)
    assert [task_id for task_id, _ in receiver.events("/kept")] == [
        "after",
        "before",
        "just-before",
    ]
    assert ("before", "job.completed") not in receiver.events("/new")


def test_revoked_key_stays_revoked_after_restart(start, data_dir):
    """The start does not create the revoked key of the account `demo` again."""
    first = start("--data-dir", data_dir)
    key = first.api.key
    options = ("--dynamodb-endpoint", first.dynamodb, "--account", "demo")
    run_command("keys", "revoke", *options, key)
    first.signal(signal.SIGTERM)
    second = start("--data-dir", data_dir)
    assert second.api.call("GET", "/api/v1/webhooks", key=key).status == 401


def test_interrupted_attempt_is_repeated_after_restart(start, receiver, data_dir):
    """An attempt that a kill interrupts is made again, with the same id and the same body."""
    receiver.hang("/hook")
    first = start("--data-dir", data_dir)
    first.api.subscribe(f"{receiver.url}/hook", PLAIN_SECRET)
    first.put_job("task", first.api.account)
    wait_until(lambda: receiver.requests_to("/hook"), "the first attempt")
    first.kill()

    receiver.respond("/hook", respond_with(200))
    second = start("--data-dir", data_dir)
    wait_until(lambda: list_delivered(second), lambda: f"a delivery\n{second.read_log()}")
    assert len({request.id for request in receiver.requests_to("/hook")}) == 1
    assert len({request.body for request in receiver.requests_to("/hook")}) == 1


@EACH_END
def test_job_during_downtime_arrives_after_restart(start, receiver, data_dir, end):
    """Workers write to an engine that stays up while the service is down."""
    tables = {"JOBS_TABLE": "others", "WEBHOOKS_TABLE": "others-w", "DELIVERIES_TABLE": "others-d"}
    engine = start("--in-memory", env=tables)
    options = ("--data-dir", data_dir, "--dynamodb-endpoint", engine.dynamodb)
    first = start(*options)
    first.api.subscribe(f"{receiver.url}/hook", PLAIN_SECRET)
    first.put_job("before", first.api.account)
    receiver.wait_for("/hook")
    first.signal(end)
    first.put_job("meanwhile", first.api.account)

    start(*options)
    receiver.wait_for("/hook", 2)
    assert receiver.events("/hook") == [("before", "job.completed"), ("meanwhile", "job.completed")]
    verify_signatures(receiver.requests_to("/hook"), PLAIN_SECRET)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signal_ends_service_despite_hanging_endpoint(start, receiver, number):
    """The exit code is 0 within 10 seconds while attempts are in flight."""
    receiver.hang("/hang")
    service = start("--in-memory")
    service.api.subscribe(f"{receiver.url}/hang")
    for task in range(10):
        service.put_job(f"task-{task}", service.api.account)
    wait_until(lambda: receiver.requests_to("/hang"), "an attempt in flight")
    started = time.monotonic()
    assert service.signal(number) == 0, service.read_log()
    assert time.monotonic() - started < 10


def test_signal_ends_service_despite_open_connection(start):
    """A client that keeps its connection open does not delay the end."""
    service = start("--in-memory")
    client = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=30)
    client.request("GET", "/healthz")
    assert client.getresponse().read()
    started = time.monotonic()
    assert service.signal(signal.SIGTERM) == 0, service.read_log()
    assert time.monotonic() - started < 10
    client.close()


def test_second_process_on_data_dir_fails(start, data_dir):
    """Only one process can use a data directory.

    The second one exits with one line that says so.
    """
    start("--data-dir", data_dir)
    second = run_command("serve", "--data-dir", data_dir, *LISTEN, check=False)
    assert second.returncode == 1
    assert "another process uses the data directory" in second.stderr
    assert second.stderr.count("\n") == 1, second.stderr


def test_kill_under_load_loses_no_webhook(start, data_dir):
    """Every webhook whose creation was acknowledged exists after the restart, and no id is used
    again.
    """
    first = start("--data-dir", data_dir)
    acknowledged = []

    def create_webhooks():
        # The kill interrupts the last request, which does not count.
        with contextlib.suppress(OSError, http.client.HTTPException):
            while len(acknowledged) < 40:
                acknowledged.append(first.api.subscribe("https://hooks.example.com/"))

    threads = [threading.Thread(target=create_webhooks) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(acknowledged) >= 10, "ten webhooks")
    first.kill()
    for thread in threads:
        thread.join()

    second = start("--data-dir", data_dir)
    kept = [webhook["id"] for webhook in second.api.list_webhooks().data]
    assert set(acknowledged) <= set(kept)
    assert second.api.subscribe("https://hooks.example.com/") > max(kept)


def test_missing_secrets_key_stops_start(start, tmp_path):
    """Tables with encrypted secrets need their key.

    The service creates no other key, and starts with the old one.
    """
    data_dir = tmp_path / "data"
    service = start("--data-dir", str(data_dir))
    service.api.subscribe("http://127.0.0.1:9/", "my-secret-key")
    assert service.signal(signal.SIGTERM) == 0
    key = (data_dir / "secrets-key").read_text()
    (data_dir / "secrets-key").unlink()
    completed = run_command("serve", *LISTEN, "--data-dir", str(data_dir), check=False)
    assert completed.returncode == 1 and "secrets-key is missing" in completed.stderr, (
        completed.stderr
    )
    assert not (data_dir / "secrets-key").exists()
    (data_dir / "secrets-key").write_text(key)
    assert len(start("--data-dir", str(data_dir)).api.list_webhooks().data) == 1
