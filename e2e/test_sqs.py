"""The deployed functions with a real SQS between them."""

import datetime
import json
import uuid

import pytest

from deployment import EVENTS, NOWHERE, FunctionError, message, one_after_the_other, queue_event, status
from support import DEADLINE, PLAIN_SECRET, eventually, verify


# --- from the stream through the queue


def test_a_failed_attempt_becomes_a_timer_in_the_queue_and_the_timer_the_next_attempt(deploy, receiver):
    deployment = deploy("2s,1h")
    # From the queue an endpoint has more time than the second that it has while the stream waits.
    receiver.answer("/hook", one_after_the_other(status(500), status(204, after=1.5)))
    webhook = deployment.api.subscribe(receiver.url + "/hook", PLAIN_SECRET)
    deployment.jobs_end("task")
    row = deployment.api.row(webhook)
    assert (row["status"], row["attempt_count"], row["last_failure"]) == ("pending", 1, "status")

    ((sent_at, [entry]),) = deployment.wire.batches
    assert json.loads(entry["MessageBody"]) == {
        "account": deployment.api.account,
        "webhook_id": webhook,
        "event_id": row["event_id"],
        "attempt": 1,
    }
    due = datetime.datetime.fromisoformat(row["next_attempt_at"]).timestamp()
    assert due <= sent_at + entry["DelaySeconds"] and entry["DelaySeconds"] <= 3, (due - sent_at, entry)
    assert sum(deployment.in_queue()) == 1

    deployment.poll_until(lambda: len(receiver.at("/hook")) == 2, "a second attempt")
    first, second = receiver.at("/hook")
    assert [request.headers["x-nano-attempt"] for request in (first, second)] == ["1", "2"]
    assert (first.id, first.body) == (second.id, second.body) and first.id == row["event_id"]
    assert second.at >= due
    verify([first, second], PLAIN_SECRET)
    row = deployment.api.row(webhook)
    assert (row["status"], row["attempt_count"], row["next_attempt_at"]) == ("delivered", 2, None)
    assert len(deployment.wire.sent) == 1, "it came when it was due: no further message was needed"
    assert deployment.in_queue() == (0, 0, 0)


def test_what_a_batch_leaves_to_the_queue_is_sent_in_batches_of_ten_and_all_delivered(deploy, receiver):
    deployment = deploy("2h")
    receiver.answer("/hook", one_after_the_other(status(500), status(204)))
    webhook = deployment.api.subscribe(receiver.url + "/hook")
    # One direct attempt to an endpoint that has never succeeded; when it fails the others are left to the queue.
    deployment.jobs_end(*(f"task-{n}" for n in range(25)))
    assert len(receiver.at("/hook")) == 1
    assert sorted(len(entries) for _, entries in deployment.wire.batches) == [4, 10, 10]
    assert {json.loads(entry["MessageBody"])["attempt"] for entry in deployment.wire.sent} == {0}
    assert {entry["DelaySeconds"] for entry in deployment.wire.sent} == {0}
    deployment.poll_until(lambda: len(receiver.at("/hook")) == 25, lambda: len(receiver.at("/hook")))
    assert {request.headers["x-nano-attempt"] for request in receiver.at("/hook")} == {"1"}
    assert len({request.id for request in receiver.at("/hook")}) == 25
    assert [row["status"] for row in deployment.api.log(webhook, status="pending")] == ["pending"]
    assert len(deployment.api.log(webhook, status="delivered")) == 24


def test_messages_of_one_webhook_are_a_group_of_their_own(deploy, receiver):
    deployment = deploy("1m")
    receiver.answer("/a", status(500))
    receiver.answer("/b", status(500))
    for path in ("/a", "/b"):
        deployment.api.subscribe(receiver.url + path)
    deployment.jobs_end("task-1")
    deployment.jobs_end("task-2")
    groups = {}
    for entry in deployment.wire.sent:
        groups.setdefault(json.loads(entry["MessageBody"])["webhook_id"], set()).add(entry["MessageGroupId"])
    assert len(deployment.wire.sent) == 4
    assert [len(group) for group in groups.values()] == [1, 1] and len(set.union(*groups.values())) == 2, groups


