"""Each function as it was built, on Lambda's own runtime emulator, with the sample events of events/."""

import json

import pytest

from documented import assert_signed
from emulators import BUILT, FunctionError, milliseconds
from support import DEADLINE

SECRET = "a-secret-of-your-own"  # that of events/api-create.json
NOWHERE = "http://127.0.0.1:9"  # the discard port, on which nothing listens
NOTHING_FAILED = {"batchItemFailures": []}


def sample(name, **replaced):
    """A sample event; what must be another here is replaced in its text."""
    text = (BUILT / f"events/{name}.json").read_text()
    for old, new in replaced.values():
        assert old in text, f"{old} is not in events/{name}.json"
        text = text.replace(old, new)
    return json.loads(text)


def data(answer, status):
    """What the API answered with, after status and envelope."""
    body = json.loads(answer["body"])
    assert answer["statusCode"] == status and body["success"] is True, answer
    return body["data"]


def error(answer, status):
    body = json.loads(answer["body"])
    assert answer["statusCode"] == status and body["success"] is False, answer
    return body["error"]["code"]


def retry(deployed, message):
    """The batch of events/queue-retry.json with a message of the queue in the place of the first."""
    batch = sample("queue-retry")
    ours = {"messageId": "MessageId", "receiptHandle": "ReceiptHandle", "body": "Body", "md5OfBody": "MD5OfBody"}
    batch["Records"][0] |= {theirs: message[name] for theirs, name in ours.items()} | {"attributes": message["Attributes"]}
    return deployed.invoke("RetryFunction", batch)


def test_a_webhook_is_created_called_called_again_and_deleted(deployed, receiver):
    key, url = deployed.new_key(), receiver.url + "/hook"
    authorized = {"key": ("sk-REPLACE", key)}
    api, dispatch, retry_function = "ApiFunction", "DispatchFunction", "RetryFunction"

    # The API, first without a key.
    assert error(deployed.invoke(api, sample("api-list")), 401) == "unauthorized"
    assert error(deployed.invoke(api, sample("api-unknown-route", **authorized)), 404) == "not_found"
    create = sample("api-create", **authorized, url=("https://hooks.example.com/nano", url))
    created = deployed.invoke(api, create)
    webhook = {"id": 1, "url": url, "events": ["job.completed", "job.failed"], "status": "active"}
    assert data(created, 201) == webhook and created["headers"]["location"] == "/api/v1/webhooks/1"
    assert data(deployed.invoke(api, create), 201) == webhook, "it was created once: the idempotency key is the same"
    assert data(deployed.invoke(api, sample("api-list", **authorized)), 200) == [webhook]
    stored = {item["SK"]: item for item in deployed.items("webhooks") if item["PK"] == "ACCOUNT#acme"}
    assert stored["WEBHOOK#0000000001"]["url"] == url and "WEBHOOK#0000000002" not in stored

    # A job that completes, in a batch that is read twice.
    completed = sample("stream-completed")
    assert [deployed.invoke(dispatch, completed) for _ in range(2)] == [NOTHING_FAILED, NOTHING_FAILED]
    (request,) = receiver.at("/hook")
    assert_signed(request, SECRET)
    assert request.body == (
        b'{"event":"job.completed","task_id":"task_01","task_type":"image","status":"completed",'
        b'"data":{"credits_charged":6,"url":"https://cdn.example.com/image.png"},"timestamp":"2024-12-23T10:00:00Z"}'
    )
    (delivery,) = deployed.items("deliveries")
    assert (delivery["PK"], delivery["SK"]) == ("acme#1", request.id)
    assert (delivery["status"], delivery["attempt_count"]) == ("delivered", 1) and "due_shard" not in delivery
    assert delivery["body"].encode() == request.body
    (line,) = deployed.started[dispatch].log_lines("attempt")
    assert (line["event"], line["attempt"], line["status"]) == (request.id, 1, 204)

    # A job that fails, told to an endpoint that fails as well: the queue is to bring it again.
    statuses = iter([500, 500, 204])
    receiver.answer("/hook", lambda handler: handler.reply(next(statuses)))
    assert deployed.invoke(dispatch, sample("stream-failed")) == NOTHING_FAILED
    first = receiver.at("/hook")[-1]

    def find():
        (item,) = [item for item in deployed.items("deliveries") if item["SK"] == first.id]
        return item

    delivery = find()
    assert (delivery["status"], delivery["attempt_count"], delivery["last_failure"]) == ("pending", 1, "status")
    assert abs(delivery["next_attempt_at"] - milliseconds()) < DEADLINE * 1000 and delivery["due_shard"]
    message = deployed.received()
    assert json.loads(message["Body"]) == {"account": "acme", "webhook_id": 1, "event_id": first.id, "attempt": 1}

    # The queue brings it, and beside it a message that is none of ours. It fails again; no message can wait as long as the
    # delivery now has to.
    assert retry(deployed, message) == NOTHING_FAILED
    delivery = find()
    assert (delivery["status"], delivery["attempt_count"]) == ("pending", 2)
    assert delivery["next_attempt_at"] > milliseconds() + 3600 * 1000 and deployed.in_queue() == 0
    (line,) = deployed.started[retry_function].log_lines("a message that is none of ours")
    assert line["level"] == "ERROR"

    # The schedule finds nothing due; then time goes by.
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
    (line,) = deployed.started[dispatch].log_lines("sweep")
    assert line["deliveries"] == 1
    assert retry(deployed, deployed.received()) == NOTHING_FAILED
    delivery = find()
    assert (delivery["status"], delivery["attempt_count"]) == ("delivered", 3)
    assert not {"due_shard", "sweep_at", "state_key"} & set(delivery) and delivery["expires_at"]

    # The same request three times, but for the time and the number of the attempt.
    again = [request for request in receiver.at("/hook") if request.id == first.id]
    assert [request.headers["x-nano-attempt"] for request in again] == ["1", "2", "3"]
    assert {request.body for request in again} == {first.body} and first.json["event"] == "job.failed"
    for request in again:
        assert_signed(request, SECRET)

    # Deleted, it is called no more.
    assert data(deployed.invoke(api, sample("api-delete", **authorized)), 200) == {"id": 1}
    assert error(deployed.invoke(api, sample("api-delete", **authorized)), 404) == "not_found"
    assert data(deployed.invoke(api, sample("api-list", **authorized)), 200) == []
    assert deployed.invoke(dispatch, sample("stream-completed", task=("task_01", "task_03"))) == NOTHING_FAILED
    assert len(receiver.requests) == 4 and len(deployed.items("deliveries")) == 2 and deployed.in_queue() == 0

    for function in (deployed.started[dispatch], deployed.started[retry_function]):
        for metric, number in {"Attempts": 2, "FailedAttempts": 1, "Delivered": 1}.items():
            function.wait_until_counted(metric, number)
    statuses = [line["status"] for line in deployed.started[api].log_lines("request")]
    assert statuses == [401, 404, 201, 201, 200, 200, 404, 200]
    for name, function in deployed.started.items():
        assert SECRET not in function.log_text() and key not in function.log_text(), name


