"""Twelve kinds of hostile receivers at the same time.

All deliveries to them end, and other receivers are unaffected.
"""

import contextlib
import gzip
import json
import re
import socket
import statistics
import struct
import time
from pathlib import Path

import pytest

from support import RawServer, read_request, wait_until

WEBHOOKS_PER_KIND = 3
PAYLOAD_SIZE = 200_000  # bytes of data in the event for the hostile receivers
HEALTHY_EVENTS = 40  # events for the healthy receiver alone
MAX_MEMORY_MB = 200
# Seconds. A receiver that waited for a hostile one would wait for 15 s. A busy machine needs the
# rest.
MAX_MEDIAN_LATENCY = 10
# Seconds: one direct attempt of 1 s, two queued ones of 15 s, and the same again for a busy
# machine.
COMPLETION_TIMEOUT = 70

OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(50_000_000), mtime=0)


def endless_body(connection):
    read_request(connection)
    connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


def slow_head(connection):
    read_request(connection)
    connection.sendall(OK)
    while True:
        connection.sendall(b"X-More: and more\r\n")
        time.sleep(0.2)


def slow_body(connection):
    read_request(connection)
    connection.sendall(OK + b"Content-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b".")
        time.sleep(0.2)


def huge_head(connection):
    read_request(connection)
    connection.sendall(OK + b"X-Huge: " + b"x" * 1_000_000 + b"\r\nContent-Length: 0\r\n\r\n")


def many_headers(connection):
    read_request(connection)
    connection.sendall(
        OK + b"".join(b"x-%d: y\r\n" % n for n in range(200_000)) + b"Content-Length: 0\r\n\r\n"
    )


def reset(connection):
    read_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def close_without_response(connection):
    read_request(connection)


def not_http(connection):
    read_request(connection)
    connection.sendall(b"\x00\xff 220 mail.example.com ESMTP\r\n" * 1000)


def endless_informational(connection):
    read_request(connection)
    while True:
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n" * 100)
        time.sleep(0.005)


def partial_body(connection):
    read_request(connection)
    connection.sendall(OK + b"Content-Length: 1000\r\n\r\nnot all of it")


def gzip_bomb(connection):
    read_request(connection)
    connection.sendall(
        OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB
    )
    connection.recv(1)


def never_reads(connection):
    connection.recv(1)
    with contextlib.suppress(OSError):
        time.sleep(60)


# The state of a delivery to each kind, and its failure. A 2xx response is accepted whatever happens
# to its body.
KINDS = {
    endless_body: ("delivered", None),
    gzip_bomb: ("delivered", None),
    slow_head: ("failed", "timeout"),
    slow_body: ("delivered", None),
    partial_body: ("delivered", None),
    never_reads: ("failed", "timeout"),
    huge_head: ("failed", "invalid_response"),
    many_headers: ("failed", "invalid_response"),
    not_http: ("failed", "invalid_response"),
    endless_informational: ("failed", "invalid_response"),
    reset: ("failed", "connect"),
    close_without_response: ("failed", "connect"),
}


@pytest.fixture
def servers():
    servers = {handle: RawServer(handle) for handle in KINDS}
    # An accepted connection inherits the small buffer, which cannot hold the body.
    servers[never_reads].listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    yield servers
    for server in servers.values():
        server.close()


def read_peak_memory(service):
    """The peak memory of the process in MB."""
    status = Path(f"/proc/{service.popen.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def test_hostile_receivers_exhaust_nothing(start, receiver, servers, capsys):
    """Every delivery ends in the expected state, memory stays small, and a healthy receiver is
    served in time.
    """
    service = start("--in-memory", "--retry-schedule", "100ms,100ms")
    api = service.api
    idle_memory = read_peak_memory(service)
    healthy = api.subscribe(f"{receiver.url}/healthy")
    webhooks = {
        api.subscribe(f"{server.url}/{number}", events=["job.failed"]): handle
        for handle, server in servers.items()
        for number in range(WEBHOOKS_PER_KIND)
    }
    started = time.monotonic()
    service.put_job(
        "hostile", api.account, "failed", data={"M": {"text": {"S": "x" * PAYLOAD_SIZE}}}
    )
    wait_until(
        lambda: all(server.connections for server in servers.values()),
        "a connection to each server",
    )

    written_at = {}
    for number in range(HEALTHY_EVENTS):
        written_at[f"healthy-{number}"] = time.time()
        service.put_job(f"healthy-{number}", api.account)
        time.sleep(0.1)
    requests = receiver.wait_for("/healthy", HEALTHY_EVENTS + 1)
    received_at = {request.json["task_id"]: request.received_at for request in reversed(requests)}
    latencies = [received_at[task] - written for task, written in written_at.items()]

    for webhook in webhooks:
        remaining = started + COMPLETION_TIMEOUT - time.monotonic()
        api.wait_for_delivery(
            webhook, lambda row: row["status"] in ("delivered", "failed"), remaining
        )
    elapsed, peak_memory = time.monotonic() - started, read_peak_memory(service)
    median_latency = statistics.median(latencies)
    with capsys.disabled():
        print(
            f"\n{len(KINDS)} kinds of hostile receivers, {WEBHOOKS_PER_KIND} of each: "
            f"completed in {elapsed:.0f} s, peak memory {peak_memory:.0f} MB "
            f"({idle_memory:.0f} MB before), healthy receiver's latency "
            f"p50 {median_latency * 1000:.0f} ms, max {max(latencies) * 1000:.0f} ms"
        )
    assert peak_memory < MAX_MEMORY_MB
    assert median_latency < MAX_MEDIAN_LATENCY
    assert {(row["status"], row["attempt_count"]) for row in api.list_deliveries(healthy)} == {
        ("delivered", 1)
    }

    unexpected = {}
    for webhook, handle in webhooks.items():
        row = api.wait_for_delivery(webhook)
        attempts = api.get_delivery(webhook, row["event_id"]).data["attempts"]
        status, failure = KINDS[handle]
        failures = {attempt["failure"] for attempt in attempts}
        if (row["status"], failures, row["last_failure"]) != (status, {failure}, failure):
            unexpected[handle.__name__] = (row, attempts)
        assert row["attempt_count"] == len(attempts) == (1 if status == "delivered" else 3), (
            handle.__name__
        )
        for attempt in attempts:
            assert len((attempt["response_excerpt"] or "").encode()) <= 1024, handle.__name__
            # 15 s, and 3 s for a busy machine.
            assert attempt["duration_ms"] < 18_000, handle.__name__
    assert not unexpected, json.dumps(unexpected, indent=1)[:8000]
