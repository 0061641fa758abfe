"""The whole: the stack deployed with SAM into an emulated account, which holds the functions to their roles."""

import json
import uuid

import pytest

from documented import assert_signed
from emulators import BUILT, ROOT
from stack import NAME, TEMPLATE, Stack, sam
from support import Api, command

SECRET = "a-secret-of-your-own"
ACCOUNT = "acme"
# The endpoints are on this machine, and without TLS; and these tests ask the API again and again.
PARAMETERS = {"Targets": "any", "RetrySchedule": "1s,1h", "RateLimitPerMinute": 1_000_000}


class Gateway(Api):
    """The deployed HTTP API. The account finds an API by the host that is asked, of a name that only it knows."""

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
    made = command(
        *("keys", "create", "--account", ACCOUNT, "--json", "--aws"),
        env=ROOT
        | {
            "AWS_ENDPOINT_URL": stack.account.url,
            "WEBHOOKS_TABLE": stack.outputs["WebhooksTable"],
            "DELIVERIES_TABLE": stack.outputs["DeliveriesTable"],
        },
    )
    return Gateway(stack, json.loads(made.stdout)["api_key"])


def put_job(stack, status="completed"):
    """Writes a job as a worker does; gives its id."""
    task = f"task-{uuid.uuid4()}"
    item = {"task_id": task, "account_id": ACCOUNT, "task_type": "image", "status": status}
    stack.account.client("dynamodb").put_item(
        TableName=stack.outputs["JobsTable"],
        Item={name: {"S": value} for name, value in item.items()} | {"data": {"M": {"credits_charged": {"N": "6"}}}},
    )
    return task


def invoke(stack, function, event):
    """What a function answers, and the error if it is one."""
    answer = stack.account.client("lambda").invoke(
        FunctionName=stack.outputs[function], Payload=(BUILT / f"events/{event}.json").read_bytes()
    )
    return json.loads(answer["Payload"].read()), answer.get("FunctionError")


def test_the_api_answers_and_knows_its_keys(stack, api):
    assert api.list().data == []
    api.call("GET", "/api/v1/webhooks", key="sk-REPLACE").is_error(401, "unauthorized")
    api.call("GET", "/nothing-here").is_error(404, "not_found")
    api.post({"url": "https://hooks.example.com/nano", "events": []}).is_error(400, "invalid_request")


def test_a_job_that_is_written_to_the_table_becomes_a_signed_request(stack, api, receiver):
    webhook = api.subscribe(receiver.url + "/hook", SECRET)
    put_job(stack, "processing")
    task = put_job(stack)
    (request,) = receiver.wait_for("/hook")
    assert_signed(request, SECRET)
    assert (request.json["event"], request.json["task_id"]) == ("job.completed", task)
    row = api.row(webhook, lambda row: row["status"] == "delivered")
    assert (row["event_id"], row["attempt_count"]) == (request.id, 1)
    assert api.delete(webhook).status == 200


def test_what_fails_is_sent_again_through_the_queue(stack, api, receiver):
    statuses = iter([500, 204])
    receiver.answer("/hook", lambda handler: handler.reply(next(statuses)))
    webhook = api.subscribe(receiver.url + "/hook", SECRET)
    put_job(stack, "failed")
    row = api.row(webhook, lambda row: row["status"] == "delivered")
    first, second = receiver.at("/hook")
    assert [request.headers["x-nano-attempt"] for request in (first, second)] == ["1", "2"]
    assert first.id == second.id == row["event_id"] and first.body == second.body and row["attempt_count"] == 2
    assert_signed(second, SECRET)
    assert api.delete(webhook).status == 200
    # By now each function has had to do with the secret, and the API with the key.
    for group in ("ApiLogs", "DispatchLogs", "RetryLogs"):
        found = stack.account.client("logs").filter_log_events(logGroupName=stack.resources()[group])
        lines = [event["message"] for event in found["events"]]
        counts = [json.loads(line) for line in lines if '"_aws"' in line]
        assert {line["Stack"] for line in counts} == ({NAME} if group != "ApiLogs" else set()), group
        assert any(line.startswith("{") for line in lines), f"{group}: the function writes there"
        assert not any(SECRET in line or api.key in line for line in lines), group


