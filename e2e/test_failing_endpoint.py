"""What fails is recorded as pending with its due time, and holds nobody else back."""

import json
import time

import pytest

from support import eventually

HOUR = 3600
JITTER = 0.2
# The one service of the tests is started with this wait, so that no second attempt comes in between.
WAIT = HOUR


@pytest.fixture
def delivery(service, api):
    """`delivery(webhook)`: the only item of a webhook in the deliveries table, waited for."""

    def delivery(webhook):
        mine = lambda: [item for item in service.scan("deliveries") if item["PK"]["S"] == f"{api.account}#{webhook}"]
        (item,) = eventually(mine, f"a delivery to webhook {webhook}")
        return item

    return delivery


def reply(status, headers=(), body=b""):
    return lambda handler: handler.reply(status, headers, body)


def close(handler):
    handler.close_connection = True


def break_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"only this")
    handler.close_connection = True


def attempts_of(item):
    return json.loads(item["attempts"]["S"])


def is_due_in_about_an_hour(item):
    first = attempts_of(item)[0]
    ended = first["at"] + first["duration_ms"]
    due = int(item["next_attempt_at"]["N"])
    # A second of tolerance: the wait begins when the attempt has ended and is being recorded.
    return WAIT * (1 - JITTER) - 1 <= (due - ended) / 1000 <= WAIT * (1 + JITTER) + 1


@pytest.mark.parametrize(
    ("name", "action", "failure", "status"),
    [
        ("error", reply(500, body=b"out of order"), "status", 500),
        ("unavailable", reply(503), "status", 503),
        ("not-found", reply(404), "status", 404),
        ("redirect", reply(302, [("Location", "/elsewhere")]), "redirect", 302),
        ("permanent-redirect", reply(308, [("Location", "/elsewhere")]), "redirect", 308),
        ("close", close, "connect", None),
        ("break-off", break_off, "body", 200),
    ],
)
def test_a_failed_attempt_is_recorded_with_its_kind_and_due_time(
    service, api, receiver, delivery, name, action, failure, status
):
    receiver.answer(f"/{name}", action)
    webhook = api.subscribe(f"{receiver.url}/{name}")
    service.put_job(f"{api.account}-{name}", api.account)
    item = delivery(webhook)
    (attempt,) = attempts_of(item)
    assert item["status"]["S"] == "pending"
    assert item["attempt_count"]["N"] == "1"
    assert item["last_failure"]["S"] == attempt["failure"] == failure
    assert attempt.get("status_code") == status
    assert is_due_in_about_an_hour(item), item
    assert [request.path for request in receiver.requests] == [f"/{name}"], (
        "a redirect is not followed, nothing is sent twice"
    )
    assert item["body"]["S"].encode() == receiver.at(f"/{name}")[0].body
    assert item["SK"]["S"] == receiver.at(f"/{name}")[0].id


def test_an_endpoint_that_is_not_there_is_a_connect_failure(service, api, receiver, delivery):
    receiver.close()
    webhook = api.subscribe(f"{receiver.url}/gone")
    service.put_job(f"{api.account}-gone", api.account)
    item = delivery(webhook)
    assert (item["status"]["S"], item["last_failure"]["S"]) == ("pending", "connect")
    assert is_due_in_about_an_hour(item), item


def test_an_endpoint_that_hangs_costs_about_a_second_and_delays_nobody_else(service, api, receiver, delivery):
    receiver.hang("/hang")
    hanging = api.subscribe(f"{receiver.url}/hang")
    api.subscribe(f"{receiver.url}/good")
    service.put_job(f"{api.account}-hang", api.account)
    good = receiver.wait_for("/good")[0]
    item = delivery(hanging)
    (attempt,) = attempts_of(item)
    assert (item["status"]["S"], item["last_failure"]["S"]) == ("pending", "timeout")
    # The contract's deadline is 1 s; half a second more is for a busy machine.
    assert 900 <= attempt["duration_ms"] <= 1_500
    assert is_due_in_about_an_hour(item), item
    assert good.at < attempt["at"] / 1000 + 1, "the good endpoint waited for the hanging one"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_delivered_and_no_longer_due(service, api, receiver, delivery, status):
    receiver.answer("/ok", reply(status))
    webhook = api.subscribe(f"{receiver.url}/ok")
    service.put_job(f"{api.account}-ok", api.account)
    item = delivery(webhook)
    assert (item["status"]["S"], item["attempt_count"]["N"]) == ("delivered", "1")
    assert "next_attempt_at" not in item and "last_failure" not in item
    assert int(item["expires_at"]["N"]) > time.time() + 29 * 24 * HOUR, "the log is kept for 30 days"


def test_the_first_wait_of_the_default_schedule_is_about_5_seconds(start, receiver):
    service = start("--in-memory")
    receiver.answer("/error", reply(500))
    service.api.subscribe(f"{receiver.url}/error")
    service.put_job("default", service.api.account)
    (request, *_) = receiver.wait_for("/error")
    item = eventually(lambda: service.scan("deliveries"), "a delivery")[0]
    # A second attempt may have been made by the time the item is read; the first one's wait is over then.
    if item["attempt_count"]["N"] == "1":
        assert 5 * (1 - JITTER) - 1 <= int(item["next_attempt_at"]["N"]) / 1000 - request.at <= 5 * (1 + JITTER) + 1


def test_retry_after_makes_the_wait_longer_but_never_shorter(service, api, receiver, delivery):
    for path, seconds, lowest, highest in (
        ("/longer", "7200", 7_200, 7_200 * (1 + JITTER)),
        ("/shorter", "1", WAIT * (1 - JITTER), WAIT * (1 + JITTER)),
        ("/too-long", "9999999", 24 * HOUR, 24 * HOUR),
    ):
        receiver.answer(path, reply(503, [("Retry-After", seconds)]))
        webhook = api.subscribe(receiver.url + path)
        service.put_job(f"{api.account}-{path}", api.account)
        item = delivery(webhook)
        wait = int(item["next_attempt_at"]["N"]) / 1000 - receiver.at(path)[0].at
        assert lowest - 2 <= wait <= highest + 2, (path, wait)
        assert api.delete(webhook).status == 200
