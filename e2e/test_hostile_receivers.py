"""Twelve kinds of receivers that do all they can to hold the service up, at once: all deliveries to them settle."""

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

from support import RawServer, eventually, read_request

EACH = 3  # webhooks of each kind
PAYLOAD = 200_000  # bytes of data in the event that they get
HEALTHY = 40  # events that only the healthy one gets meanwhile
MAX_MEMORY = 200  # MB
# One direct attempt of 1 s and two of 15 s from the queue, and as much again for a busy machine.
SETTLED = 70

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
    connection.sendall(OK + b"".join(b"x-%d: y\r\n" % n for n in range(200_000)) + b"Content-Length: 0\r\n\r\n")


def reset(connection):
    read_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def close_without_an_answer(connection):
    read_request(connection)


def no_http(connection):
    read_request(connection)
    connection.sendall(b"\x00\xff 220 mail.example.com ESMTP\r\n" * 1000)


def informational_for_ever(connection):
    read_request(connection)
    while True:
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n" * 100)
        time.sleep(0.005)


def partial_body(connection):
    read_request(connection)
    connection.sendall(OK + b"Content-Length: 1000\r\n\r\nnot all of it")


def gzip_bomb(connection):
    read_request(connection)
    connection.sendall(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB)
    connection.recv(1)


def never_reads(connection):
    connection.recv(1)
    with contextlib.suppress(OSError):
        time.sleep(60)


# What each comes to, and how it shows in the log. A 2xx of which 16 KiB were read is accepted.
KINDS = {
    endless_body: ("delivered", None),
    gzip_bomb: ("delivered", None),
    slow_head: ("failed", "timeout"),
    slow_body: ("failed", "timeout"),
    informational_for_ever: ("failed", "timeout"),
    never_reads: ("failed", "timeout"),
    huge_head: ("failed", "body"),
    many_headers: ("failed", "body"),
    no_http: ("failed", "body"),
    partial_body: ("failed", "body"),
    reset: ("failed", "connect"),
    close_without_an_answer: ("failed", "connect"),
}


@pytest.fixture
def servers():
    servers = {handle: RawServer(handle) for handle in KINDS}
    # What is accepted inherits the small buffer, so that the body does not fit into it.
    servers[never_reads].listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    yield servers
    for server in servers.values():
        server.close()


def memory(service):
    """The most memory that the process has had, in MB."""
    status = Path(f"/proc/{service.popen.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def test_all_settle_the_memory_stays_small_and_a_healthy_one_is_not_affected(start, receiver, servers, capsys):
    service = start("--in-memory", "--retry-schedule", "100ms,100ms")
    api = service.api
    idle = memory(service)
    good = api.subscribe(f"{receiver.url}/good")
    webhooks = {
        api.subscribe(f"{server.url}/{number}", events=["job.failed"]): handle
        for handle, server in servers.items()
        for number in range(EACH)
    }
    begun = time.monotonic()
    service.put_job("hostile", api.account, "failed", data={"M": {"text": {"S": "x" * PAYLOAD}}})
    eventually(lambda: all(server.connections for server in servers.values()), "all are called")

    written = {}
    for number in range(HEALTHY):
        written[f"healthy-{number}"] = time.time()
        service.put_job(f"healthy-{number}", api.account)
        time.sleep(0.1)
    receiver.wait_for("/good", HEALTHY + 1)
    arrivals = {request.json["task_id"]: request.at for request in reversed(receiver.at("/good"))}
    latencies = [arrivals[task] - at for task, at in written.items()]

    for webhook in webhooks:
        left = begun + SETTLED - time.monotonic()
        api.row(webhook, lambda row: row["status"] in ("delivered", "failed"), left)
    took, peak = time.monotonic() - begun, memory(service)
    with capsys.disabled():
        print(
            f"\n{len(KINDS)} kinds of hostile receivers, {EACH} of each: settled after {took:.0f} s, memory at most "
            f"{peak:.0f} MB ({idle:.0f} MB before), healthy one's latency p50 {statistics.median(latencies) * 1000:.0f} ms, "
            f"max {max(latencies) * 1000:.0f} ms"
        )
    assert peak < MAX_MEMORY
    assert statistics.median(latencies) < 1
    assert {(row["status"], row["attempt_count"]) for row in api.log(good)} == {("delivered", 1)}

    wrong = {}
    for webhook, handle in webhooks.items():
        row = api.row(webhook)
        attempts = api.delivery(webhook, row["event_id"]).data["attempts"]
        failures = {attempt["failure"] for attempt in attempts}
        if (row["status"], failures, row["last_failure"]) != (KINDS[handle][0], {KINDS[handle][1]}, KINDS[handle][1]):
            wrong[handle.__name__] = (row, attempts)
        assert row["attempt_count"] == len(attempts) == (1 if row["status"] == "delivered" else 3), handle.__name__
        for attempt in attempts:
            assert len((attempt["response_excerpt"] or "").encode()) <= 1024, handle.__name__
            # 15 s and what a busy machine needs beyond them.
            assert attempt["duration_ms"] < 18_000, handle.__name__
    assert not wrong, json.dumps(wrong, indent=1)[:8000]
