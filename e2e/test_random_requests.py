"""10,000 random and malformed requests to every route: each response conforms to the contract.

The HTTP library rejects bytes that are not HTTP (`Malformed`) before any code of the service runs. Only such a response
may lack the envelope and the request id. A response to HEAD has no body, by the rules of HTTP.
"""

import base64
import collections
import contextlib
import json
import random
import re
import socket
import time
import urllib.parse

SEED = 20_260_107
REQUESTS = 10_000
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
# The message of a 400 response names a field or a parameter and the expected value, or says that the JSON is invalid.
HELPFUL_MESSAGE = re.compile(r"\bexpected\b|not valid JSON|(unknown|duplicate) field `")
# Responses of the HTTP library: bad syntax, a target or a head that is too long, an unsupported version.
MALFORMED_STATUSES = {400, 414, 431, 505}

FIELDS = ["url", "events", "secret_key", "description", "status", "grace_hours", "since", "until"]
STRANGE_NAMES = [
    "secret",
    "secretKey",
    "Url",
    "",
    "\x00",
    "é",
    "__proto__",
    "a" * 5_000,
    "url\n",
    "🔑",
    "id",
    "data",
]
METHODS = [
    "GET",
    "POST",
    "PATCH",
    "DELETE",
    "PUT",
    "HEAD",
    "OPTIONS",
    "TRACE",
    "BREW",
    "get",
    "X-Y",
    "PROPFIND",
    "A" * 40,
]
IDS = [
    "1",
    "2",
    "3",
    "50",
    "0",
    "-1",
    "01",
    "9999999999",
    "99999999999999999999",
    "1.0",
    "abc",
    "%31",
    "%00",
    "%ff",
    "%2F",
    "..",
    "~",
    "é",
]


class Malformed(bytes):
    """Bytes that are not an HTTP request."""


