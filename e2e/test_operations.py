"""What an operator does by command: poison records, deliveries, and a look at what stands in the tables."""

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from deployment import Wire
from support import BINARY, PLAIN_SECRET, STANDARD_SECRET, command, environment, eventually, verify

SWEPT = 80  # seconds within which a sweep comes and sends what it finds: it comes each minute


class Operator:
    """Commands on a service's tables; none may ever show a secret."""

    def __init__(self, service):
        self.service = service

    def __call__(self, *args, check=True, env=None):
        done = command(*args, "--dynamodb-endpoint", self.service.dynamodb, check=check, env=env)
        for secret in (PLAIN_SECRET, STANDARD_SECRET, STANDARD_SECRET.removeprefix("whsec_")):
            assert secret not in done.stdout + done.stderr, args
        return done

    def json(self, *args):
        """The objects that a command prints, one a line."""
        return [json.loads(line) for line in self(*args, "--json").stdout.splitlines()]

    def fails(self, *args):
        """The one line with which a command fails."""
        done = self(*args, check=False)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done
        assert "panicked" not in done.stderr
        return done.stderr

    def poison(self):
        """The poison records by their jobs."""
        return {record["keys"]["task_id"]["S"]: record for record in self.json("poison", "list")}

    def poison_of(self, *tasks):
        """The records of these jobs, waited for."""

        def kept():
            found = self.poison()
            return set(tasks) <= set(found) and [found[task] for task in tasks]

        return eventually(kept, f"poison records of {tasks}")

    def deliveries(self, account, *args):
        return self.json("deliveries", "list", "--account", account, *args)


@pytest.fixture
def operated(start):
    """A service of the test's own: what is counted and redriven here is this test's alone."""
    return start("--in-memory", "--retry-schedule", "1h")


@pytest.fixture
def operate(operated):
    return Operator(operated)


def test_operations_a_mended_job_is_redriven_once_and_a_retry_by_hand_is_sent_both_by_the_next_sweep(
    operated, operate, receiver
):
    api = operated.new_account()
    hook, failing = api.subscribe(f"{receiver.url}/hook", PLAIN_SECRET), api.subscribe(f"{receiver.url}/failing")
    receiver.answer("/failing", lambda handler: handler.reply(503))
    operated.put_job("first", api.account)
    for task in ("mended", "still broken"):
        operated.put_job(task, api.account, account_id=None)
    mended, broken = operate.poison_of("mended", "still broken")
    first = receiver.wait_for("/hook")[0].id
    assert mended["reason"] == broken["reason"] == "`account_id`: missing, expected a string (S)"
    assert mended["image"]["task_type"] == {"S": "image"} and mended["stream"].startswith("arn:aws:dynamodb:")

    done = operate("poison", "redrive", mended["id"], check=False)
    assert done.returncode == 1
    assert f"{mended['id']}: stays: `account_id`: missing" in done.stdout and "1 record still not understood" in done.stderr

    # The same terminal status: mending raises no event by itself. What is written after it comes after it.
    operated.put_job("mended", api.account, data={"M": {"by": {"S": "hand"}}})
    operated.put_job("canary", api.account)
    receiver.wait_for("/hook", 2)
    assert [request.json["task_id"] for request in receiver.at("/hook")] == ["first", "canary"]

    done = operate("poison", "redrive", "--all", check=False)
    assert done.returncode == 1 and f"{broken['id']}: stays: " in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(mended["id"])]
    event = next(word.strip(":,") for word in line.split() if word.startswith("evt_"))
    assert "job.completed of job mended" in line and line.endswith("2 deliveries due"), line
    assert "2 records read again: 1 event, 2 deliveries due" in done.stdout
    assert set(operate.poison()) == {"still broken"}

    retried = operate("deliveries", "retry", "--account", api.account, "--webhook", str(failing), first)
    assert "Attempt 2" in retried.stdout and "within a minute" in retried.stdout

    eventually(lambda: len(receiver.at("/hook")) >= 3, "the redriven event", SWEPT)
    received = receiver.at("/hook")[2]
    assert received.id == event and received.json["data"] == {"by": "hand"}
    verify([received], PLAIN_SECRET)
    eventually(lambda: api.delivery(failing, first).data["attempt_count"] == 2, "the retry by hand", SWEPT)

    # The record was dropped with its first redrive; whoever names it again is told so, and nothing is sent twice.
    assert mended["id"] in operate.fails("poison", "redrive", mended["id"])
    rows = [row for row in operate.deliveries(api.account) if row["event_id"] == event]
    assert sorted((row["webhook_id"], row["attempt_count"]) for row in rows) == [(hook, 1), (failing, 1)]
    operated.put_job("still broken", api.account)
    assert "1 event, 2 deliveries due" in operate("poison", "redrive", "--all", "--day", broken["id"][:10]).stdout
    assert operate("poison", "redrive", "--all").stderr == "No poison records.\n"
    assert operate("poison", "list").stderr == "No poison records.\n"


