"""Which writes of a job are an event, and what becomes of records that cannot be understood."""

import calendar
import time

import pytest

from support import PLAIN_SECRET, STANDARD_SECRET, eventually, verify


@pytest.fixture
def came(service, api, receiver):
    """`came(path, events)` asserts that these events came to a path, of all that was written before, and no others.

    The stream is read in order. When a job that was written after another one's webhook arrived has arrived too, the
    records before the first have long been sent: what has not come by then does not come.
    """
    marks = []

    def others(path):
        return [event for event in receiver.events(path) if event[0] not in marks]

    def came(path, events):
        eventually(lambda: len(others(path)) >= len(events), lambda: f"{events} at {path}; {others(path)} came")
        for _ in range(2):
            marks.append(f"mark-{api.account}-{len(marks)}")
            service.put_job(marks[-1], api.account)
            eventually(lambda: (marks[-1], "job.completed") in receiver.events("/marks"), f"{marks[-1]} at /marks")
        assert others(path) == sorted(events)

    api.subscribe(f"{receiver.url}/marks")
    return came


@pytest.fixture
def hook(api, receiver):
    """A path of the receiver that a webhook of the account leads to."""
    api.subscribe(f"{receiver.url}/hook", PLAIN_SECRET)
    return "/hook"


def test_a_job_in_progress_is_no_event(service, api, hook, came):
    for status in ("processing", "queued", "", "COMPLETED", "complete", "completed ", "Failed"):
        service.put_job(f"in progress: {status}", api.account, status)
    service.put_job("no status", api.account, None)
    service.put_job("status is no string", api.account, {"N": "1"})
    came(hook, [])


def test_a_change_to_a_terminal_status_is_an_event(service, api, hook, came):
    service.put_job("finishes", api.account, "processing")
    service.put_job("finishes", api.account, "completed")
    service.put_job("breaks", api.account, "processing")
    service.put_job("breaks", api.account, "failed")
    came(hook, [("breaks", "job.failed"), ("finishes", "job.completed")])


def test_failed_to_completed_and_back_are_events_of_their_own(service, api, hook, came):
    for status in ("failed", "completed", "failed"):
        service.put_job("again", api.account, status)
    came(hook, [("again", "job.completed"), ("again", "job.failed"), ("again", "job.failed")])


def test_a_terminal_job_that_is_run_again_is_an_event_again(service, api, hook, came):
    for status in ("completed", "processing", "completed"):
        service.put_job("rerun", api.account, status)
    came(hook, [("rerun", "job.completed")] * 2)


def test_rewriting_a_terminal_job_with_the_same_status_is_no_event(service, api, hook, came):
    for _ in range(3):
        service.put_job("same", api.account)
    service.put_job("same", api.account, data={"M": {"changed": {"BOOL": True}}})
    came(hook, [("same", "job.completed")])


def test_deleting_a_job_is_no_event(service, api, hook, came):
    service.put_job("deleted", api.account, "failed")
    service.db.delete_item(TableName=service.tables["jobs"], Key={"task_id": {"S": "deleted"}})
    came(hook, [("deleted", "job.failed")])


def test_a_job_that_comes_back_after_its_deletion_is_an_event(service, api, hook, came):
    service.put_job("phoenix", api.account)
    service.db.delete_item(TableName=service.tables["jobs"], Key={"task_id": {"S": "phoenix"}})
    service.put_job("phoenix", api.account)
    came(hook, [("phoenix", "job.completed")] * 2)


def test_an_update_that_sets_the_status_is_an_event_as_a_put_is(service, api, hook, came):
    service.put_job("updated", api.account, "processing")
    service.db.update_item(
        TableName=service.tables["jobs"],
        Key={"task_id": {"S": "updated"}},
        UpdateExpression="SET #s = :s",
        ExpressionAttributeNames={"#s": "status"},
        ExpressionAttributeValues={":s": {"S": "completed"}},
    )
    came(hook, [("updated", "job.completed")])


