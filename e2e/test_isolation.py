"""A subscriber that never answers costs its own deliveries only: its neighbours, in its account and in others, go on."""

import statistics
import threading
import time

import pytest

from support import eventually

RATE = 25  # events a second
ALONE = 3  # seconds for which the healthy one is alone
BESIDE = 12  # seconds with the hanging one
FIRST = 3  # of these, the seconds in which the service gets to know the hanging one
# What a queued attempt and a direct one wait for an answer, in milliseconds.
QUEUED, DIRECT = 15_000, 1_000


class Feed(threading.Thread):
    """Writes jobs for accounts at a steady rate, and notes when."""

    def __init__(self, service, accounts, name, seconds):
        super().__init__(daemon=True)
        self.service, self.accounts = service, accounts
        self.names = [f"{name}-{number}" for number in range(int(RATE * seconds))]
        self.written = {}

    def run(self):
        begun = time.monotonic()
        for number, name in enumerate(self.names):
            time.sleep(max(0, begun + number / RATE - time.monotonic()))
            for account in self.accounts:
                task_id = f"{account}-{name}"
                self.written[task_id] = time.time()
                self.service.put_job(task_id, account)


def percentiles(latencies):
    """p50, p95 and p99 in milliseconds, as text."""
    ordered = sorted(latencies)
    return "/".join(f"{ordered[min(len(ordered) - 1, int(len(ordered) * p))] * 1000:.0f}" for p in (0.5, 0.95, 0.99))


@pytest.mark.parametrize("neighbour", ["in the same account", "in another account"])
def test_a_healthy_endpoint_does_not_wait_for_one_that_hangs(start, receiver, capsys, neighbour):
    service = start("--in-memory", "--retry-schedule", "1m,1h")
    healthy = service.new_account()
    hanging = healthy if neighbour == "in the same account" else service.new_account()
    receiver.hang("/hanging")
    good = healthy.subscribe(f"{receiver.url}/good")
    service.put_job("first", healthy.account)
    receiver.wait_for("/good")

    def run(name, seconds):
        """Feeds for some seconds; gives what the healthy one's events took from write to arrival, by the time of the write."""
        feed = Feed(service, list(dict.fromkeys((healthy.account, hanging.account))), name, seconds)
        feed.start()
        feed.join()
        mine = {task: at for task, at in feed.written.items() if task.startswith(f"{healthy.account}-")}
        assert len(mine) == len(feed.names)
        arrived = lambda: {request.json["task_id"]: request.at for request in reversed(receiver.at("/good"))}
        eventually(lambda: arrived().keys() >= mine.keys(), lambda: f"all arrive: {mine.keys() - arrived().keys()}")
        arrivals = arrived()
        return {written: arrivals[task] - written for task, written in mine.items()}

    alone = run("alone", ALONE)
    bad = hanging.subscribe(f"{receiver.url}/hanging")
    begun = time.time()
    beside = run("beside", BESIDE)
    early = [took for written, took in beside.items() if written < begun + FIRST]
    late = [took for written, took in beside.items() if written >= begun + FIRST]

    with capsys.disabled():
        print(
            f"\nhanging endpoint {neighbour}, {RATE} events/s, healthy one's p50/p95/p99 in ms: "
            f"alone {percentiles(alone.values())}, first {FIRST} s {percentiles(early)}, then {percentiles(late)}"
        )
    # No tight times: the machine may be busy. One direct attempt's deadline is what the other may cost at first.
    assert statistics.median(early) < 1 and statistics.median(late) < 1
    eventually(lambda: not healthy.log(good, status="pending", limit=100), "the healthy one's deliveries are recorded")
    rows = healthy.log(good, limit=100)
    assert len(rows) == 1 + RATE * (ALONE + BESIDE)
    assert {(row["status"], row["attempt_count"]) for row in rows} == {("delivered", 1)}

    # The hanging one's later events skip the direct attempt: they wait in the queue, or began there.
    rows = hanging.log(bad, limit=100)
    assert len(rows) == RATE * BESIDE and {row["status"] for row in rows} == {"pending"}
    tried = [row for row in rows if row["attempt_count"] > 0]
    first_attempts = [hanging.delivery(bad, row["event_id"]).data["attempts"][0] for row in tried]
    assert {attempt["failure"] for attempt in first_attempts} <= {"timeout"}
    direct = [attempt for attempt in first_attempts if attempt["duration_ms"] < (QUEUED + DIRECT) / 2]
    assert len(direct) == 1, "an endpoint that is new has one direct attempt until it has accepted an event"
    assert any(row["attempt_count"] == 0 for row in rows)


def test_an_endpoint_that_is_slow_is_called_once_for_each_event(start, receiver):
    service = start("--in-memory", "--retry-schedule", "100ms,1h")
    api = service.api

    def answer_slowly(handler):
        time.sleep(1.5)
        handler.reply(200)

    receiver.answer("/slow", answer_slowly)
    webhook = api.subscribe(f"{receiver.url}/slow")
    attempts = {}
    for number in range(4):
        service.put_job(f"job-{number}", api.account)
        eventually(
            lambda: len(api.log(webhook, status="delivered")) == number + 1,
            lambda: f"{number + 1} are delivered: {api.log(webhook)}",
        )
    for row in api.log(webhook):
        attempts[row["task_id"]] = row["attempt_count"]
    # The direct attempt of the first event ended before the answer; from then on it is given the time that it needs.
    assert attempts == {"job-0": 2, "job-1": 1, "job-2": 1, "job-3": 1}
    assert len(receiver.at("/slow")) == 5
