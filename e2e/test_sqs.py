"""The deployed functions with a real SQS between them."""

import datetime
import json

import pytest

from deployment import EVENTS, UNREACHABLE, FunctionError
from support import (
    PLAIN_SECRET,
    TEST_TIMEOUT,
    respond_in_turn,
    respond_with,
    verify_signatures,
    wait_until,
)

ERROR_THEN_SUCCESS = respond_with(500), respond_with(204)


def poll_until_delivered(deployment, webhook):
    """Polls the queue until the webhook's only delivery is delivered."""

    def is_delivered():
        return deployment.api.wait_for_delivery(webhook)["status"] == "delivered"

    deployment.poll_until(is_delivered, "the delivery succeeds")


# Retries through the queue


def test_failed_attempt_is_retried_through_queue(deploy, receiver):
    """A failed attempt sends one message with its wait as the delay, and the message triggers the
    next attempt.

    The queued attempt may take longer than the one second that a direct attempt has.
    """
    deployment = deploy("2s,1h")
    receiver.respond("/hook", respond_in_turn(respond_with(500), respond_with(204, delay=1.5)))
    webhook = deployment.api.subscribe(receiver.url + "/hook", PLAIN_SECRET)
    deployment.complete_jobs("task")
    row = deployment.api.wait_for_delivery(webhook)
    assert (row["status"], row["attempt_count"], row["last_failure"]) == ("pending", 1, "status")

    ((sent_at, [message]),) = deployment.sqs_proxy.message_batches
    assert json.loads(message["MessageBody"]) == {
        "account": deployment.api.account,
        "webhook_id": webhook,
        "event_id": row["event_id"],
        "attempt": 1,
    }
    due = datetime.datetime.fromisoformat(row["next_attempt_at"]).timestamp()
    assert due <= sent_at + message["DelaySeconds"] and message["DelaySeconds"] <= 3, (
        due - sent_at,
        message,
    )
    assert sum(deployment.count_messages()) == 1

    deployment.poll_until(lambda: len(receiver.requests_to("/hook")) == 2, "a second attempt")
    first, second = receiver.requests_to("/hook")
    assert [request.headers["x-nano-attempt"] for request in (first, second)] == ["1", "2"]
    assert (first.id, first.body) == (second.id, second.body) and first.id == row["event_id"]
    assert second.received_at >= due
    verify_signatures([first, second], PLAIN_SECRET)
    row = deployment.api.wait_for_delivery(webhook)
    assert (row["status"], row["attempt_count"], row["next_attempt_at"]) == ("delivered", 2, None)
    assert len(deployment.sqs_proxy.sent_messages) == 1, (
        "the message arrived when the attempt was due"
    )
    assert deployment.count_messages() == (0, 0, 0)


def test_deferred_deliveries_are_queued_in_tens(deploy, receiver):
    """After a failed direct attempt the other events of the batch go to the queue, in batches of
    ten messages.
    """
    deployment = deploy("2h")
    receiver.respond("/hook", respond_in_turn(*ERROR_THEN_SUCCESS))
    webhook = deployment.api.subscribe(receiver.url + "/hook")
    deployment.complete_jobs(*(f"task-{number}" for number in range(25)))
    assert len(receiver.requests_to("/hook")) == 1
    assert sorted(len(messages) for _, messages in deployment.sqs_proxy.message_batches) == [
        4,
        10,
        10,
    ]
    messages = deployment.sqs_proxy.sent_messages
    assert {json.loads(message["MessageBody"])["attempt"] for message in messages} == {0}
    assert {message["DelaySeconds"] for message in messages} == {0}

    count_requests = lambda: len(receiver.requests_to("/hook"))
    deployment.poll_until(
        lambda: count_requests() == 25, lambda: f"25 requests, received {count_requests()}"
    )
    assert {request.headers["x-nano-attempt"] for request in receiver.requests_to("/hook")} == {"1"}
    assert len({request.id for request in receiver.requests_to("/hook")}) == 25
    assert len(deployment.api.list_deliveries(webhook, status="pending")) == 1
    assert len(deployment.api.list_deliveries(webhook, status="delivered")) == 24


