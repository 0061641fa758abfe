"""The documented routes, and every row of the error table from outside.

That every answer has the envelope, the content type and a request id is asserted wherever the API is called, by
`support.Api.call`.
"""

import http.client
import json
import threading
import time
import urllib.parse
import uuid

import pytest

from support import command

URL = "https://hooks.example.com/nano"
EVENTS = ["job.completed"]
SECRET = "do-not-repeat-me-9f2c"
FULL = {"url": URL, "events": EVENTS, "secret_key": SECRET}
HOOKS = "/api/v1/webhooks"


def test_the_documented_routes_answer_with_exactly_four_fields(api):
    assert api.list().data == []
    created = api.post({"url": URL, "events": ["job.failed", "job.completed"], "secret_key": SECRET})
    assert created.status == 201
    assert created.headers["Location"] == f"{HOOKS}/1"
    assert created.data == {"id": 1, "url": URL, "events": ["job.failed", "job.completed"], "status": "active"}
    assert api.post({"url": URL, "events": EVENTS}).data["id"] == 2
    listed = api.list()
    assert listed.status == 200
    assert [webhook["id"] for webhook in listed.data] == [1, 2]
    assert all(set(webhook) == {"id", "url", "events", "status"} for webhook in listed.data)
    deleted = api.delete(1)
    assert (deleted.status, deleted.data) == (200, {"id": 1})
    assert [webhook["id"] for webhook in api.list().data] == [2]
    for answer in (created, listed, deleted):
        assert SECRET not in answer.text and "secret" not in answer.text


def test_the_envelope_is_written_as_it_is_documented(api):
    assert api.list().text == '{"success":true,"data":[]}'
    answer = api.call("GET", HOOKS, headers={"Authorization": None})
    assert answer.text == '{"success":false,"error":{"code":"unauthorized","message":"Invalid or missing API key"}}'


def test_a_url_is_returned_as_it_was_given(api):
    urls = [
        "HTTPS://Hooks.Example.COM:8443/A%20b/../c?x=1&y=%2F&z=ü",
        "http://hooks.example.com",
        "https://[2001:db8::1]/x",
        "https://bücher.example/é",
        "https://hooks.example.com/" + "a" * (2048 - len("https://hooks.example.com/")),
        "https://hooks.example.com/é" + "é" * (2048 - len("https://hooks.example.com/é")),
        "https://hooks.example.com/a@b:c",
    ]
    for url in urls:
        answer = api.post({"url": url, "events": EVENTS})
        assert (answer.status, answer.data["url"]) == (201, url), answer.text
    assert [webhook["url"] for webhook in api.list().data] == urls


def test_ids_count_from_1_and_are_never_used_again(api):
    ids = [api.subscribe(URL) for _ in range(3)]
    assert ids == [1, 2, 3]
    for webhook in (3, 2, 1):
        api.delete(webhook)
    assert api.subscribe(URL) == 4


# 400 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"}",
        b"not json",
        b'{"url":"https://hooks.example.com","events":["job.completed"],}',
        b"{'url':'https://hooks.example.com'}",
        b'{"url":"https://hooks.example.com","events":["job.completed"]}{}',
        b'{"url":"https://hooks.example.com","events":["job.completed"]} x',
        b'{"url":"\xff","events":["job.completed"]}',
        b'{"url":"\\ud800","events":["job.completed"]}',
        b"null",
        b"true",
        b"1",
        b'"text"',
        b"[]",
        b'["https://hooks.example.com",["job.completed"]]',
        b'["https://hooks.example.com",["job.completed"],"long enough a secret"]',
        b"[" * 60_000,
        b'{"url":' + b"[" * 60_000,
        b'{"url":NaN,"events":["job.completed"]}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_400_for_a_body_that_is_no_json_object(api, body):
    answer = api.call("POST", HOOKS, body).is_error(400, "invalid_request")
    assert len(answer.message) < 500
    assert api.list().data == []


