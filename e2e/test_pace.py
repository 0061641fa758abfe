"""Webhooks whose deliveries are spaced in time."""

from support import wait_until

EVENTS = 12
MAX_PER_SECOND = 4


def test_burst_is_spaced(service, api, receiver):
    """A burst takes as long as the limit says, and each event is attempted once, as it is at a
    webhook without a limit.
    """
    paced = api.create(
        {
            "url": receiver.url + "/paced",
            "events": ["job.completed"],
            "max_per_second": MAX_PER_SECOND,
        }
    ).data["id"]
    other = api.subscribe(receiver.url + "/other")
    assert api.get(paced)["max_per_second"] == MAX_PER_SECOND
    for number in range(EVENTS):
        service.put_job(f"{api.account}-{number}", api.account)
    receiver.wait_for("/other", EVENTS)
    requests = receiver.wait_for("/paced", EVENTS)
    arrivals = sorted(request.received_at for request in requests)
    # An attempt may start 100 ms before its slot.
    assert arrivals[-1] - arrivals[0] >= (EVENTS - 1) / MAX_PER_SECOND - 0.2
    for webhook in (paced, other):
        list_delivered = lambda: api.list_deliveries(webhook, status="delivered", limit=100)
        wait_until(lambda: len(list_delivered()) == EVENTS, "all are delivered")
        assert [row["attempt_count"] for row in list_delivered()] == [1] * EVENTS
