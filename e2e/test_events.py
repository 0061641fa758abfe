"""From writes to the jobs table, through the stream of a real engine, to events."""

import pytest

from support import wait_until


@pytest.fixture
def wait_for_events(service, api, receiver):
    """`wait_for_events(path, events)` asserts that exactly these events of all earlier writes reach
    a path.

    The stream is read in order. The fixture writes two more jobs, one after the other, and waits
    for their events: by then all earlier records are handled, and an event that has not arrived
    never will.
    """
    marker_tasks = []

    def events_at(path):
        return [event for event in receiver.events(path) if event[0] not in marker_tasks]

    def wait_for_events(path, events):
        description = lambda: f"{events} at {path}, received {events_at(path)}"
        wait_until(lambda: len(events_at(path)) >= len(events), description)
        for _ in range(2):
            marker = f"marker-{api.account}-{len(marker_tasks)}"
            marker_tasks.append(marker)
            service.put_job(marker, api.account)
            wait_until(
                lambda: (marker, "job.completed") in receiver.events("/markers"),
                f"{marker} at /markers",
            )
        assert events_at(path) == sorted(events)

    api.subscribe(f"{receiver.url}/markers")
    return wait_for_events


def test_writes_to_jobs_table_become_events(service, api, receiver, wait_for_events):
    """A write is an event if it changes the status to a terminal one, whatever operation of
    DynamoDB made it.
    """
    api.subscribe(f"{receiver.url}/hook")
    deleted_webhook = api.subscribe(f"{receiver.url}/deleted")
    assert api.delete(deleted_webhook).status == 200
    jobs = service.tables["jobs"]

    def write(task, *statuses):
        for status in statuses:
            service.put_job(task, api.account, status)

    write("in progress", "processing", "queued", "", "COMPLETED", "completed ")
    service.put_job("no status", api.account, None)
    service.put_job("numeric status", api.account, {"N": "1"})
    write("finishes", "processing", "completed")
    write("alternates", "failed", "completed", "failed")
    write("reruns", "completed", "processing", "completed")
    write("rewritten", "completed", "completed")
    service.put_job("rewritten", api.account, data={"M": {"changed": {"BOOL": True}}})
    write("deleted", "failed")
    service.db.delete_item(TableName=jobs, Key={"task_id": {"S": "deleted"}})
    write("recreated", "completed")
    service.db.delete_item(TableName=jobs, Key={"task_id": {"S": "recreated"}})
    write("recreated", "completed")
    write("updated", "processing")
    service.db.update_item(
        TableName=jobs,
        Key={"task_id": {"S": "updated"}},
        UpdateExpression="SET #s = :s",
        ExpressionAttributeNames={"#s": "status"},
        ExpressionAttributeValues={":s": {"S": "completed"}},
    )
    wait_for_events(
        "/hook",
        [
            ("finishes", "job.completed"),
            *[("alternates", event) for event in ("job.failed", "job.completed", "job.failed")],
            *[("reruns", "job.completed")] * 2,
            ("rewritten", "job.completed"),
            ("deleted", "job.failed"),
            *[("recreated", "job.completed")] * 2,
            ("updated", "job.completed"),
        ],
    )
    assert receiver.requests_to("/deleted") == []
