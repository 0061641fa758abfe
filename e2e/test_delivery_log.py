"""The delivery log answers where a webhook is, and what went over the wire."""

import re
import time

import pytest

from support import PLAIN_SECRET, STANDARD_SECRET, eventually

ROW = {"event_id", "event", "task_id", "status", "attempt_count", "created_at", "next_attempt_at", "last_failure"}
ATTEMPT = {
    "number",
    "at",
    "duration_ms",
    "phases",
    "status_code",
    "failure",
    "detail",
    "response_excerpt",
    "request_headers",
}
UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
# What HTTP itself adds to a request.
OF_HTTP = {"host", "content-length", "connection", "accept"}
# A well-formed id that no event has.
NO_EVENT = "evt_" + "0" * 26


def reply(status, headers=(), body=b""):
    return lambda handler: handler.reply(status, headers, body)


@pytest.fixture
def write(service, api):
    """`write(webhook, *names)` writes jobs one after the other and waits until each is in the log."""

    def write(webhook, *names, status="completed"):
        for name in names:
            service.put_job(f"{api.account}-{name}", api.account, status)
            listed = lambda: any(row["task_id"] == f"{api.account}-{name}" for row in api.log(webhook))
            eventually(listed, f"{name} in the log")

    return write


def names(rows):
    return [row["task_id"].rpartition("-")[2] for row in rows]


def test_a_row_has_exactly_the_fields_of_the_contract(api, receiver, write):
    receiver.answer("/error", reply(500))
    fine, broken = api.subscribe(f"{receiver.url}/fine"), api.subscribe(f"{receiver.url}/error")
    write(fine, "job", status="failed")
    delivered, pending = api.row(fine), api.row(broken)
    assert set(delivered) == set(pending) == ROW
    assert delivered["event_id"] == pending["event_id"] == receiver.wait_for("/fine")[0].id
    assert delivered["event"] == "job.failed" and delivered["task_id"] == f"{api.account}-job"
    assert (delivered["status"], delivered["attempt_count"]) == ("delivered", 1)
    assert (delivered["next_attempt_at"], delivered["last_failure"]) == (None, None)
    assert (pending["status"], pending["attempt_count"], pending["last_failure"]) == ("pending", 1, "status")
    for value in (delivered["created_at"], pending["created_at"], pending["next_attempt_at"]):
        assert UTC.fullmatch(value), value


def test_the_newest_stand_first(api, receiver, write):
    webhook = api.subscribe(f"{receiver.url}/hook")
    assert api.deliveries(webhook).json == {"success": True, "data": [], "next_cursor": None}
    write(webhook, *"abc")
    # A stream record's time, which the order follows, has whole seconds.
    second = int(time.time())
    eventually(lambda: int(time.time()) > second, "the next second")
    write(webhook, *"def")
    page = api.deliveries(webhook)
    assert {*names(page.data[:3])} == {*"def"} and {*names(page.data[3:])} == {*"abc"}, names(page.data)
    ids = [row["event_id"] for row in page.data]
    assert ids == sorted(ids, reverse=True)
    assert page.json["next_cursor"] is None


def test_a_walk_gives_each_delivery_exactly_once_also_while_others_are_written(api, receiver, write):
    webhook = api.subscribe(f"{receiver.url}/hook")
    write(webhook, *"abcdefghijklm")
    walked, query = [], {"limit": 3}
    for page in range(20):
        answer = api.deliveries(webhook, **query)
        assert answer.status == 200 and len(answer.data) <= 3, answer.text
        walked += answer.data
        if answer.json["next_cursor"] is None:
            break
        query["cursor"] = answer.json["next_cursor"]
        write(webhook, f"new{page}")
    ids = [row["event_id"] for row in walked]
    assert ids == sorted(set(ids), reverse=True), "each comes once, in the order of the list"
    assert {*names(walked)} >= {*"abcdefghijklm"}
    assert {*names(api.log(webhook, limit=2))} >= {*names(walked)}


