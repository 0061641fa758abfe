"""The API's description: it is OpenAPI 3.1, and the service does what it says, whatever is asked of it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import openapi_spec_validator
import pytest

from support import eventually

SEED = 20_260_107
EXAMPLES = 250  # for each operation and kind of data
DESCRIPTION = Path(__file__).parent.parent / "docs" / "openapi.json"
# Nothing listens there, so that what is sent by the service ends at once. Wide otherwise: what violates it must be no URL.
NOWHERE = r'^http://127\.0\.0\.1:9/[!"$-\[\]-~]*$'
# An id of the right form that no event has.
NO_EVENT = "evt_01JFSFB4807P0XDV4PAY2Y4PMB"


@pytest.fixture
def description():
    return json.loads(DESCRIPTION.read_text())


def test_the_description_is_openapi_3_1(description):
    assert description["openapi"].startswith("3.1.")
    openapi_spec_validator.OpenAPIV31SpecValidator(description).validate()
    operations = [operation for item in description["paths"].values() for operation in item.values()]
    operations += [operation for item in description["webhooks"].values() for operation in item.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    assert all(operation["summary"] and operation["tags"] for operation in operations)
    text = json.dumps(description)
    unused = [
        f"#/components/{kind}/{name}"
        for kind in ("schemas", "responses")
        for name in description["components"][kind]
        if f'"#/components/{kind}/{name}"' not in text
    ]
    assert unused == []


def test_every_example_is_as_its_schema_says(description):
    """In media types, parameters and schemas alike."""
    checked = []

    def look(node):
        if isinstance(node, list):
            for child in node:
                look(child)
        elif isinstance(node, dict):
            if "example" in node:
                schema = dict(node["schema"] if "schema" in node else node) | {"components": description["components"]}
                jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(node["example"])
                checked.append(node["example"])
            for name, child in node.items():
                if name != "example":
                    look(child)

    look(description)
    assert len(checked) > 20


def strict(description, schema):
    """A schema of answers, without references, that allows nothing that is not described."""
    if "$ref" in schema:
        _, kind, name = schema["$ref"].removeprefix("#/").split("/")
        return strict(description, description["components"][kind][name])
    schema = dict(schema)
    if "properties" in schema:
        schema["properties"] = {name: strict(description, one) for name, one in schema["properties"].items()}
        schema["unevaluatedProperties"] = False
    if "items" in schema:
        schema["items"] = strict(description, schema["items"])
    if "oneOf" in schema:
        schema["oneOf"] = [strict(description, one) for one in schema["oneOf"]]
    if "allOf" in schema:
        # Together they say what there may be.
        parts = [strict(description, one) for one in schema["allOf"]]
        schema["allOf"] = [{name: part[name] for name in part if name != "unevaluatedProperties"} for part in parts]
        schema["unevaluatedProperties"] = False
    return schema


def for_this_test(description, cursor):
    """The description, narrower where a schema cannot say what is right, and stricter with the answers."""
    del description["webhooks"]
    for name in ("NewWebhook", "WebhookChange"):
        description["components"]["schemas"][name]["properties"]["url"]["pattern"] = NOWHERE
    operations = [operation for item in description["paths"].values() for operation in item.values()]
    for operation in operations:
        for parameter in operation.get("parameters", []):
            # Of all texts only what a page ended with is a cursor, and only for its own list.
            if parameter["name"] == "cursor":
                parameter["schema"] = {"enum": [cursor]}
            # One key for all bodies would end in conflicts.
            if parameter["name"] == "Idempotency-Key":
                del parameter["example"]
    responses = [*description["components"]["responses"].values()]
    responses += [response for operation in operations for response in operation["responses"].values()]
    for response in responses:
        for content in response.get("content", {}).values():
            content["schema"] = strict(description, content["schema"])
    return description


def settings(api, events):
    """The configuration of the run."""
    return f"""
seed = {SEED}
continue-on-failure = true

[auth.openapi.api_key]
bearer = {json.dumps(api.key)}

[generation]
max-examples = {EXAMPLES}
no-shrink = true
database = "none"

[dictionaries.webhooks]
values = [1, 2, 3, 4, 5, 6, 7, 8, 9]

[dictionaries.events]
values = {json.dumps(events)}

[parameters]
"path.id" = {{ dictionary = "webhooks", probability = 0.4 }}
"path.event_id" = {{ dictionary = "events", probability = 0.8 }}

# Every check is on but for these.

[checks.positive_data_acceptance]
# 409: what is asked for is as described, and the state of things is against it.
expected-statuses = ["2xx", 401, 403, 404, 409]

[checks.ensure_resource_availability]
# The same request with the same `Idempotency-Key` has the same answer for 24 hours, also when what it created is deleted.
enabled = false

[[operations]]
# What was done for a webhook that was deleted stays readable, and to cancel a replay is not to delete it.
include-path-regex = "/replays/|/deliveries/"
checks.use_after_free.enabled = false

[[operations]]
include-name = "GET /api/v1/webhooks/{{id}}/deliveries"
checks.use_after_free.enabled = false
# 400: a cursor is good for its own list alone.
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404, 409]

[[operations]]
# 400: a window begins before it ends, and in the past.
include-name = "POST /api/v1/webhooks/{{id}}/replay"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404, 409]
"""


def test_the_service_does_what_its_description_says(start, description, tmp_path, capsys):
    service = start("--in-memory", "--targets", "any", "--retry-schedule", "1h", env={"WEBHOOKS_PER_ACCOUNT": "100000"})
    api = service.new_account()
    for number in range(3):
        api.subscribe("http://127.0.0.1:9/", "my-secret-key")
    for number in range(5):
        service.put_job(f"task-{number}", api.account)
    eventually(lambda: all(len(api.log(webhook)) == 5 for webhook in (1, 2, 3)), "the deliveries of five jobs")
    page = api.deliveries(1, limit=2).json
    schema, config, report = (tmp_path / name for name in ("openapi.json", "schemathesis.toml", "report.json"))
    schema.write_text(json.dumps(for_this_test(description, page["next_cursor"])))
    config.write_text(settings(api, [row["event_id"] for row in api.log(1)] + [NO_EVENT]))

    begun = time.monotonic()
    done = subprocess.run(
        [Path(sys.executable).parent / "schemathesis", "--config-file", config, "run", schema, "--url", service.url,
         "--output-sanitize", "false", "--report", "json", "--report-json-path", report],
        cwd=tmp_path, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    took = time.monotonic() - begun
    assert done.returncode == 0, (done.stdout + done.stderr)[-20_000:]
    found = json.loads(report.read_text())
    requests = service.log_text().count(" request request_id=")
    with capsys.disabled():
        print(f"\n{found['test_cases']['generated']} cases, {requests} requests, seed {SEED}, in {took:.0f} s")
    assert {phase["status"] for phase in found["phases"].values()} == {"success"}, found["phases"]
    assert found["operations"]["tested"] == found["operations"]["total"] >= 13
    assert found["test_cases"]["generated"] > 2_000
    # Each operation was reached with data that it accepts.
    assert not any(found["warnings"].values()), found["warnings"]
    assert service.popen.poll() is None
    assert " ERROR " not in service.log_text() and "panic" not in service.log_text().lower()
