"""5,000 random and malformed HTTP requests to every route: each response conforms to the contract.

The requests vary method, path, header fields and framing. The fuzz targets `body` and `cursor` vary
JSON bodies and queries, and Schemathesis (test_openapi.py) everything that the document describes.

The HTTP library rejects bytes that are not HTTP (`Malformed`) before any code of the service runs.
Only such a response may lack the envelope and the request id. A response to HEAD has no body, by
the rules of HTTP.
"""

import collections
import contextlib
import json
import random
import re
import socket
import string
import time
import urllib.parse

SEED = 20_260_107
REQUESTS = 5_000
MAX_BODY = 64 * 1024
CODES = {
    400: "invalid_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "payload_too_large",
    415: "unsupported_media_type",
}
# The message of a 400 response names a field or a parameter and the expected value, or says that
# the JSON is invalid.
HELPFUL_MESSAGE = re.compile(r"\bexpected\b|not valid JSON|(unknown|duplicate) field `")
# Responses of the HTTP library: bad syntax, a target or a head that is too long, an unsupported
# version.
MALFORMED_STATUSES = {400, 414, 431, 505}

METHODS = "GET POST PATCH DELETE PUT HEAD OPTIONS TRACE BREW get X-Y PROPFIND".split() + ["A" * 40]
IDS = "1 2 3 50 0 -1 01 9999999999 99999999999999999999 1.0 abc %31 %00 %ff %2F .. ~ é".split()
UNKNOWN_PATHS = (
    """
    / * /api /api/v1 /api/v1/ /api/v2/webhooks /api/v1/webhooks/ //api/v1/webhooks /API/V1/WEBHOOKS
    /api/v1/../v1/webhooks /api/v1/%77ebhooks /api%2fv1%2fwebhooks /api/v1/webhooks/1%00
    /api/v1/webhooks/1;x=1 /api/v1/webhooks/1/deliveries/1/retry/again /.git/config /favicon.ico
    http://service.example/api/v1/webhooks
""".split()
    + ["/" + "a" * 5_000]
)
QUERIES = (
    """
    ?limit=1 ?limit=0 ?limit=%31 ?limit=1&limit=2 ?status=x ?cursor=null ?cursor=%ff ?unknown=1 ?=
    ?limit[]=1 ?a=%zz ?limit=1;status=x ?%e2%80=1 ??
""".split()
    + ["?x=" + "a" * 4_000]
)
JSON_TYPES = ["application/json; charset=utf-8", "APPLICATION/JSON", "application/problem+json"]
OTHER_TYPES = ["text/plain", "", "x", ";", "\xff", "a" * 3_000, "application/jsonx"]
OTHER_TYPES += ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
BODIES = [b"", b"null", b"[]", b"{", b"{}{}", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"a=b&c=d"]
BODIES += ["{}".encode("utf-16"), b"[" * 60_000, b'{"a":' * 10_000]
IDEMPOTENCY_KEYS = ["", "k" * 255, "k" * 256, "\xff", "a b", "~"]
UNUSUAL_HEADERS = [
    (b"Accept", b"text/html"),
    (b"Accept-Encoding", b"gzip, br"),
    (b"Content-Encoding", b"gzip"),
    (b"X-Request-Id", b"mine"),
    (b"X-Forwarded-For", b"127.0.0.1, ::1"),
    (b"X-HTTP-Method-Override", b"DELETE"),
    (b"Range", b"bytes=0-1"),
    (b"If-Match", b"*"),
    (b"If-None-Match", b'"x"'),
    (b"Origin", b"https://evil.example"),
    (b"Cookie", b"a=" + b"b" * 3_000),
    (b"X-Empty", b""),
    (b"X-Latin", b"\xe9\xff"),
    (b"Expect", b"100-continue"),
    (b"X-Amzn-Request-Context", b'{"accountId":"other"}'),
    (b"Upgrade", b"h2c"),
    (b"TE", b"trailers"),
    (b"X-Original-URL", b"/api/v1/webhooks/2"),
]
GET = b"GET /api/v1/webhooks HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /api/v1/webhooks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
MALFORMED = [
    b"GET /api/v1/webhooks\r\n\r\n",
    b"GET /api/v1/webhooks HTTP/2.0\r\n\r\n",
    b"GET /api/v1/webhooks HTTP/9.9\r\nHost: x\r\n\r\n",
    b"G(T /api/v1/webhooks HTTP/1.1\r\n\r\n",
    b"GET /api/v1/web hooks HTTP/1.1\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\n\r\n",
    b"GET api HTTP/1.1\r\n\r\n",
    GET + b"X: \x00\r\n\r\n",
    GET + b"X Y: 1\r\n\r\n",
    GET + b" folded\r\n\r\n",
    GET + b": empty\r\n\r\n",
    GET + b"".join(b"x%d: y\r\n" % number for number in range(200)) + b"\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    POST + b"Content-Length: -1\r\n\r\n",
    POST + b"Content-Length: x\r\n\r\n",
    POST + b"Transfer-Encoding: gzip\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 20 + b"\r\n\r\n",
    b"{}\r\n\r\n",
    b"\x80\x81\xfe\xff" * 12 + b"\r\n\r\n",
]


