"""Shared helpers: processes, a client of the API, receivers, and signature verifiers."""

import contextlib
import dataclasses
import http.client
import http.server
import itertools
import json
import os
import resource
import select
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

import boto3
import botocore.config
import standardwebhooks

BINARY = os.environ["NANO_BINARY"]
TEST_TIMEOUT = 20  # seconds to wait for a condition, far more than any condition needs

PLAIN_SECRET = "open-sésame-🔑"
STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def wait_until(condition, description, timeout=TEST_TIMEOUT):
    """Polls `condition()` and returns its first true value.

    Fails with `description` after `timeout` seconds.

    `description` is a text, or a function that returns one.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            text = description() if callable(description) else description
            raise AssertionError(f"not within {timeout} s: {text}")
        time.sleep(0.02)


def build_environment(extra=None):
    """A minimal environment plus `extra`.

    The service reads settings from its environment, so nothing else is inherited.
    """
    inherited = {
        name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ
    }
    return inherited | (extra or {})


def run_command(*args, check=True, env=None):
    """Runs a command of the binary and returns the completed process.

    `check` requires exit code 0.
    """
    completed = subprocess.run(
        [BINARY, *args], env=build_environment(env), capture_output=True, text=True, timeout=60
    )
    if check:
        assert completed.returncode == 0, f"{args}: {completed}"
    return completed


def set_open_files(limits):
    """Sets the limit of file descriptors of this process, if there is one."""
    if limits:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class Process:
    """A running command of the binary.

    Its stderr goes to the file `log`; its stdout is read without blocking. `open_files` is its soft
    and hard limit of file descriptors.
    """

    def __init__(self, args, log, env=None, open_files=None):
        self.log = Path(log)
        self.started_at = time.monotonic()
        with self.log.open("ab") as stderr:
            self.popen = subprocess.Popen(
                [BINARY, *args],
                env=build_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                preexec_fn=lambda: set_open_files(open_files),
            )
        os.set_blocking(self.popen.stdout.fileno(), False)
        self.output = ""

    def read_output(self):
        """Everything printed to stdout so far."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.popen.stdout.fileno(), 65536):
                self.output += chunk.decode()
        return self.output

    def wait_for_line(self, text):
        """Waits for a complete line of stdout that contains `text`, and returns the first one."""

        def find_line():
            select.select([self.popen.stdout], [], [], 0.02)
            lines = self.read_output().splitlines(keepends=True)
            line = next((line for line in lines if text in line and line.endswith("\n")), None)
            assert line or self.popen.poll() is None, (
                f"exit {self.popen.returncode}\n{self.output}\n{self.read_log()}"
            )
            return line

        return wait_until(find_line, lambda: f"{text!r} in {self.output!r}\n{self.read_log()}")

    def read_log(self):
        return self.log.read_text(errors="replace")

    def signal(self, number):
        """Sends a signal, waits for the process to exit, and returns the exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(timeout=TEST_TIMEOUT)

    def kill(self):
        """Ends the process with SIGKILL, as a crash would."""
        if self.popen.poll() is None:
            self.signal(signal.SIGKILL)
        self.popen.stdout.close()


class Service(Process):
    """A running `nano-webhooks serve` that is ready for requests."""

    def __init__(self, args, log, env=None, open_files=None):
        super().__init__(
            [
                "serve",
                "--json",
                "--listen",
                "127.0.0.1:0",
                "--dynamodb-listen",
                "127.0.0.1:0",
                *args,
            ],
            log,
            env,
            open_files,
        )
        try:
            ready = json.loads(self.wait_for_line("{"))
        except BaseException:
            self.kill()
            raise
        self.start_seconds = time.monotonic() - self.started_at
        self.ready = ready
        self.url, self.dynamodb, self.tables = ready["api"], ready["dynamodb"], ready["tables"]
        self.api = Api(self.url, ready["api_key"], ready["account"])
        self.db = dynamodb_client(self.dynamodb)
        self.accounts = itertools.count(1)

    def create_account(self):
        """Creates an API key for a new account, and returns an API client for it."""
        created = run_command(
            "keys",
            "create",
            "--account",
            f"account-{next(self.accounts)}",
            "--json",
            "--dynamodb-endpoint",
            self.dynamodb,
        )
        key = json.loads(created.stdout)
        return Api(self.url, key["api_key"], key["account"])

    def put_job(self, task_id, account, status="completed", **attributes):
        """Writes a job to the jobs table, as a worker does.

        `attributes` are typed DynamoDB values; `status` is a text or such a value. None leaves an
        attribute out.
        """
        item = {
            "task_id": {"S": task_id},
            "account_id": {"S": account},
            "task_type": {"S": "image"},
            "status": {"S": status} if isinstance(status, str) else status,
            "data": {"M": {}},
        } | attributes
        item = {name: value for name, value in item.items() if value is not None}
        self.db.put_item(TableName=self.tables["jobs"], Item=item)

    def scan(self, table):
        """All items of a table, as typed DynamoDB values."""
        pages = self.db.get_paginator("scan").paginate(
            TableName=self.tables[table], ConsistentRead=True
        )
        return [item for page in pages for item in page["Items"]]


def dynamodb_client(endpoint):
    """A DynamoDB client of the AWS SDK for Python."""
    return boto3.client(
        "dynamodb",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=botocore.config.Config(
            connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1}
        ),
    )


@dataclasses.dataclass
class Response:
    """A response of the API."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def data(self):
        return self.json["data"]

    @property
    def code(self):
        return self.json["error"]["code"]

    @property
    def message(self):
        return self.json["error"]["message"]

    def assert_error(self, status, code):
        """Asserts the status and the error code, and returns the response.

        A failure shows the body.
        """
        actual = (self.status, self.json.get("error", {}).get("code"))
        assert actual == (status, code), self.text
        return self


