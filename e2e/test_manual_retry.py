"""A delivery that somebody retries by hand, and what each kind of failure tells."""

import socket
import threading

import pytest

from support import STANDARD_SECRET, RawServer, eventually, read_request, verify


def reply(status, headers=(), body=b""):
    return lambda handler: handler.reply(status, headers, body)


@pytest.fixture(scope="module")
def quick(start):
    """A service whose schedule is soon exhausted."""
    return start("--in-memory", "--retry-schedule", "100ms")


def test_a_retry_goes_out_at_once_with_the_same_id_and_the_next_number(service, api, receiver):
    receiver.answer("/hook", reply(500))
    webhook = api.subscribe(f"{receiver.url}/hook", STANDARD_SECRET)
    service.put_job(f"{api.account}-job", api.account)
    event = api.row(webhook)["event_id"]
    receiver.answer("/hook", reply(200))
    assert api.retry(webhook, event).status == 202
    row = api.row(webhook, lambda row: row["status"] == "delivered")
    assert (row["attempt_count"], row["next_attempt_at"]) == (2, None)
    requests = receiver.at("/hook")
    assert [request.headers["x-nano-attempt"] for request in requests] == ["1", "2"]
    assert {request.id for request in requests} == {event} and len({request.body for request in requests}) == 1
    verify(requests, STANDARD_SECRET)
    attempts = api.delivery(webhook, event).data["attempts"]
    assert [(attempt["number"], attempt["status_code"]) for attempt in attempts] == [(1, 500), (2, 200)]
    for attempt, request in zip(attempts, requests):
        assert attempt["request_headers"].items() <= request.headers.items()


def test_what_was_delivered_can_be_sent_again(service, api, receiver):
    webhook = api.subscribe(f"{receiver.url}/hook")
    service.put_job(f"{api.account}-job", api.account)
    event = api.row(webhook, lambda row: row["status"] == "delivered")["event_id"]
    assert api.retry(webhook, event).status == 202
    assert api.row(webhook, lambda row: row["attempt_count"] == 2)["status"] == "delivered"
    assert [(request.id, request.headers["x-nano-attempt"]) for request in receiver.at("/hook")] == [
        (event, "1"),
        (event, "2"),
    ]


def test_a_failed_retry_of_a_pending_delivery_keeps_its_due_time(service, api, receiver):
    receiver.answer("/hook", reply(500))
    webhook = api.subscribe(f"{receiver.url}/hook")
    service.put_job(f"{api.account}-job", api.account)
    before = api.row(webhook)
    for count in (2, 3):
        assert api.retry(webhook, before["event_id"]).status == 202
        # The number counts the attempt once it is recorded, and the due time is the old one again with it.
        after = api.row(webhook, lambda row: row["attempt_count"] == count)
        assert after == before | {"attempt_count": count}


def test_a_failed_retry_of_a_failed_delivery_leaves_it_failed(quick, receiver):
    api = quick.new_account()
    receiver.answer("/hook", reply(500))
    webhook = api.subscribe(f"{receiver.url}/hook")
    quick.put_job(f"{api.account}-job", api.account)
    before = api.row(webhook, lambda row: row["status"] == "failed")
    assert before["attempt_count"] == 2
    assert api.retry(webhook, before["event_id"]).status == 202
    after = api.row(webhook, lambda row: row["attempt_count"] == 3)
    assert after == before | {"attempt_count": 3}
    receiver.answer("/hook", reply(200))
    assert api.retry(webhook, before["event_id"]).status == 202
    last = api.row(webhook, lambda row: row["status"] == "delivered")
    assert (last["attempt_count"], last["next_attempt_at"]) == (4, None)
    assert api.log(webhook, status="failed") == []


def test_what_is_in_flight_is_not_sent_a_second_time(service, api, receiver):
    answer_now = threading.Event()
    receiver.answer("/hook", reply(500))
    webhook = api.subscribe(f"{receiver.url}/hook")
    service.put_job(f"{api.account}-job", api.account)
    event = api.row(webhook)["event_id"]

    def hold(handler):
        answer_now.wait(60)
        handler.reply(200)

    receiver.answer("/hook", hold)
    assert api.retry(webhook, event).status == 202
    eventually(lambda: len(receiver.at("/hook")) == 2, "the second attempt")
    api.retry(webhook, event).is_error(409, "conflict")
    answer_now.set()
    assert api.row(webhook, lambda row: row["status"] == "delivered")["attempt_count"] == 2
    assert len(receiver.at("/hook")) == 2


def no_http(connection):
    read_request(connection)
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def no_tls(connection):
    connection.recv(16)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_each_kind_of_failure_is_told_apart_and_says_what_to_do(service, api, receiver):
    receiver.hang("/hang")
    receiver.answer("/moved", reply(301, [("Location", "/")]))
    receiver.answer("/error", reply(503, body=b"down for maintenance"))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    servers = [RawServer(no_http), RawServer(no_tls)]
    expected = {
        "https://hooks.invalid/": ("dns", None),
        nobody: ("connect", None),
        servers[1].url.replace("http:", "https:") + "/": ("tls", None),
        f"{receiver.url}/hang": ("timeout", None),
        f"{receiver.url}/moved": ("redirect", 301),
        f"{receiver.url}/error": ("status", 503),
        f"{servers[0].url}/": ("body", None),
    }
    webhooks = {url: api.subscribe(url) for url in expected}
    service.put_job(f"{api.account}-job", api.account)
    sentences = set()
    for url, (failure, status) in expected.items():
        row = api.row(webhooks[url])
        assert (row["status"], row["last_failure"]) == ("pending", failure), url
        (attempt,) = api.delivery(webhooks[url], row["event_id"]).data["attempts"]
        assert (attempt["failure"], attempt["status_code"]) == (failure, status), url
        assert attempt["response_excerpt"] == ("down for maintenance" if failure == "status" else None), url
        assert len(attempt["detail"].split()) > 5 and attempt["detail"].endswith("."), attempt["detail"]
        sentences.add(attempt["detail"])
    assert len(sentences) == len(expected)
    for server in servers:
        server.close()


def test_a_target_that_the_policy_no_longer_allows_is_blocked(start, tmp_path):
    called = RawServer(no_tls)
    options = ("--data-dir", str(tmp_path / "data"), "--targets", "public", "--retry-schedule", "1h")
    allowing = start(*options, "--allow-cidr", "127.0.0.0/8")
    webhook = allowing.api.subscribe(called.url.replace("http:", "https:"))
    allowing.put_job("allowed", allowing.api.account)
    assert allowing.api.row(webhook)["last_failure"] == "tls"
    allowing.kill()

    strict = start(*options)
    connections = called.connections
    strict.put_job("refused", strict.api.account)
    rows = lambda: {row["task_id"]: row for row in strict.api.log(webhook)}
    eventually(lambda: "refused" in rows(), "the delivery is recorded")
    row = rows()["refused"]
    assert (row["status"], row["last_failure"]) == ("pending", "blocked")
    (attempt,) = strict.api.delivery(webhook, row["event_id"]).data["attempts"]
    assert attempt["failure"] == "blocked" and "refused" in attempt["detail"] and attempt["detail"].endswith(".")
    assert called.connections == connections, "no connection is made"
    called.close()
