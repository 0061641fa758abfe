"""The command line, as an operator, a worker and a developer use it."""

import http.client
import json
import signal
import time

import pytest

from support import PLAIN_SECRET, Process, command, verify


def test_demo_shows_two_verified_webhooks_and_exits_0():
    done = command("demo")
    assert done.stdout.count("✓ X-Nano-Signature") == 2, done.stdout
    assert done.stdout.count("✓ webhook-signature") == 2
    assert "✗" not in done.stdout
    assert "job.completed" in done.stdout and "job.failed" in done.stdout


@pytest.fixture
def keys(service):
    """`keys(subcommand, *options)` on the service's tables."""
    return lambda sub, *options, **more: command("keys", sub, "--dynamodb-endpoint", service.dynamodb, *options, **more)


def listed(keys, account):
    return [json.loads(line) for line in keys("list", "--account", account, "--json").stdout.splitlines()]


def test_a_key_is_created_listed_without_being_shown_and_revoked_at_once(service, keys):
    created = json.loads(keys("create", "--account", "operated", "--json").stdout)
    assert set(created) == {"account", "api_key"} and created["account"] == "operated"
    key = created["api_key"]
    assert key.startswith("sk-") and len(key) == 3 + 32 + 6
    second = keys("create", "--account", "operated").stdout.strip()
    assert second.startswith("sk-") and second != key

    list_with = lambda key: service.api.call("GET", "/api/v1/webhooks", key=key).status
    assert list_with(key) == list_with(second) == 200
    shown = listed(keys, "operated")
    assert len(shown) == 2
    for entry in shown:
        assert any(known.startswith(entry["prefix"]) for known in (key, second))
        assert len(entry["prefix"]) < 20 and entry["created_at"].endswith("Z")
    human = keys("list", "--account", "operated").stdout
    assert key not in human and second not in human

    keys("revoke", "--account", "operated", key)
    assert (list_with(key), list_with(second)) == (401, 200)
    keys("revoke", "--account", "operated", next(entry["prefix"] for entry in listed(keys, "operated")))
    assert list_with(second) == 401
    assert listed(keys, "operated") == []


def test_the_keys_own_text_is_nowhere_in_the_tables(service, keys):
    key = json.loads(keys("create", "--account", "hashed", "--json").stdout)["api_key"]
    assert key not in str(service.scan("webhooks"))


def test_only_the_accounts_own_key_is_revoked(service, keys):
    key = json.loads(keys("create", "--account", "owner", "--json").stdout)["api_key"]
    for account, given in (("thief", key), ("owner", "sk-nothing")):
        done = keys("revoke", "--account", account, given, check=False)
        assert done.returncode == 1 and done.stderr.strip(), done
    assert service.api.call("GET", "/api/v1/webhooks", key=key).status == 200


def test_job_writes_a_job_that_ended_as_a_worker_would(service, api, receiver):
    api.subscribe(f"{receiver.url}/job", PLAIN_SECRET)
    options = ("--dynamodb-endpoint", service.dynamodb, "--account", api.account)
    data = '{"10":1,"9":[12345678901234567890,1.50,null,true],"s":"\\u2028\\"é"}'
    command("job", "complete", *options, "--task-id", "by-hand", "--type", "video", "--data", data)
    command("job", "fail", *options)
    requests = receiver.wait_for("/job", 2)
    verify(requests, PLAIN_SECRET)
    completed, failed = sorted(requests, key=lambda request: request.json["event"])
    assert completed.json["task_id"] == "by-hand" and completed.json["task_type"] == "video"
    assert '"data":{"9":["12345678901234567890",1.5,null,true],"10":1,"s":"\u2028\\"é"}' in completed.body.decode()
    assert failed.json["event"] == "job.failed" and failed.json["data"] == {} and failed.json["task_type"] == "image"


@pytest.mark.parametrize("data", ["", "[]", "1", "{", '{"a":NaN}', "null"])
def test_job_refuses_data_that_is_no_json_object(service, data):
    done = command("job", "complete", "--dynamodb-endpoint", service.dynamodb, "--data", data, check=False)
    assert done.returncode != 0 and "--data" in done.stderr, done.stderr


def test_without_a_service_a_command_fails_with_one_line():
    done = command("job", "complete", "--dynamodb-endpoint", "http://127.0.0.1:9", check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "panicked" not in done.stderr


@pytest.fixture
def listener(tmp_path):
    """`listener(*options)`: `listen` on a free port, and its URL."""
    started = []

    def listener(*options):
        process = Process(["listen", "--port", "0", *options], tmp_path / "log")
        started.append(process)
        url = next(word for word in process.line_with("http://").split() if word.startswith("http://"))
        return process, url

    yield listener
    for process in started:
        process.kill()


def test_listen_says_that_signatures_hold_with_the_right_secret_and_not_with_a_wrong_one(service, api, listener):
    right, right_url = listener("--secret", PLAIN_SECRET)
    wrong, wrong_url = listener("--secret", "another secret")
    none, none_url = listener()
    for url in (right_url, wrong_url, none_url):
        api.subscribe(url, PLAIN_SECRET)
    service.put_job(f"{api.account}-listen", api.account)
    for process, mark in ((right, "✓"), (wrong, "✗")):
        assert mark in process.line_with("X-Nano-Signature ")
        assert mark in process.line_with("webhook-signature ")
    for name in ("X-Nano-Signature ", "webhook-signature "):
        line = none.line_with(name)
        assert "✓" not in line and "✗" not in line, line
    assert f'"task_id":"{api.account}-listen"' in right.read()
    assert right.signal(signal.SIGTERM) == 0


def test_listen_answers_with_the_status_and_after_the_delay_that_it_was_given(service, api, listener):
    _, url = listener("--respond", "418", "--delay", "0.3")
    connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=20)
    begun = time.monotonic()
    connection.request("POST", "/", body=b"{}")
    assert connection.getresponse().status == 418
    assert time.monotonic() - begun >= 0.3
    connection.close()
