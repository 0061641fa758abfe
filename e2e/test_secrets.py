"""A whole story at the most verbose log level, after which no secret and no API key is where it does not belong.

Secrets lie in the tables sealed, under a key in the data directory's `secrets-key`; API keys only as their SHA-256. So
neither shows, in any encoding, in the tables, in the files as they are on disk, in the log, or in an answer.
"""

import base64
import http.client
import json
import secrets
import signal
import stat
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from support import BINARY, Receiver, environment, eventually, verify

HOOKS = "/api/v1/webhooks"
# What `keys list` may show of a key; the rest of its 32 random characters is searched for too.
SHOWN = len("sk-") + 8
URL = "http://127.0.0.1:9/"
KEY_FILES = {"api-key", "secrets-key"}


def forms(secret):
    """The encodings in which a secret could lie somewhere, by name."""
    raw = secret.encode()
    parts = {"text": raw}
    if secret.startswith("whsec_"):
        parts |= {
            "base64 part": raw.removeprefix(b"whsec_").rstrip(b"="),
            "decoded": base64.b64decode(secret.removeprefix("whsec_")),
        }
    found = {}
    for name, part in parts.items():
        found |= {
            name: part,
            f"{name}, hex": part.hex().encode(),
            f"{name}, HEX": part.hex().upper().encode(),
            f"{name}, bytes": ", ".join(str(byte) for byte in part).encode(),
            f"{name}, bytes without spaces": ",".join(str(byte) for byte in part).encode(),
            f"{name}, percent-encoded": urllib.parse.quote_from_bytes(part).encode(),
            f"{name}, reversed": part[::-1],
        }
        # Base64 of something that contains it: at each of three offsets, what does not depend on what stands around it.
        for offset in range(3):
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                encoded = encode(bytes(offset) + part).rstrip(b"=")
                inner = encoded[(offset * 8 + 5) // 6 : len(part) * 8 // 6]
                found[f"{name}, {encode.__name__} at {offset}"] = inner
        try:
            text = part.decode()
        except UnicodeDecodeError:
            continue
        found[f"{name}, JSON"] = json.dumps(text)[1:-1].encode()
        found[f"{name}, UTF-16"] = text.encode("utf-16-le")
    assert all(len(value) >= 8 for value in found.values()), found
    return found


def key_forms(key):
    """An API key, its random part, what of that may not be shown, and its checksum with what is before it."""
    random = key.removeprefix("sk-")[:32]
    hidden = key[SHOWN:]
    return {f"{part}, {name}": value for part in (key, random, hidden) for name, value in forms(part).items()}


def places(searched, needles):
    """Where one of the needles is: (place, whose, in which form)."""
    return [
        (place, owner, form)
        for place, content in searched.items()
        for owner, several in needles.items()
        for form, value in several.items()
        if value in content
    ]


def nowhere(searched, needles):
    """Asserts that nothing of the needles is anywhere."""
    found = places(searched, needles)
    assert not found, found[:20]


def standard_secret():
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


class Recording:
    """The API of an account, which keeps every answer, head and body."""

    def __init__(self, service, key, account, answers):
        self.netloc = urllib.parse.urlsplit(service.url).netloc
        self.key, self.account, self.answers = key, account, answers

    def call(self, method, path, body=None, status=None, **headers):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        given = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"} | headers
        connection = http.client.HTTPConnection(self.netloc, timeout=30)
        connection.request(
            method, path, body=body, headers={name.replace("_", "-"): value for name, value in given.items()}
        )
        response = connection.getresponse()
        text = response.read()
        connection.close()
        self.answers[f"answer {len(self.answers)} to {method} {path}"] = str(response.headers.items()).encode() + text
        assert status in (None, response.status), (method, path, response.status, text)
        return json.loads(text)

    def settled(self, webhook, count):
        """The rows of the delivery log once there are `count`, none of them pending."""

        def rows():
            found = self.call("GET", f"{HOOKS}/{webhook}/deliveries?limit=100", status=200)["data"]
            return len(found) == count and all(row["status"] != "pending" for row in found) and found

        return eventually(rows, f"{count} deliveries to webhook {webhook} settle")


class Story:
    """What happened, what was secret in it, and all that can be searched."""

    def __init__(self, start, folder, receiver):
        self.home = folder / "data"
        self.options = ("--data-dir", str(self.home), "--retry-schedule", "50ms,100ms")
        self.env = {"RUST_LOG": "trace", "RUST_BACKTRACE": "full"}
        self.answers, self.printed, self.secrets, self.keys = {}, {}, {}, {}
        first = start(*self.options, env=self.env)
        self.tell(first, receiver)
        self.tables = self.scan(first)
        assert first.signal(signal.SIGTERM) == 0
        self.stopped = self.files()
        # A second one, which reads the key and the secrets again, and is killed: its files are as a crash leaves them.
        second = start(*self.options, env=self.env)
        self.tell_on(second, receiver)
        self.tables |= {f"{name}, after a restart": content for name, content in self.scan(second).items()}
        self.running = self.files()
        second.kill()
        self.killed = self.files()
        self.log = first.log_text() + second.log_text()
        self.received = receiver.requests

    def secret(self, name, value):
        self.secrets[name] = forms(value)
        return value

    def keys_command(self, service, *args):
        """`keys …`, at the most verbose level too."""
        done = subprocess.run(
            [BINARY, "keys", *args, "--dynamodb-endpoint", service.dynamodb],
            env=environment(self.env),
            capture_output=True,
            timeout=60,
        )
        return done

    def tell(self, service, receiver):
        receiver.answer("/fails", lambda handler: handler.reply(500, body=b"no"))
        # One that answers with what it was sent, as a bad receiver may.
        receiver.answer(
            "/echoes", lambda handler: handler.reply(400, body=str(handler.headers).encode() + handler.received.body)
        )
        made = json.loads(self.keys_command(service, "create", "--account", "told", "--json").stdout)
        self.keys["made"] = key_forms(made["api_key"])
        self.keys["of serve"] = key_forms(service.api.key)
        self.key, self.account = made["api_key"], made["account"]
        api = Recording(service, self.key, self.account, self.answers)

        plain, standard = (
            self.secret("plain", f"plain-ünsafe-{secrets.token_hex(12)}-🔑"),
            self.secret("whsec", standard_secret()),
        )
        events = ["job.completed", "job.failed"]
        hook = lambda path, secret: {"url": receiver.url + path, "events": events, "secret_key": secret}
        idempotent = {"Idempotency_Key": "story-1"}
        api.call("POST", HOOKS, hook("/fine", plain), 201, **idempotent)
        api.call("POST", HOOKS, hook("/fine", plain), 201, **idempotent)
        api.call(
            "POST",
            HOOKS,
            hook("/fine", self.secret("of a conflict", f"conflict-{secrets.token_hex(12)}")),
            409,
            **idempotent,
        )
        api.call("POST", HOOKS, hook("/fails", standard), 201)
        api.call("POST", HOOKS, hook("/echoes", plain), 201)
        api.call(
            "POST", HOOKS, hook("/deleted", self.secret("of a deleted one", f"deleted-{secrets.token_hex(12)}")), 201
        )

        refused = self.secret("refused", f"refused-{secrets.token_hex(16)}")
        for body in (
            hook("/fine", refused) | {"events": []},
            hook("/fine", [refused]),
            hook("/fine", {refused: refused}),
            hook("/fine", refused * 9),
            hook("/fine", f"whsec_{refused}"),
            hook("/fine", refused) | {"unknown": refused},
            hook("/fine", "a good one") | {"secretKey": refused},
            hook("ftp://", refused) | {"url": f"https://user:{refused}@hooks.example.com/"},
            {"secret_key": refused},
            json.dumps(hook("/fine", refused)).encode()[:-1],
            json.dumps(hook("/fine", refused)).encode() + b"x",
            json.dumps(hook("/fine", refused)).replace("secret_key", "description").encode()[:-1]
            + b',"description":"again"}',
            f'{{"secret_key":"{refused}","secret_key":"{refused}"}}'.encode(),
            refused.encode(),
        ):
            api.call("POST", HOOKS, body, 400)
            api.call("PATCH", f"{HOOKS}/1", body if isinstance(body, bytes) else body | {"unknown": refused}, 400)
        api.call("POST", HOOKS, hook("/fine", refused), 415, Content_Type="text/plain")
        api.call("POST", HOOKS, json.dumps(hook("/fine", refused)).encode() + b" " * 70_000, 413)
        api.call("PUT", HOOKS, hook("/fine", refused), 405)
        api.call("POST", "/api/v1/nope", hook("/fine", refused), 404)
        api.call("PATCH", f"{HOOKS}/99", {"secret_key": refused}, 404)

        stranger = self.key[:-1] + ("a" if self.key[-1] != "a" else "b")
        self.keys["mistyped"] = key_forms(stranger)
        unknown = json.loads(self.keys_command(service, "create", "--account", "other", "--json").stdout)["api_key"]
        self.keys["revoked"] = key_forms(unknown)
        self.printed["revoke"] = self.output(self.keys_command(service, "revoke", "--account", "other", unknown))
        self.printed["revoke again"] = self.output(self.keys_command(service, "revoke", "--account", "other", unknown))
        self.printed["revoke another's"] = self.output(
            self.keys_command(service, "revoke", "--account", "other", self.key)
        )
        for wrong in (stranger, unknown):
            for scheme in ("Bearer ", "Basic ", "", "Bearer  "):
                api.call("GET", HOOKS, None, 401, Authorization=scheme + wrong)
                api.call("POST", HOOKS, hook("/fine", refused), 401, Authorization=scheme + wrong)

        for number, status in enumerate(("completed", "failed")):
            service.put_job(f"told-{number}", self.account, status)
        for webhook in (1, 2, 3, 4):
            for row in api.settled(webhook, 2):
                api.call("GET", f"{HOOKS}/{webhook}/deliveries/{row['event_id']}", status=200)
        verify(receiver.at("/fails"), standard)
        verify(receiver.at("/fine"), plain)

        api.call("PATCH", f"{HOOKS}/1", {"secret_key": self.secret("changed", f"changed-{secrets.token_hex(12)}")}, 200)
        api.call("PATCH", f"{HOOKS}/2", {"secret_key": self.secret("changed whsec", standard_secret())}, 200)
        api.call("PATCH", f"{HOOKS}/3", {"secret_key": None, "description": "without a secret"}, 200)
        api.call("DELETE", f"{HOOKS}/4", status=200)
        for webhook in (1, 2, 3):
            api.call("GET", f"{HOOKS}/{webhook}", status=200)
        api.call("GET", HOOKS, status=200)
        for account in ("told", "other", "demo"):
            for form in ([], ["--json"]):
                self.printed[f"keys list {account} {form}"] = self.output(
                    self.keys_command(service, "list", "--account", account, *form)
                )

    def tell_on(self, service, receiver):
        api = Recording(service, self.key, self.account, self.answers)
        assert key_forms(service.api.key) == self.keys["of serve"], "it is the key of the data directory"
        late = self.secret("after a restart", standard_secret())
        api.call("PATCH", f"{HOOKS}/3", {"secret_key": late, "url": f"{receiver.url}/late"}, 200)
        service.put_job("told-late", self.account)
        for webhook in (1, 2, 3):
            api.settled(webhook, 3)
        verify(receiver.at("/late"), late)
        event = api.settled(2, 3)[0]["event_id"]
        api.call("POST", f"{HOOKS}/2/deliveries/{event}/retry", status=202)
        again = lambda: api.call("GET", f"{HOOKS}/2/deliveries/{event}", status=200)["data"]["attempt_count"] == 4
        eventually(again, "the manual retry")

    @staticmethod
    def output(done):
        return done.stdout + done.stderr

    def scan(self, service):
        """Every table as DynamoDB shows it: as JSON, and what is binary as it is."""
        content = {}
        for table in service.db.list_tables()["TableNames"]:
            pages = service.db.get_paginator("scan").paginate(TableName=table)
            items = [item for page in pages for item in page["Items"]]
            content[f"table {table}"] = "\n".join(_flat(items)).encode("utf-8", "surrogateescape") + b"\n".join(
                _binary(items)
            )
        return content

    def files(self):
        """Every file of the data directory as raw bytes, but for those that hold the keys."""
        found = [path for path in self.home.rglob("*") if path.is_file() and path.name not in KEY_FILES]
        assert any(b"SQLite format 3" in path.read_bytes()[:20] for path in found), found
        return {f"file {path.name}": path.read_bytes() for path in found}


def _flat(value):
    """All texts of nested values."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield str(name)
            yield from _flat(inner)
    elif isinstance(value, (list, set)):
        for inner in value:
            yield from _flat(inner)
    elif not isinstance(value, bytes):
        yield str(value)


def _binary(value):
    """All binary values of nested ones."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _binary(inner)
    elif isinstance(value, (list, set)):
        for inner in value:
            yield from _binary(inner)


@pytest.fixture(scope="module")
def story(start, tmp_path_factory):
    receiver = Receiver()
    yield Story(start, tmp_path_factory.mktemp("story"), receiver)
    receiver.close()


def test_the_search_finds_what_is_there():
    """The search itself works: each form is found in what holds it."""
    secret = standard_secret()
    hidden = {
        "text": f"x{secret}y",
        "base64": base64.b64encode(b"ab" + secret.encode() + b"c").decode(),
        "of the decoded": base64.urlsafe_b64encode(b"a" + base64.b64decode(secret[6:]) + b"bc").decode(),
        "hex": base64.b64decode(secret[6:]).hex(),
        "debug": str(list(secret.encode())),
    }
    found = {
        place for place, _, _ in places({name: text.encode() for name, text in hidden.items()}, {"it": forms(secret)})
    }
    assert found == set(hidden)
    nowhere({"another": standard_secret().encode()}, {"it": forms(secret)})


def test_no_secret_and_no_key_is_in_an_answer(story):
    assert len(story.answers) > 80
    nowhere(story.answers, story.secrets | story.keys)


def test_no_secret_and_no_key_is_in_the_log(story):
    assert story.log.count(" INFO ") > 80
    nowhere({"log": story.log.encode()}, story.secrets | story.keys)


def test_no_secret_and_no_key_is_printed_by_a_command(story):
    assert any(b"sk-" in printed for printed in story.printed.values())
    nowhere(story.printed, story.secrets | story.keys)


def test_no_secret_and_no_key_is_sent_to_a_receiver(story):
    sent = {f"request to {one.path}": f"{one.path} {one.header_list}".encode() + one.body for one in story.received}
    assert len(sent) >= 4
    nowhere(sent, story.secrets | story.keys)


def test_no_key_is_in_the_tables(story):
    assert len(story.tables) == 6
    nowhere(story.tables, story.keys)


@pytest.mark.parametrize("when", ["stopped", "running", "killed"])
def test_no_key_is_in_the_files(story, when):
    nowhere(getattr(story, when), story.keys)


def test_no_secret_is_in_the_tables(story):
    nowhere(story.tables, story.secrets)


@pytest.mark.parametrize("when", ["stopped", "running", "killed"])
def test_no_secret_is_in_the_files(story, when):
    nowhere(getattr(story, when), story.secrets)


def test_the_key_of_serve_is_in_its_own_file_alone_for_its_owner_alone(story):
    file = story.home / "api-key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key_forms(file.read_text().strip()) == story.keys["of serve"]
    assert stat.S_IMODE(story.home.stat().st_mode) == 0o700


def test_the_key_that_seals_secrets_is_in_its_own_file_alone_for_its_owner_alone(story):
    file = story.home / "secrets-key"
    assert file.is_file()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_bytes()
    # 256 bits, as they are or in an encoding.
    assert len(content.strip()) >= 32
    needles = {"the file": {"text": content.strip()}}
    for decode in (bytes.fromhex, lambda text: base64.b64decode(text, validate=True)):
        try:
            key = decode(content.decode().strip())
        except ValueError:
            continue
        if len(key) == 32:
            needles["the key"] = {"raw": key, "hex": key.hex().encode(), "base64": base64.b64encode(key).rstrip(b"=")}
    everywhere = (
        story.answers | story.printed | story.tables | story.stopped | story.killed | {"log": story.log.encode()}
    )
    nowhere(everywhere, needles)


def test_equal_secrets_are_sealed_differently(start, tmp_path):
    """What is sealed tells nothing of what it holds, not even that two are the same."""
    service = start("--data-dir", str(tmp_path / "data"))
    for _ in range(2):
        service.api.subscribe(URL, "the same secret twice")
    items = [item for item in service.scan("webhooks") if item["SK"]["S"].startswith("WEBHOOK#")]
    assert len(items) == 2
    # What is sealed is longer than what was, by a nonce and a tag at least.
    sealed = [{value for value in [*_flat(item), *_binary(item)] if len(value) > len(URL) + 20} for item in items]
    assert sealed[0] and sealed[1] and not sealed[0] & sealed[1], sealed


def test_a_sealed_secret_of_one_webhook_is_no_secret_of_another(start, tmp_path, receiver):
    """What is sealed is bound to its webhook: copied to another, by whoever can write to the table, it is not used."""
    service = start("--data-dir", str(tmp_path / "data"))
    victim = service.new_account()
    victim.subscribe(f"{receiver.url}/victim", "the secret of the victim")
    service.api.subscribe(f"{receiver.url}/own", "the secret of the thief")
    items = {item["PK"]["S"]: item for item in service.scan("webhooks") if item["SK"]["S"].startswith("WEBHOOK#")}
    stolen, own = items[f"ACCOUNT#{victim.account}"], items[f"ACCOUNT#{service.api.account}"]
    service.db.update_item(
        TableName=service.tables["webhooks"],
        Key={name: own[name] for name in ("PK", "SK")},
        UpdateExpression="SET secrets = :stolen",
        ExpressionAttributeValues={":stolen": stolen["secrets"]},
    )
    service.api.subscribe(f"{receiver.url}/control")
    service.put_job("stolen", service.api.account)
    service.put_job("stolen-too", service.api.account)
    receiver.wait_for("/control", 2)
    for request in receiver.at("/own"):
        with pytest.raises(AssertionError):
            verify([request], "the secret of the victim")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "kill -9"])
def test_what_is_kept_in_memory_has_no_name_for_others_to_read_and_is_gone_when_it_ends(start, tmp_path, end):
    """The engine needs a file even then. Where files that are in use cannot be removed, it is gone after SIGTERM alone."""
    service = start("--in-memory", env={"TMPDIR": str(tmp_path)})
    service.api.subscribe(URL, "a secret in memory")
    assert list(tmp_path.iterdir()) == []
    opened = Path(f"/proc/{service.popen.pid}/fd")
    # Only Linux shows a process's files.
    if opened.exists():
        files = [file for file in opened.iterdir() if "dynamodb.sqlite" in str(file.readlink())]
        assert files
        for file in files:
            assert b"a secret in memory" not in file.read_bytes()
    assert service.signal(end) == {signal.SIGTERM: 0, signal.SIGKILL: -signal.SIGKILL}[end]
    assert list(tmp_path.iterdir()) == []