def test_operations_poison_is_listed_for_people_and_by_day(operated, operate):
    operated.put_job("odd\x1b[2J", "a", data={"S": "{}"})
    operated.put_job("large", "a", account_id=None, data={"M": {"text": {"S": "x" * 270_000}}})
    odd, large = operate.poison_of("odd\x1b[2J", "large")
    assert large["image"] is None and odd["image"]["data"] == {"S": "{}"}
    day = odd["id"][:10]
    listed = operate("poison", "list", "--day", day).stdout
    assert f"{odd['id']}\n  kept    {odd['kept_at']} (" in listed
    assert "reason  `data`: expected a map (M)" in listed and "job     task_id=large" in listed
    assert "too large, not kept" in listed and odd["stream"] in listed
    assert "\x1b" not in listed and r"task_id=odd\u{1b}[2J" in listed
    assert operate("poison", "list", "--day", "2024-12-23").stdout == ""

    # The job's own body is too large: mending the account does not help.
    operated.put_job("large", "a", data={"M": {"text": {"S": "x" * 270_000}}})
    done = operate("poison", "redrive", large["id"], odd["id"], large["id"], check=False)
    assert done.returncode == 1 and done.stdout.count("stays: the body would have 2") == 1, done
    operated.db.delete_item(TableName=operated.tables["jobs"], Key={"task_id": {"S": "large"}})
    done = operate("poison", "redrive", large["id"], check=False)
    assert done.returncode == 1 and "its image was not kept, and the job is gone" in done.stdout
    assert operate.poison()["large"]["reason"] == "its image was not kept, and the job is gone"
    # Of a job that is gone the image counts.
    operated.db.delete_item(TableName=operated.tables["jobs"], Key={"task_id": {"S": "odd\x1b[2J"}})
    assert "`data`: expected a map (M)" in operate("poison", "redrive", odd["id"], check=False).stdout


def test_operations_deliveries_are_listed_over_all_webhooks_the_newest_first(service, api, receiver):
    operate = Operator(service)
    one, two = api.subscribe(f"{receiver.url}/one", STANDARD_SECRET), api.subscribe(f"{receiver.url}/two")
    receiver.answer("/two", lambda handler: handler.reply(500))
    for n in range(3):
        service.put_job(f"{api.account} {n}", api.account, "failed" if n == 1 else "completed")
        receiver.wait_for("/two", n + 1)
    for webhook in (one, two):
        eventually(lambda: len(api.log(webhook)) == 3, "all recorded")
    listed = operate("deliveries", "list", "--account", api.account)
    assert f"{one}, {two}" in listed.stderr
    lines = listed.stdout.splitlines()
    ids = [line.split()[0] for line in lines]
    assert len(ids) == 6 and ids == sorted(ids, reverse=True)
    assert sum("delivered, 1 attempt" in line for line in lines) == 3
    assert sum("pending, 1 attempt, last failure status, next " in line and "(in " in line for line in lines) == 3

    rows = operate.deliveries(api.account)
    assert [row["event_id"] for row in rows] == ids
    of_one = operate.deliveries(api.account, "--webhook", str(one))
    assert of_one == [{"webhook_id": one} | row for row in api.log(one)]
    filters = (
        (["--status", "pending"], {(two, "job.completed"), (two, "job.failed")}),
        (["--status", "delivered", "--event", "job.failed"], {(one, "job.failed")}),
        (["--status", "failed"], set()),
        (["--webhook", str(two), "--event", "webhook.disabled"], set()),
    )
    for options, expected in filters:
        found = operate.deliveries(api.account, *options)
        assert {(row["webhook_id"], row["event"]) for row in found} == expected, options
    cut = operate("deliveries", "list", "--account", api.account, "--limit", "2")
    assert cut.stdout.splitlines() == lines[:2] and "more" in cut.stderr

    api.delete(two)
    assert {row["webhook_id"] for row in operate.deliveries(api.account)} == {one}
    gone = operate.deliveries(api.account, "--webhook", str(two))
    assert [row["status"] for row in gone] == ["cancelled"] * 3
    assert operate.deliveries(api.account, "--webhook", str(two), "--status", "pending") == []
    assert "has no webhook 9" in operate.fails("deliveries", "list", "--account", api.account, "--webhook", "9")
    assert "has no webhooks" in operate("deliveries", "list", "--account", "nobody").stderr


