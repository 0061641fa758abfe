"""What the operator sees: the log and the metrics of the functions, the metrics of local mode, the trace of a job."""

import json
import urllib.request
import uuid

from prometheus_client.parser import text_string_to_metric_families

from deployment import status
from support import eventually

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def scraped(service):
    """What Prometheus would read: name and labels to value."""
    with urllib.request.urlopen(f"{service.url}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = text_string_to_metric_families(answer.read().decode())
    return {
        (sample.name.removeprefix("nano_webhooks_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_local_mode_shows_prometheus_what_happened(start, receiver):
    service = start("--in-memory", "--retry-schedule", "1h")
    api = service.new_account()
    assert scraped(service)["events_total",] == 0, "each number is there before anything happens"
    receiver.answer("/broken", status(503))
    api.subscribe(receiver.url + "/ok")
    api.subscribe(receiver.url + "/broken")
    service.put_job("task", api.account)
    service.db.put_item(TableName=service.tables["jobs"], Item={"task_id": {"S": "p"}, "status": {"S": "failed"}})

    def counted():
        found = scraped(service)
        return found["attempts_total",] == 2 and found["poison_records_total",] == 1 and found

    found = eventually(counted, "both attempts and the poison record counted")
    assert found["events_total",] == 1
    assert found["deliveries_total", "delivered"] == 1 and found["deliveries_total", "failed"] == 0
    assert found["failed_attempts_total", "status"] == 1 and found["failed_attempts_total", "timeout"] == 0
    assert found["attempt_duration_seconds_count",] == 2
    assert found["delivery_latency_seconds_count",] == found["delivery_latency_seconds_bucket", "15"] == 1
    refused = api.call("POST", "/metrics")
    refused.is_error(405, "method_not_allowed")
    assert found["retries_due",] == 0 and found["sweep_lag_seconds",] == 0


def test_each_line_of_a_function_is_json_with_time_level_and_request_and_names_what_it_is_about(deploy, receiver):
    deployment = deploy("1h")
    receiver.answer("/hook", status(500))
    webhook = deployment.api.subscribe(receiver.url + "/hook", "a-secret-key")
    deployment.jobs_end("task")
    deployment.sweep()
    lines = [json.loads(line) for line in deployment.dispatch.log.read_text().splitlines()]
    logged = [line for line in lines if "_aws" not in line]
    for line in logged:
        assert line["level"] in ("INFO", "WARN", "ERROR") and line["timestamp"].endswith("Z"), line
    (attempt,) = (line for line in logged if line["message"] == "attempt")
    assert uuid.UUID(attempt["span"]["requestId"])
    event = deployment.api.row(webhook)["event_id"]
    named = {name: attempt[name] for name in ("account", "webhook", "event", "attempt", "status")}
    assert named == {
        "account": deployment.api.account,
        "webhook": str(webhook),
        "event": event,
        "attempt": 1,
        "status": 500,
    }
    for secret in ("a-secret-key", "credits_charged", "v1="):
        assert not any(secret in json.dumps(line) for line in lines), secret

    metrics = {}
    for line in (line for line in lines if "_aws" in line):
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        assert directive["Namespace"] == "NanoWebhooks"
        for dimensions in directive["Dimensions"]:
            assert all(isinstance(line[dimension], str) for dimension in dimensions)
        metrics |= {metric["Name"]: line[metric["Name"]] for metric in directive["Metrics"]}
    assert {name: metrics[name] for name in ("Events", "Attempts", "FailedAttempts", "RetriesDue", "SweepLag")} == {
        "Events": 1,
        "Attempts": 1,
        "FailedAttempts": 1,
        "RetriesDue": 0,
        "SweepLag": 0,
    }
    assert deployment.api.account not in json.dumps([line for line in lines if "_aws" in line]), "no customer in metrics"


def test_the_trace_of_a_job_reaches_the_endpoint_and_the_delivery_shows_it(service, api, receiver):
    webhook = api.subscribe(receiver.url + "/hook")
    service.put_job("task", api.account, traceparent={"S": TRACE})
    (request,) = receiver.wait_for("/hook")
    assert request.headers["traceparent"] == TRACE
    (attempt,) = api.delivery(webhook, request.id).data["attempts"]
    assert attempt["request_headers"]["traceparent"] == TRACE
