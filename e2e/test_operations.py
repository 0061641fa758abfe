"""The operator commands `poison`, `deliveries` and `stats`."""

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from deployment import AWS_ENVIRONMENT, UNREACHABLE, RecordingProxy
from support import (
    BINARY,
    PLAIN_SECRET,
    STANDARD_SECRET,
    build_environment,
    respond_with,
    run_command,
    verify_signatures,
    wait_until,
)

SWEEP_TIMEOUT = 80  # seconds to wait for a sweep, which runs every minute, and for what it sends


class Operator:
    """Runs commands on the tables of a service. No command may print a secret."""

    def __init__(self, service):
        self.service = service

    def __call__(self, *args, check=True, env=None):
        completed = run_command(
            *args, "--dynamodb-endpoint", self.service.dynamodb, check=check, env=env
        )
        for secret in (PLAIN_SECRET, STANDARD_SECRET, STANDARD_SECRET.removeprefix("whsec_")):
            assert secret not in completed.stdout + completed.stderr, args
        return completed

    def json(self, *args):
        """The JSON objects that a command prints, one per line."""
        return [json.loads(line) for line in self(*args, "--json").stdout.splitlines()]

    def fail(self, *args):
        """Runs a command that must fail with one line, and returns the line."""
        completed = self(*args, check=False)
        assert completed.returncode == 1 and completed.stderr.count("\n") == 1, completed
        assert "panicked" not in completed.stderr
        return completed.stderr

    def poison_by_task(self):
        """The poison records by task id."""
        return {record["keys"]["task_id"]["S"]: record for record in self.json("poison", "list")}

    def wait_for_poison(self, *tasks):
        """Waits for the poison records of these jobs, and returns them in this order."""

        def find_records():
            records = self.poison_by_task()
            return set(tasks) <= set(records) and [records[task] for task in tasks]

        return wait_until(find_records, f"poison records of {tasks}")

    def list_deliveries(self, account, *args):
        return self.json("deliveries", "list", "--account", account, *args)


@pytest.fixture
def own_service(start):
    """A service that only one test uses, since some commands work on the items of all accounts."""
    return start("--in-memory", "--retry-schedule", "1h")


@pytest.fixture
def operate(own_service):
    return Operator(own_service)