def test_of_a_mixed_batch_the_good_records_are_delivered_and_the_bad_ones_kept(deployed, receiver):
    url = receiver.url + "/hook"
    create = sample("api-create", key=("sk-REPLACE", deployed.new_key()), url=("https://hooks.example.com/nano", url))
    data(deployed.invoke("ApiFunction", create), 201)
    assert deployed.invoke("DispatchFunction", sample("stream-mixed")) == NOTHING_FAILED
    # The first success of a new webhook may come after the rest of the batch was left to the queue.
    while deployed.in_queue():
        assert retry(deployed, deployed.received()) == NOTHING_FAILED
    events = [("task_11", "job.completed"), ("task_14", "job.completed"), ("task_21", "job.failed")]
    assert receiver.events("/hook") == events and len(receiver.requests) == 3
    assert {item["status"] for item in deployed.items("deliveries")} == {"delivered"}
    poison = [item for item in deployed.items("webhooks") if item["PK"].startswith("POISON#")]
    assert len(poison) == 4 and all(item["reason"] for item in poison), poison
    dispatch = deployed.started["DispatchFunction"]
    assert len(dispatch.log_lines("poison record")) == 4
    dispatch.wait_until_counted("Poison", 4)


def test_of_a_batch_of_messages_those_come_again_that_the_table_is_needed_for(deployed):
    retry_function = deployed.function("RetryFunction", AWS_ENDPOINT_URL_DYNAMODB=NOWHERE)
    batch = sample("queue-retry")
    answer = retry_function.invoke(batch)
    assert answer == {"batchItemFailures": [{"itemIdentifier": batch["Records"][0]["messageId"]}]}
    (line,) = retry_function.log_lines("a retry will be made again")
    assert line["account"] == "acme"


def test_of_a_batch_of_records_those_come_again_that_the_table_is_needed_for(deployed):
    dispatch = deployed.function("DispatchFunction", AWS_ENDPOINT_URL_DYNAMODB=NOWHERE)
    batch = sample("stream-mixed")
    batch["Records"] = [record for record in batch["Records"] if isinstance(record, dict)]
    answer = dispatch.invoke(batch)
    # Not those of which nothing comes: the second of task_11, and task_15 and task_16.
    again = [failure["itemIdentifier"][-2:] for failure in answer["batchItemFailures"]]
    assert again == ["11", "12", "14", "17", "18", "19", "21"]


def test_a_sweep_that_fails_says_so(deployed):
    dispatch = deployed.function("DispatchFunction", AWS_ENDPOINT_URL_DYNAMODB=NOWHERE)
    with pytest.raises(FunctionError):
        dispatch.invoke(sample("schedule-sweep"))


def test_a_panic_is_an_error_answer_and_the_function_goes_on(deployed):
    # What reads the event for us panics at a host that is no host. API Gateway passes none on.
    broken = sample("api-list", host=('"host": "abcde12345.execute-api.us-east-1.amazonaws.com"', '"host": "abcde12345.1"'))
    with pytest.raises(FunctionError, match="panicked"):
        deployed.invoke("ApiFunction", broken)
    assert error(deployed.invoke("ApiFunction", sample("api-list")), 401) == "unauthorized"


@pytest.mark.parametrize("name", ["ApiFunction", "DispatchFunction"])
def test_a_function_without_its_queue_does_not_start_and_says_so(deployed, name):
    function = deployed.function(name, RETRY_QUEUE_URL="")
    with pytest.raises(FunctionError):
        function.invoke({})
    assert "RETRY_QUEUE_URL: missing" in function.log_text()