def test_a_test_event_is_sent_by_the_api_itself(stack, api, receiver):
    webhook = api.subscribe(receiver.url + "/hook", SECRET)
    assert api.call("POST", f"/api/v1/webhooks/{webhook}/test").status == 200
    (request,) = receiver.at("/hook")
    assert_signed(request, SECRET)
    assert api.delete(webhook).status == 200


def test_the_schedule_is_a_sweep(stack):
    (rule,) = [
        rule
        for rule in stack.account.client("events").list_rules()["Rules"]
        if rule["ScheduleExpression"] == "rate(1 minute)" and rule["State"] == "ENABLED"
    ]
    (target,) = stack.account.client("events").list_targets_by_rule(Rule=rule["Name"])["Targets"]
    assert target["Arn"].endswith(f":{stack.outputs['DispatchFunction']}") and "Input" not in target
    assert invoke(stack, "DispatchFunction", "schedule-sweep") == (0, None)


def test_a_function_may_do_what_its_role_allows_and_no_more(stack):
    # The same binary as the one that sweeps, and the role of one that does not.
    answer, error = invoke(stack, "RetryFunction", "schedule-sweep")
    assert error and "is not authorized to perform: dynamodb:Query" in answer["errorMessage"], answer


def test_secrets_are_sealed(stack, api):
    webhook = api.subscribe("https://hooks.example.com/nano", SECRET)
    stored = str(stack.account.client("dynamodb").scan(TableName=stack.outputs["WebhooksTable"])["Items"])
    assert "https://hooks.example.com/nano" in stored and SECRET not in stored
    assert api.delete(webhook).status == 200


def test_nothing_was_given_up(stack):
    found = stack.account.client("sqs").receive_message(QueueUrl=stack.outputs["RetryDeadLettersQueue"])
    assert not found.get("Messages"), found
    found = stack.account.client("s3").list_objects_v2(Bucket=stack.outputs["DiscardedBatchesBucket"])
    assert found["KeyCount"] == 0, found


def test_the_alarms_and_the_dashboard_are_there(stack):
    watch, resources = stack.account.client("cloudwatch"), TEMPLATE["Resources"]
    alarms = [name for name, resource in resources.items() if resource["Type"] == "AWS::CloudWatch::Alarm"]
    found = {alarm["AlarmName"] for alarm in watch.describe_alarms()["MetricAlarms"]}
    assert alarms and {stack.resources()[name] for name in alarms} <= found
    body = watch.get_dashboard(DashboardName=stack.outputs["Dashboard"])["DashboardBody"]
    assert json.loads(body)["widgets"] and "${" not in body
    assert all(stack.outputs[name] in body for name in ("ApiFunction", "DispatchFunction", "RetryFunction"))


def test_deployed_anew_with_another_setting_it_keeps_what_it_has(stack, api, receiver):
    before = stack.resources()
    webhook = api.subscribe(receiver.url + "/hook", SECRET)
    stack.deploy(PARAMETERS | {"WebhooksPerAccount": 1})
    assert stack.resources() == before
    assert [one["id"] for one in api.list().data] == [webhook]
    api.post({"url": receiver.url + "/other", "events": ["job.failed"]}).is_error(409, "conflict")
    put_job(stack)
    (request,) = receiver.wait_for("/hook")
    assert_signed(request, SECRET)
    assert api.delete(webhook).status == 200


def test_when_the_stack_is_deleted_what_is_in_it_is_kept(stack):
    before, task = stack.resources(), put_job(stack, "processing")
    sam(stack.account, "delete", "--stack-name", NAME, "--no-prompts", "--region", "us-east-1")
    functions = stack.account.client("lambda").list_functions()["Functions"]
    assert not [function for function in functions if function["FunctionName"].startswith(NAME)]
    db = stack.account.client("dynamodb")
    assert {before[name] for name in ("Webhooks", "Deliveries", "Jobs")} <= set(db.list_tables()["TableNames"])
    assert db.get_item(TableName=before["Jobs"], Key={"task_id": {"S": task}})["Item"]["status"] == {"S": "processing"}
    # Without it the secrets in the table cannot be opened.
    key = stack.account.client("kms").describe_key(KeyId=before["SecretsKey"])["KeyMetadata"]
    assert key["KeyState"] == "Enabled"
    stack.account.client("s3").head_bucket(Bucket=before["DiscardedBatches"])