def test_operations_a_delivery_is_shown_with_all_that_the_api_shows(service, api, receiver):
    operate = Operator(service)
    webhook = api.subscribe(f"{receiver.url}/show", PLAIN_SECRET)
    receiver.answer("/show", lambda handler: handler.reply(503, body=b"not \x1b[1mnow"))
    service.put_job(f"{api.account} shown", api.account)
    row = api.row(webhook, lambda row: row["attempt_count"] == 1)
    named = ["--account", api.account, "--webhook", str(webhook), row["event_id"]]
    shown = operate.json("deliveries", "show", *named)
    assert shown == [api.delivery(webhook, row["event_id"]).data]
    text = operate("deliveries", "show", *named).stdout
    (attempt,) = shown[0]["attempts"]
    for part in (
        f"  payload   {shown[0]['payload']}\n",
        f"  next      an attempt at {row['next_attempt_at']} (in ",
        "  status    pending after 1 attempt\n",
        f"Attempt 1 at {attempt['at']} (",
        f"status 503 after {attempt['duration_ms']} ms\n",
        f"  failure   status: {attempt['detail']}\n",
        r"  answered  not \u{1b}[1mnow",
        f"  sent      x-nano-signature: {attempt['request_headers']['x-nano-signature']}\n",
    ):
        assert part in text, (part, text)
    assert "  phases    connect " in text or "  phases    answer " in text
    assert "\x1b" not in text
    missing = [*named[:-1], "evt_00000000000000000000000000"]
    for sub in ("show", "retry"):
        assert "has no delivery evt_0000" in operate.fails("deliveries", sub, *missing)


def test_operations_a_retry_is_refused_with_the_reason(service, api, receiver):
    operate = Operator(service)
    hanging = api.subscribe(f"{receiver.url}/hanging")
    receiver.answer("/hanging", lambda handler: handler.reply(503))
    service.put_job(f"{api.account} refused", api.account)
    row = api.row(hanging, lambda row: row["attempt_count"] == 1)
    named = ["--account", api.account, "--webhook", str(hanging), row["event_id"]]
    receiver.hang("/hanging")
    assert api.retry(hanging, row["event_id"]).status == 202
    eventually(lambda: len(receiver.at("/hanging")) == 2, "the attempt that hangs")
    assert api.retry(hanging, row["event_id"]).status == 409
    assert "is being attempted" in operate.fails("deliveries", "retry", *named)
    receiver.closing.set()
    api.row(hanging, lambda row: row["attempt_count"] == 2)
    assert api.call("PATCH", f"/api/v1/webhooks/{hanging}", {"status": "disabled"}).status == 200
    assert "is disabled: enable it first" in operate.fails("deliveries", "retry", *named)
    api.delete(hanging)
    assert "is deleted" in operate.fails("deliveries", "retry", *named)
    assert "cancelled" in operate("deliveries", "show", *named).stdout