def test_sweep_sends_redriven_event_and_retry(own_service, operate, receiver):
    """A poison record whose job was corrected becomes one event, which the next sweep sends.

    So is a manual retry.
    """
    api = own_service.create_account()
    healthy, failing = (
        api.subscribe(f"{receiver.url}/healthy", PLAIN_SECRET),
        api.subscribe(f"{receiver.url}/failing"),
    )
    receiver.respond("/failing", respond_with(503))
    own_service.put_job("first", api.account)
    for task in ("corrected", "broken"):
        own_service.put_job(task, api.account, account_id=None)
    corrected, broken = operate.wait_for_poison("corrected", "broken")
    first_event = receiver.wait_for("/healthy")[0].id
    assert corrected["reason"] == broken["reason"] == "`account_id`: missing, expected a string (S)"
    assert corrected["image"]["task_type"] == {"S": "image"} and corrected["stream"].startswith(
        "arn:aws:dynamodb:"
    )

    completed = operate("poison", "redrive", corrected["id"], "--json", check=False)
    still_poison = json.loads(completed.stdout)
    assert (still_poison["outcome"], still_poison["recorded"]) == ("still_poison", 0)
    completed = operate("poison", "redrive", corrected["id"], check=False)
    assert completed.returncode == 1
    assert f"{corrected['id']}: still poison: `account_id`: missing" in completed.stdout
    assert "still poison: 1 record" in completed.stderr

    # The status stays the same, so the correction itself is no event. The next job's event shows
    # that none came.
    own_service.put_job("corrected", api.account, data={"M": {"by": {"S": "hand"}}})
    own_service.put_job("next", api.account)
    receiver.wait_for("/healthy", 2)
    assert [request.json["task_id"] for request in receiver.requests_to("/healthy")] == [
        "first",
        "next",
    ]

    completed = operate("poison", "redrive", "--all", check=False)
    assert completed.returncode == 1 and f"{broken['id']}: still poison: " in completed.stdout
    (line,) = [line for line in completed.stdout.splitlines() if line.startswith(corrected["id"])]
    event = next(word.strip(":,") for word in line.split() if word.startswith("evt_"))
    assert "job.completed of job corrected" in line and line.endswith("2 deliveries due"), line
    assert "Redrove 2 records: 1 event, 2 deliveries due." in completed.stdout
    assert set(operate.poison_by_task()) == {"broken"}

    retried = operate(
        "deliveries", "retry", "--account", api.account, "--webhook", str(failing), first_event
    )
    assert "Attempt 2" in retried.stdout and "within a minute" in retried.stdout

    wait_until(
        lambda: len(receiver.requests_to("/healthy")) >= 3, "the redriven event", SWEEP_TIMEOUT
    )
    request = receiver.requests_to("/healthy")[2]
    assert request.id == event and request.json["data"] == {"by": "hand"}
    verify_signatures([request], PLAIN_SECRET)
    attempt_count = lambda: api.get_delivery(failing, first_event).data["attempt_count"]
    wait_until(lambda: attempt_count() == 2, "the manual retry", SWEEP_TIMEOUT)

    # The redrive deleted the record, so a second redrive fails and sends nothing.
    assert corrected["id"] in operate.fail("poison", "redrive", corrected["id"])
    rows = [row for row in operate.list_deliveries(api.account) if row["event_id"] == event]
    assert sorted((row["webhook_id"], row["attempt_count"]) for row in rows) == [
        (healthy, 1),
        (failing, 1),
    ]
    own_service.put_job("broken", api.account)
    (redriven,) = operate.json("poison", "redrive", "--all", "--day", broken["id"][:10])
    assert redriven == {
        "id": broken["id"],
        "outcome": "redriven",
        "event_id": redriven["event_id"],
        "event": "job.completed",
        "account": api.account,
        "task_id": "broken",
        "recorded": 2,
        "already_recorded": 0,
    }
    assert operate("poison", "redrive", "--all").stderr == "No poison records.\n"
    assert operate("poison", "list").stderr == "No poison records.\n"


def test_poison_list_shows_records(own_service, operate):
    """The list shows reason, job and stream of each record, escapes control characters, and takes a
    day.
    """
    odd_task = "odd\x1b[2J\u009b2J\u202e"
    own_service.put_job(odd_task, "a", data={"S": "{}"})
    own_service.put_job("large", "a", account_id=None, data={"M": {"text": {"S": "x" * 270_000}}})
    odd, large = operate.wait_for_poison(odd_task, "large")
    assert large["image"] is None and odd["image"]["data"] == {"S": "{}"}
    assert odd["reason_code"] == "data_not_a_map" and large["reason_code"] == "missing_attribute"
    listed = operate("poison", "list", "--day", odd["id"][:10]).stdout
    header, *rows = listed.splitlines()
    assert header.split() == ["ID", "STORED", "SUBJECT", "REASON"]
    columns = [header.index(name) for name in ("STORED", "SUBJECT", "REASON")]
    odd_row, large_row = (
        next(row for row in rows if row.startswith(f"{record['id']} ")) for record in (odd, large)
    )
    stored, subject, reason = columns
    assert odd_row[stored:].startswith(f"{odd['stored_at']} (")
    assert odd_row[reason:].startswith("`data`: expected a map (M)")
    assert large_row[subject:].startswith("task_id=large ")
    assert "not stored, too large" in large_row[reason:]
    assert r"task_id=odd\u{1b}[2J\u{9b}2J\u{202e}" in listed
    listed_json = operate("poison", "list", "--json").stdout
    assert not set("\x1b\u009b\u202e") & set(listed + listed_json)
    assert operate("poison", "list", "--day", "2024-12-23").stdout == ""


