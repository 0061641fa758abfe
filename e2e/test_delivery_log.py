"""The delivery log: pages while events arrive, and the exact request and response."""

import pytest

from support import PLAIN_SECRET, respond_with, wait_until

# Headers that HTTP itself adds to a request.
HTTP_HEADERS = {"host", "content-length"}


@pytest.fixture
def write_jobs(service, api):
    """`write_jobs(webhook, *names)` writes jobs one at a time and waits for each in the log."""

    def write_jobs(webhook, *names):
        for name in names:
            service.put_job(f"{api.account}-{name}", api.account)
            is_listed = lambda: name in task_names(api.list_deliveries(webhook))
            wait_until(is_listed, f"{name} in the log")

    return write_jobs


def task_names(rows):
    return [row["task_id"].rpartition("-")[2] for row in rows]


def test_cursor_walk_lists_each_delivery_once(api, receiver, write_jobs):
    """Events that arrive between two pages neither repeat nor hide an older delivery."""
    webhook = api.subscribe(f"{receiver.url}/hook")
    write_jobs(webhook, *"abcdefghijklm")
    rows, query = [], {"limit": 3}
    for page in range(20):
        response = api.delivery_page(webhook, **query)
        assert response.status == 200 and len(response.data) <= 3, response.text
        rows += response.data
        if response.json["next_cursor"] is None:
            break
        query["cursor"] = response.json["next_cursor"]
        write_jobs(webhook, f"new{page}")
    ids = [row["event_id"] for row in rows]
    assert ids == sorted(set(ids), reverse=True), "each delivery once, the newest first"
    assert {*task_names(rows)} >= {*"abcdefghijklm"}


def test_delivery_shows_request_and_response(api, receiver, write_jobs):
    """A delivery shows the payload and the headers that the receiver got, and the response that it
    sent.
    """
    receiver.respond("/hook", respond_with(500, body="sorry: ü ".encode() * 400))
    webhook = api.subscribe(f"{receiver.url}/hook", PLAIN_SECRET)
    write_jobs(webhook, "job")
    row = api.wait_for_delivery(webhook)
    response = api.get_delivery(webhook, row["event_id"])
    delivery = response.data
    assert {name: delivery[name] for name in row} == row
    (request,) = receiver.requests_to("/hook")
    assert delivery["payload"].encode() == request.body
    assert delivery["url"] == f"{receiver.url}/hook"
    (attempt,) = delivery["attempts"]
    assert (attempt["number"], attempt["status_code"], attempt["failure"]) == (1, 500, "status")
    assert 0 < attempt["timings"]["wait_ms"] <= attempt["duration_ms"] + 1 <= 1_501
    assert attempt["timings"]["tls_ms"] is None and attempt["timings"]["receive_ms"] is not None
    excerpt = attempt["response_excerpt"]
    assert excerpt.startswith("sorry: ü") and len(excerpt.encode()) <= 1024
    logged_headers = attempt["request_headers"]
    sent = {name: value for name, value in request.header_list if name.lower() not in HTTP_HEADERS}
    assert sent == logged_headers
    assert "X-Nano-Signature" in logged_headers and "webhook-signature" in logged_headers
    assert PLAIN_SECRET not in response.text
