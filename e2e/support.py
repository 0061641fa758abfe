"""What the tests work with: the service as a process, its API, a receiver, and the verifiers."""

import contextlib
import dataclasses
import http.client
import http.server
import itertools
import json
import os
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
DEADLINE = 20  # seconds that a condition may take to become true; far more than it needs

PLAIN_SECRET = "open-sésame-🔑"
STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def eventually(condition, what, deadline=DEADLINE):
    """The first true value of `condition()`; fails with `what` if there is none before the deadline."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline} s: {what() if callable(what) else what}")
        time.sleep(0.02)


def environment(extra=None):
    """Only what a process needs: the service reads its settings from the environment, and none may come from outside."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | (extra or {})


def command(*args, check=True, env=None):
    """Runs a command of the binary to its end."""
    done = subprocess.run([BINARY, *args], env=environment(env), capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


class Process:
    """A command of the binary that goes on running; its log goes to a file, its stdout is read line by line."""

    def __init__(self, args, log, env=None):
        self.log = Path(log)
        self.started_at = time.monotonic()
        with self.log.open("ab") as stderr:
            self.popen = subprocess.Popen(
                [BINARY, *args], env=environment(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
            )
        os.set_blocking(self.popen.stdout.fileno(), False)
        self.output = ""

    def read(self):
        """All that it has printed so far."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.popen.stdout.fileno(), 65536):
                self.output += chunk.decode()
        return self.output

    def line_with(self, text):
        """The first complete line that contains `text`, waited for."""

        def found():
            select.select([self.popen.stdout], [], [], 0.02)
            lines = self.read().splitlines(keepends=True)
            line = next((line for line in lines if text in line and line.endswith("\n")), None)
            assert line or self.popen.poll() is None, f"exit {self.popen.returncode}\n{self.output}\n{self.log_text()}"
            return line

        return eventually(found, lambda: f"{text!r} in {self.output!r}\n{self.log_text()}")

    def log_text(self):
        return self.log.read_text(errors="replace")

    def signal(self, number):
        """Sends a signal and waits for the end; gives the exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(timeout=DEADLINE)

    def kill(self):
        """Ends it as a crash would."""
        if self.popen.poll() is None:
            self.signal(signal.SIGKILL)
        self.popen.stdout.close()


class Service(Process):
    """`nano-webhooks serve`, ready."""

    def __init__(self, args, log, env=None):
        super().__init__(
            ["serve", "--json", "--listen", "127.0.0.1:0", "--dynamodb-listen", "127.0.0.1:0", *args], log, env
        )
        try:
            ready = json.loads(self.line_with("{"))
        except BaseException:
            self.kill()
            raise
        self.start_seconds = time.monotonic() - self.started_at
        self.ready = ready
        self.url, self.dynamodb, self.tables = ready["api"], ready["dynamodb"], ready["tables"]
        self.api = Api(self.url, ready["api_key"], ready["account"])
        self.db = dynamodb(self.dynamodb)
        self.accounts = itertools.count(1)

    def new_account(self):
        """The API with the key of an account that nothing else uses."""
        made = command(
            "keys",
            "create",
            "--account",
            f"account-{next(self.accounts)}",
            "--json",
            "--dynamodb-endpoint",
            self.dynamodb,
        )
        made = json.loads(made.stdout)
        return Api(self.url, made["api_key"], made["account"])

    def put_job(self, task_id, account, status="completed", **attributes):
        """Writes a job as a worker does.

        `attributes` are typed DynamoDB values, and `status` may be one; None leaves one out.
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
        pages = self.db.get_paginator("scan").paginate(TableName=self.tables[table], ConsistentRead=True)
        return [item for page in pages for item in page["Items"]]

    def poison(self):
        """The poison store's items."""
        return [item for item in self.scan("webhooks") if item["PK"]["S"].startswith("POISON#")]


def dynamodb(endpoint):
    """A DynamoDB client of the ordinary AWS SDK."""
    return boto3.client(
        "dynamodb",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=botocore.config.Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1}),
    )


@dataclasses.dataclass
class Answer:
    """What the API answered."""

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

    def is_error(self, status, code):
        """Asserts status and code together, so that a wrong one shows with the body that came with it."""
        got = (self.status, self.json.get("error", {}).get("code"))
        assert got == (status, code), self.text
        return self


class Api:
    """The HTTP API as one account."""

    def __init__(self, url, key, account):
        self.url, self.key, self.account = url, key, account

    def call(self, method, path, body=None, headers=None, key=None):
        """One request. Whatever is answered must have what CONTRACT promises of every answer."""
        all_headers = {"Authorization": f"Bearer {key or self.key}"}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            all_headers["Content-Type"] = "application/json"
        all_headers.update(headers or {})
        given = {name: value for name, value in all_headers.items() if value is not None}
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.url).netloc, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=given)
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, response.read().decode())
        check_form(answer)
        return answer

    def list(self):
        return self.call("GET", "/api/v1/webhooks")

    def post(self, body, **options):
        return self.call("POST", "/api/v1/webhooks", body, **options)

    def delete(self, webhook):
        return self.call("DELETE", f"/api/v1/webhooks/{webhook}")

    def status(self, webhook):
        """The status of a webhook that the list shows."""
        return next(one["status"] for one in self.list().data if one["id"] == webhook)

    def deliveries(self, webhook, **query):
        """A page of the delivery log."""
        return self.call("GET", f"/api/v1/webhooks/{webhook}/deliveries?{urllib.parse.urlencode(query)}")

    def log(self, webhook, **query):
        """The rows of the delivery log, all pages of it."""
        rows = []
        while True:
            page = self.deliveries(webhook, **query)
            assert page.status == 200, page.text
            rows += page.data
            if page.json["next_cursor"] is None:
                return rows
            query["cursor"] = page.json["next_cursor"]

    def delivery(self, webhook, event):
        return self.call("GET", f"/api/v1/webhooks/{webhook}/deliveries/{event}")

    def retry(self, webhook, event):
        return self.call("POST", f"/api/v1/webhooks/{webhook}/deliveries/{event}/retry")

    def row(self, webhook, condition=lambda row: True, deadline=DEADLINE):
        """The only delivery to a webhook as the log lists it, once `condition` holds of it."""
        rows = []

        def found():
            rows[:] = self.log(webhook)
            assert len(rows) < 2, rows
            return rows and condition(rows[0])

        eventually(found, lambda: f"a row as expected: {rows}", deadline)
        return rows[0]

    def subscribe(self, url, secret=None, events=("job.completed", "job.failed")):
        """Creates a webhook that must be accepted; gives its id."""
        body = {"url": url, "events": list(events)}
        answer = self.post(body if secret is None else body | {"secret_key": secret})
        assert answer.status == 201, answer.text
        return answer.data["id"]