class Api:
    """A client of the HTTP API for one account."""

    def __init__(self, url, key, account):
        self.url, self.key, self.account = url, key, account

    def call(self, method, path, body=None, headers=None, key=None):
        """Sends a request.

        Every response must have the envelope, the content type and a request id.
        """
        all_headers = {"Authorization": f"Bearer {key or self.key}"}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            all_headers["Content-Type"] = "application/json"
        all_headers.update(headers or {})
        sent_headers = {name: value for name, value in all_headers.items() if value is not None}
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.url).netloc, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=sent_headers)
            received = connection.getresponse()
            response = Response(received.status, received.headers, received.read().decode())
        assert_envelope(response)
        return response

    def list_webhooks(self):
        return self.call("GET", "/api/v1/webhooks")

    def create(self, body, **options):
        return self.call("POST", "/api/v1/webhooks", body, **options)

    def subscribe(self, url, secret=None, events=("job.completed", "job.failed")):
        """Creates a webhook, which must succeed, and returns its id."""
        body = {"url": url, "events": list(events)}
        response = self.create(body if secret is None else body | {"secret_key": secret})
        assert response.status == 201, response.text
        return response.data["id"]

    def get(self, webhook):
        """The details of a webhook."""
        return self.call("GET", f"/api/v1/webhooks/{webhook}").data

    def update(self, webhook, **fields):
        return self.call("PATCH", f"/api/v1/webhooks/{webhook}", fields)

    def delete(self, webhook):
        return self.call("DELETE", f"/api/v1/webhooks/{webhook}")

    def get_status(self, webhook):
        """The status of a webhook in the list of webhooks."""
        return next(
            listed["status"] for listed in self.list_webhooks().data if listed["id"] == webhook
        )

    def delivery_page(self, webhook, **query):
        """One page of the delivery log."""
        return self.call(
            "GET", f"/api/v1/webhooks/{webhook}/deliveries?{urllib.parse.urlencode(query)}"
        )

    def list_deliveries(self, webhook, **query):
        """The rows of all pages of the delivery log."""
        rows = []
        while True:
            page = self.delivery_page(webhook, **query)
            assert page.status == 200, page.text
            rows += page.data
            if page.json["next_cursor"] is None:
                return rows
            query["cursor"] = page.json["next_cursor"]

    def get_delivery(self, webhook, event):
        return self.call("GET", f"/api/v1/webhooks/{webhook}/deliveries/{event}")

    def retry(self, webhook, event):
        return self.call("POST", f"/api/v1/webhooks/{webhook}/deliveries/{event}/retry")

    def wait_for_delivery(self, webhook, condition=lambda row: True, timeout=TEST_TIMEOUT):
        """Waits until the log lists the webhook's only delivery and `condition(row)` is true.

        Returns the row.
        """
        rows = []

        def find_row():
            rows[:] = self.list_deliveries(webhook)
            assert len(rows) < 2, rows
            return rows and condition(rows[0])

        wait_until(find_row, lambda: f"a row that meets the condition: {rows}", timeout)
        return rows[0]


def assert_envelope(response):
    """Asserts the content type, the request id and the envelope of every response."""
    headers = response.headers
    assert headers.get_all("Content-Type") == ["application/json"], (
        response.status,
        headers.items(),
        response.text,
    )
    request_ids = headers.get_all("X-Request-Id", [])
    assert len(request_ids) == 1 and request_ids[0].strip(), headers.items()
    envelope = response.json
    if response.status < 300:
        assert envelope.get("success") is True and "data" in envelope, response.text
        assert set(envelope) <= {"success", "data", "next_cursor"}, response.text
    else:
        assert set(envelope) == {"success", "error"} and envelope["success"] is False, response.text
        assert set(envelope["error"]) == {"code", "message"} and response.message, response.text