def test_redrive_updates_reason_of_record(own_service, operate):
    """A record that stays poison gets the current reason.

    If the job is gone, the stored image counts.
    """
    own_service.put_job("small", "a", data={"S": "{}"})
    own_service.put_job("large", "a", account_id=None, data={"M": {"text": {"S": "x" * 270_000}}})
    small, large = operate.wait_for_poison("small", "large")
    own_service.put_job("large", "a", data={"M": {"text": {"S": "x" * 270_000}}})
    completed = operate("poison", "redrive", large["id"], small["id"], large["id"], check=False)
    assert (
        completed.returncode == 1
        and completed.stdout.count("still poison: the payload would have 2") == 1
    ), completed
    for task in ("large", "small"):
        own_service.db.delete_item(
            TableName=own_service.tables["jobs"], Key={"task_id": {"S": task}}
        )
    completed = operate("poison", "redrive", large["id"], check=False)
    assert (
        completed.returncode == 1
        and "its image was not stored, and the job is gone" in completed.stdout
    )
    assert (
        operate.poison_by_task()["large"]["reason"]
        == "its image was not stored, and the job is gone"
    )
    assert (
        "`data`: expected a map (M)"
        in operate("poison", "redrive", small["id"], check=False).stdout
    )


def test_deliveries_list_covers_all_webhooks(service, api, receiver):
    """The list has the newest deliveries first, with filters by webhook, status and event, and a
    limit.
    """
    operate = Operator(service)
    one, two = (
        api.subscribe(f"{receiver.url}/one", STANDARD_SECRET),
        api.subscribe(f"{receiver.url}/two"),
    )
    receiver.respond("/two", respond_with(500))
    for number in range(3):
        service.put_job(
            f"{api.account} {number}", api.account, "failed" if number == 1 else "completed"
        )
        receiver.wait_for("/two", number + 1)
    for webhook in (one, two):
        wait_until(lambda: len(api.list_deliveries(webhook)) == 3, "three recorded deliveries")
    listed = operate("deliveries", "list", "--account", api.account)
    assert f"{one}, {two}" in listed.stderr
    header, *lines = listed.stdout.splitlines()
    assert header.startswith("STATUS     EVENT ID ") and header.endswith("  NEXT ATTEMPT")
    ids = [line.split()[1] for line in lines]
    assert len(ids) == 6 and ids == sorted(ids, reverse=True)
    delivered = [line for line in lines if line.startswith("delivered  ")]
    pending = [line for line in lines if line.startswith("pending    ")]
    attempts, next_attempt = header.index("ATTEMPTS"), header.index("NEXT ATTEMPT")
    assert [line[attempts:].split() for line in delivered] == [["1"]] * 3
    assert [line[attempts:next_attempt].split() for line in pending] == [["1", "status"]] * 3
    assert all("(in " in line[next_attempt:] for line in pending)

    rows = operate.list_deliveries(api.account)
    assert [row["event_id"] for row in rows] == ids
    rows_of_one = operate.list_deliveries(api.account, "--webhook", str(one))
    assert rows_of_one == [{"webhook_id": one} | row for row in api.list_deliveries(one)]
    filters = (
        (["--status", "pending"], {(two, "job.completed"), (two, "job.failed")}),
        (["--status", "delivered", "--event", "job.failed"], {(one, "job.failed")}),
        (["--status", "failed"], set()),
        (["--webhook", str(two), "--event", "webhook.disabled"], set()),
    )
    for options, expected in filters:
        rows = operate.list_deliveries(api.account, *options)
        assert {(row["webhook_id"], row["event"]) for row in rows} == expected, options
    limited = operate("deliveries", "list", "--account", api.account, "--limit", "2")
    limited_ids = [line.split()[1] for line in limited.stdout.splitlines()[1:]]
    assert limited_ids == ids[:2] and "more" in limited.stderr


def test_deliveries_list_covers_deleted_webhook(service, api, receiver):
    """The deliveries of a deleted webhook appear only if the webhook is named, as cancelled."""
    operate = Operator(service)
    deleted, kept = api.subscribe(f"{receiver.url}/deleted"), api.subscribe(f"{receiver.url}/kept")
    receiver.respond("/deleted", respond_with(500))
    service.put_job(f"{api.account} job", api.account)
    for webhook in (deleted, kept):
        api.wait_for_delivery(webhook)
    api.delete(deleted)
    assert {row["webhook_id"] for row in operate.list_deliveries(api.account)} == {kept}
    rows = operate.list_deliveries(api.account, "--webhook", str(deleted))
    assert [row["status"] for row in rows] == ["cancelled"]
    assert (
        operate.list_deliveries(api.account, "--webhook", str(deleted), "--status", "pending") == []
    )
    assert "has no webhook 9" in operate.fail(
        "deliveries", "list", "--account", api.account, "--webhook", "9"
    )
    assert "has no webhooks" in operate("deliveries", "list", "--account", "unknown").stderr