def check_form(answer):
    """The envelope, the content type and the request id."""
    assert answer.headers.get_all("Content-Type") == ["application/json"], (
        answer.status,
        answer.headers.items(),
        answer.text,
    )
    assert len(answer.headers.get_all("X-Request-Id", [])) == 1 and answer.headers["X-Request-Id"].strip(), (
        answer.headers.items()
    )
    if answer.status < 300:
        assert answer.json.get("success") is True and set(answer.json) <= {"success", "data", "next_cursor"}, (
            answer.text
        )
        assert "data" in answer.json, answer.text
    else:
        assert set(answer.json) == {"success", "error"} and answer.json["success"] is False, answer.text
        assert set(answer.json["error"]) == {"code", "message"} and answer.message, answer.text


@dataclasses.dataclass
class Received:
    """A request as it came to the receiver."""

    method: str
    path: str
    header_list: list
    body: bytes
    at: float

    @property
    def headers(self):
        names = [name.lower() for name, _ in self.header_list]
        assert len(names) == len(set(names)), f"a header came twice: {self.header_list}"
        return {name.lower(): value for name, value in self.header_list}

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def id(self):
        return self.headers["webhook-id"]


class Receiver:
    """An HTTP server, over TLS if it is given a context, that records what it receives.

    A path answers 204 unless `answer` says otherwise.
    """

    def __init__(self, address="127.0.0.1", port=0, tls=None):
        self.requests = []
        self.answers = {}
        self.closing = threading.Event()
        self.server = _Server((address, port), _Handler)
        self.server.receiver = self
        self.port = self.server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://{address}:{self.port}"
        if tls:
            # The handshake is left to the thread that serves the connection.
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, path, action):
        """`action(handler)` answers the requests to a path; `handler.received` is what it answers."""
        self.answers[path] = action

    def hang(self, path):
        """The path never answers while the receiver lives."""
        self.answer(path, lambda handler: self.closing.wait())

    def at(self, path):
        return [request for request in list(self.requests) if request.path == path]

    def events(self, path):
        """(task, event) of what came to a path, each `webhook-id` once: delivery is at least once."""
        by_id = {request.id: request.json for request in self.at(path)}
        return sorted((body["task_id"], body["event"]) for body in by_id.values())

    def wait_for(self, path, count=1):
        """The requests to a path once there are `count` different ids among them."""
        eventually(
            lambda: len({request.id for request in self.at(path)}) >= count,
            lambda: f"{count} events at {path}; {len(self.at(path))} requests came",
        )
        return self.at(path)

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        """A service that is killed breaks its connections off: nothing to print."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        receiver = self.server.receiver
        self.received = Received(self.command, self.path, list(self.headers.items()), body, time.time())
        receiver.requests.append(self.received)
        receiver.answers.get(self.path, lambda handler: handler.reply(204))(self)

    do_GET = do_PUT = do_POST

    def reply(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class RawServer:
    """A server that speaks no more HTTP than `handle(socket)` does, which has a thread for each connection."""

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
        # The service goes away when it has had enough: nothing to report.
        with connection, contextlib.suppress(OSError):
            self.handle(connection)

    def close(self):
        self.closing.set()
        self.listener.close()


def read_request(connection):
    """Reads a request with its body from a socket."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    left = int(length) - len(body)
    while left > 0:
        left -= len(_some(connection))


def _some(connection):
    if data := connection.recv(65536):
        return data
    raise ConnectionError("the request broke off")


def verify(requests, secret):
    """Asserts that each request passes the documented verifier, the fixed point, and both official packages."""
    lines = [json.dumps({"headers": r.headers, "body": r.body.decode(), "secret": secret}) for r in requests]
    program = Path(__file__).with_name("verify.mjs")
    done = subprocess.run(
        ["node", str(program)], input="\n".join(lines) + "\n", capture_output=True, encoding="utf-8", timeout=60
    )
    assert done.returncode == 0, done.stderr
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(verdicts) == len(requests)
    right = {"documented": True, "fixed_point": True, "standard": True}
    wrong = [(verdict, request.body) for verdict, request in zip(verdicts, requests) if verdict != right]
    assert not wrong, f"{len(wrong)} of {len(requests)} do not verify in Node, the first: {wrong[0]}"
    # The package takes a secret that is no `whsec_…` as bytes.
    webhook = standardwebhooks.Webhook(secret if secret.startswith("whsec_") else secret.encode())
    for request in requests:
        webhook.verify(request.body, request.headers)