class Malformed(bytes):
    """Bytes that are not an HTTP request."""


class Generator:
    """Generates requests from one seed."""

    def __init__(self, seed, key, url, events):
        self.random = random.Random(seed)
        self.key, self.url, self.events = key, url, events
        self.sent = 0

    def chance(self, probability):
        return self.random.random() < probability

    def letters(self, count):
        return "".join(self.random.choices(string.ascii_letters + string.digits, k=count))

    def segment(self, valid):
        if self.chance(0.9):
            return valid
        return self.random.choice([*IDS, self.letters(26), self.letters(3_000)])

    def target(self):
        """A method and a path, in most cases of a route."""
        webhooks = "/api/v1/webhooks"
        webhook = f"{webhooks}/{self.segment(str(self.random.randrange(1, 20)))}"
        delivery = f"{webhook}/deliveries/{self.segment(self.random.choice(self.events))}"
        routes = [
            *[("POST", webhooks)] * 16,
            *[("PATCH", webhook)] * 10,
            *[("DELETE", f"{webhooks}/{self.random.randrange(4, 200)}")] * 4,
            *[("GET", f"{webhook}/deliveries")] * 4,
            *[("POST", f"{delivery}/retry")] * 4,
            *[("GET", path) for path in (webhooks, webhook, delivery, f"{webhook}/replays/1")],
            *[("POST", f"{webhook}/{action}") for action in ("rotate-secret", "test", "replay")],
            *[
                ("GET", path)
                for path in ("/api/v1/openapi.json", "/healthz", "/portal", "/metrics")
            ],
        ]
        if self.chance(0.15):
            method, path = "GET", self.random.choice(UNKNOWN_PATHS)
        else:
            method, path = self.random.choice(routes)
        if path == "*":
            return "OPTIONS", path
        if self.chance(0.15):
            method = self.random.choice(METHODS)
        return method, path + (self.random.choice(QUERIES) if self.chance(0.3) else "")

    def body(self, secret):
        kind = self.random.randrange(10)
        fields = {
            "url": f"{self.url}/{self.letters(4)}",
            "events": ["job.completed"],
            "secret_key": secret,
        }
        valid = json.dumps(fields).encode()
        if kind < 6:
            return valid
        if kind == 6:
            size = MAX_BODY + self.random.choice([-1, 0, 1, 1_000])
            return valid + b" " * (size - len(valid))
        if kind == 7:
            return valid[: self.random.randrange(len(valid) + 1)]
        if kind == 8:
            return self.random.randbytes(self.random.randrange(2_000))
        return self.random.choice(BODIES)

    def headers(self, body):
        """The header fields of a request, as pairs of bytes."""
        hosts = [b"service.example", b"127.0.0.1", b"", b"x" * 300]
        pairs = [(b"Host", self.random.choice(hosts))]
        wrong_keys = [f"sk-{self.letters(38)}", f"{self.key}x", self.key[:-1], self.key.swapcase()]
        key = self.random.choice(wrong_keys) if self.chance(0.1) else self.key
        wrong_schemes = ["bearer ", "Basic ", "", "Bearer  ", "Token ", "Bearer\t"]
        scheme = self.random.choice(wrong_schemes) if self.chance(0.1) else "Bearer "
        if self.chance(0.98):
            pairs.append((b"Authorization", (scheme + key).encode()))
        if self.chance(0.03):
            pairs.append((b"authorization", self.random.choice([b"Bearer x", b""])))
        if body is not None and self.chance(0.95):
            types = ["application/json"] * 60 + JSON_TYPES + OTHER_TYPES
            pairs.append((b"Content-Type", self.random.choice(types).encode("latin-1")))
        if self.chance(0.2):
            known = f"key-{self.random.randrange(30)}"
            value = self.random.choice([*[known] * 6, *IDEMPOTENCY_KEYS])
            pairs.append((b"Idempotency-Key", value.encode("latin-1")))
        return pairs + self.random.sample(UNUSUAL_HEADERS, self.random.choice([0, 0, 0, 1, 2, 5]))

    def request(self):
        """A method, a path, the bytes of the request, and secrets that no response may repeat."""
        self.sent += 1
        if self.chance(0.02):
            return None, None, Malformed(self.random.choice(MALFORMED)), [self.key]
        secret = f"secret{self.sent:05}{self.letters(12)}"
        method, path = self.target()
        takes_body = method in ("POST", "PATCH") and path.count("/") in (3, 4)
        body = self.body(secret) if self.chance(0.95 if takes_body else 0.2) else None
        pairs = self.headers(body)
        framed = b""
        if body is not None and self.chance(0.1):
            pairs.append((b"Transfer-Encoding", b"chunked"))
            size = self.random.choice([1, 100, 70_000]) if len(body) < 5_000 else 70_000
            parts = [body[start : start + size] for start in range(0, len(body), size)]
            framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
            framed += b"0\r\n\r\n"
        elif body is not None:
            pairs.append((b"Content-Length", b"%d" % len(body)))
            framed = body
        self.random.shuffle(pairs)
        # A byte above 0x7f in the target is not HTTP.
        line = f"{method} {urllib.parse.quote(path, safe=string.punctuation)} HTTP/1.1\r\n".encode()
        head = line + b"".join(b"%s: %s\r\n" % pair for pair in pairs) + b"\r\n"
        return method, path, head + framed, [secret, self.key]