def test_a_webhook_hears_only_what_it_subscribes_to(service, api, receiver, hook, came):
    for event in ("job.completed", "job.failed"):
        api.subscribe(f"{receiver.url}/{event}", events=[event])
    api.subscribe(f"{receiver.url}/operational", events=["webhook.disabled"])
    service.put_job("good", api.account, "completed")
    service.put_job("bad", api.account, "failed")
    came(hook, [("bad", "job.failed"), ("good", "job.completed")])
    came("/job.completed", [("good", "job.completed")])
    assert receiver.events("/job.failed") == [("bad", "job.failed")]
    assert receiver.events("/operational") == []


def test_a_webhook_hears_only_of_its_own_account(service, api, receiver, hook, came):
    other = service.new_account()
    other.subscribe(f"{receiver.url}/other")
    service.put_job("mine", api.account)
    came(hook, [("mine", "job.completed")])
    assert receiver.at("/other") == []


def test_a_deleted_webhook_hears_nothing_more_and_a_new_one_hears_the_next_event(service, api, receiver, hook, came):
    gone = api.subscribe(f"{receiver.url}/gone")
    assert api.delete(gone).status == 200
    api.subscribe(f"{receiver.url}/new", STANDARD_SECRET)
    service.put_job("next", api.account)
    came(hook, [("next", "job.completed")])
    assert receiver.at("/gone") == []
    verify(receiver.wait_for("/new"), STANDARD_SECRET)


def test_updated_at_with_an_offset_is_sent_in_utc(service, api, receiver, hook):
    times = {
        "2024-12-23T10:00:00Z": "2024-12-23T10:00:00Z",
        "2024-12-23T12:30:00+02:30": "2024-12-23T10:00:00Z",
        "2024-12-31T23:59:59-01:00": "2025-01-01T00:59:59Z",
        "2024-12-23T10:00:00+00:00": "2024-12-23T10:00:00Z",
    }
    for given in times:
        service.put_job(given, api.account, updated_at={"S": given})
    sent = {request.json["task_id"]: request.json["timestamp"] for request in receiver.wait_for(hook, len(times))}
    assert sent == times


def test_updated_at_that_is_no_time_gives_the_time_of_the_write(service, api, receiver, hook):
    wrong = [
        {"S": "yesterday"},
        {"S": ""},
        {"S": "2024-12-23"},
        {"S": "2024-02-30T10:00:00Z"},
        {"S": "2024-12-23T10:00:00"},
        {"N": "1734948000"},
        {"M": {}},
        {"NULL": True},
    ]
    before = time.time()
    for value in wrong:
        service.put_job(f"{value}", api.account, updated_at=value)
    requests = receiver.wait_for(hook, len(wrong))
    for request in requests:
        sent = request.json["timestamp"]
        assert sent.endswith("Z"), sent
        seconds = calendar.timegm(time.strptime(sent[:19], "%Y-%m-%dT%H:%M:%S"))
        # DynamoDB gives a record's creation in whole seconds.
        assert before - 2 <= seconds <= time.time() + 2, (request.json["task_id"], sent)


def test_a_record_that_cannot_be_understood_goes_to_the_poison_store_and_harms_no_other(
    service, api, receiver, hook, came
):
    poison = {
        "no account": {"account_id": None},
        "account is a number": {"account_id": {"N": "7"}},
        "account is empty": {"account_id": {"S": ""}},
        "data is text": {"data": {"S": "{}"}},
        "data is a list": {"data": {"L": []}},
        "data is null": {"data": {"NULL": True}},
        "type is a number": {"task_type": {"N": "1"}},
    }
    for task_id, attributes in poison.items():
        service.put_job(f"good before {task_id}", api.account)
        service.put_job(task_id, api.account, **attributes)
    came(hook, [(f"good before {task_id}", "job.completed") for task_id in poison])

    def kept():
        reasons = {}
        for item in service.poison():
            for task_id in poison:
                if f'"{task_id}"' in item["keys"]["S"]:
                    reasons[task_id] = item["reason"]["S"]
        return reasons if len(reasons) == len(poison) else None

    reasons = eventually(kept, "every record in the poison store")
    for task_id, reason in reasons.items():
        (attribute,) = poison[task_id]
        assert attribute in reason, (task_id, reason)
