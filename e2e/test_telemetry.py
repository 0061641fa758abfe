"""Log lines and metrics of the functions, and the metrics of local mode."""

import json
import urllib.request
import uuid

from prometheus_client.parser import text_string_to_metric_families

from support import respond_with, wait_until


def scrape(service):
    """Reads the metrics as Prometheus does: (name, *label values) to value."""
    with urllib.request.urlopen(f"{service.url}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = text_string_to_metric_families(response.read().decode())
    return {
        (sample.name.removeprefix("nano_webhooks_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_local_mode_exposes_prometheus_metrics(start, receiver):
    """Every metric exists from the start, and counts attempts, deliveries, failures and poison
    records.
    """
    service = start("--in-memory", "--retry-schedule", "1h")
    api = service.create_account()
    assert scrape(service)["events_total",] == 0
    receiver.respond("/failing", respond_with(503))
    api.subscribe(receiver.url + "/healthy")
    api.subscribe(receiver.url + "/failing")
    service.put_job("task", api.account)
    service.db.put_item(
        TableName=service.tables["jobs"], Item={"task_id": {"S": "p"}, "status": {"S": "failed"}}
    )

    def scrape_final():
        metrics = scrape(service)
        return metrics["attempts_total",] == 2 and metrics["poison_records_total",] == 1 and metrics

    metrics = wait_until(scrape_final, "both attempts and the poison record are counted")
    assert metrics["events_total",] == 1
    assert (
        metrics["deliveries_total", "delivered"] == 1 and metrics["deliveries_total", "failed"] == 0
    )
    assert (
        metrics["failed_attempts_total", "status"] == 1
        and metrics["failed_attempts_total", "timeout"] == 0
    )
    assert metrics["attempt_duration_seconds_count",] == 2
    assert (
        metrics["delivery_latency_seconds_count",]
        == metrics["delivery_latency_seconds_bucket", "15"]
        == 1
    )
    for name in ("retries_due", "sweep_lag_seconds", "sweep_refused"):
        assert metrics[name,] == 0, name
    api.call("POST", "/metrics").assert_error(405, "method_not_allowed")


def test_function_log_lines_are_structured_json(deploy, receiver):
    """Each line has a time and a level.

    Ids are fields. Metric lines follow the Embedded Metric Format.

    No line has a secret, a signature or data of a job, and no metric names an account.
    """
    deployment = deploy("1h")
    receiver.respond("/hook", respond_with(500))
    webhook = deployment.api.subscribe(receiver.url + "/hook", "a-secret-key")
    deployment.complete_jobs("task")
    deployment.sweep()
    lines = [json.loads(line) for line in deployment.dispatch.log.read_text().splitlines()]
    log_lines = [line for line in lines if "_aws" not in line]
    for line in log_lines:
        assert line["level"] in ("INFO", "WARN", "ERROR") and line["timestamp"].endswith("Z"), line
    (attempt,) = (line for line in log_lines if line["message"] == "Attempt completed")
    assert uuid.UUID(attempt["span"]["requestId"])
    assert {
        name: attempt[name] for name in ("account", "webhook", "event", "attempt", "status")
    } == {
        "account": deployment.api.account,
        "webhook": str(webhook),
        "event": deployment.api.wait_for_delivery(webhook)["event_id"],
        "attempt": 1,
        "status": 500,
    }
    for confidential in ("a-secret-key", "credits_charged", "v1="):
        assert not any(confidential in json.dumps(line) for line in lines), confidential

    metric_lines = [line for line in lines if "_aws" in line]
    metrics = {}
    for line in metric_lines:
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        assert directive["Namespace"] == "NanoWebhooks"
        for dimensions in directive["Dimensions"]:
            assert all(isinstance(line[dimension], str) for dimension in dimensions)
        metrics |= {metric["Name"]: line[metric["Name"]] for metric in directive["Metrics"]}
    assert {
        name: metrics[name]
        for name in (
            "Events",
            "Attempts",
            "FailedAttempts",
            "RetriesDue",
            "SweepLag",
            "SweepRefused",
        )
    } == {
        "Events": 1,
        "Attempts": 1,
        "FailedAttempts": 1,
        "RetriesDue": 0,
        "SweepLag": 0,
        "SweepRefused": 0,
    }
    assert deployment.api.account not in json.dumps(metric_lines)
