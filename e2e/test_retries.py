"""Retries of local mode, in real time."""

from support import STANDARD_SECRET, respond_with, verify_signatures

SCHEDULE = (0.25, 0.5, 1.0)  # seconds
SHORTEST = 0.8  # the jitter shortens a wait to 80 % at most


def fail_first(count, failure):
    """An action that calls `failure` for the first `count` attempts of an event, and accepts the
    later ones.
    """

    def action(handler):
        attempt = int(handler.headers["X-Nano-Attempt"])
        (failure if attempt <= count else respond_with(200))(handler)

    return action


def list_gaps(requests):
    return [
        later.received_at - earlier.received_at for earlier, later in zip(requests, requests[1:])
    ]


def test_retries_follow_schedule_until_accepted(start, receiver):
    """Each attempt sends the same bytes and the same id, with its own timestamp and signature."""
    service = start("--in-memory", "--retry-schedule", "250ms,500ms,1s")
    receiver.respond("/recovers", fail_first(3, respond_with(500)))
    webhook = service.api.subscribe(f"{receiver.url}/recovers", STANDARD_SECRET)
    service.put_job("task", service.api.account)
    row = service.api.wait_for_delivery(webhook, lambda row: row["status"] != "pending")
    assert (row["status"], row["attempt_count"], row["next_attempt_at"]) == ("delivered", 4, None)
    requests = receiver.requests_to("/recovers")
    assert [request.headers["x-nano-attempt"] for request in requests] == ["1", "2", "3", "4"]
    assert {request.id for request in requests} == {row["event_id"]}
    assert len({request.body for request in requests}) == 1
    verify_signatures(requests, STANDARD_SECRET)
    for request in requests:
        assert abs(int(request.headers["x-nano-timestamp"]) - request.received_at) < 3
        assert request.headers["webhook-timestamp"] == request.headers["x-nano-timestamp"]
    for gap, wait in zip(list_gaps(requests), SCHEDULE):
        assert gap >= wait * SHORTEST


def test_retry_after_lengthens_wait(start, receiver):
    """A response with `Retry-After` moves the next attempt beyond the wait of the schedule."""
    service = start("--in-memory", "--retry-schedule", "250ms")
    receiver.respond("/busy", fail_first(1, respond_with(503, [("Retry-After", "2")])))
    webhook = service.api.subscribe(f"{receiver.url}/busy")
    service.put_job("task", service.api.account)
    service.api.wait_for_delivery(webhook, lambda row: row["status"] == "delivered")
    assert list_gaps(receiver.requests_to("/busy"))[0] >= 1.95


def test_changed_url_receives_next_attempt(start, receiver):
    """A retry uses the webhook's current URL and secret, and the log shows that URL."""
    service = start("--in-memory", "--retry-schedule", "1s,1s")
    receiver.respond("/old", respond_with(500))
    webhook = service.api.subscribe(receiver.url + "/old", "my-secret-key")
    service.put_job("task", service.api.account)
    receiver.wait_for("/old")
    assert service.api.update(webhook, url=receiver.url + "/new", secret_key=None).status == 200
    (request,) = receiver.wait_for("/new")
    assert request.headers["x-nano-attempt"] == "2"
    assert "x-nano-signature" not in request.headers
    row = service.api.wait_for_delivery(webhook, lambda row: row["status"] == "delivered")
    assert service.api.get_delivery(webhook, row["event_id"]).data["url"] == receiver.url + "/new"