Response = collections.namedtuple("Response", "status headers body")


class Connection:
    """Sends the bytes of requests over one connection, and reads the responses."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.address = (parts.hostname, parts.port)
        self.socket, self.unread = None, b""

    def send(self, method, raw):
        """Sends a request and returns the response.

        A server may close a connection that is idle, or whose last body it did not read. A client
        then sends the request again over a new connection, if it received no byte of a response
        (RFC 9112, section 9.3.1).
        """
        reused = self.socket is not None
        try:
            return self.send_once(method, raw)
        except ConnectionError:
            received_nothing = not self.unread
            self.close()
            if not (reused and received_nothing):
                raise
            return self.send_once(method, raw)

    def send_once(self, method, raw):
        if self.socket is None:
            self.socket, self.unread = socket.create_connection(self.address, timeout=20), b""
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The server may respond and close before it has read the whole request.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(raw)
        response = self.read(method)
        while response.status == 100:
            response = self.read(method)
        if isinstance(raw, Malformed) or response.headers.get("connection", "").lower() == "close":
            self.close()
        else:
            assert not self.unread, f"more than one response: {self.unread[:200]}"
        return response

    def read(self, method):
        while b"\r\n\r\n" not in self.unread:
            self.receive()
        head, _, self.unread = self.unread.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [
            (name.lower(), value.strip())
            for name, _, value in (line.partition(":") for line in lines)
        ]
        headers = dict(pairs)
        assert len(headers) == len(pairs), f"a header is repeated: {pairs}"
        status = int(first.split(" ")[1])
        if method == "HEAD" or status in (100, 204):
            return Response(status, headers, b"")
        length = int(headers["content-length"])
        while len(self.unread) < length:
            self.receive()
        body, self.unread = self.unread[:length], self.unread[length:]
        return Response(status, headers, body)

    def receive(self):
        part = self.socket.recv(65536)
        if not part:
            raise ConnectionError(f"closed without a response; so far {self.unread[:200]}")
        self.unread += part

    def close(self):
        if self.socket:
            self.socket.close()
        self.socket = None


def find_violations(method, path, raw, secrets, response):
    """Yields each way in which a response violates the contract."""
    text = response.body.decode("utf-8", "replace")
    if any(secret in text or secret in str(response.headers) for secret in secrets):
        yield "it repeats a secret"
    if isinstance(raw, Malformed):
        if (
            response.status not in MALFORMED_STATUSES
            and response.status not in CODES
            and response.status != 200
        ):
            yield f"status {response.status} for bytes that are not HTTP"
        return
    if not response.headers.get("x-request-id"):
        yield "it has no X-Request-Id"
    if response.status == 307:
        if (path.split("?")[0], response.headers.get("location")) != ("/", "/portal"):
            yield f"a redirect to {response.headers.get('location')}"
        return
    if response.status not in CODES and response.status not in (200, 201, 202):
        yield f"status {response.status}"
        return
    if response.status == 405 and not response.headers.get("allow"):
        yield "405 without Allow"
    has_envelope = (
        path.split("?")[0] not in ("/portal", "/metrics", "/api/v1/openapi.json")
        or response.status != 200
    )
    if method != "HEAD" and has_envelope:
        yield from find_envelope_violations(response)


def find_envelope_violations(response):
    if response.headers.get("content-type") != "application/json":
        yield f"content type {response.headers.get('content-type')}"
    envelope = json.loads(response.body)
    if response.status < 300:
        if envelope.get("success") is not True or "data" not in envelope:
            yield "it is not the envelope of a success"
        return
    if set(envelope) != {"success", "error"} or envelope["success"] is not False:
        yield "it is not the envelope of an error"
        return
    if set(envelope["error"]) != {"code", "message"}:
        yield "the error has other fields than code and message"
        return
    code, message = envelope["error"]["code"], envelope["error"]["message"]
    if code != CODES[response.status]:
        yield f"status {response.status} with code {code}"
    if response.status == 400 and not HELPFUL_MESSAGE.search(message):
        yield f"a 400 response that does not say what is expected: {message[:80]}"


def send_all(generator, connection):
    """Sends REQUESTS requests.

    Returns the count of responses by status, and the requests by violation.
    """
    statuses, violations = collections.Counter(), collections.defaultdict(list)
    for number in range(REQUESTS):
        method, path, raw, secrets = generator.request()
        try:
            response = connection.send(method, raw)
            found = list(find_violations(method, path, raw, secrets, response))
            statuses["malformed" if isinstance(raw, Malformed) else response.status] += 1
        except (OSError, ValueError, KeyError, IndexError, AssertionError) as error:
            found = [f"{type(error).__name__}: {error}"]
            connection.close()
        for violation in found:
            violations[violation].append((number, bytes(raw[:600])))
    connection.close()
    return statuses, violations


def test_random_requests_get_documented_responses(start, receiver, capsys):
    """No request violates the contract, stops the service, or puts a secret into the log."""
    # A low limit, which the requests reach.
    service = start("--in-memory", "--retry-schedule", "1h", env={"WEBHOOKS_PER_ACCOUNT": "25"})
    api = service.create_account()
    for number in range(3):
        api.subscribe(f"{receiver.url}/{number}", "a secret of the test")
    for number in range(3):
        service.put_job(f"{api.account}-{number}", api.account)
    receiver.wait_for("/0", 3)
    events = [row["event_id"] for row in api.list_deliveries(1)]
    started = time.monotonic()
    statuses, violations = send_all(
        Generator(SEED, api.key, receiver.url, events), Connection(service.url)
    )
    elapsed = time.monotonic() - started
    with capsys.disabled():
        counts = dict(sorted(statuses.items(), key=str))
        print(f"\n{REQUESTS} random requests, seed {SEED}, in {elapsed:.0f} s: {counts}")
    report = "\n\n".join(
        f"{len(requests)} × {violation}\n  the first, number {requests[0][0]}: {requests[0][1]}"
        for violation, requests in violations.items()
    )
    assert not violations, report[:20_000]

    assert service.popen.poll() is None
    assert api.call("GET", "/healthz", key="none").status == 200
    assert api.list_webhooks().status == 200
    assert service.create_account().list_webhooks().data == []
    log = service.read_log()
    assert "panic" not in log.lower()
    assert not [line for line in log.splitlines() if " ERROR " in line][:5]
    assert api.key not in log and "secret0" not in log
    # The requests are a good mixture: each status is frequent.
    expected = (200, 201, 400, 401, 404, 405, 409, 413, 415, "malformed")
    assert all(statuses[status] > 20 for status in expected), statuses
