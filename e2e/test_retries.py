"""What fails is tried again as the schedule says, with the same bytes under the same id, until it is settled."""

import email.utils
import time

import pytest

from support import STANDARD_SECRET, eventually, verify

SCHEDULE = (0.25, 0.5, 1.0)
# A wait is at least 80 % of what the schedule says; how much longer it takes is up to the machine.
SHORTEST = 0.8


@pytest.fixture(scope="module")
def service(start):
    """A service with a schedule that a test can wait for."""
    return start("--in-memory", "--retry-schedule", "250ms,500ms,1s")


def reply(status, headers=(), body=b""):
    return lambda handler: handler.reply(status, headers, body)


def first(count, failing, then=reply(200)):
    """Answers with `failing` to the first `count` attempts of an event, to the later ones with `then`."""

    def answer(handler):
        (failing if int(handler.headers["X-Nano-Attempt"]) <= count else then)(handler)

    return answer


def gaps(requests):
    return [later.at - earlier.at for earlier, later in zip(requests, requests[1:])]


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_an_endpoint_that_fails_at_first_gets_the_same_event_again_until_it_accepts(service, api, receiver, failures):
    receiver.answer("/recovers", first(failures, reply(500)))
    webhook = api.subscribe(f"{receiver.url}/recovers", STANDARD_SECRET)
    service.put_job(f"{api.account}-job", api.account)
    row = api.row(webhook, lambda row: row["status"] != "pending")
    assert (row["status"], row["attempt_count"], row["next_attempt_at"]) == ("delivered", failures + 1, None)
    requests = receiver.at("/recovers")
    assert [request.headers["x-nano-attempt"] for request in requests] == [str(n + 1) for n in range(failures + 1)]
    assert {request.id for request in requests} == {row["event_id"]}
    assert len({request.body for request in requests}) == 1
    verify(requests, STANDARD_SECRET)
    for request in requests:
        assert abs(int(request.headers["x-nano-timestamp"]) - request.at) < 3, "the timestamp is that of the attempt"
        assert request.headers["webhook-timestamp"] == request.headers["x-nano-timestamp"]
    for gap, wait in zip(gaps(requests), SCHEDULE):
        assert gap >= wait * SHORTEST


def test_when_the_schedule_is_exhausted_the_delivery_is_failed_and_stays_listed(service, api, receiver):
    receiver.answer("/broken", reply(500))
    webhook = api.subscribe(f"{receiver.url}/broken", STANDARD_SECRET)
    service.put_job(f"{api.account}-job", api.account)
    row = api.row(webhook, lambda row: row["status"] != "pending")
    assert (row["status"], row["attempt_count"], row["last_failure"]) == ("failed", 4, "status")
    assert row["next_attempt_at"] is None
    assert api.log(webhook, status="failed") == [row]
    assert api.log(webhook, status="pending") == api.log(webhook, status="delivered") == []
    requests = receiver.at("/broken")
    assert [request.headers["x-nano-attempt"] for request in requests] == ["1", "2", "3", "4"]
    stamps = [int(request.headers["x-nano-timestamp"]) for request in requests]
    assert stamps == sorted(stamps) and stamps[0] < stamps[-1], "each attempt has a timestamp of its own"
    assert len({request.headers["x-nano-signature"] for request in requests}) == len(set(stamps))
    verify(requests, STANDARD_SECRET)
    numbers = [attempt["number"] for attempt in api.delivery(webhook, row["event_id"]).data["attempts"]]
    assert numbers == [1, 2, 3, 4]


def test_retry_after_makes_a_wait_longer_in_either_form(service, api, receiver):
    def come_later(status, value):
        return first(1, lambda handler: handler.reply(status, [("Retry-After", value())]))

    # A date has whole seconds: three from now may be little more than two.
    date = lambda: email.utils.formatdate(time.time() + 3, usegmt=True)
    webhooks = {}
    for name, status, value in (
        ("/429-seconds", 429, lambda: "2"),
        ("/503-seconds", 503, lambda: "2"),
        ("/429-date", 429, date),
        ("/500-date", 500, date),
    ):
        receiver.answer(name, come_later(status, value))
        webhooks[name] = api.subscribe(receiver.url + name)
    service.put_job(f"{api.account}-job", api.account)
    for name, webhook in webhooks.items():
        row = api.row(webhook, lambda row: row["status"] != "pending")
        assert (row["status"], row["attempt_count"]) == ("delivered", 2), name
        assert gaps(receiver.at(name))[0] >= 1.95, name


def test_retry_after_is_not_heeded_where_it_means_nothing_and_never_makes_a_wait_shorter(service, api, receiver):
    receiver.answer("/not-found", first(1, reply(404, [("Retry-After", "3600")])))
    receiver.answer("/at-once", first(1, reply(503, [("Retry-After", "0")])))
    webhooks = [api.subscribe(receiver.url + path) for path in ("/not-found", "/at-once")]
    service.put_job(f"{api.account}-job", api.account)
    for webhook in webhooks:
        assert api.row(webhook, lambda row: row["status"] != "pending")["status"] == "delivered"
    assert gaps(receiver.at("/at-once"))[0] >= SCHEDULE[0] * SHORTEST


