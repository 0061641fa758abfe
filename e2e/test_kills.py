"""Repeated SIGKILL under load, with a receiver that fails a third of the requests or with an
endpoint whose circuit breaker is open: no event is lost.
"""

import collections
import contextlib
import hashlib
import random
import socket
import threading
import time

import botocore.exceptions

from support import Receiver, wait_until

JOBS = 500
WAITING_JOBS = 120  # for an endpoint that does not respond; they are resumed at 5 per second
KILLS = 6
PACE = 0.03  # seconds between two jobs
SCHEDULE = "200ms,500ms,1s,2s,2s,2s,2s,2s,2s,2s"
READ_DELAY = 0.2  # seconds within which the receiver reads a request after its sender was killed


class FlakyReceiver:
    """Fails a third of the attempts and delays some.

    The attempt decides, so that a repetition behaves the same.
    """

    def __init__(self):
        self.accepted_at = collections.defaultdict(
            list
        )  # event id: the times of the requests with a 2xx response
        self.failed = 0
        self.task_by_event = {}

    def __call__(self, handler):
        request = handler.received
        digest = hashlib.sha256(
            f"{request.id} {request.headers['x-nano-attempt']}".encode()
        ).digest()
        self.task_by_event[request.id] = request.json["task_id"]
        time.sleep(digest[1] / 256 * 0.05)  # leaves some attempts in flight at a kill
        if digest[0] % 3 == 0:
            self.failed += 1
            handler.respond(500)
        else:
            handler.respond(200)
            self.accepted_at[request.id].append(request.received_at)


class JobWriter(threading.Thread):
    """Writes jobs at a steady pace, and repeats each write until it is acknowledged."""

    def __init__(self, service, jobs):
        super().__init__(daemon=True)
        self.service = service
        self.jobs = jobs
        self.acknowledged = []
        self.repeated_writes = 0

    def run(self):
        started = time.monotonic()
        for number in range(self.jobs):
            time.sleep(max(0, started + number * PACE - time.monotonic()))
            self.write(f"job-{number:03}")

    def write(self, task_id):
        while True:
            service = self.service
            try:
                service.put_job(
                    task_id, service.api.account, "failed" if task_id.endswith("7") else "completed"
                )
            except botocore.exceptions.BotoCoreError:
                self.repeated_writes += 1
                time.sleep(0.01)
            else:
                self.acknowledged.append(task_id)
                return


def test_kills_under_load_lose_no_event(start, receiver, tmp_path, capsys):
    """Every acknowledged job ends as one delivered or failed delivery.

    Only events in flight at a kill repeat.
    """
    options = ("--data-dir", str(tmp_path / "data"), "--retry-schedule", SCHEDULE)
    flaky = FlakyReceiver()
    receiver.respond("/hook", flaky)
    service = start(*options)
    webhook = service.api.subscribe(f"{receiver.url}/hook")
    writer = JobWriter(service, JOBS)
    writer.start()

    kills, start_seconds = [], []
    for count in sorted(random.sample(range(20, JOBS - 20), KILLS)):
        wait_until(lambda: len(writer.acknowledged) >= count, f"{count} acknowledged jobs")
        time.sleep(random.random() * PACE)
        recorded = {
            item["SK"]["S"]
            for item in service.scan("deliveries")
            if item["status"]["S"] == "delivered"
        }
        service.kill()
        kills.append((time.time(), recorded))
        service = writer.service = start(*options)
        start_seconds.append(service.start_seconds)
    writer.join(60)
    acknowledged = {*writer.acknowledged}
    assert len(writer.acknowledged) == JOBS

    api = service.api

    def missing():
        rows = api.list_deliveries(webhook, limit=100)
        return acknowledged - {row["task_id"] for row in rows}

    wait_until(lambda: not missing(), lambda: f"missing in the log: {missing()}")
    list_pending = lambda: api.list_deliveries(webhook, status="pending", limit=100)
    wait_until(lambda: not list_pending(), lambda: f"still pending: {list_pending()}", 60)
    rows = api.list_deliveries(webhook, limit=100)
    delivered = {row["event_id"] for row in rows if row["status"] == "delivered"}
    failed = {row["event_id"] for row in rows if row["status"] == "failed"}

    assert len(rows) == len({row["task_id"] for row in rows}) == JOBS
    assert {row["task_id"] for row in rows} == acknowledged
    assert len(delivered) + len(failed) == JOBS
    accepted_tasks = {flaky.task_by_event[event] for event in flaky.accepted_at}
    failed_tasks = {row["task_id"] for row in rows if row["status"] == "failed"}
    lost = acknowledged - accepted_tasks - failed_tasks
    assert not lost
    assert delivered <= {*flaky.accepted_at}, "delivered without a 2xx response"

    # An event is in flight at a kill if the receiver accepted it by then and no delivery was
    # recorded just before.
    in_flight_by_kill = []
    for killed_at, recorded in kills:
        accepted = {
            event
            for event, times in flaky.accepted_at.items()
            if times[0] <= killed_at + READ_DELAY
        }
        in_flight_by_kill.append(accepted - recorded)
    repeats = collections.Counter(
        {event: len(times) - 1 for event, times in flaky.accepted_at.items()}
    )
    with capsys.disabled():
        print(
            f"\n{JOBS} jobs, {KILLS} kills: {len(receiver.requests_to('/hook'))} requests, "
            f"{flaky.failed} with a 500 response, delivered {len(delivered)}, "
            f"failed {len(failed)}, lost {len(lost)}, repeats {repeats.total()} of "
            f"{sum(map(len, in_flight_by_kill))} in flight at the kills, repeated writes "
            f"{writer.repeated_writes}, restarted in {min(start_seconds):.2f} to "
            f"{max(start_seconds):.2f} s"
        )
    for event, count in repeats.items():
        allowed = sum(event in in_flight for in_flight in in_flight_by_kill)
        assert count <= allowed, f"{event} was repeated without a kill"


