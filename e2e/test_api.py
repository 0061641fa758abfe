"""The API over a real HTTP server: chunked bodies, and an outage of DynamoDB.

The integration tests cover routes and errors. `support.Api.call` asserts the envelope, the content
type and the request id of every response.
"""

import http.client
import json
import time
import urllib.parse

HOOKS = "/api/v1/webhooks"
SECRET = "do-not-repeat-me-9f2c"
WEBHOOK = {
    "url": "https://hooks.example.com/nano",
    "events": ["job.completed"],
    "secret_key": SECRET,
}


def test_large_chunked_body_returns_413(api):
    """The limit of 64 KiB also holds for a body without a declared length."""
    body = json.dumps(WEBHOOK).encode()
    chunks = iter([body + b" " * (64 * 1024 - len(body)), b" "])
    headers = {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(api.url).netloc, timeout=30)
    connection.request("POST", HOOKS, body=chunks, headers=headers, encode_chunked=True)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (
        413,
        "payload_too_large",
    )
    connection.close()


def test_dynamodb_outage_returns_503(start, tmp_path):
    """The response names no cause, and the log has the cause under the same request id.

    Requests that need no table still get their usual responses.
    """
    engine = start("--in-memory")
    tables = {
        name: f"{name.lower()}-2" for name in ("JOBS_TABLE", "WEBHOOKS_TABLE", "DELIVERIES_TABLE")
    }
    service = start(
        "--data-dir", str(tmp_path / "data"), "--dynamodb-endpoint", engine.dynamodb, env=tables
    )
    api = service.api
    assert api.create(WEBHOOK).data["id"] == 1
    engine.kill()
    started, request_ids = time.monotonic(), set()
    for method, path, body in [
        ("GET", HOOKS, None),
        ("POST", HOOKS, WEBHOOK),
        ("DELETE", f"{HOOKS}/1", None),
    ]:
        response = api.call(method, path, body).assert_error(503, "unavailable")
        assert int(response.headers["Retry-After"]) >= 1
        for cause in ("dynamo", "connect", "refused", "dispatch", "127.0.0.1", "os error", SECRET):
            assert cause not in response.text.lower()
        request_ids.add(response.headers["X-Request-Id"])
    assert time.monotonic() - started < 30
    log = service.read_log()
    assert len(request_ids) == 3 and all(request_id in log for request_id in request_ids)
    assert SECRET not in log
    api.call("GET", HOOKS, key="sk-typo").assert_error(401, "unauthorized")
    api.call("GET", "/api/v1/nope").assert_error(404, "not_found")
