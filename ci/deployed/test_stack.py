"""Deploys the stack with SAM into an emulated account, which enforces the functions' roles."""

import json
import uuid

import pytest

from emulators import BUILT, ROOT
from readme_verifier import assert_signed
from stack import NAME, TEMPLATE, Stack, sam
from support import Api, run_command

SECRET = "a-secret-of-your-own"
ACCOUNT = "acme"
# The endpoints have loopback addresses and no TLS, and the tests send many API requests.
PARAMETERS = {"Targets": "any", "RetrySchedule": "1s,1h", "RateLimitPerMinute": 1_000_000}


class Gateway(Api):
    """A client of the deployed HTTP API. The account selects the API by the Host header."""

    def __init__(self, stack, key):
        super().__init__(stack.account.url, key, ACCOUNT)
        self.host = f"{stack.resources()['Api']}.execute-api.localhost:{stack.account.port}"

    def call(self, method, path, body=None, headers=None, key=None):
        return super().call(method, path, body, {"Host": self.host} | (headers or {}), key)


@pytest.fixture(scope="module")
def stack(account):
    return Stack(account, **PARAMETERS)


@pytest.fixture(scope="module")
def api(stack):
    created = run_command(
        *("keys", "create", "--account", ACCOUNT, "--json", "--aws"),
        env=ROOT
        | {
            "AWS_ENDPOINT_URL": stack.account.url,
            "WEBHOOKS_TABLE": stack.outputs["WebhooksTable"],
            "DELIVERIES_TABLE": stack.outputs["DeliveriesTable"],
        },
    )
    return Gateway(stack, json.loads(created.stdout)["api_key"])


def put_job(stack, status="completed"):
    """Writes a job to the jobs table and returns its task ID."""
    task = f"task-{uuid.uuid4()}"
    item = {"task_id": task, "account_id": ACCOUNT, "task_type": "image", "status": status}
    stack.account.client("dynamodb").put_item(
        TableName=stack.outputs["JobsTable"],
        Item={name: {"S": value} for name, value in item.items()}
        | {"data": {"M": {"credits_charged": {"N": "6"}}}},
    )
    return task


def invoke(stack, function, event):
    """Invokes a function and returns its result and its error type, if any."""
    response = stack.account.client("lambda").invoke(
        FunctionName=stack.outputs[function], Payload=(BUILT / f"events/{event}.json").read_bytes()
    )
    return json.loads(response["Payload"].read()), response.get("FunctionError")


def test_api_authenticates_requests(stack, api):
    """The deployed API accepts its keys, rejects others, and returns the documented errors."""
    assert api.list_webhooks().data == []
    api.call("GET", "/api/v1/webhooks", key="sk-REPLACE").assert_error(401, "unauthorized")
    api.call("GET", "/nothing-here").assert_error(404, "not_found")
    api.create({"url": "https://hooks.example.com/nano", "events": []}).assert_error(
        400, "invalid_request"
    )


def test_job_write_sends_signed_request(stack, api, receiver):
    """A completed job in the jobs table causes one signed request."""
    webhook = api.subscribe(receiver.url + "/hook", SECRET)
    put_job(stack, "processing")
    task = put_job(stack)
    (request,) = receiver.wait_for("/hook")
    assert_signed(request, SECRET)
    assert (request.json["event"], request.json["task_id"]) == ("job.completed", task)
    row = api.wait_for_delivery(webhook, lambda row: row["status"] == "delivered")
    assert (row["event_id"], row["attempt_count"]) == (request.id, 1)
    assert api.delete(webhook).status == 200


def test_failed_attempt_is_retried(stack, api, receiver):
    """A failed attempt is retried through the queue, and no log contains a secret or an API key."""
    statuses = iter([500, 204])
    receiver.respond("/hook", lambda handler: handler.respond(next(statuses)))
    webhook = api.subscribe(receiver.url + "/hook", SECRET)
    put_job(stack, "failed")
    row = api.wait_for_delivery(webhook, lambda row: row["status"] == "delivered")
    first, second = receiver.requests_to("/hook")
    assert [request.headers["x-nano-attempt"] for request in (first, second)] == ["1", "2"]
    assert (
        first.id == second.id == row["event_id"]
        and first.body == second.body
        and row["attempt_count"] == 2
    )
    assert_signed(second, SECRET)
    assert api.delete(webhook).status == 200
    # Each function has used the secret at this point, and the API function has used the key.
    for group in ("ApiLogs", "DispatchLogs", "RetryLogs"):
        page = stack.account.client("logs").filter_log_events(logGroupName=stack.resources()[group])
        lines = [event["message"] for event in page["events"]]
        metrics = [json.loads(line) for line in lines if '"_aws"' in line]
        assert {line["Stack"] for line in metrics} == ({NAME} if group != "ApiLogs" else set()), (
            group
        )
        assert any(line.startswith("{") for line in lines), f"{group} has no lines of the function"
        assert not any(SECRET in line or api.key in line for line in lines), group