def test_operations_stats_count_what_stands_in_the_tables(operated, operate, receiver):
    assert operate.json("stats") == [
        {
            "pending": {
                "overdue": 0,
                "oldest_due_at": None,
                "waiting": 0,
                "next_due_at": None,
                "complete": True,
                "most": [],
            },
            "poison": [],
            "replaying": [],
            "unparking": [],
        }
    ]
    api = operated.new_account()
    fine, failing = api.subscribe(f"{receiver.url}/fine"), api.subscribe(f"{receiver.url}/failing")
    receiver.answer("/failing", lambda handler: handler.reply(500))
    for n in range(3):
        operated.put_job(f"job {n}", api.account)
    operated.put_job("poison", api.account, account_id=None)
    (poison,) = operate.poison_of("poison")
    eventually(lambda: len(api.log(failing, status="pending")) == 3, "three that failed")
    (stats,) = operate.json("stats")
    due = sorted(row["next_attempt_at"] for row in api.log(failing))
    assert stats["pending"] == {
        "overdue": 0,
        "oldest_due_at": None,
        "waiting": 3,
        "next_due_at": due[0],
        "complete": True,
        "most": [{"account": api.account, "webhook_id": failing, "pending": 3}],
    }
    assert stats["poison"] == [{"day": poison["id"][:10], "records": 1, "complete": True}]

    # One is overdue, and the webhook's others are parked as they come up.
    rows = api.log(failing)
    operate("deliveries", "retry", "--account", api.account, "--webhook", str(failing), rows[0]["event_id"])
    (stats,) = operate.json("stats")
    assert (stats["pending"]["overdue"], stats["pending"]["waiting"]) == (1, 2)
    text = operate("stats").stdout
    assert "Overdue    1 delivery, the oldest since " in text and "Waiting    2 deliveries, the next due at " in text
    assert f"Poison     {poison['id'][:10]}: 1 record\n" in text
    assert f"account {api.account}, webhook {failing}: 3" in text

    by_webhook = {one["webhook_id"]: one for one in operate.json("stats", "--account", api.account)}
    assert by_webhook[failing]["pending"] == {"count": 3, "overdue": 1, "parked": 0, "complete": True}
    assert by_webhook[failing]["failed"] == {"count": 0, "complete": True}
    assert (by_webhook[failing]["health"]["state"], by_webhook[failing]["health"]["last_failure"]) == (
        "failing",
        "status",
    )
    assert (by_webhook[fine]["health"]["state"], by_webhook[fine]["pending"]["count"]) == ("healthy", 0)
    text = operate("stats", "--account", api.account).stdout
    assert f"Webhook {failing}  {receiver.url}/failing  active\n  health   failing since " in text
    assert "  pending  3, of which 1 overdue, 0 parked\n  failed   0\n" in text

    patch = lambda status: api.call("PATCH", f"/api/v1/webhooks/{fine}", {"status": status})
    assert (patch("disabled").status, patch("active").status) == (200, 200)
    (stats,) = operate.json("stats")
    assert stats["unparking"] == [{"account": api.account, "webhook_id": fine}]
    replay = api.call("POST", f"/api/v1/webhooks/{fine}/replay", {"since": "2024-12-23T00:00:00Z", "status": "all"})
    assert replay.status == 202, replay.text
    (stats,) = operate.json("stats")
    going_on = {"account": api.account, "webhook_id": fine, "replay": replay.data["id"]}
    assert stats["replaying"] == [going_on]
    assert replay.data["id"] in operate("stats").stdout
    assert "has no webhooks" in operate("stats", "--account", "nobody").stderr


def test_operations_work_with_aws_credentials_and_the_tables_alone(service, api, receiver):
    """Neither KMS nor SQS is in reach of these commands, and they do not ask for them."""
    webhook = api.subscribe(f"{receiver.url}/aws", PLAIN_SECRET)
    service.put_job(f"{api.account} poison", api.account, account_id=None)
    operate = Operator(service)
    (poison,) = operate.poison_of(f"{api.account} poison")
    service.put_job(f"{api.account} poison", api.account)
    aws = {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_DYNAMODB": service.dynamodb,
        "WEBHOOKS_TABLE": service.tables["webhooks"],
        "DELIVERIES_TABLE": service.tables["deliveries"],
    }
    # Without the jobs table the image counts, as it was kept.
    done = command("poison", "redrive", poison["id"], "--aws", env=aws, check=False)
    assert done.returncode == 1 and "`account_id`: missing" in done.stdout, done
    done = command("poison", "redrive", poison["id"], "--aws", env=aws | {"JOBS_TABLE": service.tables["jobs"]})
    assert "1 delivery due" in done.stdout
    named = ["--account", api.account, "--webhook", str(webhook)]
    listed = command("deliveries", "list", *named, "--json", "--aws", env=aws).stdout
    event = json.loads(listed)["event_id"]
    assert "pending" in command("deliveries", "show", *named, event, "--aws", env=aws).stdout
    assert "Attempt 1" in command("deliveries", "retry", *named, event, "--aws", env=aws).stdout
    assert "Overdue" in command("stats", "--aws", env=aws).stdout
    assert "Webhook" in command("stats", "--account", api.account, "--aws", env=aws).stdout
    assert "poison" not in command("poison", "list", "--day", "2024-12-23", "--aws", env=aws).stdout

    nowhere = command("stats", "--aws", env=aws | {"DELIVERIES_TABLE": "nowhere"}, check=False)
    assert nowhere.returncode == 1 and nowhere.stderr.count("\n") == 1, nowhere
    assert "ResourceNotFoundException" in nowhere.stderr and "meta" not in nowhere.stderr
    away = command("stats", "--aws", env=aws | {"AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:9"}, check=False)
    assert away.returncode == 1 and "AWS credentials" in away.stderr and away.stderr.count("\n") == 1, away