def test_a_retry_that_a_person_asks_for_goes_through_the_queue(deploy, receiver):
    deployment = deploy("2h")
    receiver.answer("/hook", one_after_the_other(status(500), status(204)))
    webhook = deployment.api.subscribe(receiver.url + "/hook")
    deployment.jobs_end("task")
    assert deployment.wire.sent == [], "two hours are beyond the reach of a message"
    event = deployment.api.row(webhook)["event_id"]
    assert deployment.api.retry(webhook, event).status == 202
    assert [entry["DelaySeconds"] for entry in deployment.wire.sent] == [0]
    deployment.poll_until(lambda: deployment.api.row(webhook)["status"] == "delivered", "delivered")
    assert [request.headers["x-nano-attempt"] for request in receiver.at("/hook")] == ["1", "2"]


# --- messages that ask for nothing


def test_a_message_that_is_none_of_ours_is_taken_from_the_queue(deploy):
    deployment = deploy("1h")
    sample = json.loads((EVENTS / "queue-retry.json").read_text())
    assert deployment.dispatch.invoke(sample) == {"batchItemFailures": []}
    ours, other = (record["messageId"] for record in sample["Records"])
    log = deployment.dispatch.log.read_text()
    assert other in log and ours not in log, log
    for body in ("Hello from SQS!", "{}", '{"account":"","webhook_id":0,"event_id":"evt_","attempt":-1}'):
        deployment.sqs.send_message(QueueUrl=deployment.queue, MessageBody=body)
    deployment.poll_until(lambda: deployment.in_queue() == (0, 0, 0), deployment.in_queue)


def test_a_message_that_comes_twice_or_late_does_nothing(deploy, receiver):
    deployment = deploy("1s,1h")
    receiver.answer("/hook", status(500))
    webhook = deployment.api.subscribe(receiver.url + "/hook")
    deployment.jobs_end("task")
    (due,) = eventually(deployment.receive, "the message")
    copies = queue_event([due | {"MessageId": str(uuid.uuid4())} for _ in range(3)])
    assert deployment.dispatch.invoke(copies) == {"batchItemFailures": []}
    # Not even when an attempt is due: it is not the one that they are for.
    deployment.move(deployment.items()["task"], due_in=-1, sweep_in=300)
    assert deployment.dispatch.invoke(copies) == {"batchItemFailures": []}
    assert [request.headers["x-nano-attempt"] for request in receiver.at("/hook")] == ["1", "2"]
    row = deployment.api.row(webhook)
    assert (row["status"], row["attempt_count"]) == ("pending", 2)
    assert len(deployment.wire.sent) == 1, "the next attempt was an hour away: the sweep's"


def test_a_message_that_comes_early_goes_back_for_the_rest_of_its_time(deploy, receiver):
    deployment = deploy("10m")
    receiver.answer("/hook", status(500))
    deployment.api.subscribe(receiver.url + "/hook")
    deployment.jobs_end("task")
    (first,) = deployment.wire.sent
    assert 480 - DEADLINE < first["DelaySeconds"] <= 720
    assert deployment.dispatch.invoke(queue_event([message(first["MessageBody"])])) == {"batchItemFailures": []}
    _, again = deployment.wire.sent
    assert again["MessageBody"] == first["MessageBody"]
    assert first["DelaySeconds"] - DEADLINE < again["DelaySeconds"] <= first["DelaySeconds"]
    assert len(receiver.at("/hook")) == 1
    assert deployment.in_queue() == (0, 0, 2)


def test_a_message_for_a_webhook_that_was_deleted_sends_nothing(deploy, receiver):
    deployment = deploy("10m")
    receiver.answer("/hook", one_after_the_other(status(500), status(204)))
    webhook = deployment.api.subscribe(receiver.url + "/hook")
    deployment.jobs_end("task")
    deployment.move(deployment.items()["task"], due_in=-1, sweep_in=300)
    assert deployment.api.delete(webhook).status == 200
    late = message(deployment.wire.sent[0]["MessageBody"])
    assert deployment.dispatch.invoke(queue_event([late])) == {"batchItemFailures": []}
    assert len(receiver.at("/hook")) == 1
    assert deployment.items()["task"]["status"]["S"] == "cancelled"


# --- the sweep


