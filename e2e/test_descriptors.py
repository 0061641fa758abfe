"""With few file descriptors, the service makes fewer attempts at a time, and blames no endpoint."""

import asyncio
import contextlib
import os
import re
import threading

import pytest

from support import wait_until

ACCOUNTS, ENDPOINTS, EVENTS = 20, 10, 10
# Seconds. It is longer than a batch of events waits for an attempt.
RESPONSE_TIME = 1.2


class SlowReceiver:
    """An HTTP server that responds to each request with 204 after a while, on many connections."""

    def __init__(self):
        self.requests = 0
        self.is_ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True).start()
        self.is_ready.wait()

    async def _listen(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.url = "http://{}:{}".format(*server.sockets[0].getsockname())
        self.loop = asyncio.get_running_loop()
        self.closing = asyncio.Event()
        self.is_ready.set()
        await self.closing.wait()

    async def _serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)[1]
                await reader.readexactly(int(length))
                self.requests += 1
                await asyncio.sleep(RESPONSE_TIME)
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()
        writer.close()

    def close(self):
        self.loop.call_soon_threadsafe(self.closing.set)


@pytest.fixture
def slow_receiver():
    receiver = SlowReceiver()
    yield receiver
    receiver.close()


@pytest.mark.parametrize("limit", [256, 1024])
def test_few_descriptors_lose_no_attempt(start, slow_receiver, capsys, limit):
    """2,000 deliveries to 200 slow endpoints are all delivered by their first attempt."""
    service = start("--in-memory", "--retry-schedule", "1s,1h", open_files=(limit, limit))
    webhooks = []
    for _ in range(ACCOUNTS):
        api = service.create_account()
        for number in range(ENDPOINTS):
            webhooks.append((api, api.subscribe(f"{slow_receiver.url}/{number}")))
    for number in range(EVENTS):
        for api, _ in webhooks[::ENDPOINTS]:
            service.put_job(f"{api.account}-{number}", api.account)
    count = ACCOUNTS * ENDPOINTS * EVENTS
    most = 0

    def is_delivered():
        nonlocal most
        most = max(most, len(os.listdir(f"/proc/{service.popen.pid}/fd")))
        return slow_receiver.requests >= count

    wait_until(is_delivered, lambda: f"{slow_receiver.requests} requests", timeout=300)
    for api, webhook in webhooks:
        rows = wait_until(
            lambda: all_settled(api.list_deliveries(webhook)), "the deliveries to be settled"
        )
        outcomes = [(row["status"], row["attempt_count"]) for row in rows]
        assert outcomes == [("delivered", 1)] * EVENTS
        assert api.get(webhook)["health"]["state"] in ("healthy", "slow")
    assert slow_receiver.requests == count
    assert "Too many open files" not in service.read_log()
    with capsys.disabled():
        print(f"\n{limit} file descriptors: at most {most} in use", end=" ")


def test_soft_limit_is_raised(start):
    """The service does not stay below the soft limit that a shell sets."""
    service = start("--in-memory", open_files=(256, 4096))
    with open(f"/proc/{service.popen.pid}/limits") as limits:
        [line] = [line for line in limits if line.startswith("Max open files")]
    assert line.split()[3:5] == ["4096", "4096"]


def all_settled(rows):
    """The rows, if no delivery is pending."""
    is_settled = len(rows) == EVENTS and all(row["status"] != "pending" for row in rows)
    return rows if is_settled else None