def test_closed_pipe_ends_command_silently(service, api, receiver):
    """A command whose output has no reader ends without a message, and with exit code 0."""
    webhook = api.subscribe(f"{receiver.url}/piped")
    service.put_job(f"{api.account} piped", api.account)
    event = api.wait_for_delivery(webhook)["event_id"]
    account = ["--account", api.account]
    key = [*account, "--webhook", str(webhook)]
    for args in (
        ["keys", "create", *account],
        ["keys", "list", *account],
        ["deliveries", "list", *key],
        ["deliveries", "list", *key, "--json"],
        ["deliveries", "show", *key, event],
        ["stats"],
        ["stats", *account, "--json"],
        ["job", "complete", "--account", "piped"],
    ):
        reader, writer = os.pipe()
        os.close(reader)
        completed = subprocess.run(
            [BINARY, *args, "--dynamodb-endpoint", service.dynamodb],
            env=build_environment(),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        os.close(writer)
        assert completed.returncode == 0 and "nano-webhooks:" not in completed.stderr, completed


def test_deliveries_show_equals_api(service, api, receiver):
    """The command shows what the API shows, as JSON and as text without control characters."""
    operate = Operator(service)
    webhook = api.subscribe(f"{receiver.url}/show", PLAIN_SECRET)
    receiver.respond("/show", respond_with(503, body=b"not \x1b[1mnow"))
    service.put_job(f"{api.account} shown", api.account)
    row = api.wait_for_delivery(webhook, lambda row: row["attempt_count"] == 1)
    key = ["--account", api.account, "--webhook", str(webhook), row["event_id"]]
    (delivery,) = operate.json("deliveries", "show", *key)
    assert delivery == api.get_delivery(webhook, row["event_id"]).data
    text = operate("deliveries", "show", *key).stdout
    (attempt,) = delivery["attempts"]
    for part in (
        f"  payload   {delivery['payload']}\n",
        f"  next      an attempt at {row['next_attempt_at']} (in ",
        "  status    pending after 1 attempt\n",
        f"Attempt 1 at {attempt['at']} (",
        f"status 503 after {attempt['duration_ms']} ms\n",
        f"  failure   status: {attempt['detail']}\n",
        r"  response  not \u{1b}[1mnow",
        f"  sent      X-Nano-Signature: {attempt['request_headers']['X-Nano-Signature']}\n",
    ):
        assert part in text, (part, text)
    assert "  timings   connect " in text or "  timings   wait " in text
    assert "\x1b" not in text
    unknown = [*key[:-1], "evt_00000000000000000000000000"]
    for subcommand in ("show", "retry"):
        assert "has no delivery evt_0000" in operate.fail("deliveries", subcommand, *unknown)


def test_rejected_retry_states_reason(service, api, receiver):
    """A retry fails while an attempt is in flight, and if the webhook is disabled or deleted."""
    operate = Operator(service)
    webhook = api.subscribe(f"{receiver.url}/hook")
    receiver.respond("/hook", respond_with(503))
    service.put_job(f"{api.account} job", api.account)
    event = api.wait_for_delivery(webhook, lambda row: row["attempt_count"] == 1)["event_id"]
    key = ["--account", api.account, "--webhook", str(webhook), event]
    receiver.hang("/hook")
    assert api.retry(webhook, event).status == 202
    wait_until(lambda: len(receiver.requests_to("/hook")) == 2, "the attempt that hangs")
    assert api.retry(webhook, event).status == 409
    assert "is being attempted" in operate.fail("deliveries", "retry", *key)
    receiver.closing.set()
    api.wait_for_delivery(webhook, lambda row: row["attempt_count"] == 2)
    assert api.update(webhook, status="disabled").status == 200
    assert "is disabled; enable it first" in operate.fail("deliveries", "retry", *key)
    api.delete(webhook)
    assert "is deleted" in operate.fail("deliveries", "retry", *key)
    assert "cancelled" in operate("deliveries", "show", *key).stdout


def test_stats_count_items(own_service, operate, receiver):
    """The statistics count pending deliveries, poison records, resumes and replays, over all
    accounts and for one.
    """
    no_pending = {
        "overdue": 0,
        "oldest_due_at": None,
        "waiting": 0,
        "next_due_at": None,
        "complete": True,
        "top_webhooks": [],
    }
    assert operate.json("stats") == [
        {
            "pending": no_pending,
            "poison": [],
            "replaying": [],
            "resuming": [],
            "unreachable": [],
        }
    ]
    api = own_service.create_account()
    healthy, failing = (
        api.subscribe(f"{receiver.url}/healthy"),
        api.subscribe(f"{receiver.url}/failing"),
    )
    receiver.respond("/failing", respond_with(500))
    for number in range(3):
        own_service.put_job(f"job {number}", api.account)
    own_service.put_job("poison", api.account, account_id=None)
    (poison,) = operate.wait_for_poison("poison")
    wait_until(
        lambda: len(api.list_deliveries(failing, status="pending")) == 3, "three pending deliveries"
    )
    (stats,) = operate.json("stats")
    rows = api.list_deliveries(failing)
    next_due_at = min(row["next_attempt_at"] for row in rows)
    top_webhooks = [{"account": api.account, "webhook_id": failing, "pending": 3}]
    assert stats["pending"] == no_pending | {
        "waiting": 3,
        "next_due_at": next_due_at,
        "top_webhooks": top_webhooks,
    }
    assert stats["poison"] == [{"day": poison["id"][:10], "records": 1, "complete": True}]

    # A manual retry makes one delivery overdue.
    key = ["--account", api.account, "--webhook", str(failing), rows[0]["event_id"]]
    due = {"webhook_id": failing, "event_id": rows[0]["event_id"], "attempt": 2}
    assert operate.json("deliveries", "retry", *key) == [due]
    (stats,) = operate.json("stats")
    assert (stats["pending"]["overdue"], stats["pending"]["waiting"]) == (1, 2)
    text = operate("stats").stdout
    assert (
        "Overdue       1 delivery, the oldest since " in text
        and "Waiting       2 deliveries, the next due at " in text
    )
    assert f"Poison        {poison['id'][:10]}: 1 record\n" in text
    assert f"Top webhooks  account {api.account}, webhook {failing}: 3" in text

    by_webhook = {
        stats["webhook_id"]: stats for stats in operate.json("stats", "--account", api.account)
    }
    assert by_webhook[failing]["pending"] == {
        "count": 3,
        "overdue": 1,
        "paused": 0,
        "complete": True,
    }
    assert by_webhook[failing]["failed"] == {"count": 0, "complete": True}
    health = by_webhook[failing]["health"]
    assert (health["state"], health["last_failure"]) == ("failing", "status")
    assert (by_webhook[healthy]["health"]["state"], by_webhook[healthy]["pending"]["count"]) == (
        "healthy",
        0,
    )
    text = operate("stats", "--account", api.account).stdout
    header, *rows = text.splitlines()
    assert header.startswith("HEALTH ") and header.endswith("  URL") and len(rows) == 2
    row = next(row for row in rows if row.startswith("failing  "))
    assert row.split()[1:7] == [str(failing), "active", "3", "1", "0", "0"]
    assert row[header.index("LAST FAILURE") :].split() == ["status", f"{receiver.url}/failing"]

    for status in ("disabled", "active"):
        assert api.update(healthy, status=status).status == 200
    (stats,) = operate.json("stats")
    assert stats["resuming"] == [{"account": api.account, "webhook_id": healthy}]
    window = {"since": "2024-12-23T00:00:00Z", "status": "all"}
    replay = api.call("POST", f"/api/v1/webhooks/{healthy}/replay", window)
    assert replay.status == 202, replay.text
    (stats,) = operate.json("stats")
    assert stats["replaying"] == [
        {"account": api.account, "webhook_id": healthy, "replay": replay.data["id"]}
    ]
    assert replay.data["id"] in operate("stats").stdout
    assert "has no webhooks" in operate("stats", "--account", "unknown").stderr


def test_commands_need_only_table_access(service, api, receiver):
    """With `--aws` the commands work with credentials and the tables.

    They call neither KMS nor SQS.
    """
    webhook = api.subscribe(f"{receiver.url}/hook", PLAIN_SECRET)
    task = f"{api.account} poison"
    service.put_job(task, api.account, account_id=None)
    (poison,) = Operator(service).wait_for_poison(task)
    service.put_job(task, api.account)
    aws = AWS_ENVIRONMENT | {
        "AWS_ENDPOINT_URL": UNREACHABLE,
        "AWS_ENDPOINT_URL_DYNAMODB": service.dynamodb,
        "WEBHOOKS_TABLE": service.tables["webhooks"],
        "DELIVERIES_TABLE": service.tables["deliveries"],
    }
    run = lambda *args, **env: run_command(*args, "--aws", env=aws | env).stdout
    # Without the jobs table the stored image counts.
    completed = run_command("poison", "redrive", poison["id"], "--aws", env=aws, check=False)
    assert completed.returncode == 1 and "`account_id`: missing" in completed.stdout, completed
    assert "1 delivery due" in run(
        "poison", "redrive", poison["id"], JOBS_TABLE=service.tables["jobs"]
    )
    key = ["--account", api.account, "--webhook", str(webhook)]
    event = json.loads(run("deliveries", "list", *key, "--json"))["event_id"]
    assert "pending" in run("deliveries", "show", *key, event)
    assert "Attempt 1" in run("deliveries", "retry", *key, event)
    assert "Overdue" in run("stats")
    assert "WEBHOOK" in run("stats", "--account", api.account)
    assert "poison" not in run("poison", "list", "--day", "2024-12-23")

    completed = run_command(
        "stats", "--aws", env=aws | {"DELIVERIES_TABLE": "nowhere"}, check=False
    )
    assert completed.returncode == 1 and completed.stderr.count("\n") == 1, completed
    assert "ResourceNotFoundException" in completed.stderr and "meta" not in completed.stderr
    completed = run_command(
        "stats", "--aws", env=aws | {"AWS_ENDPOINT_URL_DYNAMODB": UNREACHABLE}, check=False
    )
    assert completed.returncode == 1 and completed.stderr.count("\n") == 1, completed
    assert "AWS credentials" in completed.stderr


def read_documented_permissions():
    """The actions on the tables that SECURITY.md lists for each command."""
    text = (Path(__file__).parent.parent / "SECURITY.md").read_text()
    rows = re.findall(r"^\| `((?:poison|deliveries|stats)[^`]*)` \| (.*) \|$", text, re.M)
    return {
        command: set(re.findall(r"`([A-Z]\w+Item|Query|Scan)`", actions))
        for command, actions in rows
    }


def test_commands_use_documented_permissions(own_service, receiver):
    """Each command sends exactly the operations that SECURITY.md lists for its role."""
    api = own_service.create_account()
    webhook = api.subscribe(f"{receiver.url}/hook")
    own_service.put_job("valid", api.account)
    for task in ("corrected", "broken"):
        own_service.put_job(task, api.account, account_id=None)
    operate = Operator(own_service)
    _, broken = operate.wait_for_poison("corrected", "broken")
    own_service.put_job("corrected", api.account)
    # This record gets another reason, which the redrive stores.
    own_service.put_job("broken", api.account, data={"S": "{}"})
    account, key = ["--account", api.account], ["--account", api.account, "--webhook", str(webhook)]
    event = api.wait_for_delivery(webhook)["event_id"]
    runs = {
        "poison list": [["poison", "list"]],
        "poison redrive": [["poison", "redrive", "--all"], ["poison", "redrive", broken["id"]]],
        "deliveries list": [
            ["deliveries", "list", *account],
            ["deliveries", "list", *account, "--status", "failed"],
            ["deliveries", "list", *account, "--webhook", "9"],
        ],
        "deliveries show": [["deliveries", "show", *key, event]],
        "deliveries retry": [["deliveries", "retry", *key, event]],
        "stats": [["stats"]],
        "stats --account": [["stats", *account]],
    }
    # Operations that need a delivery of a replay, which this test does not have.
    unused = {"deliveries retry": {"UpdateItem"}}
    proxy = RecordingProxy(own_service.dynamodb)
    used = {}
    try:
        for name, commands in runs.items():
            proxy.operations.clear()
            for args in commands:
                run_command(*args, "--dynamodb-endpoint", proxy.url, check=False)
            operations = {
                operation.removeprefix("DynamoDB_20120810.") for operation in proxy.operations
            }
            used[name] = operations | unused.get(name, set())
    finally:
        proxy.server.close()
    assert used == read_documented_permissions()
    assert set(operate.poison_by_task()) == {"broken"}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["poison", "list", "--day", "yesterday"], "expected a day such as 2024-12-23"),
        (["poison", "redrive"], "<ID>"),
        (["poison", "redrive", "100"], "2024-12-23/100"),
        (["poison", "redrive", "2024-12-23/100", "--all"], "--all"),
        (["poison", "redrive", "--day", "2024-12-23", "2024-12-23/100"], "--day"),
        (["poison", "redrive", "--day", "2024-12-23"], "--all"),
        (["deliveries", "list"], "--account"),
        (["deliveries", "list", "--account", ""], "expected an account id"),
        (
            ["deliveries", "list", "--account", "a", "--webhook", "0"],
            "expected the number of a webhook",
        ),
        (
            ["deliveries", "list", "--account", "a", "--status", "done"],
            "expected pending, delivered, failed or cancelled",
        ),
        (["deliveries", "list", "--account", "a", "--event", "job"], "expected job.completed"),
        (["deliveries", "list", "--account", "a", "--limit", "1001"], "from 1 to 1000"),
        (
            ["deliveries", "show", "--account", "a", "--webhook", "1", "evt_1"],
            "evt_ and 26 characters",
        ),
        (["stats", "--account", ""], "expected an account id"),
    ],
)
def test_malformed_argument_is_named(args, expected):
    """The error names the argument and the expected value."""
    completed = run_command(*args, check=False)
    assert completed.returncode == 2 and expected in completed.stderr, completed.stderr


