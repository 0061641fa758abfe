"""What was acknowledged survives the end of the process, however it ends."""

import contextlib
import http.client
import signal
import threading
import time

import pytest

from support import PLAIN_SECRET, command, eventually, verify

ENDS = pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "kill -9"])


@pytest.fixture
def data_dir(tmp_path):
    return str(tmp_path / "data")


@ENDS
def test_webhooks_keys_and_the_streams_position_survive(start, receiver, data_dir, end):
    first = start("--data-dir", data_dir)
    other = first.new_account()
    webhook = first.api.subscribe(f"{receiver.url}/kept", PLAIN_SECRET)
    # When the second has arrived, the position is behind the first.
    for count, task_id in enumerate(("before", "just-before"), 1):
        first.put_job(task_id, first.api.account)
        eventually(lambda: len(first.scan("deliveries")) == count, f"{count} deliveries are recorded")
    listed = first.api.list().data
    first.signal(end)

    second = start("--data-dir", data_dir)
    assert second.api.key == first.api.key
    assert second.api.list().data == listed
    assert second.api.call("GET", "/api/v1/webhooks", key=other.key).data == []
    assert second.api.subscribe(f"{receiver.url}/new") == webhook + 1
    second.put_job("after", second.api.account)
    for path in ("/kept", "/new"):
        eventually(lambda: ("after", "job.completed") in receiver.events(path), f"the last job at {path}")
    verify(receiver.at("/kept"), PLAIN_SECRET)
    assert [task_id for task_id, _ in receiver.events("/kept")] == ["after", "before", "just-before"]
    # Had the position been lost, the first job would have come to the new webhook too.
    assert ("before", "job.completed") not in receiver.events("/new")


def test_jobs_that_were_written_just_before_a_kill_arrive_after_the_restart(start, receiver, data_dir):
    first = start("--data-dir", data_dir)
    first.api.subscribe(f"{receiver.url}/kept", PLAIN_SECRET)
    for number in range(20):
        first.put_job(f"task-{number:02}", first.api.account)
    first.kill()

    second = start("--data-dir", data_dir)
    receiver.wait_for("/kept", 20)
    assert receiver.events("/kept") == [(f"task-{number:02}", "job.completed") for number in range(20)]
    delivered = lambda: [item for item in second.scan("deliveries") if item["status"]["S"] == "delivered"]
    eventually(lambda: len(delivered()) == 20, "all are recorded as delivered")


def test_an_attempt_that_a_kill_cut_off_is_made_again_with_the_same_id(start, receiver, data_dir):
    receiver.hang("/cut")
    first = start("--data-dir", data_dir)
    first.api.subscribe(f"{receiver.url}/cut", PLAIN_SECRET)
    first.put_job("cut", first.api.account)
    eventually(lambda: receiver.at("/cut"), "the first attempt")
    first.kill()

    receiver.answer("/cut", lambda handler: handler.reply(200))
    second = start("--data-dir", data_dir)
    eventually(
        lambda: [item for item in second.scan("deliveries") if item["status"]["S"] == "delivered"],
        lambda: f"delivered; {len(receiver.at('/cut'))} requests came\n{second.log_text()}",
    )
    assert len({request.id for request in receiver.at("/cut")}) == 1
    assert len({request.body for request in receiver.at("/cut")}) == 1


@ENDS
def test_a_job_that_was_written_while_the_service_was_down_arrives_after_its_start(start, receiver, data_dir, end):
    # The engine of a service that looks after another jobs table stays up: workers go on writing to it.
    engine = start(
        "--in-memory", env={"JOBS_TABLE": "others", "WEBHOOKS_TABLE": "others-w", "DELIVERIES_TABLE": "others-d"}
    )
    options = ("--data-dir", data_dir, "--dynamodb-endpoint", engine.dynamodb)
    first = start(*options)
    first.api.subscribe(f"{receiver.url}/kept", PLAIN_SECRET)
    first.put_job("before", first.api.account)
    receiver.wait_for("/kept")
    first.signal(end)
    first.put_job("meanwhile", first.api.account)

    start(*options)
    receiver.wait_for("/kept", 2)
    assert receiver.events("/kept") == [("before", "job.completed"), ("meanwhile", "job.completed")]
    verify(receiver.at("/kept"), PLAIN_SECRET)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_ends_it_with_0_within_10_seconds_even_while_an_endpoint_hangs(start, receiver, number):
    receiver.hang("/hang")
    service = start("--in-memory")
    service.api.subscribe(f"{receiver.url}/hang")
    for n in range(10):
        service.put_job(f"task-{n}", service.api.account)
    eventually(lambda: receiver.at("/hang"), "an attempt in flight")
    begun = time.monotonic()
    assert service.signal(number) == 0, service.log_text()
    assert time.monotonic() - begun < 10


def test_the_signal_ends_it_while_a_client_holds_a_connection_open(start):
    service = start("--in-memory")
    held = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=30)
    held.request("GET", "/healthz")
    assert held.getresponse().read()
    begun = time.monotonic()
    assert service.signal(signal.SIGTERM) == 0, service.log_text()
    assert time.monotonic() - begun < 10
    held.close()


def test_a_data_dir_belongs_to_one_process_at_a_time(start, data_dir):
    start("--data-dir", data_dir)
    second = command(
        "serve", "--data-dir", data_dir, "--listen", "127.0.0.1:0", "--dynamodb-listen", "127.0.0.1:0", check=False
    )
    assert second.returncode == 1
    assert "in use" in second.stderr and second.stderr.count("\n") == 1, second.stderr


def test_everything_that_was_acknowledged_under_load_survives_a_kill(start, data_dir):
    first = start("--data-dir", data_dir)
    acknowledged = []

    def create():
        # The kill breaks the last call off: only what was answered counts.
        with contextlib.suppress(OSError, http.client.HTTPException):
            while len(acknowledged) < 40:
                acknowledged.append(first.api.subscribe("https://hooks.example.com/"))

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(acknowledged) >= 10, "ten webhooks")
    first.kill()
    for thread in threads:
        thread.join()

    second = start("--data-dir", data_dir)
    kept = [webhook["id"] for webhook in second.api.list().data]
    assert set(acknowledged) <= set(kept)
    assert second.api.subscribe("https://hooks.example.com/") > max(kept)


def test_a_data_directory_without_its_secrets_key_is_not_begun_anew(start, tmp_path):
    home = tmp_path / "data"
    service = start("--data-dir", str(home))
    service.api.subscribe("http://127.0.0.1:9/", "my-secret-key")
    assert service.signal(signal.SIGTERM) == 0
    key = (home / "secrets-key").read_text()
    (home / "secrets-key").unlink()
    ports = ("--listen", "127.0.0.1:0", "--dynamodb-listen", "127.0.0.1:0")
    refused = command("serve", *ports, "--data-dir", str(home), check=False)
    assert refused.returncode == 1 and "secrets-key is missing" in refused.stderr, refused.stderr
    assert not (home / "secrets-key").exists(), "another one would only hide what is wrong"
    (home / "secrets-key").write_text(key)
    assert len(start("--data-dir", str(home)).api.list().data) == 1