def test_kills_with_open_breaker_lose_no_event(start, tmp_path, capsys):
    """The events of an endpoint that does not respond wait, and are resumed when it responds."""
    options = ("--data-dir", str(tmp_path / "data"), "--retry-schedule", SCHEDULE)
    service = start(*options)
    reserved = socket.socket()  # refuses connections, because it does not listen
    reserved.bind(("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    webhook = service.api.subscribe(f"http://127.0.0.1:{port}/hook")
    service.put_job("first", service.api.account)
    list_rows = lambda **query: service.api.list_deliveries(webhook, limit=100, **query)
    health = lambda: service.api.get(webhook)["health"]["state"]
    is_waiting = lambda: health() == "unreachable" and not any(
        row["next_attempt_at"] for row in list_rows(status="pending")
    )
    wait_until(is_waiting, "the first event waits")

    writer = JobWriter(service, WAITING_JOBS)
    writer.start()
    for count in sorted(random.sample(range(5, WAITING_JOBS - 5), KILLS)):
        wait_until(lambda: len(writer.acknowledged) >= count, f"{count} acknowledged jobs")
        service.kill()
        service = writer.service = start(*options)
    writer.join(60)
    expected = {"first", *writer.acknowledged}
    assert len(expected) == WAITING_JOBS + 1
    wait_until(lambda: len(list_rows()) == len(expected), "all events are in the log")
    wait_until(is_waiting, "all events wait", 60)
    rows = list_rows()
    attempts = sum(row["attempt_count"] for row in rows)
    reserved.close()
    with contextlib.closing(Receiver(port=port)) as receiver:
        # A manual retry is attempted at once, and its success closes the breaker.
        assert service.api.retry(webhook, rows[0]["event_id"]).status == 202
        receiver.wait_for("/hook")
        wait_until(lambda: health() == "healthy", "the breaker is closed")
        for count in (10, 30):  # the process dies before and during the resume
            service.kill()
            service = start(*options)
            receiver.wait_for("/hook", count)
        wait_until(lambda: not list_rows(status="pending"), "all events are delivered", 90)
        received = collections.Counter(
            request.json["task_id"] for request in receiver.requests_to("/hook")
        )
    assert {row["status"] for row in list_rows()} == {"delivered"}
    assert set(received) == expected
    with capsys.disabled():
        print(
            f"\n{len(expected)} waiting events, {KILLS + 2} kills: {attempts} attempts before the "
            f"endpoint responds, {received.total() - len(expected)} repeats"
        )
