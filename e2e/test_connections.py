"""Connections to receivers: when idle ones end, and how many a receiver serves."""

import collections
import http.server
import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from support import wait_until

# Keep-alive timeouts of Node servers in ms: its default, and shorter ones, so that the pauses
# between the rounds end when some server closes its connections.
NODE_DEFAULT = 5000
SHORT_TIMEOUTS = range(50, 390, 10)
SERVERS = [
    *(f"{NODE_DEFAULT}-{behavior}" for behavior in ["announces", "quiet"] * 3),
    *(f"{ms}-{['announces', 'quiet'][ms // 10 % 2]}" for ms in SHORT_TIMEOUTS),
    *[f"{NODE_DEFAULT}-closes", f"{NODE_DEFAULT}-resets"] * 5,
]
# Seconds between the responses of a round and the next round. The last is Node's default.
PAUSES = [0.05, 0.11, 0.17, 0.23, 0.29, 0.35, NODE_DEFAULT / 1000]
# Two events are written at once, so that a server gets them over two connections.
EVENTS_PER_ROUND = 2
SERIAL_EVENTS = 20


class NodeServers:
    """Servers in a process of Node. `responses` are (server, webhook-id, request of connection)."""

    def __init__(self, servers):
        program = Path(__file__).with_name("idle_servers.mjs")
        self.popen = subprocess.Popen(
            ["node", str(program), *servers], stdout=subprocess.PIPE, text=True
        )
        self.ports = json.loads(self.popen.stdout.readline())
        self.responses = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.popen.stdout:
            self.responses.append(tuple(json.loads(line)))

    def wait_for_events(self, count):
        """Waits until each server has responded to this number of events."""

        def missing():
            events = collections.defaultdict(set)
            for server, event, _ in list(self.responses):
                events[server].add(event)
            return {
                server: len(events[server])
                for server in range(len(self.ports))
                if len(events[server]) < count
            }

        wait_until(lambda: not missing(), lambda: f"{count} events at each server: {missing()}")

    def close(self):
        self.popen.kill()
        self.popen.wait()


@pytest.fixture
def node_servers():
    servers = NodeServers(SERVERS)
    yield servers
    servers.close()


def put_jobs(service, tasks):
    """Writes jobs in one transaction, so that one batch has their events."""
    items = [
        {
            "task_id": {"S": task},
            "account_id": {"S": service.api.account},
            "task_type": {"S": "image"},
            "status": {"S": "completed"},
        }
        for task in tasks
    ]
    puts = [{"Put": {"TableName": service.tables["jobs"], "Item": item}} for item in items]
    service.db.transact_write_items(TransactItems=puts)


def assert_delivered_at_once(api, webhook, events):
    """Asserts that the first attempt of each event succeeded."""
    list_delivered = lambda: api.list_deliveries(webhook, status="delivered", limit=100)
    wait_until(
        lambda: len(list_delivered()) == events,
        lambda: f"{events} delivered events: {api.list_deliveries(webhook, limit=100)}",
    )
    outcomes = {(row["attempt_count"], row["last_failure"]) for row in list_delivered()}
    assert outcomes == {(1, None)}, list_delivered()


def test_idle_edge_fails_no_attempt(start, node_servers, capsys):
    """Events arrive when 50 Node servers close their idle connections. Each is delivered with one
    attempt, which succeeds.
    """
    service = start("--in-memory", "--retry-schedule", "1h")
    webhooks = [
        service.api.subscribe(f"http://127.0.0.1:{port}/") for port in node_servers.ports
    ]
    assert len(webhooks) == 50
    events = 0
    for number, pause in enumerate([*PAUSES, 0]):
        put_jobs(service, [f"edge-{number}-{event}" for event in range(EVENTS_PER_ROUND)])
        events += EVENTS_PER_ROUND
        node_servers.wait_for_events(events)
        time.sleep(pause)
    for webhook in webhooks:
        assert_delivered_at_once(service.api, webhook, events)

    reused = sum(count > 1 for _, _, count in node_servers.responses)
    resent = service.read_log().count("Sent a request again")
    with capsys.disabled():
        print(f"\n{events * len(webhooks)} events: {reused} on a reused connection, {resent} resent")
    assert reused and resent


class SerialHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        fails = self.path == "/flaky" and self.headers["X-Nano-Attempt"] == "1"
        self.send_response(503 if fails else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def serial_server():
    """A server that serves one connection after the other, each until the client closes it."""
    server = http.server.HTTPServer(("127.0.0.1", 0), SerialHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.server_close()


def test_serial_receiver_is_not_starved(start, serial_server, capsys):
    """A burst, retries and test events reach a receiver that serves one connection at a time. No
    idle connection keeps it from accepting the next one.
    """
    service = start("--in-memory", "--retry-schedule", "100ms,1h")
    api = service.api
    steady = api.subscribe(f"{serial_server}/steady")
    flaky = api.subscribe(f"{serial_server}/flaky")
    started = time.monotonic()
    put_jobs(service, [f"burst-{number}" for number in range(SERIAL_EVENTS)])
    for _ in range(2):
        test = api.call("POST", f"/api/v1/webhooks/{steady}/test", {})
        assert (test.status, test.data["failure"]) == (200, None), test.text
    assert_delivered_at_once(api, steady, SERIAL_EVENTS)
    wait_until(
        lambda: len(api.list_deliveries(flaky, status="delivered")) == SERIAL_EVENTS,
        lambda: f"all retries are delivered: {api.list_deliveries(flaky)}",
    )
    elapsed = time.monotonic() - started
    for row in api.list_deliveries(flaky):
        attempts = api.get_delivery(flaky, row["event_id"]).data["attempts"]
        assert [attempt["failure"] for attempt in attempts] == ["status", None], attempts
    with capsys.disabled():
        print(f"\n{2 * SERIAL_EVENTS} events to a serial receiver in {elapsed:.1f} s")