def test_410_disables_the_webhook_at_once_and_parks_what_is_pending(service, api, receiver):
    later = reply(503, [("Retry-After", "2")])

    def answer(handler):
        (reply(410) if handler.received.json["task_id"].endswith("gone") else later)(handler)

    receiver.answer("/gone", answer)
    webhook = api.subscribe(f"{receiver.url}/gone")
    other = api.subscribe(f"{receiver.url}/other")
    service.put_job(f"{api.account}-earlier", api.account)
    receiver.wait_for("/gone", 1)
    service.put_job(f"{api.account}-gone", api.account)
    eventually(lambda: api.status(webhook) == "disabled", "the webhook is disabled")
    assert api.status(other) == "active"

    service.put_job(f"{api.account}-later", api.account)
    eventually(lambda: len(api.log(other, status="delivered")) == 3, "the other webhook's deliveries")
    parked = lambda: [row["next_attempt_at"] for row in api.log(webhook)] == [None, None]
    eventually(parked, lambda: f"both deliveries are parked: {api.log(webhook)}")
    rows = {row["task_id"].rpartition("-")[2]: row for row in api.log(webhook)}
    assert {name: row["status"] for name, row in rows.items()} == {"earlier": "pending", "gone": "pending"}
    assert rows["gone"]["attempt_count"] == 1 and rows["gone"]["last_failure"] == "status"
    tasks = [request.json["task_id"].rpartition("-")[2] for request in receiver.at("/gone")]
    assert tasks.count("gone") == 1 and tasks[-1] == "gone", "nothing is sent to a disabled webhook"


def test_410_to_a_later_attempt_disables_too(service, api, receiver):
    receiver.answer("/gone", first(1, reply(500), then=reply(410)))
    webhook = api.subscribe(f"{receiver.url}/gone")
    service.put_job(f"{api.account}-job", api.account)
    eventually(lambda: api.status(webhook) == "disabled", "the webhook is disabled")
    row = api.row(webhook, lambda row: row["next_attempt_at"] is None)
    assert (row["status"], row["attempt_count"]) == ("pending", 2)


def test_a_deleted_webhooks_pending_deliveries_are_cancelled_and_its_log_stays_readable(service, api, receiver):
    receiver.answer("/deleted", reply(503, [("Retry-After", "1")]))
    receiver.answer("/fine", reply(200))
    webhook = api.subscribe(f"{receiver.url}/deleted")
    fine = api.subscribe(f"{receiver.url}/fine")
    service.put_job(f"{api.account}-job", api.account)
    pending = api.row(webhook, lambda row: row["attempt_count"] > 0)
    api.row(fine, lambda row: row["status"] == "delivered")
    assert api.delete(webhook).status == api.delete(fine).status == 200
    came = len(receiver.at("/deleted"))
    row = api.row(webhook, lambda row: row["status"] != "pending")
    assert (row["status"], row["next_attempt_at"]) == ("cancelled", None)
    assert api.log(webhook, status="cancelled") == [row]
    assert api.row(fine)["status"] == "delivered", "what is settled stays as it is"
    shown = api.delivery(webhook, pending["event_id"])
    assert shown.status == 200 and shown.data["payload"].encode() == receiver.at("/deleted")[0].body
    assert [attempt["status_code"] for attempt in shown.data["attempts"]] == [503] * len(shown.data["attempts"])
    # Another endpoint waits just as long, beginning later: when its second attempt has come, the deleted one's would have.
    receiver.answer("/measure", first(1, reply(503, [("Retry-After", "1")])))
    measure = api.subscribe(f"{receiver.url}/measure")
    service.put_job(f"{api.account}-measure", api.account)
    api.row(measure, lambda row: row["status"] == "delivered")
    assert len(receiver.at("/deleted")) <= came + 1, "one that was in flight when the webhook was deleted may end"
    assert api.row(webhook)["status"] == "cancelled"


def test_a_redirect_is_never_followed(service, api, receiver):
    webhooks = {}
    for status in (301, 302, 303, 307, 308):
        receiver.answer(f"/{status}", reply(status, [("Location", f"{receiver.url}/elsewhere")]))
        webhooks[f"/{status}"] = api.subscribe(f"{receiver.url}/{status}")
    service.put_job(f"{api.account}-job", api.account)
    for path, webhook in webhooks.items():
        row = api.row(webhook, lambda row: row["status"] != "pending")
        assert (row["status"], row["attempt_count"], row["last_failure"]) == ("failed", 4, "redirect"), path
        assert len(receiver.at(path)) == 4
    assert not receiver.at("/elsewhere")
