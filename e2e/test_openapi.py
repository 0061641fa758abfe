"""The OpenAPI document: it is valid OpenAPI 3.1, and the service behaves as it says."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import openapi_spec_validator
import pytest

from support import wait_until

SEED = 20_260_107
EXAMPLES = 250  # per operation and kind of data
DOCUMENT = Path(__file__).parent.parent / "docs" / "openapi.json"
# URLs where nothing listens, so that attempts of the service end at once. Apart from that the
# pattern is wide, since a text that violates it must not be a URL.
UNREACHABLE_URL = r'^http://127\.0\.0\.1:9/[!"$-\[\]-~]*$'
# A well-formed id that no event has.
UNKNOWN_EVENT = "evt_01JFSFB4807P0XDV4PAY2Y4PMB"


@pytest.fixture
def document():
    return json.loads(DOCUMENT.read_text())


def test_document_is_valid_openapi(document):
    """Every operation has an id of its own, a summary and tags, and every component is used."""
    assert document["openapi"].startswith("3.1.")
    openapi_spec_validator.OpenAPIV31SpecValidator(document).validate()
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    operations += [
        operation for item in document["webhooks"].values() for operation in item.values()
    ]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    assert all(operation["summary"] and operation["tags"] for operation in operations)
    text = json.dumps(document)
    unused = [
        f"#/components/{kind}/{name}"
        for kind in ("schemas", "responses")
        for name in document["components"][kind]
        if f'"#/components/{kind}/{name}"' not in text
    ]
    assert unused == []


def find_examples(node):
    """All (example, schema) pairs in media types, parameters and schemas."""
    if isinstance(node, list):
        for child in node:
            yield from find_examples(child)
    elif isinstance(node, dict):
        if "example" in node:
            yield node["example"], node.get("schema", node)
        for name, child in node.items():
            if name != "example":
                yield from find_examples(child)


def test_examples_match_their_schemas(document):
    examples = list(find_examples(document))
    for example, schema in examples:
        schema = dict(schema) | {"components": document["components"]}
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(
            example
        )
    assert len(examples) > 20


def make_strict(document, schema):
    """Resolves the references of a response schema, and forbids all properties that it does not
    describe.
    """
    if "$ref" in schema:
        _, kind, name = schema["$ref"].removeprefix("#/").split("/")
        return make_strict(document, document["components"][kind][name])
    schema = dict(schema)
    if "properties" in schema:
        schema["properties"] = {
            name: make_strict(document, part) for name, part in schema["properties"].items()
        }
        schema["unevaluatedProperties"] = False
    if "items" in schema:
        schema["items"] = make_strict(document, schema["items"])
    if "oneOf" in schema:
        schema["oneOf"] = [make_strict(document, part) for part in schema["oneOf"]]
    if "allOf" in schema:
        # Only the parts together describe all properties.
        parts = [make_strict(document, part) for part in schema["allOf"]]
        schema["allOf"] = [
            {name: part[name] for name in part if name != "unevaluatedProperties"} for part in parts
        ]
        schema["unevaluatedProperties"] = False
    return schema


def adapt_document(document, cursor):
    """Restricts the document where a schema cannot express what is valid, and makes its response
    schemas strict.
    """
    del document["webhooks"]
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    for operation in operations:
        for content in operation.get("requestBody", {}).get("content", {}).values():
            name = content["schema"].get("$ref", "").rpartition("/")[2]
            properties = document["components"]["schemas"].get(name, {}).get("properties", {})
            if "url" in properties:
                properties["url"]["pattern"] = UNREACHABLE_URL
                # Some names are reserved, and all headers have at most 4 KiB.
                properties["headers"]["propertyNames"] = {"pattern": "^h[0-9]{1,3}$"}
                properties["headers"]["additionalProperties"]["maxLength"] = 400
        for parameter in operation.get("parameters", []):
            # A cursor is only valid if a page of the same list returned it.
            if parameter["name"] == "cursor":
                parameter["schema"] = {"enum": [cursor]}
            # The same key for all bodies would cause conflicts.
            if parameter["name"] == "Idempotency-Key":
                del parameter["example"]
    responses = [*document["components"]["responses"].values()]
    responses += [
        response for operation in operations for response in operation["responses"].values()
    ]
    for response in responses:
        for content in response.get("content", {}).values():
            content["schema"] = make_strict(document, content["schema"])
    return document


def build_settings(api, events):
    """The configuration of Schemathesis."""
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

# All checks are enabled, with these exceptions.

[checks.positive_data_acceptance]
# 409: the request is valid, and the current state does not allow it.
expected-statuses = ["2xx", 401, 403, 404, 409]

[checks.ensure_resource_availability]
# A request with the same `Idempotency-Key` gets the same response for 24 hours, also after the
# webhook was deleted.
enabled = false

[[operations]]
# Deliveries of a deleted webhook stay readable, and a cancelled replay still exists.
include-path-regex = "/replays/|/deliveries/"
checks.use_after_free.enabled = false

[[operations]]
include-name = "GET /api/v1/webhooks/{{id}}/deliveries"
checks.use_after_free.enabled = false
# 400: a cursor is only valid for its own list.
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404, 409]

[[operations]]
# 400: a time window must start before its end, and in the past.
include-name = "POST /api/v1/webhooks/{{id}}/replay"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404, 409]
"""


def test_service_conforms_to_document(start, document, tmp_path, capsys):
    """Schemathesis generates requests from the document and checks each response against it."""
    service = start(
        "--in-memory",
        "--targets",
        "any",
        "--retry-schedule",
        "1h",
        env={"WEBHOOKS_PER_ACCOUNT": "100000"},
    )
    api = service.create_account()
    webhooks = [api.subscribe("http://127.0.0.1:9/", "my-secret-key") for _ in range(3)]
    for number in range(5):
        service.put_job(f"task-{number}", api.account)
    are_recorded = lambda: all(len(api.list_deliveries(webhook)) == 5 for webhook in webhooks)
    wait_until(are_recorded, "the deliveries of five jobs")
    page = api.delivery_page(1, limit=2).json
    schema, config, report = (
        tmp_path / name for name in ("openapi.json", "schemathesis.toml", "report.json")
    )
    schema.write_text(json.dumps(adapt_document(document, page["next_cursor"])))
    events = [row["event_id"] for row in api.list_deliveries(1)] + [UNKNOWN_EVENT]
    config.write_text(build_settings(api, events))

    started = time.monotonic()
    completed = subprocess.run(
        [
            *(Path(sys.executable).parent / "schemathesis", "--config-file", config, "run", schema),
            *("--url", service.url, "--output-sanitize", "false"),
            *("--report", "json", "--report-json-path", report),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    elapsed = time.monotonic() - started
    assert completed.returncode == 0, (completed.stdout + completed.stderr)[-20_000:]
    result = json.loads(report.read_text())
    requests = service.read_log().count("request_id=")
    with capsys.disabled():
        cases = result["test_cases"]["generated"]
        print(f"\n{cases} cases, {requests} requests, seed {SEED}, in {elapsed:.0f} s")
    assert {phase["status"] for phase in result["phases"].values()} == {"success"}, result["phases"]
    assert result["operations"]["tested"] == result["operations"]["total"] >= 13
    assert result["test_cases"]["generated"] > 2_000
    # No operation lacked valid data.
    assert not any(result["warnings"].values()), result["warnings"]
    assert service.popen.poll() is None
    assert " ERROR " not in service.read_log() and "panic" not in service.read_log().lower()