def test_status_has_color_on_terminal(service, api, receiver):
    """A terminal shows the status of a delivery in color, unless `NO_COLOR` is set."""
    webhook = api.subscribe(f"{receiver.url}/colored")
    service.put_job(f"{api.account} colored", api.account)
    wait_until(lambda: api.list_deliveries(webhook, status="delivered"), "a delivery")
    args = ["deliveries", "list", "--account", api.account]
    for settings, status in (({}, "\x1b[32mdelivered\x1b[0m "), ({"NO_COLOR": "1"}, "delivered ")):
        master, slave = pty.openpty()
        completed = subprocess.run(
            [BINARY, *args, "--dynamodb-endpoint", service.dynamodb],
            env=build_environment({"TERM": "xterm"} | settings),
            stdout=slave,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        os.close(slave)
        shown = os.read(master, 65536).decode()
        os.close(master)
        assert completed.returncode == 0, completed
        assert f"\n{status}" in shown, shown


def run_on_terminal(*args):
    """Runs a command with its stderr on a terminal.

    Returns its stdout and what the terminal got.
    """
    master, slave = pty.openpty()
    with subprocess.Popen(
        [BINARY, *args],
        env=build_environment({"TERM": "xterm"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
    ) as process:
        os.close(slave)
        shown = b""
        # Reading fails when the command has closed its side.
        try:
            while part := os.read(master, 65536):
                shown += part
        except OSError:
            pass
        finally:
            os.close(master)
        printed = process.stdout.read().decode()
    assert process.returncode == 0, shown
    return printed, shown.decode()


def test_progress_appears_only_on_terminal(service, api, receiver):
    """A terminal shows the progress on stderr. Stdout, and stderr in a file, never have it."""
    api.subscribe(f"{receiver.url}/terminal")
    endpoint = ["--dynamodb-endpoint", service.dynamodb]
    for args, progress in (
        (["stats"], "Counting pending deliveries"),
        (["stats", "--account", api.account], "Counting deliveries"),
    ):
        printed, shown = run_on_terminal(*args, *endpoint, "--json")
        assert progress in shown and "\x1b" in shown, shown
        assert [json.loads(line) for line in printed.splitlines()]
        assert run_command(*args, *endpoint, "--json").stderr == ""