def permissions():
    """What SECURITY.md says that each command needs of the tables."""
    text = (Path(__file__).parent.parent / "SECURITY.md").read_text()
    rows = re.findall(r"^\| `((?:poison|deliveries|stats)[^`]*)` \| (.*) \|$", text, re.M)
    return {command: set(re.findall(r"`([A-Z]\w+Item|Query|Scan)`", needs)) for command, needs in rows}


def test_operations_ask_of_the_tables_what_the_page_on_security_says(operated, receiver):
    api = operated.new_account()
    webhook = api.subscribe(f"{receiver.url}/asked")
    operated.put_job("whole", api.account)
    for task in ("mended", "broken"):
        operated.put_job(task, api.account, account_id=None)
    operate = Operator(operated)
    mended, broken = operate.poison_of("mended", "broken")
    operated.put_job("mended", api.account)
    # Its reason is another now, which is written down.
    operated.put_job("broken", api.account, data={"S": "{}"})
    of_account, of_webhook = ["--account", api.account], ["--account", api.account, "--webhook", str(webhook)]
    event = api.row(webhook)["event_id"]
    runs = {
        "poison list": [["poison", "list"]],
        "poison redrive": [["poison", "redrive", "--all"], ["poison", "redrive", broken["id"]]],
        "deliveries list": [
            ["deliveries", "list", *of_account],
            ["deliveries", "list", *of_account, "--status", "failed"],
            ["deliveries", "list", *of_account, "--webhook", "9"],
        ],
        "deliveries show": [["deliveries", "show", *of_webhook, event]],
        "deliveries retry": [["deliveries", "retry", *of_webhook, event]],
        "stats": [["stats"]],
        "stats --account": [["stats", *of_account]],
    }
    # Of a delivery that a replay had asked for, which these are not.
    unseen = {"deliveries retry": {"UpdateItem"}}
    wire = Wire(operated.dynamodb)
    try:
        asked = {}
        for name, commands in runs.items():
            wire.calls.clear()
            for args in commands:
                command(*args, "--dynamodb-endpoint", wire.url, check=False)
            asked[name] = {target.removeprefix("DynamoDB_20120810.") for target in wire.calls} | unseen.get(name, set())
    finally:
        wire.server.close()
    assert asked == permissions()
    assert set(operate.poison()) == {"broken"} and mended["id"] != broken["id"]


@pytest.mark.parametrize(
    "args, named",
    [
        (["poison", "list", "--day", "yesterday"], "expected a day such as 2024-12-23"),
        (["poison", "redrive"], "<ID>"),
        (["poison", "redrive", "100"], "2024-12-23/100"),
        (["poison", "redrive", "2024-12-23/100", "--all"], "--all"),
        (["poison", "redrive", "--day", "2024-12-23", "2024-12-23/100"], "--day"),
        (["poison", "redrive", "--day", "2024-12-23"], "--all"),
        (["deliveries", "list"], "--account"),
        (["deliveries", "list", "--account", ""], "expected an account name"),
        (["deliveries", "list", "--account", "a", "--webhook", "0"], "expected the number of a webhook"),
        (["deliveries", "list", "--account", "a", "--status", "done"], "expected pending, delivered, failed or cancelled"),
        (["deliveries", "list", "--account", "a", "--event", "job"], "expected job.completed"),
        (["deliveries", "list", "--account", "a", "--limit", "1001"], "from 1 to 1000"),
        (["deliveries", "show", "--account", "a", "--webhook", "1", "evt_1"], "evt_ and 26 characters"),
        (["stats", "--account", ""], "expected an account name"),
    ],
)
def test_operations_a_wrong_option_is_named_with_what_was_expected(args, named):
    done = command(*args, check=False)
    assert done.returncode == 2 and named in done.stderr, done.stderr


def on_a_terminal(*args):
    """A command's stdout, and what its stderr shows on a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [BINARY, *args], env=environment({"TERM": "xterm"}), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        # The end of the other side is an error here.
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            pass
        finally:
            os.close(ours)
        printed = process.stdout.read().decode()
    assert process.returncode == 0, shown
    return printed, shown.decode()


def test_operations_progress_is_shown_on_a_terminal_alone_and_never_in_what_is_printed(service, api, receiver):
    at = ["--dynamodb-endpoint", service.dynamodb]
    api.subscribe(f"{receiver.url}/terminal")
    for args, what in ((["stats"], "Counting what is pending"), (["stats", "--account", api.account], "Counting deliveries")):
        printed, shown = on_a_terminal(*args, *at, "--json")
        assert what in shown and "\x1b" in shown, shown
        assert [json.loads(line) for line in printed.splitlines()]
        assert command(*args, *at, "--json").stderr == ""