def test_api_sends_test_event(stack, api, receiver):
    """The API function sends a test event itself."""
    webhook = api.subscribe(receiver.url + "/hook", SECRET)
    assert api.call("POST", f"/api/v1/webhooks/{webhook}/test").status == 200
    (request,) = receiver.requests_to("/hook")
    assert_signed(request, SECRET)
    assert api.delete(webhook).status == 200


def test_schedules_invoke_jobs(stack):
    """Two rules invoke the dispatch function every minute, each with the sample event of its job."""
    events = stack.account.client("events")
    inputs = []
    for rule in events.list_rules()["Rules"]:
        if rule["ScheduleExpression"] == "rate(1 minute)" and rule["State"] == "ENABLED":
            (target,) = events.list_targets_by_rule(Rule=rule["Name"])["Targets"]
            assert target["Arn"].endswith(f":{stack.outputs['DispatchFunction']}")
            inputs.append(json.loads(target["Input"]))
    assert sorted(event["job"] for event in inputs) == ["advance", "sweep"]
    for name in ("schedule-sweep", "schedule-advance"):
        assert invoke(stack, "DispatchFunction", name) == (0, None)


def test_role_denies_other_actions(stack):
    """The retry function's role denies a sweep, which its binary supports."""
    result, error = invoke(stack, "RetryFunction", "schedule-sweep")
    assert error and "is not authorized to perform: dynamodb:Query" in result["errorMessage"], (
        result
    )


def test_stored_secrets_are_encrypted(stack, api):
    """The Webhooks table contains no plain secret."""
    webhook = api.subscribe("https://hooks.example.com/nano", SECRET)
    stored = str(
        stack.account.client("dynamodb").scan(TableName=stack.outputs["WebhooksTable"])["Items"]
    )
    assert "https://hooks.example.com/nano" in stored and SECRET not in stored
    assert api.delete(webhook).status == 200


def test_nothing_is_discarded(stack):
    """The dead-letter queue and the bucket of discarded batches are empty."""
    messages = stack.account.client("sqs").receive_message(
        QueueUrl=stack.outputs["RetryDeadLettersQueue"]
    )
    assert not messages.get("Messages"), messages
    objects = stack.account.client("s3").list_objects_v2(
        Bucket=stack.outputs["DiscardedBatchesBucket"]
    )
    assert objects["KeyCount"] == 0, objects


def test_alarms_and_dashboard_are_created(stack):
    """The account has every alarm of the template and a dashboard with resolved references."""
    cloudwatch, resources = stack.account.client("cloudwatch"), TEMPLATE["Resources"]
    alarms = [
        name for name, resource in resources.items() if resource["Type"] == "AWS::CloudWatch::Alarm"
    ]
    created = {alarm["AlarmName"] for alarm in cloudwatch.describe_alarms()["MetricAlarms"]}
    assert alarms and {stack.resources()[name] for name in alarms} <= created
    body = cloudwatch.get_dashboard(DashboardName=stack.outputs["Dashboard"])["DashboardBody"]
    assert json.loads(body)["widgets"] and "${" not in body
    assert all(
        stack.outputs[name] in body for name in ("ApiFunction", "DispatchFunction", "RetryFunction")
    )


def test_update_keeps_resources_and_data(stack, api, receiver):
    """An update with another parameter keeps the resources and the webhooks, and applies the
    parameter.
    """
    before = stack.resources()
    webhook = api.subscribe(receiver.url + "/hook", SECRET)
    stack.deploy(PARAMETERS | {"WebhooksPerAccount": 1})
    assert stack.resources() == before
    assert [row["id"] for row in api.list_webhooks().data] == [webhook]
    api.create({"url": receiver.url + "/other", "events": ["job.failed"]}).assert_error(
        409, "conflict"
    )
    put_job(stack)
    (request,) = receiver.wait_for("/hook")
    assert_signed(request, SECRET)
    assert api.delete(webhook).status == 200


def test_stack_deletion_retains_data(stack):
    """The deletion of the stack retains the tables, the KMS key and the bucket."""
    before, task = stack.resources(), put_job(stack, "processing")
    sam(stack.account, "delete", "--stack-name", NAME, "--no-prompts", "--region", "us-east-1")
    functions = stack.account.client("lambda").list_functions()["Functions"]
    assert not [function for function in functions if function["FunctionName"].startswith(NAME)]
    db = stack.account.client("dynamodb")
    assert {before[name] for name in ("Webhooks", "Deliveries", "Jobs")} <= set(
        db.list_tables()["TableNames"]
    )
    assert db.get_item(TableName=before["Jobs"], Key={"task_id": {"S": task}})["Item"][
        "status"
    ] == {"S": "processing"}
    key = stack.account.client("kms").describe_key(KeyId=before["SecretsKey"])["KeyMetadata"]
    assert key["KeyState"] == "Enabled"
    stack.account.client("s3").head_bucket(Bucket=before["DiscardedBatches"])
