"""An endpoint that hangs delays only its own deliveries, whatever account it belongs to."""

import statistics
import threading
import time

import pytest

from support import wait_until

RATE = 25  # events per second
BASELINE_SECONDS = 3  # with the healthy endpoint alone
SHARED_SECONDS = 12  # with the hanging endpoint too
DETECTION_SECONDS = (
    3  # the part of SHARED_SECONDS in which the service detects the hanging endpoint
)
# Seconds. A delivery that waited for a queued attempt would wait for 15 s. A busy machine needs the
# rest.
MAX_MEDIAN_LATENCY = 10
# The time-outs of a queued and of a direct attempt, in milliseconds.
QUEUED_TIMEOUT, DIRECT_TIMEOUT = 15_000, 10_000


class JobWriter(threading.Thread):
    """Writes jobs for accounts at a steady rate, and records the time of each write."""

    def __init__(self, service, accounts, name, seconds):
        super().__init__(daemon=True)
        self.service, self.accounts = service, accounts
        self.names = [f"{name}-{number}" for number in range(int(RATE * seconds))]
        self.written_at = {}

    def run(self):
        started = time.monotonic()
        for number, name in enumerate(self.names):
            time.sleep(max(0, started + number / RATE - time.monotonic()))
            for account in self.accounts:
                task_id = f"{account}-{name}"
                self.written_at[task_id] = time.time()
                self.service.put_job(task_id, account)


def format_percentiles(latencies):
    """p50, p95 and p99 in milliseconds, as text."""
    ordered = sorted(latencies)
    return "/".join(
        f"{ordered[min(len(ordered) - 1, int(len(ordered) * p))] * 1000:.0f}"
        for p in (0.5, 0.95, 0.99)
    )


@pytest.mark.parametrize("neighbor", ["in the same account", "in another account"])
def test_hanging_endpoint_delays_no_other(start, receiver, capsys, neighbor):
    """A healthy endpoint receives every event in time.

    Later events of the hanging one skip the direct attempt.
    """
    service = start("--in-memory", "--retry-schedule", "1m,1h")
    healthy = service.create_account()
    hanging = healthy if neighbor == "in the same account" else service.create_account()
    receiver.hang("/hanging")
    healthy_webhook = healthy.subscribe(f"{receiver.url}/healthy")
    service.put_job("first", healthy.account)
    receiver.wait_for("/healthy")

    def measure_latencies(name, seconds):
        """Writes jobs. Returns the latencies of the healthy endpoint by the time of the write."""
        writer = JobWriter(
            service, list(dict.fromkeys((healthy.account, hanging.account))), name, seconds
        )
        writer.start()
        writer.join()
        written_at = {
            task: at
            for task, at in writer.written_at.items()
            if task.startswith(f"{healthy.account}-")
        }
        assert len(written_at) == len(writer.names)

        def read_arrivals():
            requests = reversed(receiver.requests_to("/healthy"))
            return {request.json["task_id"]: request.received_at for request in requests}

        missing = lambda: written_at.keys() - read_arrivals().keys()
        wait_until(lambda: not missing(), lambda: f"all events arrive, missing {missing()}")
        received_at = read_arrivals()
        return {written: received_at[task] - written for task, written in written_at.items()}

    baseline = measure_latencies("baseline", BASELINE_SECONDS)
    hanging_webhook = hanging.subscribe(f"{receiver.url}/hanging")
    started = time.time()
    shared = measure_latencies("shared", SHARED_SECONDS)
    early = [
        latency for written, latency in shared.items() if written < started + DETECTION_SECONDS
    ]
    late = [
        latency for written, latency in shared.items() if written >= started + DETECTION_SECONDS
    ]

    with capsys.disabled():
        print(
            f"\nhanging endpoint {neighbor}, {RATE} events/s, "
            f"p50/p95/p99 of the healthy one in ms: "
            f"alone {format_percentiles(baseline.values())}, "
            f"first {DETECTION_SECONDS} s {format_percentiles(early)}, "
            f"then {format_percentiles(late)}"
        )
    assert max(statistics.median(early), statistics.median(late)) < MAX_MEDIAN_LATENCY
    list_pending = lambda: healthy.list_deliveries(healthy_webhook, status="pending", limit=100)
    wait_until(lambda: not list_pending(), "the healthy endpoint's deliveries are recorded")
    rows = healthy.list_deliveries(healthy_webhook, limit=100)
    assert len(rows) == 1 + RATE * (BASELINE_SECONDS + SHARED_SECONDS)
    assert {(row["status"], row["attempt_count"]) for row in rows} == {("delivered", 1)}

    rows = hanging.list_deliveries(hanging_webhook, limit=100)
    assert len(rows) == RATE * SHARED_SECONDS and {row["status"] for row in rows} == {"pending"}
    def list_attempted():
        rows = hanging.list_deliveries(hanging_webhook, limit=100)
        return [row for row in rows if row["attempt_count"] > 0]

    attempted = wait_until(list_attempted, "the direct attempt ends")
    details = [hanging.get_delivery(hanging_webhook, row["event_id"]).data for row in attempted]
    first_attempts = [delivery["attempts"][0] for delivery in details]
    assert {attempt["failure"] for attempt in first_attempts} <= {"timeout"}
    threshold = (QUEUED_TIMEOUT + DIRECT_TIMEOUT) / 2
    direct_attempts = [attempt for attempt in first_attempts if attempt["duration_ms"] < threshold]
    assert len(direct_attempts) == 1, (
        "a new endpoint has one direct attempt until it accepts an event"
    )
    assert any(row["attempt_count"] == 0 for row in rows)