def test_the_sweep_sends_what_is_due_soon_and_what_is_overdue_once(deploy, receiver):
    deployment = deploy("2h")
    receiver.answer("/hook", status(500))
    webhook = deployment.api.subscribe(receiver.url + "/hook")
    tasks = [f"task-{n}" for n in range(13)]
    for task in tasks:
        deployment.jobs_end(task)
    assert deployment.wire.sent == [] and deployment.sweep() == 0
    *overdue, soon, later = tasks
    items = deployment.items()
    for task in overdue:
        deployment.move(items[task], due_in=-1, sweep_in=-1)
    deployment.move(items[soon], due_in=240, sweep_in=-60)

    assert deployment.sweep() == 12
    delays = {
        json.loads(entry["MessageBody"])["event_id"]: entry["DelaySeconds"] for entry in deployment.wire.sent
    }
    ids = {task: item["SK"]["S"] for task, item in items.items()}
    assert ids[later] not in delays
    assert 240 - DEADLINE < delays.pop(ids[soon]) <= 240
    assert delays == {ids[task]: 0 for task in overdue}
    assert max(len(entries) for _, entries in deployment.wire.batches) <= 10
    assert deployment.sweep() == 0, "what is in the queue is not sent again"

    receiver.answer("/hook", status(204))
    deployment.poll_until(lambda: len(deployment.api.log(webhook, status="delivered")) == 11, "all that was overdue")
    assert deployment.in_queue() == (0, 0, 1)
    assert deployment.sweep() == 0


# --- when AWS is out of reach


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(lambda _: (503, {"__type": "ServiceUnavailable"}), id="out of reach"),
        pytest.param(
            lambda request: (
                200,
                {
                    "Successful": [],
                    "Failed": [
                        {"Id": entry["Id"], "SenderFault": False, "Code": "InternalError"}
                        for entry in request["Entries"]
                    ],
                },
            ),
            id="each message refused",
        ),
    ],
)
def test_a_message_that_could_not_be_sent_is_sent_by_the_sweep(deploy, receiver, refusal):
    deployment = deploy("1s")
    receiver.answer("/hook", one_after_the_other(status(500), status(204)))
    webhook = deployment.api.subscribe(receiver.url + "/hook")
    deployment.wire.refusal = refusal
    deployment.jobs_end("task")  # The record is done with: the delivery is in the table.
    deployment.wire.refusal = None
    assert deployment.in_queue() == (0, 0, 0)
    assert deployment.sweep() == 0, "not before the message should have been taken"
    deployment.move(deployment.items()["task"], due_in=-300, sweep_in=-1)
    assert deployment.sweep() == 1
    deployment.poll_until(lambda: deployment.api.row(webhook)["status"] == "delivered", "delivered")
    assert len(receiver.at("/hook")) == 2


def test_while_dynamodb_is_out_of_reach_a_message_is_reported_as_failed_and_comes_again(deploy, receiver):
    deployment = deploy("1s,1h")
    receiver.answer("/hook", one_after_the_other(status(500), status(204)))
    webhook = deployment.api.subscribe(receiver.url + "/hook")
    deployment.jobs_end("task")
    cut_off = deployment.function("dispatch", AWS_ENDPOINT_URL_DYNAMODB=NOWHERE)
    # Beside a message that needs no table.
    noise = deployment.sqs.send_message(QueueUrl=deployment.queue, MessageBody="Hello from SQS!")["MessageId"]
    seen, failed = set(), set()

    def both():
        taken, refused = deployment.poll(cut_off)
        seen.update(taken)
        failed.update(refused)
        return len(seen) == 2 and noise in seen

    eventually(both, lambda: (seen, failed), 3 * DEADLINE)
    assert failed == seen - {noise}
    assert len(receiver.at("/hook")) == 1
    deployment.poll_until(lambda: deployment.api.row(webhook)["status"] == "delivered", "delivered")
    assert len(receiver.at("/hook")) == 2
    with pytest.raises(FunctionError):
        cut_off.invoke(json.loads((EVENTS / "schedule-sweep.json").read_text()))


@pytest.mark.parametrize("binary", ["api", "dispatch"])
def test_a_function_without_its_queue_does_not_start_and_says_so(deploy, binary):
    function = deploy("1h").function(binary, RETRY_QUEUE_URL="")
    assert function.popen.wait(DEADLINE) != 0
    (line,) = function.log.read_text().splitlines()
    assert "RETRY_QUEUE_URL" in line and "missing" in line, line
