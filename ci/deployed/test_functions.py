"""Invokes each built function with the sample events of events/."""

import json
import re

import pytest

from emulators import BUILT, FunctionError, milliseconds
from readme_verifier import assert_signed
from stack import TEMPLATE
from support import TEST_TIMEOUT, respond_with, wait_until

# The secret in events/api-create.json.
SECRET = "a-secret-of-your-own"
# No process listens on the discard port.
UNREACHABLE = "http://127.0.0.1:9"
NOTHING_FAILED = {"batchItemFailures": []}


def sample(name, **replaced):
    """Returns a sample event. Each keyword argument is a pair of a text and its replacement."""
    text = (BUILT / f"events/{name}.json").read_text()
    for old, new in replaced.values():
        assert old in text, f"{old} is not in events/{name}.json"
        text = text.replace(old, new)
    return json.loads(text)


def data(response, status):
    """Returns the data of a successful response with this status code."""
    body = json.loads(response["body"])
    assert response["statusCode"] == status and body["success"] is True, response
    return body["data"]


def error(response, status):
    """Returns the error code of a response with this status code."""
    body = json.loads(response["body"])
    assert response["statusCode"] == status and body["success"] is False, response
    return body["error"]["code"]


def retry(deployed, message):
    """Invokes the retry function with events/queue-retry.json. The message replaces its first
    record.
    """
    batch = sample("queue-retry")
    fields = {
        "messageId": "MessageId",
        "receiptHandle": "ReceiptHandle",
        "body": "Body",
        "md5OfBody": "MD5OfBody",
    }
    batch["Records"][0] |= {field: message[name] for field, name in fields.items()} | {
        "attributes": message["Attributes"]
    }
    return deployed.invoke("RetryFunction", batch)


def poison_record_message():
    """Returns the log message that the template's metric filters exclude."""
    filters = [r for r in TEMPLATE["Resources"].values() if r["Type"] == "AWS::Logs::MetricFilter"]
    patterns = {filter_["Properties"]["FilterPattern"] for filter_ in filters}
    (message,) = {re.search(r'message != "(.+?)"', pattern)[1] for pattern in patterns}
    return message


