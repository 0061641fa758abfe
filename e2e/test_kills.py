"""`kill -9` again and again under load, and a receiver that fails a third of the requests: nothing is lost."""

import collections
import hashlib
import random
import threading
import time

import botocore.exceptions

from support import eventually

JOBS = 500
KILLS = 6
PACE = 0.03  # seconds between two jobs
SCHEDULE = "200ms,500ms,1s,2s,2s,2s,2s,2s,2s,2s"
# The receiver may read a request moments after its sender was killed.
LATE = 0.2


class Flaky:
    """Fails a third of the attempts, the same ones in each run of an event, and takes its time with some."""

    def __init__(self):
        self.accepted = collections.defaultdict(list)  # webhook-id: when each request that got a 2xx came
        self.failed = 0
        self.tasks = {}

    def __call__(self, handler):
        request = handler.received
        seed = hashlib.sha256(f"{request.id} {request.headers['x-nano-attempt']}".encode()).digest()
        self.tasks[request.id] = request.json["task_id"]
        time.sleep(seed[1] / 256 * 0.05)  # so that a kill finds some in flight
        if seed[0] % 3 == 0:
            self.failed += 1
            handler.reply(500)
        else:
            handler.reply(200)
            self.accepted[request.id].append(request.at)


class Writer(threading.Thread):
    """Writes jobs at a steady pace; what is not acknowledged is written again until it is."""

    def __init__(self, service):
        super().__init__(daemon=True)
        self.service = service
        self.acknowledged = []
        self.repeated = 0

    def run(self):
        begun = time.monotonic()
        for number in range(JOBS):
            time.sleep(max(0, begun + number * PACE - time.monotonic()))
            self.write(f"job-{number:03}")

    def write(self, task_id):
        while True:
            service = self.service
            try:
                service.put_job(task_id, service.api.account, "failed" if task_id.endswith("7") else "completed")
            except botocore.exceptions.BotoCoreError:
                self.repeated += 1
                time.sleep(0.01)
            else:
                self.acknowledged.append(task_id)
                return


def test_500_jobs_and_six_kills_lose_nothing(start, receiver, tmp_path, capsys):
    options = ("--data-dir", str(tmp_path / "data"), "--retry-schedule", SCHEDULE)
    flaky = Flaky()
    receiver.answer("/hook", flaky)
    service = start(*options)
    webhook = service.api.subscribe(f"{receiver.url}/hook")
    writer = Writer(service)
    writer.start()

    killed, back = [], []
    for count in sorted(random.sample(range(20, JOBS - 20), KILLS)):
        eventually(lambda: len(writer.acknowledged) >= count, f"{count} acknowledged jobs")
        time.sleep(random.random() * PACE)
        recorded = {item["SK"]["S"] for item in service.scan("deliveries") if item["status"]["S"] == "delivered"}
        service.kill()
        killed.append((time.time(), recorded))
        service = writer.service = start(*options)
        back.append(service.start_seconds)
    writer.join(60)
    assert len(writer.acknowledged) == JOBS

    api = service.api
    listed = lambda: {row["task_id"] for row in api.log(webhook, limit=100)}
    eventually(
        lambda: listed() >= {*writer.acknowledged}, lambda: f"missing in the log: { {*writer.acknowledged} - listed() }"
    )
    pending = lambda: api.log(webhook, status="pending", limit=100)
    eventually(lambda: not pending(), lambda: f"all are settled: {pending()}", 60)
    rows = api.log(webhook, limit=100)
    by_status = {
        status: {row["event_id"] for row in rows if row["status"] == status} for status in ("delivered", "failed")
    }

    # Nothing is lost, nothing is invented.
    assert len(rows) == len({row["task_id"] for row in rows}) == JOBS
    assert {row["task_id"] for row in rows} == {*writer.acknowledged}
    assert len(by_status["delivered"]) + len(by_status["failed"]) == JOBS
    answered = {flaky.tasks[event] for event in flaky.accepted}
    lost = {*writer.acknowledged} - answered - {row["task_id"] for row in rows if row["status"] == "failed"}
    assert not lost
    assert by_status["delivered"] <= {*flaky.accepted}, "delivered without a 2xx"

    # What was in flight at a kill: accepted by then, and not yet recorded a moment before it.
    came_by = lambda kill: {event for event, times in flaky.accepted.items() if times[0] <= kill + LATE}
    in_flight = [came_by(kill) - recorded for kill, recorded in killed]
    repeats = collections.Counter({event: len(times) - 1 for event, times in flaky.accepted.items() if len(times) > 1})
    with capsys.disabled():
        print(
            f"\n{JOBS} jobs, {KILLS} kills: {len(receiver.at('/hook'))} requests, {flaky.failed} answered 500, "
            f"delivered {len(by_status['delivered'])}, failed {len(by_status['failed'])}, lost {len(lost)}, "
            f"repeats {repeats.total()} of {sum(map(len, in_flight))} in flight at the kills, "
            f"writes repeated {writer.repeated}, back after {min(back):.2f} to {max(back):.2f} s"
        )
    for event, count in repeats.items():
        assert count <= sum(event in at_kill for at_kill in in_flight), f"{event} was repeated without a kill"