class Generator:
    """Generates requests from one seed."""

    def __init__(self, seed, key, url, events):
        self.random = random.Random(seed)
        self.key, self.url, self.events = key, url, events
        self.sent = 0

    def one_of(self, *choices):
        return self.random.choice(choices)

    def chance(self, probability):
        return self.random.random() < probability

    def text(self, longest=60):
        pools = (
            "abcXYZ019-_.~",
            "%&=?#/\\+ ;:",
            "éü🔑\u2028\u202e\ufeff",
            "\x00\x01\x7f\n\r\t\"'<>",
        )
        return "".join(
            self.random.choice(self.one_of(*pools)) for _ in range(self.random.randrange(longest))
        )

    def letters(self, count):
        return "".join(
            self.random.choices(
                "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=count
            )
        )

    def value(self, depth=0):
        """A random JSON value."""
        kind = self.random.randrange(16 if depth < 4 else 12)
        if kind > 13:
            return [self.value(depth + 1) for _ in range(self.random.randrange(5))]
        if kind > 11:
            return {self.text(8): self.value(depth + 1) for _ in range(self.random.randrange(4))}
        return self.one_of(
            None, True, False, 0, -1, 1.5, -0.0, 1e308, 2**63, 2**64, -(2**70), 10**400, "", "\x00", "null",
            "x" * 3_000,
            self.text(), self.random.random(), [], {}, [None], [[]], {"": {}},
        )  # fmt: skip

    def field(self, name, secret):
        """A value for a field, valid in most cases."""
        if self.chance(0.7):
            good = {
                "url": f"{self.url}/{self.letters(4)}",
                "events": ["job.completed"],
                "secret_key": secret,
                "status": "active",
            }
            return good.get(name)
        if self.chance(0.2):
            return self.value()
        if name == "url":
            # Only addresses, so that no name is looked up.
            return self.one_of(
                self.url, f"{self.url}/{self.letters(8)}", "https://[::1]:9/", "http://127.1:9/",
                "https://127.0.0.1:9/é?ü=%zz",
                f"https://{self.text()}@127.0.0.1/", "https://127.0.0.1:99999/", "https://", "ftp://127.0.0.1/",
                "//127.0.0.1",
                f"{self.url}/{'a' * self.one_of(2_000, 2_048, 60_000)}", f"{self.url}#{self.text()}", f" {self.url}",
                "1", secret,
            )  # fmt: skip
        if name == "events":
            known = ["job.completed", "job.failed", "webhook.disabled"]
            return self.one_of(
                known, known[:1], known[1:], [], known + known, ["job.done"], "job.completed", [1], [known],
                [self.text()],
                ["x" * 10_000], known * 1_000, [None], {"job.completed": True},
            )  # fmt: skip
        if name == "secret_key":
            encoded = base64.b64encode(secret.encode()).decode()
            return self.one_of(
                secret, f"whsec_{encoded}", f"whsec_{secret}", None, [secret], {"key": secret}, {secret: 1},
                secret * 20, secret[:7],
                f"\x00{secret}", f"{secret}🔑", 12345678,
            )  # fmt: skip
        if name == "status":
            return self.one_of("active", "disabled", "Active", "", "deleted", None, 1, True, [])
        return self.one_of(
            None,
            "",
            "a note",
            "n" * 500,
            "n" * 501,
            "\x00",
            24,
            -1,
            1e400,
            "2026-01-01T00:00:00Z",
            "yesterday",
        )

    def fields(self, secret):
        names = [name for name in FIELDS[:4] if self.chance(0.9)]
        names += [self.one_of(*FIELDS, *STRANGE_NAMES)] if self.chance(0.2) else []
        self.random.shuffle(names)
        return {
            name: secret if name in STRANGE_NAMES else self.field(name, secret) for name in names
        }

    def nested(self, secret):
        """A deeply nested body, which could exhaust a stack."""
        depth = self.one_of(100, 127, 128, 129, 10_000)
        opening, closing = self.one_of(
            ("[", "]"), ('{"a":', "}"), ('{"secret_key":', "}"), ('[{"x":[', "]}]")
        )
        depth = min(depth, 60_000 // (len(opening) + len(closing)))
        whole = (
            opening * depth
            + (f'"{secret}"' if self.chance(0.5) else "")
            + (closing * depth if self.chance(0.5) else "")
        )
        return self.one_of(
            whole,
            f'{{"{self.one_of(*FIELDS, "x")}":{whole}}}',
            f'{{"url":"{self.url}","events":{whole}}}',
        ).encode()

    def padded(self, size):
        body = json.dumps({"url": self.url, "events": ["job.completed"]}).encode()
        return body + b" " * (size - len(body))

    def body(self, secret):
        kind = self.random.randrange(20)
        whole = json.dumps(
            self.fields(secret), ensure_ascii=self.chance(0.5), allow_nan=True
        ).encode("utf-8", "surrogatepass")
        if kind < 9:
            return whole
        if kind == 9:
            return self.nested(secret)
        if kind == 10:
            return whole[: self.random.randrange(len(whole) + 1)]
        if kind == 11:
            at = self.random.randrange(len(whole) + 1)
            return whole[:at] + self.random.randbytes(self.random.randrange(1, 5)) + whole[at:]
        if kind == 12:
            number = self.one_of(
                "1" * 5_000,
                "-" + "9" * 400,
                "1e999999999",
                "1e-999999999",
                "0." + "0" * 5_000 + "1",
                "01",
                "+1",
                ".5",
            )
            return f'{{"{self.one_of(*FIELDS)}":{number},"secret_key":"{secret}"}}'.encode()
        if kind == 13:
            name = self.one_of("url", "events", "secret_key", "description")
            return (
                f'{{"{name}":"{secret}","{name}":"{secret}"}}'.encode()
                if self.chance(0.5)
                else whole[:-1] + b"," + whole[1:]
            )
        if kind == 14:
            return self.one_of(
                b"", b" ", b"null", b"[]", b"true", b"{}", b"{", b"\x00", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"NaN",
                b'{"url"}', b"{}{}",
                b"{},", b"[1,2", b'"', b"'x'", b"{\"a\":1,}", b"/**/{}", b"a=b&c=d", "{}".encode("utf-16"),
                "{}".encode("utf-32"),
            )  # fmt: skip
        if kind == 15:
            raw = self.one_of(
                b"\xff",
                b"\xc0\xaf",
                b"\xed\xa0\x80",
                b"\xf4\x90\x80\x80",
                b"\x00",
                b"\\ud800",
                b"\\udc00\\ud800",
                b"\\u0000",
            )
            return (
                b'{"'
                + self.one_of(b"url", b"secret_key", b"x")
                + b'":"'
                + secret.encode()
                + raw
                + b'"}'
            )
        if kind == 16:
            return self.padded(self.one_of(MAX_BODY - 1, MAX_BODY, MAX_BODY + 1, MAX_BODY + 1_000))
        if kind == 17:
            longest = f'"{secret}{"x" * self.one_of(1_000, 30_000, 65_000)}"'
            return f'{{"{self.one_of(*FIELDS)}":{longest}}}'.encode()
        if kind == 18:
            return json.dumps(
                {self.letters(9): secret for _ in range(self.one_of(1, 100, 1_000))}
            ).encode()
        return self.random.randbytes(self.random.randrange(2_000))

    def segment(self, good):
        strange = self.one_of(
            *IDS, urllib.parse.quote(self.text()), self.letters(self.one_of(1, 26, 30, 3_000))
        )
        return good if self.chance(0.9) else strange

    def target(self):
        """A method and a path, in most cases of a route."""
        hook = f"/api/v1/webhooks/{self.segment(self.one_of('1', '2', '3', str(self.random.randrange(1, 20))))}"
        event = self.segment(self.one_of(*self.events, "evt_01JFS8TX800000000000000000"))
        routes = [
            *[("POST", "/api/v1/webhooks")] * 16, *[("PATCH", hook)] * 10, *[("GET", f"{hook}/deliveries")] * 4,
            ("GET", "/api/v1/webhooks"),
            ("GET", hook), *[("DELETE", f"/api/v1/webhooks/{self.random.randrange(4, 200)}")] * 4, ("GET",
            f"{hook}/deliveries/{event}"),
            *[("POST", f"{hook}/deliveries/{event}/retry")] * 4, ("POST", f"{hook}/rotate-secret"), ("POST",
            f"{hook}/test"),
            ("POST", f"{hook}/replay"), ("GET", f"{hook}/replays/{self.segment('1')}"), ("GET", "/api/v1/openapi.json"),
            ("GET", "/healthz"), ("GET", "/portal"), ("GET", "/metrics"),
        ]  # fmt: skip
        unknown = [
            "/", "*", "/api", "/api/v1", "/api/v1/", "/api/v2/webhooks", "/api/v1/webhooks/", "//api/v1/webhooks",
            "/api/v1/../v1/webhooks",
            "/API/V1/WEBHOOKS", "/api/v1/%77ebhooks", "/api%2fv1%2fwebhooks",
            f"/api/v1/{urllib.parse.quote(self.text())}",
            f"{hook}/deliveries/{event}/retry/again", f"{hook};x=1", "/.git/config", "/favicon.ico",
            "/api/v1/webhooks/1%00",
            f"http://service.example{hook}", "/" + "a" * 5_000,
        ]  # fmt: skip
        method, path = self.one_of(*routes) if self.chance(0.85) else ("GET", self.one_of(*unknown))
        if self.chance(0.15):
            method = self.one_of(*METHODS)
        if path == "*":
            return "OPTIONS", path
        return method, path + self.query()

    def query(self):
        if self.chance(0.6):
            return ""
        cursor = (
            base64.urlsafe_b64encode(f"1.{self.one_of(*self.events)}".encode()).decode().rstrip("=")
        )
        known = {
            "status": ["pending", "delivered", "failed", "cancelled", "", "x", "PENDING"],
            "event": ["job.completed", "job.failed", "", "%00", "job%2Ecompleted"],
            "limit": ["1", "100", "0", "101", "-1", "1e2", "", "9" * 30, "%31", "+1", "0x10"],
            "cursor": [
                cursor,
                cursor[:-1],
                self.letters(20),
                base64.urlsafe_b64encode(self.random.randbytes(20)).decode(),
                "",
                "%ff",
                "null",
            ],
        }
        pairs = []
        for _ in range(self.random.randrange(4)):
            name = self.one_of(*known, "unknown", urllib.parse.quote(self.text(10)), "")
            values = known.get(
                name, ["1", urllib.parse.quote(self.text()), "%", "%zz", "%e2%80", "a" * 4_000]
            )
            pairs.append(
                name
                + self.one_of("=", "=", "=", "==", "", "[]=", "%3d")
                + self.random.choice(values)
            )
        return "?" + self.one_of("&", "&", "&", ";", "&&", "?").join(pairs)

    def headers(self, body):
        """The header fields of a request, as pairs of bytes."""
        pairs = [(b"Host", self.one_of(b"service.example", b"127.0.0.1", b"", b"x" * 300))]
        key = self.one_of(
            *[self.key] * 40,
            f"sk-{self.letters(38)}",
            f"{self.key}x",
            self.key[:-1],
            self.key.swapcase(),
            None,
        )
        scheme = self.one_of(
            *["Bearer "] * 40, "bearer ", "Basic ", "", "Bearer  ", "Token ", "Bearer\t"
        )
        if key:
            pairs.append((b"Authorization", (scheme + key).encode()))
            if self.chance(0.03):
                pairs.append((b"authorization", self.one_of(b"Bearer x", pairs[-1][1], b"")))
        if self.chance(0.9) and body is not None:
            declared = self.one_of(*["application/json"] * 60, "application/json; charset=utf-8", "APPLICATION/JSON",
            "text/plain", "", "x",
                                   "application/problem+json", "application/json, text/html",
                                   "multipart/form-data; boundary=x",
                                   "application/x-www-form-urlencoded", "application/jsonx", "\xff", ";",
                                   "a" * 3_000)  # fmt: skip
            pairs.append((b"Content-Type", declared.encode("latin-1")))
            if self.chance(0.03):
                pairs.append((b"content-type", self.one_of(b"text/plain", b"application/json")))
        if self.chance(0.2):
            known = f"key-{self.random.randrange(30)}"
            given = self.one_of(
                known,
                known,
                known,
                "",
                "k" * 255,
                "k" * 256,
                "\xff",
                "a b",
                self.letters(36),
                "\x7f" if self.chance(0) else "~",
            )
            pairs.append((b"Idempotency-Key", given.encode("latin-1")))
            if self.chance(0.1):
                pairs.append((b"idempotency-key", b"another"))
        strange = [
            (b"Accept", b"text/html"), (b"Accept-Encoding", b"gzip, br"), (b"Content-Encoding", b"gzip"),
            (b"X-Request-Id", b"mine"),
            (b"X-Forwarded-For", b"127.0.0.1, ::1"), (b"X-HTTP-Method-Override", b"DELETE"), (b"Range",
            b"bytes=0-1"), (b"If-Match", b"*"),
            (b"Origin", b"https://evil.example"), (b"Cookie", b"a=" + b"b" * 3_000), (b"X-Empty", b""), (b"X-Latin",
            b"\xe9\xff"),
            (b"Expect", b"100-continue"), (b"Forwarded", b"for=_x"), (b"X-Amzn-Request-Context",
            b'{"accountId":"other"}'),
            (b"Upgrade", b"h2c"), (b"TE", b"trailers"), (b"If-None-Match", b'"x"'), (b"X-Original-URL",
            b"/api/v1/webhooks/2"),
        ]  # fmt: skip
        pairs += self.random.sample(strange, self.one_of(0, 0, 0, 1, 2, 5))
        return pairs

    def malformed(self):
        """Bytes that are not HTTP."""
        head = f"Host: x\r\nAuthorization: Bearer {self.key}\r\n".encode()
        line = b"GET /api/v1/webhooks HTTP/1.1\r\n"
        post = b"POST /api/v1/webhooks HTTP/1.1\r\n" + head + b"Content-Type: application/json\r\n"
        return Malformed(
            self.one_of(
                b"GET /api/v1/webhooks\r\n\r\n", b"GET /api/v1/webhooks HTTP/2.0\r\n\r\n",
                b"GET /api/v1/webhooks HTTP/9.9\r\n" + head + b"\r\n",
                b"G(T /api/v1/webhooks HTTP/1.1\r\n\r\n", b"GET /api/v1/web hooks HTTP/1.1\r\n\r\n",
                b"GET /\xff HTTP/1.1\r\n\r\n",
                b"GET /\x00 HTTP/1.1\r\n\r\n", b"GET api HTTP/1.1\r\n\r\n", line + head + b"X: \x00\r\n\r\n",
                line + head + b"X Y: 1\r\n\r\n",
                line + head + b" folded\r\n\r\n", line + head + b": empty\r\n\r\n",
                line + b"".join(b"x%d: y\r\n" % n for n in range(200)) + b"\r\n",
                b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
                post + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
                post + b"Content-Length: -1\r\n\r\n", post + b"Content-Length: x\r\n\r\n",
                post + b"Transfer-Encoding: gzip\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 20 + b"\r\n\r\n", b"{}\r\n\r\n",
                bytes(byte | 0x80 for byte in self.random.randbytes(50)) + b"\r\n\r\n",
            )
        )  # fmt: skip

    def request(self):
        """A method, a path, the bytes of the request, and the secrets that the response must not repeat."""
        self.sent += 1
        if self.chance(0.02):
            return None, None, self.malformed(), [self.key]
        secret = f"secret{self.sent:05}{self.letters(12)}"
        method, path = self.target()
        takes_body = method == "PATCH" or (
            method == "POST" and path.startswith("/api/v1/webhooks") and path.count("/") == 3
        )
        body = self.body(secret) if self.chance(0.95 if takes_body else 0.2) else None
        pairs = self.headers(body)
        # Escaped, since a space or a byte above 0x7f in the target is not HTTP.
        line = (
            f"{method} {urllib.parse.quote(path, safe='/%?&=;:@!$()*+,~-._[]')} HTTP/1.1".encode()
        )
        framed = b""
        if body is not None and self.chance(0.1):
            pairs.append((b"Transfer-Encoding", b"chunked"))
            size = self.one_of(1, 100, 70_000) if len(body) < 5_000 else 70_000
            parts = [body[at : at + size] for at in range(0, len(body), size)]
            framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        elif body is not None:
            pairs.append((b"Content-Length", b"%d" % len(body)))
            framed = body
        self.random.shuffle(pairs)
        head = b"".join(b"%s: %s\r\n" % pair for pair in pairs)
        return method, path, line + b"\r\n" + head + b"\r\n" + framed, [secret, self.key]


Response = collections.namedtuple("Response", "status headers body")


class Connection:
    """Sends the bytes of requests over one connection, and reads the responses."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.address = (parts.hostname, parts.port)
        self.socket, self.unread = None, b""

    def send(self, method, raw):
        """Sends a request and returns the response.

        A server may close a connection that is idle, or whose last body it did not read. A client then sends the
        request again over a new connection, if it received no byte of a response (RFC 9112, section 9.3.1).
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
    """Sends REQUESTS requests. Returns the count of responses by status, and the requests by violation."""
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