def test_webhook_lifecycle(deployed, receiver):
    """A webhook is created, receives a delivery, receives a second one after two retries, and is
    deleted.
    """
    key, url = deployed.create_api_key(), receiver.url + "/hook"
    authorized = {"key": ("sk-REPLACE", key)}
    api, dispatch, retry_function = "ApiFunction", "DispatchFunction", "RetryFunction"

    # The API rejects a request without a key and creates one webhook for one idempotency key.
    assert error(deployed.invoke(api, sample("api-list")), 401) == "unauthorized"
    assert (
        error(deployed.invoke(api, sample("api-unknown-route", **authorized)), 404) == "not_found"
    )
    create = sample("api-create", **authorized, url=("https://hooks.example.com/nano", url))
    created = deployed.invoke(api, create)
    webhook = {"id": 1, "url": url, "events": ["job.completed", "job.failed"], "status": "active"}
    assert data(created, 201) == webhook and created["headers"]["location"] == "/api/v1/webhooks/1"
    assert data(deployed.invoke(api, create), 201) == webhook
    assert data(deployed.invoke(api, sample("api-list", **authorized)), 200) == [webhook]
    stored = {
        item["SK"]: item for item in deployed.scan("webhooks") if item["PK"] == "ACCOUNT#acme"
    }
    assert stored["WEBHOOK#0000000001"]["url"] == url and "WEBHOOK#0000000002" not in stored

    # A completed job is delivered once, although its batch is read twice.
    completed = sample("stream-completed")
    assert [deployed.invoke(dispatch, completed) for _ in range(2)] == [
        NOTHING_FAILED,
        NOTHING_FAILED,
    ]
    (request,) = receiver.requests_to("/hook")
    assert_signed(request, SECRET)
    assert request.body == (
        b'{"event":"job.completed","task_id":"task_01","task_type":"image","status":"completed",'
        b'"data":{"credits_charged":6,"url":"https://cdn.example.com/image.png"},"timestamp":"2024-12-23T10:00:00Z"}'
    )
    (delivery,) = deployed.scan("deliveries")
    assert (delivery["PK"], delivery["SK"]) == ("acme#1", request.id)
    assert (delivery["status"], delivery["attempt_count"]) == (
        "delivered",
        1,
    ) and "due_shard" not in delivery
    assert delivery["body"].encode() == request.body
    (line,) = deployed.started[dispatch].log_lines(message="Attempt completed")
    assert (line["event"], line["attempt"], line["status"]) == (request.id, 1, 204)

    # The first attempt of a failed job's event fails, and the dispatch function sends a retry
    # message.
    statuses = iter([500, 500, 204])
    receiver.respond("/hook", lambda handler: handler.respond(next(statuses)))
    assert deployed.invoke(dispatch, sample("stream-failed")) == NOTHING_FAILED
    first = receiver.requests_to("/hook")[-1]

    def find_delivery():
        (item,) = [item for item in deployed.scan("deliveries") if item["SK"] == first.id]
        return item

    delivery = find_delivery()
    assert (delivery["status"], delivery["attempt_count"], delivery["last_failure"]) == (
        "pending",
        1,
        "status",
    )
    assert (
        abs(delivery["next_attempt_at"] - milliseconds()) < TEST_TIMEOUT * 1000
        and delivery["due_shard"]
    )
    message = deployed.receive_message()
    assert json.loads(message["Body"]) == {
        "account": "acme",
        "webhook_id": 1,
        "event_id": first.id,
        "attempt": 1,
    }

    # The second attempt fails. The next wait exceeds the maximum delay of a message, so the sweep
    # handles it.
    # The batch also contains a malformed message.
    assert retry(deployed, message) == NOTHING_FAILED
    delivery = find_delivery()
    assert (delivery["status"], delivery["attempt_count"]) == ("pending", 2)
    assert (
        delivery["next_attempt_at"] > milliseconds() + 3600 * 1000 and deployed.message_count() == 0
    )
    (line,) = deployed.started[retry_function].log_lines("message_id")
    assert line["level"] == "ERROR"

    # The sweep enqueues the delivery when it is due.
    sweep = sample("schedule-sweep")
    assert deployed.invoke(dispatch, sweep) == 0
    deployed.db.update_item(
        TableName=deployed.tables["deliveries"],
        Key={name: {"S": delivery[name]} for name in ("PK", "SK")},
        UpdateExpression="SET next_attempt_at = :past, sweep_at = :past",
        ConditionExpression="attribute_exists(sweep_at)",
        ExpressionAttributeValues={":past": {"N": str(milliseconds() - 1000)}},
    )
    assert [deployed.invoke(dispatch, sweep) for _ in range(2)] == [1, 0]
    (line,) = deployed.started[dispatch].log_lines("deliveries")
    assert line["deliveries"] == 1
    assert retry(deployed, deployed.receive_message()) == NOTHING_FAILED
    delivery = find_delivery()
    assert (delivery["status"], delivery["attempt_count"]) == ("delivered", 3)
    assert not {"due_shard", "sweep_at", "state_key"} & set(delivery) and delivery["expires_at"]

    # The attempts differ only in time and attempt number.
    attempts = [request for request in receiver.requests_to("/hook") if request.id == first.id]
    assert [request.headers["x-nano-attempt"] for request in attempts] == ["1", "2", "3"]
    assert {request.body for request in attempts} == {first.body} and first.json[
        "event"
    ] == "job.failed"
    for request in attempts:
        assert_signed(request, SECRET)

    # A deleted webhook receives no deliveries.
    assert data(deployed.invoke(api, sample("api-delete", **authorized)), 200) == {"id": 1}
    assert error(deployed.invoke(api, sample("api-delete", **authorized)), 404) == "not_found"
    assert data(deployed.invoke(api, sample("api-list", **authorized)), 200) == []
    assert (
        deployed.invoke(dispatch, sample("stream-completed", task=("task_01", "task_03")))
        == NOTHING_FAILED
    )
    assert (
        len(receiver.requests) == 4
        and len(deployed.scan("deliveries")) == 2
        and deployed.message_count() == 0
    )

    for function in (deployed.started[dispatch], deployed.started[retry_function]):
        for metric, value in {"Attempts": 2, "FailedAttempts": 1, "Delivered": 1}.items():
            function.wait_for_metric(metric, value)
    statuses = [line["status"] for line in deployed.started[api].log_lines("method", "status")]
    assert statuses == [401, 404, 201, 201, 200, 200, 404, 200]
    for name, function in deployed.started.items():
        assert SECRET not in function.log_text() and key not in function.log_text(), name


def test_mixed_batch_stores_poison_records(deployed, receiver):
    """The valid records of a batch are delivered, and the malformed ones are stored as poison
    records.
    """
    url = receiver.url + "/hook"
    create = sample(
        "api-create",
        key=("sk-REPLACE", deployed.create_api_key()),
        url=("https://hooks.example.com/nano", url),
    )
    data(deployed.invoke("ApiFunction", create), 201)
    assert deployed.invoke("DispatchFunction", sample("stream-mixed")) == NOTHING_FAILED
    # Before the first success of a new webhook, the rest of the batch can be deferred to the queue.
    while deployed.message_count():
        assert retry(deployed, deployed.receive_message()) == NOTHING_FAILED
    events = [("task_11", "job.completed"), ("task_14", "job.completed"), ("task_21", "job.failed")]
    assert receiver.events("/hook") == events and len(receiver.requests) == 3
    assert {item["status"] for item in deployed.scan("deliveries")} == {"delivered"}
    poison = [item for item in deployed.scan("webhooks") if item["PK"].startswith("POISON#")]
    assert len(poison) == 4 and all(item["reason"] for item in poison), poison
    dispatch = deployed.started["DispatchFunction"]
    assert len(dispatch.log_lines(message=poison_record_message())) == 4
    dispatch.wait_for_metric("Poison", 4)