def test_messages_are_grouped_by_webhook(deploy, receiver):
    """Each webhook has a message group of its own, which SQS serves fairly."""
    deployment = deploy("1m")
    for path in ("/a", "/b"):
        receiver.respond(path, respond_with(500))
        deployment.api.subscribe(receiver.url + path)
    deployment.complete_jobs("task-1")
    deployment.complete_jobs("task-2")
    groups = {}
    for message in deployment.sqs_proxy.sent_messages:
        groups.setdefault(json.loads(message["MessageBody"])["webhook_id"], set()).add(
            message["MessageGroupId"]
        )
    assert len(deployment.sqs_proxy.sent_messages) == 4
    assert [len(group) for group in groups.values()] == [1, 1] and len(
        set.union(*groups.values())
    ) == 2, groups


def test_manual_retry_sends_message_without_delay(deploy, receiver):
    """A wait of two hours sends no message; the sweep handles it.

    A manual retry sends one without a delay.
    """
    deployment = deploy("2h")
    receiver.respond("/hook", respond_in_turn(*ERROR_THEN_SUCCESS))
    webhook = deployment.api.subscribe(receiver.url + "/hook")
    deployment.complete_jobs("task")
    assert deployment.sqs_proxy.sent_messages == []
    event = deployment.api.wait_for_delivery(webhook)["event_id"]
    assert deployment.api.retry(webhook, event).status == 202
    assert [message["DelaySeconds"] for message in deployment.sqs_proxy.sent_messages] == [0]
    poll_until_delivered(deployment, webhook)
    assert [request.headers["x-nano-attempt"] for request in receiver.requests_to("/hook")] == [
        "1",
        "2",
    ]


# Outages of AWS


def refuse_each_message(request):
    """A response of SQS that accepts none of the messages of a batch."""
    failed = [
        {"Id": entry["Id"], "SenderFault": False, "Code": "InternalError"}
        for entry in request["Entries"]
    ]
    return 200, {"Successful": [], "Failed": failed}


@pytest.mark.parametrize(
    "override",
    [
        pytest.param(lambda _: (503, {"__type": "ServiceUnavailable"}), id="SQS unavailable"),
        pytest.param(refuse_each_message, id="each message refused"),
    ],
)
def test_sweep_sends_message_that_sqs_refused(deploy, receiver, override):
    """The stream batch succeeds without the message, since the delivery is in the table.

    The next sweep sends it.
    """
    deployment = deploy("1s")
    receiver.respond("/hook", respond_in_turn(*ERROR_THEN_SUCCESS))
    webhook = deployment.api.subscribe(receiver.url + "/hook")
    deployment.sqs_proxy.override = override
    deployment.complete_jobs("task")
    deployment.sqs_proxy.override = None
    assert deployment.count_messages() == (0, 0, 0)
    assert deployment.sweep() == 1
    poll_until_delivered(deployment, webhook)
    assert len(receiver.requests_to("/hook")) == 2


def test_dynamodb_outage_returns_messages_to_queue(deploy, receiver):
    """A message that needs the tables is reported as failed and is received again.

    Other messages are deleted.
    """
    deployment = deploy("1s,1h")
    receiver.respond("/hook", respond_in_turn(*ERROR_THEN_SUCCESS))
    webhook = deployment.api.subscribe(receiver.url + "/hook")
    deployment.complete_jobs("task")
    disconnected = deployment.function("dispatch", AWS_ENDPOINT_URL_DYNAMODB=UNREACHABLE)
    foreign = deployment.sqs.send_message(QueueUrl=deployment.queue, MessageBody="Hello from SQS!")[
        "MessageId"
    ]
    received, failed = set(), set()

    def poll_both():
        received_ids, failed_ids = deployment.poll(disconnected)
        received.update(received_ids)
        failed.update(failed_ids)
        return len(received) == 2 and foreign in received

    wait_until(poll_both, lambda: f"both messages: {received}, failed {failed}", 3 * TEST_TIMEOUT)
    assert failed == received - {foreign}
    assert len(receiver.requests_to("/hook")) == 1
    poll_until_delivered(deployment, webhook)
    assert len(receiver.requests_to("/hook")) == 2
    with pytest.raises(FunctionError):
        disconnected.invoke(json.loads((EVENTS / "schedule-sweep.json").read_text()))


@pytest.mark.parametrize("binary", ["api", "dispatch"])
def test_function_without_queue_exits_with_error(deploy, binary):
    """A missing RETRY_QUEUE_URL stops the start with one line that names it."""
    function = deploy("1h").function(binary, RETRY_QUEUE_URL="")
    assert function.popen.wait(TEST_TIMEOUT) != 0
    (line,) = function.log.read_text().splitlines()
    assert "RETRY_QUEUE_URL" in line and "missing" in line, line