def refused(api, body, *names):
    """Asserts 400 with a message that has all of `names`, and that nothing was created."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = api.call("POST", HOOKS, raw).is_error(400, "invalid_request")
    for name in names:
        assert name in answer.message, answer.message
    assert SECRET not in answer.text
    assert api.list().data == []


WRONG_TYPES = [None, True, 1, 1.5, {}, {"a": 1}]


@pytest.mark.parametrize("value", [*WRONG_TYPES, [], [URL]], ids=repr)
def test_400_names_url_if_it_has_the_wrong_type(api, value):
    refused(api, FULL | {"url": value}, "url")


@pytest.mark.parametrize("value", [*WRONG_TYPES, "job.completed", [1], [None], [["job.completed"]], [{}]], ids=repr)
def test_400_names_events_if_it_has_the_wrong_type(api, value):
    refused(api, FULL | {"events": value}, "events")


@pytest.mark.parametrize("value", [value for value in WRONG_TYPES if value is not None] + [[SECRET]], ids=repr)
def test_400_names_secret_key_if_it_has_the_wrong_type(api, value):
    refused(api, FULL | {"secret_key": value}, "secret_key")


@pytest.mark.parametrize("name", ["url", "events"])
def test_400_names_a_missing_field(api, name):
    refused(api, {field: value for field, value in FULL.items() if field != name}, name)


@pytest.mark.parametrize(
    "name", ["secret", "secretKey", "Secret_Key", "secret_key ", "URL", "event", "id", "", "__proto__", "é"]
)
def test_400_names_an_unknown_field(api, name):
    refused(api, {"url": URL, "events": EVENTS, name: SECRET}, name)


@pytest.mark.parametrize("name", ["url", "events", "secret_key"])
def test_400_names_a_field_that_comes_twice(api, name):
    twice = json.dumps(FULL)[:-1] + f", {json.dumps(name)}: {json.dumps(FULL[name])}}}"
    refused(api, twice.encode(), name)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com",
        "//hooks.example.com",
        "ftp://hooks.example.com",
        "file:///etc/passwd",
        "javascript://hooks.example.com/%0aalert(1)",
        "https:hooks.example.com",
        "https:/hooks.example.com",
        "https:///hooks.example.com",
        "https://",
        "https:///",
        "https://?x",
        "https://:443",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:99999/",
        "https://hooks.example.com:port/",
        "https://[::1",
        "https://[hooks.example.com]/",
        "https://user@hooks.example.com/",
        "https://user:password@hooks.example.com/",
        "https://:@hooks.example.com/",
        "https://@hooks.example.com/",
        "https://hooks.example.com/#",
        "https://hooks.example.com/a#fragment",
        "https://hooks.example.com#fragment",
        " https://hooks.example.com",
        "https://hooks.example.com ",
        "https://hooks .example.com",
        "https://hooks.example.com/a b",
        "https://hooks.exa\tmple.com",
        "https://hooks.exa\nmple.com",
        "https://hooks.example.com/\r\nX-Injected: 1",
        "https://hooks.example.com/\x00",
        "https://hooks.example.com/\x1f",
        "https://hooks.example.com/\x7f",
        "https://hooks.example.com/\x85",
        "https:\\\\hooks.example.com",
        "https://hooks.example.com\\@evil.example",
        "https://hooks.example.com/a\\b",
        "https://hooks.example.com/" + "a" * (2049 - len("https://hooks.example.com/")),
    ],
    ids=lambda url: repr(url[:50]),
)
def test_400_names_url_if_a_rule_refuses_it(api, url):
    refused(api, FULL | {"url": url}, "url")


@pytest.mark.parametrize(
    ("events", "named"),
    [
        ([], "events"),
        (["job.done"], "job.done"),
        (["job.completed", "nope"], "nope"),
        (["Job.Completed"], "Job.Completed"),
        (["job.completed", "job.completed"], "job.completed"),
        ([""], "events"),
        (["*"], "*"),
    ],
)
def test_400_names_events_and_the_one_that_is_wrong(api, events, named):
    refused(api, FULL | {"events": events}, "events", named)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "1234567",
        "🔑" * 7,
        "x" * 257,
        "🔑" * 257,
        "whsec_",
        "whsec_!!",
        "whsec_not base64",
        "whsec_abc",
        "whsec_AAAA=",
        "whsec_é12345",
    ],
    ids=lambda secret: repr(secret[:20]),
)
def test_400_names_secret_key_if_a_rule_refuses_it_and_does_not_repeat_it(api, secret):
    raw = json.dumps(FULL | {"secret_key": secret}).encode()
    answer = api.call("POST", HOOKS, raw).is_error(400, "invalid_request")
    assert "secret_key" in answer.message
    # `whsec_` alone may stand in the message: it is what the rule is about.
    assert len(secret) <= len("whsec_") or secret not in answer.text
    assert api.list().data == []


@pytest.mark.parametrize(
    "secret",
    [
        "12345678",
        "🔑" * 8,
        "x" * 256,
        "🔑" * 256,
        "whsec_bmFubw==",
        "whsec_" + "A" * 248,
        "WHSEC_not_base64",
        "\x00" * 8,
    ],
)
def test_a_secret_of_8_to_256_characters_is_accepted(api, secret):
    assert api.post({"url": URL, "events": EVENTS, "secret_key": secret}).status == 201


@pytest.fixture(scope="module")
def public(start):
    return start("--in-memory", "--targets", "public")


@pytest.mark.parametrize(
    "url",
    """
    http://hooks.example.com https://localhost/ https://LOCALHOST:8443/ https://0.0.0.0 https://0.1.2.3
    https://10.0.0.1 https://100.64.0.1 https://127.0.0.1 https://127.1 https://2130706433 https://0x7f.0.0.1
    https://0177.0.0.1 https://169.254.169.254/latest https://172.16.0.1 https://172.31.255.255 https://192.0.0.1
    https://192.0.2.1 https://192.88.99.1 https://192.168.1.1 https://198.18.0.1 https://198.19.255.255
    https://198.51.100.1 https://203.0.113.1 https://224.0.0.1 https://239.255.255.255 https://240.0.0.1
    https://255.255.255.255 https://168.63.129.16 https://[::] https://[::1] https://[::ffff:10.0.0.1]
    https://[::ffff:8.8.8.8] https://[64:ff9b::808:808] https://[fe80::1] https://[fc00::1] https://[fd00:ec2::254]
    https://[ff02::1] https://[2001::1] https://[2001:1ff::1] https://[2001:db8::1] https://[2002:a00:1::]
    https://[3fff::1] https://[4000::1] https://[1fff::1] https://127.0.0.1. https://１２７.0.0.1
    """.split(),
)
def test_400_names_url_if_the_target_policy_refuses_its_address(public, url):
    refused(public.api, {"url": url, "events": EVENTS}, "url")


def test_a_public_address_and_a_name_that_does_not_resolve_yet_are_accepted(public):
    api = public.new_account()
    # Addresses next to refused ranges; nothing is sent to them.
    for host in (
        "1.0.0.0",
        "11.0.0.0",
        "100.128.0.0",
        "172.32.0.0",
        "198.20.0.0",
        "223.255.255.255",
        "[2001:200::]",
        "not-yet.invalid",
    ):
        answer = api.post({"url": f"https://{host}/", "events": EVENTS})
        assert answer.status == 201, (host, answer.text)


def test_a_range_that_the_operator_allows_is_accepted(start):
    service = start("--in-memory", "--targets", "public", "--allow-cidr", "10.1.0.0/16")
    assert service.api.post({"url": "https://10.1.2.3/", "events": EVENTS}).status == 201
    service.api.post({"url": "https://10.2.2.3/", "events": EVENTS}).is_error(400, "invalid_request")
    service.api.post({"url": "http://10.1.2.3/", "events": EVENTS}).is_error(400, "invalid_request")


# 401 ----------------------------------------------------------------------------------------------------------------


def test_401_without_a_valid_key(service, api):
    stranger = list(api.key)
    stranger[10] = "a" if stranger[10] != "a" else "b"
    revoked = service.new_account()
    command("keys", "revoke", "--account", revoked.account, revoked.key, "--dynamodb-endpoint", service.dynamodb)
    for authorization in [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {api.key}",
        f"Token {api.key}",
        api.key,
        f"Bearer{api.key}",
        f"Bearer {api.key} {api.key}",
        f"Bearer {api.key}x",
        f"Bearer {api.key[:-1]}",
        f"Bearer {api.key.swapcase()}",
        f"Bearer {''.join(stranger)}",
        f"Bearer {revoked.key}",
        "Bearer sk-",
        "Bearer sk-" + "a" * 38,
        "Bearer \xff\xfe",
        "Bearer " + "a" * 5_000,
    ]:
        headers = {"Authorization": authorization}
        for method, path, body in [
            ("GET", HOOKS, None),
            ("POST", HOOKS, FULL),
            ("POST", HOOKS, b"{"),
            ("DELETE", f"{HOOKS}/1", None),
        ]:
            answer = api.call(method, path, body, headers=headers).is_error(401, "unauthorized")
            assert answer.message == "Invalid or missing API key", authorization
    assert api.list().data == []


def test_the_scheme_of_the_key_is_read_without_regard_to_case(api):
    assert api.call("GET", HOOKS, headers={"Authorization": f"bearer {api.key}"}).status == 200


# 404 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/",
        "/api/v1/nope",
        "/api/v2/webhooks",
        "/api/v1/webhooks/1/nope",
        "/API/V1/WEBHOOKS",
        "/api/v1//webhooks",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_404_for_an_unknown_route(api, method, path):
    api.call(method, path).is_error(404, "not_found")


@pytest.mark.parametrize(
    "webhook",
    [
        "2",
        "0",
        "abc",
        "01",
        "-1",
        "+1",
        "1.0",
        "1e0",
        "0x1",
        "%201",
        "1%20",
        "%FF",
        "%00",
        "1%2F",
        "99999999999",
        "9" * 30,
        "a" * 3_000,
    ],
)
def test_404_for_an_id_that_is_none(api, webhook):
    assert api.subscribe(URL) == 1
    answer = api.delete(webhook).is_error(404, "not_found")
    assert len(answer.message) < 200
    assert len(api.list().data) == 1


def test_404_for_another_accounts_webhook_is_the_same_as_for_none(service, api):
    owner = service.new_account()
    assert [owner.subscribe(URL) for _ in range(2)] == [1, 2]
    theirs, nobodys = api.delete(2), api.delete(3)
    theirs.is_error(404, "not_found")
    assert theirs.text.replace("2", "3") == nobodys.text
    assert len(owner.list().data) == 2


def test_404_for_a_webhook_that_was_deleted(api):
    webhook = api.subscribe(URL)
    assert api.delete(webhook).status == 200
    api.delete(webhook).is_error(404, "not_found")


# 405, 413, 415 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", HOOKS, {"GET", "POST"}),
        ("DELETE", HOOKS, {"GET", "POST"}),
        ("PATCH", HOOKS, {"GET", "POST"}),
        ("OPTIONS", HOOKS, {"GET", "POST"}),
        ("BREW", HOOKS, {"GET", "POST"}),
        ("POST", f"{HOOKS}/1", {"DELETE"}),
        ("PUT", f"{HOOKS}/1", {"DELETE"}),
        ("POST", "/healthz", {"GET"}),
    ],
)
def test_405_with_allow_for_a_method_that_the_route_does_not_have(api, method, path, allowed):
    answer = api.call(method, path).is_error(405, "method_not_allowed")
    given = {method.strip() for method in answer.headers["Allow"].split(",")}
    assert allowed <= given and method not in given, given


def padded(size):
    body = json.dumps({"url": URL, "events": EVENTS}).encode()
    return body + b" " * (size - len(body))


def test_413_over_64_kib_and_not_at_64_kib(api):
    api.call("POST", HOOKS, padded(64 * 1024 + 1)).is_error(413, "payload_too_large")
    assert api.list().data == []
    assert api.call("POST", HOOKS, padded(64 * 1024)).status == 201


def test_413_for_a_body_that_does_not_say_its_length(api):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(api.url).netloc, timeout=30)
    headers = {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json"}
    connection.request("POST", HOOKS, body=iter([padded(64 * 1024), b" "]), headers=headers, encode_chunked=True)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (413, "payload_too_large")
    connection.close()


@pytest.mark.parametrize(
    "declared",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/xml",
    ],
)
def test_415_for_a_body_that_is_not_declared_as_json(api, declared):
    api.post(FULL, headers={"Content-Type": declared}).is_error(415, "unsupported_media_type")
    assert api.list().data == []


@pytest.mark.parametrize(
    "declared",
    ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/json;charset=UTF-8"],
)
def test_json_may_be_declared_as_http_allows(api, declared):
    assert api.post(FULL, headers={"Content-Type": declared}).status == 201


# 409 and idempotency ------------------------------------------------------------------------------------------------


def test_the_same_idempotency_key_gives_the_same_answer_and_one_webhook(api):
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    first, second = (api.post(FULL, headers=headers) for _ in range(2))
    assert first.status == second.status == 201
    assert first.text == second.text and first.headers["Location"] == second.headers["Location"]
    assert len(api.list().data) == 1
    assert api.post(FULL, headers={"Idempotency-Key": str(uuid.uuid4())}).data["id"] == 2


def test_409_for_the_same_idempotency_key_with_another_body(api):
    headers = {"Idempotency-Key": "a key"}
    assert api.post(FULL, headers=headers).status == 201
    for other in (
        FULL | {"events": ["job.failed"]},
        FULL | {"secret_key": "another secret"},
        {"url": URL, "events": EVENTS},
    ):
        answer = api.post(other, headers=headers).is_error(409, "conflict")
        assert "Idempotency-Key" in answer.message
    assert len(api.list().data) == 1


def test_an_idempotency_key_belongs_to_its_account(service, api):
    other, headers = service.new_account(), {"Idempotency-Key": "shared"}
    assert api.post(FULL, headers=headers).status == 201
    assert other.post(FULL | {"events": ["job.failed"]}, headers=headers).data == {
        "id": 1,
        "url": URL,
        "events": ["job.failed"],
        "status": "active",
    }


def test_a_refused_request_does_not_use_its_idempotency_key_up(api):
    headers = {"Idempotency-Key": "try again"}
    api.post(FULL | {"events": []}, headers=headers).is_error(400, "invalid_request")
    assert api.post(FULL, headers=headers).status == 201


@pytest.mark.parametrize("key", ["", "k" * 256, "\xff"])
def test_400_names_an_idempotency_key_that_cannot_be_one(api, key):
    answer = api.post(FULL, headers={"Idempotency-Key": key}).is_error(400, "invalid_request")
    assert "Idempotency-Key" in answer.message


def at_once(threads, work):
    """What `work(n)` gives for n in range(threads), all begun at the same time."""
    results, barrier = [None] * threads, threading.Barrier(threads)

    def run(n):
        barrier.wait()
        results[n] = work(n)

    running = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert None not in results, "a request got no answer that can be read; see the output"
    return results


def test_creates_at_the_same_time_get_distinct_ids_and_never_pass_the_limit_of_50(api):
    answers = at_once(12, lambda n: [api.post({"url": f"{URL}/{n}", "events": EVENTS}) for _ in range(5)])
    answers = [answer for several in answers for answer in several]
    created = [answer.data["id"] for answer in answers if answer.status == 201]
    assert len(created) == len(set(created)) == 50, [
        answer.text for answer in answers if answer.status not in (201, 409)
    ]
    for answer in answers:
        if answer.status != 201:
            answer.is_error(409, "conflict")
            assert "50" in answer.message
    listed = [webhook["id"] for webhook in api.list().data]
    assert listed == sorted(created), "all are listed, in the order of their ids"
    api.post(FULL).is_error(409, "conflict")
    assert api.delete(listed[0]).status == 200
    again = api.post(FULL)
    assert again.status == 201 and again.data["id"] > max(listed)
    api.post(FULL).is_error(409, "conflict")


def test_the_same_idempotency_key_at_the_same_time_creates_one_webhook(api):
    answers = at_once(8, lambda _: api.post(FULL, headers={"Idempotency-Key": "once"}))
    assert {(answer.status, answer.text) for answer in answers} == {(201, answers[0].text)}
    assert len(api.list().data) == 1


def test_deletes_at_the_same_time_succeed_once_and_count_once(api):
    webhook = api.subscribe(URL)
    answers = at_once(8, lambda _: api.delete(webhook))
    assert sorted(answer.status for answer in answers) == [200] + [404] * 7
    assert [api.post(FULL).status for _ in range(51)] == [201] * 50 + [409]


# 429 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "longest"), [("RATE_LIMIT_PER_MINUTE", 60), ("RATE_LIMIT_PER_DAY", 24 * 60 * 60)])
def test_429_with_retry_after_once_an_account_has_made_its_requests(start, setting, longest):
    service = start("--in-memory", env={setting: "3"})
    answers = []
    # The limit may count anew once, if the clock's minute or day ends in between.
    while len(answers) < 8 and (not answers or answers[-1].status == 200):
        answers.append(service.api.list())
    assert len(answers) in (4, 5, 6, 7)
    refusal = answers[-1].is_error(429, "rate_limited")
    assert 1 <= int(refusal.headers["Retry-After"]) <= longest
    assert service.new_account().list().status == 200, "another account has its own limit"


def test_local_mode_has_no_limit_unless_one_is_set(api):
    assert {api.list().status for _ in range(100)} == {200}


# 503 ----------------------------------------------------------------------------------------------------------------


def over_another_engine(start, tmp_path):
    """A service over the engine of another, with tables of its own."""
    engine = start("--in-memory")
    tables = {name: f"{name.lower()}-2" for name in ("JOBS_TABLE", "WEBHOOKS_TABLE", "DELIVERIES_TABLE")}
    service = start("--data-dir", str(tmp_path / "data"), "--dynamodb-endpoint", engine.dynamodb, env=tables)
    return engine, service


def test_the_tables_of_another_data_directory_are_refused_before_a_secret_is_lost(start, tmp_path):
    engine = start("--in-memory")
    options = ("--data-dir", str(tmp_path / "data"), "--dynamodb-endpoint", engine.dynamodb)
    refused = command("serve", "--listen", "127.0.0.1:0", *options, check=False)
    assert refused.returncode == 1 and "secrets-key is missing" in refused.stderr


def test_503_with_retry_after_and_without_the_cause_when_dynamodb_is_out_of_reach(start, tmp_path):
    engine, service = over_another_engine(start, tmp_path)
    assert service.api.subscribe(URL) == 1
    engine.kill()
    begun = time.monotonic()
    for method, path, body in [("GET", HOOKS, None), ("POST", HOOKS, FULL), ("DELETE", f"{HOOKS}/1", None)]:
        answer = service.api.call(method, path, body).is_error(503, "unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        for cause in ("dynamo", "connect", "refused", "dispatch", "127.0.0.1", "os error", SECRET):
            assert cause not in answer.text.lower()
        log = service.log_text()
        assert answer.headers["X-Request-Id"] in log, "the cause is in the log under the same request id"
    assert time.monotonic() - begun < 30, "a caller is not left waiting"
    assert SECRET not in service.log_text()


def test_what_needs_no_table_is_still_answered_when_dynamodb_is_out_of_reach(start, tmp_path):
    engine, service = over_another_engine(start, tmp_path)
    engine.kill()
    service.api.call("GET", HOOKS, headers={"Authorization": "Bearer sk-typo"}).is_error(401, "unauthorized")
    service.api.call("GET", "/api/v1/nope").is_error(404, "not_found")


# Request ids and secrets --------------------------------------------------------------------------------------------


def test_every_answer_has_a_request_id_of_its_own(api):
    ids = [api.list().headers["X-Request-Id"] for _ in range(20)]
    assert len(set(ids)) == 20


def test_no_secret_and_no_key_is_in_the_log(service, api):
    api.post(FULL)
    api.post(FULL | {"events": []})
    api.post({"url": URL, "events": EVENTS, "secret": SECRET})
    log = service.log_text()
    assert SECRET not in log and api.key not in log