def test_unavailable_table_returns_messages(deployed):
    """The retry function returns only the messages that require the unavailable table."""
    retry_function = deployed.start("RetryFunction", AWS_ENDPOINT_URL_DYNAMODB=UNREACHABLE)
    batch = sample("queue-retry")
    assert retry_function.invoke(batch) == {
        "batchItemFailures": [{"itemIdentifier": batch["Records"][0]["messageId"]}]
    }
    (line,) = retry_function.log_lines("event", level="ERROR")
    assert line["account"] == "acme"


def test_unavailable_table_returns_records(deployed):
    """The dispatch function returns only the records that require the unavailable table."""
    dispatch = deployed.start("DispatchFunction", AWS_ENDPOINT_URL_DYNAMODB=UNREACHABLE)
    batch = sample("stream-mixed")
    batch["Records"] = [record for record in batch["Records"] if isinstance(record, dict)]
    result = dispatch.invoke(batch)
    # The second record of task_11, task_15 and task_16 cause no event.
    returned = [failure["itemIdentifier"][-2:] for failure in result["batchItemFailures"]]
    assert returned == ["11", "12", "14", "17", "18", "19", "21"]


def test_unavailable_table_fails_sweep(deployed):
    """A sweep that cannot read the table fails its invocation."""
    dispatch = deployed.start("DispatchFunction", AWS_ENDPOINT_URL_DYNAMODB=UNREACHABLE)
    with pytest.raises(FunctionError):
        dispatch.invoke(sample("schedule-sweep"))


def test_panic_fails_one_invocation(deployed):
    """A panic fails its invocation, and the next invocation succeeds."""
    # lambda_http panics for an invalid host. API Gateway never sends one.
    broken = sample(
        "api-list",
        host=('"host": "abcde12345.execute-api.us-east-1.amazonaws.com"', '"host": "abcde12345.1"'),
    )
    with pytest.raises(FunctionError, match="panicked"):
        deployed.invoke("ApiFunction", broken)
    assert error(deployed.invoke("ApiFunction", sample("api-list")), 401) == "unauthorized"


@pytest.mark.parametrize("name", ["ApiFunction", "DispatchFunction"])
def test_missing_queue_url_fails_start(deployed, name):
    """A function without RETRY_QUEUE_URL does not start and logs the variable's name."""
    function = deployed.start(name, RETRY_QUEUE_URL="")
    with pytest.raises(FunctionError):
        function.invoke({})
    assert "RETRY_QUEUE_URL: missing" in function.log_text()


def test_operational_events_reach_topic(deployed, account, receiver):
    """The scheduled job publishes operational events to the topic of NOTIFY_TOPIC_ARN."""
    sns, sqs = account.client("sns"), account.client("sqs")
    topic = sns.create_topic(Name="customers")["TopicArn"]
    mailer = sqs.create_queue(QueueName="mailer")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=mailer, AttributeNames=["QueueArn"])
    queue = attributes["Attributes"]["QueueArn"]
    allow_topic = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue,
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allow_topic]})
    sqs.set_queue_attributes(QueueUrl=mailer, Attributes={"Policy": policy})
    sns.subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=queue,
        Attributes={"RawMessageDelivery": "true"},
    )
    deployed.env |= {"NOTIFY_TOPIC_ARN": topic, "AWS_ENDPOINT_URL_SNS": account.url}
    receiver.respond("/gone", respond_with(410))
    key, url = deployed.create_api_key(), receiver.url + "/gone"
    create = sample(
        "api-create", key=("sk-REPLACE", key), url=("https://hooks.example.com/nano", url)
    )
    webhook = data(deployed.invoke("ApiFunction", create), 201)["id"]
    deployed.invoke("DispatchFunction", sample("stream-completed"))
    deployed.invoke("DispatchFunction", sample("schedule-advance"))
    (message,) = wait_until(
        lambda: sqs.receive_message(QueueUrl=mailer, WaitTimeSeconds=1).get("Messages"),
        "a message of the topic",
    )
    body = json.loads(message["Body"])
    assert (body["account_id"], body["payload"]["event"]) == ("acme", "webhook.disabled")
    assert body["payload"]["data"]["webhook_id"] == webhook
    assert not [item for item in deployed.scan("webhooks") if item["PK"].startswith("NOTICE#")]