def test_the_filters_can_be_joined_and_walked(service, api, receiver, write):
    refuse = lambda handler: handler.reply(500 if "bad" in handler.received.json["task_id"] else 200)
    receiver.answer("/hook", refuse)
    webhook = api.subscribe(f"{receiver.url}/hook")
    write(webhook, "a", "bad1", "b", "bad2", "c")
    write(webhook, "d", "bad3", "e", status="failed")
    for query, expected in (
        ({"status": "delivered"}, {*"abcde"}),
        ({"status": "pending"}, {"bad1", "bad2", "bad3"}),
        ({"status": "failed"}, set()),
        ({"status": "cancelled"}, set()),
        ({"event": "job.failed"}, {"d", "bad3", "e"}),
        ({"event": "job.completed"}, {"a", "bad1", "b", "bad2", "c"}),
        ({"event": "job.failed", "status": "pending"}, {"bad3"}),
        ({"event": "job.completed", "status": "delivered"}, {*"abc"}),
    ):
        for limit in (1, 2, 100):
            found = names(api.log(webhook, limit=limit, **query))
            assert len(found) == len(expected) and {*found} == expected, (query, limit)


@pytest.mark.parametrize(
    ("name", "query"),
    [("limit", f"limit={value}") for value in ("0", "-1", "101", "1.5", "many", "", "99999999999999999999")]
    + [("status", f"status={value}") for value in ("parked", "PENDING", "")]
    + [("event", f"event={value}") for value in ("job.started", "*", "")]
    + [("cursor", f"cursor={value}") for value in ("%21%21", "AAAA", "null", "", NO_EVENT, "a" * 5000)]
    + [("page", "page=2"), ("limit", "limit=1&limit=2")],
)
def test_a_parameter_that_makes_no_sense_is_named(api, receiver, name, query):
    webhook = api.subscribe(f"{receiver.url}/hook")
    answer = api.call("GET", f"/api/v1/webhooks/{webhook}/deliveries?{query}").is_error(400, "invalid_request")
    assert answer.message.startswith(f"{name}: "), answer.message


def test_foreign_and_missing_webhooks_look_the_same(service, api, receiver, write):
    webhook = api.subscribe(f"{receiver.url}/hook")
    write(webhook, "job")
    event = api.row(webhook)["event_id"]
    stranger = service.new_account()

    def refused(who, id, method, path):
        answer = who.call(method, f"/api/v1/webhooks/{id}/deliveries{path}").is_error(404, "not_found")
        return answer.message.replace(f"webhook {id}", "webhook #")

    for method, path in (("GET", ""), ("GET", f"/{event}"), ("POST", f"/{event}/retry")):
        assert refused(stranger, webhook, method, path) == refused(api, webhook + 1, method, path)
        for id in (0, "abc", "99999999999999999999"):
            refused(api, id, method, path)
    for unknown in (NO_EVENT, "evt_", "x", "%00", "a" * 300):
        api.delivery(webhook, unknown).is_error(404, "not_found")
        api.retry(webhook, unknown).is_error(404, "not_found")
    assert len(receiver.at("/hook")) == 1


@pytest.mark.parametrize("secret", [PLAIN_SECRET, STANDARD_SECRET, None], ids=["plain", "standard", "none"])
def test_one_delivery_shows_the_request_and_the_answer_as_they_were(api, receiver, write, secret):
    receiver.answer("/hook", reply(500, body="sorry: ü ".encode() * 400))
    webhook = api.subscribe(f"{receiver.url}/hook", secret)
    write(webhook, "job")
    row = api.row(webhook)
    shown = api.delivery(webhook, row["event_id"]).data
    assert set(shown) == ROW | {"payload", "url", "attempts"}
    assert {name: shown[name] for name in ROW} == row
    (request,) = receiver.at("/hook")
    assert shown["payload"].encode() == request.body
    assert shown["url"] == f"{receiver.url}/hook"
    (attempt,) = shown["attempts"]
    assert set(attempt) == ATTEMPT
    assert attempt["number"] == 1 and UTC.fullmatch(attempt["at"]) and 0 <= attempt["duration_ms"] <= 1_500
    phases = attempt["phases"]
    assert set(phases) == {"dns_ms", "connect_ms", "tls_ms", "answer_ms", "body_ms"} and phases["tls_ms"] is None
    assert 0 < phases["answer_ms"] <= attempt["duration_ms"] + 1 and phases["body_ms"] is not None
    assert (attempt["status_code"], attempt["failure"]) == (500, "status")
    assert attempt["response_excerpt"].startswith("sorry: ü") and len(attempt["response_excerpt"].encode()) <= 1024
    sent = {name.lower(): value for name, value in attempt["request_headers"].items()}
    assert {name: value for name, value in request.headers.items() if name not in OF_HTTP} == sent
    assert ("x-nano-signature" in sent) == ("webhook-signature" in sent) == (secret is not None)
    assert secret is None or secret not in api.delivery(webhook, row["event_id"]).text