@dataclasses.dataclass
class ReceivedRequest:
    """A request that a receiver got. `received_at` is in seconds since the epoch."""

    method: str
    path: str
    header_list: list
    body: bytes
    received_at: float

    @property
    def headers(self):
        names = [name.lower() for name, _ in self.header_list]
        assert len(names) == len(set(names)), f"a header is repeated: {self.header_list}"
        return {name.lower(): value for name, value in self.header_list}

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def id(self):
        return self.headers["webhook-id"]


class Receiver:
    """An HTTP server that records its requests. It uses TLS if it gets a context.

    A path responds with 204 unless `respond` sets another action.
    """

    def __init__(self, address="127.0.0.1", port=0, tls=None):
        self.requests = []
        self.actions = {}
        self.closing = threading.Event()
        self.server = _ReceiverServer((address, port), _ReceiverHandler)
        self.server.receiver = self
        self.port = self.server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://{address}:{self.port}"
        if tls:
            # The thread that serves a connection does its handshake.
            self.server.socket = tls.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def respond(self, path, action):
        """Calls `action(handler)` for each request to a path. `handler.received` is the request."""
        self.actions[path] = action

    def hang(self, path):
        """Sends no response on this path until the receiver is closed."""
        self.respond(path, lambda handler: self.closing.wait())

    def requests_to(self, path):
        return [request for request in list(self.requests) if request.path == path]

    def events(self, path):
        """The (task, event) pairs that a path received. A repeated `webhook-id` counts once."""
        body_by_id = {request.id: request.json for request in self.requests_to(path)}
        return sorted((body["task_id"], body["event"]) for body in body_by_id.values())

    def wait_for(self, path, count=1):
        """Waits until a path received `count` different events. Returns all requests to it."""
        wait_until(
            lambda: len({request.id for request in self.requests_to(path)}) >= count,
            lambda: f"{count} events at {path}; received {len(self.requests_to(path))} requests",
        )
        return self.requests_to(path)

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


class _ReceiverServer(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        """Prints nothing: a service that is killed drops its connections."""


class _ReceiverHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        receiver = self.server.receiver
        self.received = ReceivedRequest(
            self.command, self.path, list(self.headers.items()), body, time.time()
        )
        receiver.requests.append(self.received)
        action = receiver.actions.get(self.path, respond_with(204))
        action(self)

    do_GET = do_PUT = do_POST

    def respond(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def respond_with(status, headers=(), body=b"", delay=0):
    """An action that sends this response after `delay` seconds."""

    def action(handler):
        time.sleep(delay)
        handler.respond(status, headers, body)

    return action


def respond_in_turn(*actions):
    """An action that calls `actions` in this order, and repeats the last one."""
    remaining = itertools.chain(actions, itertools.repeat(actions[-1]))
    return lambda handler: next(remaining)(handler)


class RawServer:
    """A TCP server that calls `handle(connection)` in a thread of its own for each connection."""

    def __init__(self, handle):
        self.handle = handle
        self.closing = threading.Event()
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        # The service may close the connection early, which is not an error of the server.
        with connection, contextlib.suppress(OSError):
            self.handle(connection)

    def close(self):
        self.closing.set()
        self.listener.close()


def read_request(connection):
    """Reads a request with its body from a socket."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        line.split(b":")[1]
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    remaining = int(length) - len(body)
    while remaining > 0:
        remaining -= len(_receive(connection))


def _receive(connection):
    if data := connection.recv(65536):
        return data
    raise ConnectionError("the request ended early")


def verify_signatures(requests, secret):
    """Asserts that each request passes the documented verifier and both official packages.

    The body must also survive a round trip through JSON in JavaScript.
    """
    lines = [
        json.dumps({"headers": r.headers, "body": r.body.decode(), "secret": secret})
        for r in requests
    ]
    program = Path(__file__).with_name("verify.mjs")
    completed = subprocess.run(
        ["node", str(program)],
        input="\n".join(lines) + "\n",
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert completed.returncode == 0, completed.stderr
    verdicts = [json.loads(line) for line in completed.stdout.splitlines()]
    assert len(verdicts) == len(requests)
    valid = {"documented": True, "round_trip": True, "standard": True}
    invalid = [
        (verdict, request.body) for verdict, request in zip(verdicts, requests) if verdict != valid
    ]
    assert not invalid, (
        f"{len(invalid)} of {len(requests)} do not verify in Node, the first: {invalid[0]}"
    )
    # The package takes a plain secret as bytes.
    webhook = standardwebhooks.Webhook(secret if secret.startswith("whsec_") else secret.encode())
    for request in requests:
        webhook.verify(request.body, request.headers)
