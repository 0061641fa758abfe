"""A long scenario at the most verbose log level, and a search for secrets and API keys in
everything it leaves behind.

The tables hold secrets encrypted under the key in the data directory's file `secrets-key`, and API
keys as their SHA-256. So no encoding of a secret or a key may appear in tables, files, logs,
responses or printed text.
"""

import base64
import contextlib
import http.client
import json
import secrets
import signal
import stat
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from support import (
    BINARY,
    Receiver,
    build_environment,
    respond_with,
    verify_signatures,
    wait_until,
)

HOOKS = "/api/v1/webhooks"
# The length of the prefix that `keys list` shows. The search also looks for the rest of the key.
PREFIX_LENGTH = len("sk-") + 8
URL = "http://127.0.0.1:9/"
KEY_FILES = {"api-key", "secrets-key"}


def encode_variants(secret):
    """All encodings of a secret to search for, by name."""
    raw = secret.encode()
    parts = {"text": raw}
    if secret.startswith("whsec_"):
        parts |= {
            "base64 part": raw.removeprefix(b"whsec_").rstrip(b"="),
            "decoded": base64.b64decode(secret.removeprefix("whsec_")),
        }
    variants = {}
    for name, part in parts.items():
        variants |= {
            name: part,
            f"{name}, hex": part.hex().encode(),
            f"{name}, HEX": part.hex().upper().encode(),
            f"{name}, bytes": ", ".join(str(byte) for byte in part).encode(),
            f"{name}, bytes without spaces": ",".join(str(byte) for byte in part).encode(),
            f"{name}, percent-encoded": urllib.parse.quote_from_bytes(part).encode(),
            f"{name}, reversed": part[::-1],
        }
        # Base64 of a longer text that contains the secret. At each of three offsets, the part that
        # does not depend on the surrounding text.
        for offset in range(3):
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                encoded = encode(bytes(offset) + part).rstrip(b"=")
                inner = encoded[(offset * 8 + 5) // 6 : len(part) * 8 // 6]
                variants[f"{name}, {encode.__name__} at {offset}"] = inner
        try:
            text = part.decode()
        except UnicodeDecodeError:
            continue
        variants[f"{name}, JSON"] = json.dumps(text)[1:-1].encode()
        variants[f"{name}, UTF-16"] = text.encode("utf-16-le")
    assert all(len(value) >= 8 for value in variants.values()), variants
    return variants


def encode_key_variants(key):
    """All encodings of an API key, of its random part, and of the part after its prefix."""
    random = key.removeprefix("sk-")[:32]
    hidden = key[PREFIX_LENGTH:]
    return {
        f"{part}, {name}": value
        for part in (key, random, hidden)
        for name, value in encode_variants(part).items()
    }


def find_secrets(searched, secrets):
    """Searches named contents, and returns (where, whose, which encoding) for each match."""
    return [
        (place, owner, encoding)
        for place, content in searched.items()
        for owner, variants in secrets.items()
        for encoding, value in variants.items()
        if value in content
    ]


def assert_absent(searched, secrets):
    matches = find_secrets(searched, secrets)
    assert not matches, matches[:20]


def generate_secret():
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


class RecordingApi:
    """An API client of one account that records every response, header section and body."""

    def __init__(self, service, key, responses):
        self.netloc = urllib.parse.urlsplit(service.url).netloc
        self.key, self.responses = key, responses

    def call(self, method, path, body=None, status=None, **headers):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        all_headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        all_headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(self.netloc, timeout=30)
        connection.request(method, path, body=body, headers=all_headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        name = f"response {len(self.responses)} to {method} {path}"
        self.responses[name] = str(response.headers.items()).encode() + text
        assert status in (None, response.status), (method, path, response.status, text)
        return json.loads(text)

    def wait_for_completion(self, webhook, count):
        """Waits until the log lists `count` deliveries, none of them pending, and returns their
        rows.
        """

        def list_completed():
            rows = self.call("GET", f"{HOOKS}/{webhook}/deliveries?limit=100", status=200)["data"]
            return len(rows) == count and all(row["status"] != "pending" for row in rows) and rows

        return wait_until(list_completed, f"{count} deliveries to webhook {webhook} are completed")


def echo(handler):
    """An action that sends the request back in its response."""
    body = str(handler.headers).encode() + handler.received.body
    handler.respond(400, body=body)


class Scenario:
    """Runs the scenario. Holds its secrets, and everything that the tests search."""

    def __init__(self, start, folder, receiver):
        self.data_dir = folder / "data"
        self.options = ("--data-dir", str(self.data_dir), "--retry-schedule", "50ms,100ms")
        self.env = {"RUST_LOG": "trace", "RUST_BACKTRACE": "full"}
        self.responses, self.printed, self.secrets, self.keys = {}, {}, {}, {}
        # Values of static headers, which only endpoints receive.
        self.headers = {}
        first = start(*self.options, env=self.env)
        self.run_first_process(first, receiver)
        self.tables = self.dump_tables(first)
        assert first.signal(signal.SIGTERM) == 0
        self.stopped = self.read_files()
        # A second process reads the keys and the secrets again. It is killed, so its files are as
        # after a crash.
        second = start(*self.options, env=self.env)
        self.run_second_process(second, receiver)
        self.tables |= {
            f"{name}, after a restart": content
            for name, content in self.dump_tables(second).items()
        }
        self.running = self.read_files()
        second.kill()
        self.killed = self.read_files()
        self.log = first.read_log() + second.read_log()
        self.received = receiver.requests

    def add_secret(self, name, value):
        self.secrets[name] = encode_variants(value)
        return value

    def build_headers(self, name):
        """Headers whose values are searched for."""
        values = [f"{name}-{secrets.token_hex(12)}", f"{name}/{secrets.token_urlsafe(18)}=="]
        for value in values:
            self.headers[f"header {value}"] = encode_variants(value)
        return {"X-Api-Key": values[0], "authorization": f"Bearer {values[1]}"}

    def run_keys(self, service, *args):
        """Runs `keys …`, also at the most verbose log level. Returns its stdout and its stderr."""
        completed = subprocess.run(
            [BINARY, "keys", *args, "--dynamodb-endpoint", service.dynamodb],
            env=build_environment(self.env),
            capture_output=True,
            timeout=60,
        )
        return completed.stdout, completed.stderr

    def create_key(self, service, account):
        stdout, _ = self.run_keys(service, "create", "--account", account, "--json")
        return json.loads(stdout)["api_key"]

    def run_first_process(self, service, receiver):
        receiver.respond("/fails", respond_with(500, body=b"no"))
        receiver.respond("/echoes", echo)
        self.account = "acme"
        self.key = self.create_key(service, self.account)
        self.keys["created"] = encode_key_variants(self.key)
        self.keys["of the service"] = encode_key_variants(service.api.key)
        self.url = receiver.url
        api = RecordingApi(service, self.key, self.responses)
        plain = self.add_secret("plain", f"plain-ünsafe-{secrets.token_hex(12)}-🔑")
        standard = self.add_secret("whsec", generate_secret())
        self.create_webhooks(api, plain, standard)
        self.send_invalid_requests(api)
        self.use_invalid_keys(service, api)
        for number, status in enumerate(("completed", "failed")):
            service.put_job(f"task-{number}", self.account, status)
        for webhook in (1, 2, 3, 4):
            for row in api.wait_for_completion(webhook, 2):
                api.call("GET", f"{HOOKS}/{webhook}/deliveries/{row['event_id']}", status=200)
        verify_signatures(receiver.requests_to("/fails"), standard)
        verify_signatures(receiver.requests_to("/accepts"), plain)
        for request in receiver.requests_to("/echoes"):
            assert f"header {request.headers['x-api-key']}" in self.headers
        self.change_webhooks(api)
        for account in (self.account, "other", "demo"):
            for options in ([], ["--json"]):
                printed = self.run_keys(service, "list", "--account", account, *options)
                self.printed[f"keys list {account} {options}"] = b"".join(printed)

    def build_body(self, path, secret):
        return {
            "url": self.url + path,
            "events": ["job.completed", "job.failed"],
            "secret_key": secret,
        }

    def create_webhooks(self, api, plain, standard):
        """Creates webhooks 1 to 4, one of them twice with an idempotency key."""
        idempotency = {"Idempotency_Key": "scenario-1"}
        conflicting = self.add_secret(
            "of a conflicting request", f"conflict-{secrets.token_hex(12)}"
        )
        deleted = self.add_secret("of a deleted webhook", f"deleted-{secrets.token_hex(12)}")
        api.call("POST", HOOKS, self.build_body("/accepts", plain), 201, **idempotency)
        api.call("POST", HOOKS, self.build_body("/accepts", plain), 201, **idempotency)
        api.call("POST", HOOKS, self.build_body("/accepts", conflicting), 409, **idempotency)
        api.call("POST", HOOKS, self.build_body("/fails", standard), 201)
        headers = {"headers": self.build_headers("echoed")}
        idempotency = {"Idempotency_Key": "scenario-2"}
        api.call("POST", HOOKS, self.build_body("/echoes", plain) | headers, 201, **idempotency)
        api.call("POST", HOOKS, self.build_body("/echoes", plain) | headers, 201, **idempotency)
        other = {"headers": self.build_headers("conflicting")}
        api.call("POST", HOOKS, self.build_body("/echoes", plain) | other, 409, **idempotency)
        api.call("POST", HOOKS, self.build_body("/deleted", deleted), 201)

    def send_invalid_requests(self, api):
        """Sends a secret in every kind of request that the API rejects."""
        rejected = self.rejected = self.add_secret("rejected", f"rejected-{secrets.token_hex(16)}")
        valid = self.build_body("/accepts", rejected)
        valid_json = json.dumps(valid).encode()
        for body in (
            valid | {"events": []},
            valid | {"secret_key": [rejected]},
            valid | {"secret_key": {rejected: rejected}},
            valid | {"secret_key": rejected * 9},
            valid | {"secret_key": f"whsec_{rejected}"},
            valid | {"unknown": rejected},
            valid | {"secret_key": "a valid one", "secretKey": rejected},
            valid | {"headers": {"Host": rejected}},
            valid | {"headers": {"X-Key": f"{rejected}\n"}},
            valid | {"headers": {"X-Key": [rejected]}},
            valid | {"headers": {f"X-Key: {rejected}": "x"}},
            valid | {"headers": rejected},
            valid | {"headers": [rejected]},
            valid | {"url": f"https://user:{rejected}@hooks.example.com/"},
            {"secret_key": rejected},
            valid_json[:-1],
            valid_json + b"x",
            valid_json.replace(b"secret_key", b"description")[:-1] + b',"description":"again"}',
            f'{{"secret_key":"{rejected}","secret_key":"{rejected}"}}'.encode(),
            rejected.encode(),
        ):
            api.call("POST", HOOKS, body, 400)
            api.call(
                "PATCH",
                f"{HOOKS}/1",
                body if isinstance(body, bytes) else body | {"unknown": rejected},
                400,
            )
        api.call("POST", HOOKS, valid, 415, Content_Type="text/plain")
        api.call("POST", HOOKS, valid_json + b" " * 70_000, 413)
        api.call("PUT", HOOKS, valid, 405)
        api.call("POST", "/api/v1/nope", valid, 404)
        api.call("PATCH", f"{HOOKS}/99", {"secret_key": rejected}, 404)
        api.call("PATCH", f"{HOOKS}/99", {"headers": {"X-Key": rejected}}, 404)

    def use_invalid_keys(self, service, api):
        """Uses a mistyped key and a revoked key, and revokes keys that cannot be revoked."""
        mistyped = self.key[:-1] + ("a" if self.key[-1] != "a" else "b")
        self.keys["mistyped"] = encode_key_variants(mistyped)
        revoked = self.create_key(service, "other")
        self.keys["revoked"] = encode_key_variants(revoked)
        for name, key in (
            ("revoke", revoked),
            ("revoke again", revoked),
            ("revoke another's key", self.key),
        ):
            self.printed[name] = b"".join(
                self.run_keys(service, "revoke", "--account", "other", key)
            )
        for key in (mistyped, revoked):
            for scheme in ("Bearer ", "Basic ", "", "Bearer  "):
                api.call("GET", HOOKS, None, 401, Authorization=scheme + key)
                body = self.build_body("/accepts", self.rejected)
                api.call("POST", HOOKS, body, 401, Authorization=scheme + key)

    def change_webhooks(self, api):
        new_plain = self.add_secret("changed", f"changed-{secrets.token_hex(12)}")
        new_standard = self.add_secret("changed whsec", generate_secret())
        api.call("POST", f"{HOOKS}/3/test", {}, 200)
        api.call("PATCH", f"{HOOKS}/1", {"secret_key": new_plain}, 200)
        api.call("PATCH", f"{HOOKS}/2", {"secret_key": new_standard}, 200)
        api.call(
            "PATCH", f"{HOOKS}/3", {"secret_key": None, "description": "without a secret"}, 200
        )
        api.call("PATCH", f"{HOOKS}/2", {"headers": self.build_headers("changed")}, 200)
        api.call("DELETE", f"{HOOKS}/4", status=200)
        for webhook in (1, 2, 3):
            api.call("GET", f"{HOOKS}/{webhook}", status=200)
        api.call("GET", HOOKS, status=200)

    def run_second_process(self, service, receiver):
        api = RecordingApi(service, self.key, self.responses)
        assert encode_key_variants(service.api.key) == self.keys["of the service"]
        secret = self.add_secret("after a restart", generate_secret())
        api.call("PATCH", f"{HOOKS}/3", {"secret_key": secret, "url": f"{receiver.url}/new"}, 200)
        service.put_job("task-after-restart", self.account)
        for webhook in (1, 2, 3):
            api.wait_for_completion(webhook, 3)
        verify_signatures(receiver.requests_to("/new"), secret)
        event = api.wait_for_completion(2, 3)[0]["event_id"]
        api.call("POST", f"{HOOKS}/2/deliveries/{event}/retry", status=202)
        get_delivery = lambda: api.call("GET", f"{HOOKS}/2/deliveries/{event}", status=200)["data"]
        wait_until(lambda: get_delivery()["attempt_count"] == 4, "the manual retry")

    def dump_tables(self, service):
        """The contents of every table: all texts and all binary values."""
        content = {}
        for table in service.db.list_tables()["TableNames"]:
            pages = service.db.get_paginator("scan").paginate(TableName=table)
            items = [item for page in pages for item in page["Items"]]
            texts = "\n".join(_texts(items)).encode("utf-8", "surrogateescape")
            content[f"table {table}"] = texts + b"\n".join(_binaries(items))
        return content

    def read_files(self):
        """The bytes of every file of the data directory, except for the key files."""
        files = [
            path
            for path in self.data_dir.rglob("*")
            if path.is_file() and path.name not in KEY_FILES
        ]
        assert any(b"SQLite format 3" in path.read_bytes()[:20] for path in files), files
        return {f"file {path.name}": path.read_bytes() for path in files}


def _texts(value):
    """All texts in nested values."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield str(name)
            yield from _texts(inner)
    elif isinstance(value, (list, set)):
        for inner in value:
            yield from _texts(inner)
    elif not isinstance(value, bytes):
        yield str(value)


def _binaries(value):
    """All binary values in nested values."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _binaries(inner)
    elif isinstance(value, (list, set)):
        for inner in value:
            yield from _binaries(inner)


@pytest.fixture(scope="module")
def scenario(start, tmp_path_factory):
    receiver = Receiver()
    yield Scenario(start, tmp_path_factory.mktemp("scenario"), receiver)
    receiver.close()


def test_search_finds_every_encoding():
    """A control: the search finds each encoding of a secret, and nothing else."""
    secret = generate_secret()
    hidden = {
        "text": f"x{secret}y",
        "base64": base64.b64encode(b"ab" + secret.encode() + b"c").decode(),
        "base64 of the decoded": base64.urlsafe_b64encode(
            b"a" + base64.b64decode(secret[6:]) + b"bc"
        ).decode(),
        "hex": base64.b64decode(secret[6:]).hex(),
        "debug": str(list(secret.encode())),
    }
    contents = {place: text.encode() for place, text in hidden.items()}
    matches = find_secrets(contents, {"secret": encode_variants(secret)})
    assert {place for place, _, _ in matches} == set(hidden)
    assert_absent({"another": generate_secret().encode()}, {"secret": encode_variants(secret)})


def test_responses_contain_no_secret(scenario):
    assert len(scenario.responses) > 80
    assert_absent(scenario.responses, scenario.secrets | scenario.headers | scenario.keys)


def test_log_contains_no_secret(scenario):
    assert scenario.log.count(" INFO ") > 80
    log = {"log": scenario.log.encode()}
    assert_absent(log, scenario.secrets | scenario.headers | scenario.keys)


def test_command_output_contains_no_secret(scenario):
    assert any(b"sk-" in printed for printed in scenario.printed.values())
    assert_absent(scenario.printed, scenario.secrets | scenario.keys)


def test_sent_requests_contain_no_secret(scenario):
    sent = {
        f"request to {one.path}": f"{one.path} {one.header_list}".encode() + one.body
        for one in scenario.received
    }
    assert len(sent) >= 4
    assert_absent(sent, scenario.secrets | scenario.keys)


def test_tables_contain_no_secret(scenario):
    assert len(scenario.tables) == 6
    assert_absent(scenario.tables, scenario.secrets | scenario.headers | scenario.keys)


@pytest.mark.parametrize("when", ["stopped", "running", "killed"])
def test_files_contain_no_secret(scenario, when):
    files = getattr(scenario, when)
    assert_absent(files, scenario.secrets | scenario.headers | scenario.keys)


def test_api_key_file_is_private(scenario):
    """The file has the key of the service. Only its owner can read the file and the folder."""
    file = scenario.data_dir / "api-key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert encode_key_variants(file.read_text().strip()) == scenario.keys["of the service"]
    assert stat.S_IMODE(scenario.data_dir.stat().st_mode) == 0o700


def test_secrets_key_stays_in_private_file(scenario):
    """The key that encrypts secrets appears in no other place, in no encoding."""
    file = scenario.data_dir / "secrets-key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_bytes().strip()
    assert len(content) >= 32
    variants = {"file": {"text": content}}
    for decode in (bytes.fromhex, lambda text: base64.b64decode(text, validate=True)):
        try:
            key = decode(content.decode())
        except ValueError:
            continue
        if len(key) == 32:
            variants["key"] = {
                "raw": key,
                "hex": key.hex().encode(),
                "base64": base64.b64encode(key).rstrip(b"="),
            }
    files = scenario.stopped | scenario.killed
    printed = scenario.responses | scenario.printed | {"log": scenario.log.encode()}
    assert_absent(files | printed | scenario.tables, variants)


def find_open_files(service, name):
    """The open files of the process whose path contains `name`."""
    for file in Path(f"/proc/{service.popen.pid}/fd").iterdir():
        # The process may close a file in the meantime.
        with contextlib.suppress(FileNotFoundError):
            if name in str(file.readlink()):
                yield file


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_in_memory_mode_leaves_no_file(start, tmp_path, end):
    """The engine's file has no name while the service runs, and is gone at the end.

    On systems that cannot remove an open file, it is gone only after SIGTERM.
    """
    service = start("--in-memory", env={"TMPDIR": str(tmp_path)})
    service.api.subscribe(URL, "a secret in memory")
    assert list(tmp_path.iterdir()) == []
    # Only Linux has this folder.
    if Path(f"/proc/{service.popen.pid}/fd").exists():
        files = list(find_open_files(service, "dynamodb.sqlite"))
        assert files
        for file in files:
            assert b"a secret in memory" not in file.read_bytes()
    assert service.signal(end) == {signal.SIGTERM: 0, signal.SIGKILL: -signal.SIGKILL}[end]
    assert list(tmp_path.iterdir()) == []
