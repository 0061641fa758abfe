"""The deployed functions with a real SQS between them.

The `api` and `dispatch` binaries beside the tested one run as Lambda runs them, on a Runtime API of this file, and the
events that they get are those of `events/`. The queue is an engine that speaks the protocol of SQS; the tables are the
tests' own, in the engine of a `serve` that knows nothing of them.
"""

import concurrent.futures
import contextlib
import copy
import datetime
import hashlib
import http.client
import http.server
import itertools
import json
import queue
import subprocess
import threading
import time
import urllib.parse
import uuid
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from support import BINARY, DEADLINE, PLAIN_SECRET, Answer, Api, check_form, command, environment, eventually, verify

EVENTS = Path(__file__).parent.parent / "events"
TIMEOUT = 60  # seconds that an invocation may take, as in the template
AWS = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
NOWHERE = "http://127.0.0.1:9"  # the discard port, on which nothing listens


# --- what stands in for AWS


class FunctionError(Exception):
    """The function answered an invocation with an error, or ended."""


class _Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, handler, owner):
        super().__init__(("127.0.0.1", 0), handler)
        self.owner = owner
        self.address = f"127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request, client_address):
        """A function that is ended breaks its connections off: nothing to print."""

    def close(self):
        self.shutdown()
        self.server_close()


class _RuntimeApi(_Quiet):
    """Lambda's Runtime API, 2018-06-01, as far as a function that goes well or fails needs it."""

    def do_GET(self):
        assert self.path == "/2018-06-01/runtime/invocation/next", self.path
        request, event = self.server.owner.invocations.get()
        if request is None:
            return
        headers = {
            "Content-Type": "application/json",
            "Lambda-Runtime-Aws-Request-Id": request,
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + TIMEOUT) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:123456789012:function:tested",
        }
        self.reply(200, headers, json.dumps(event).encode())

    def do_POST(self):
        answer = json.loads(self.body())
        *_, request, outcome = self.path.split("/")
        answered = self.server.owner.answers.pop(request)
        if outcome == "response":
            answered.set_result(answer)
        else:
            answered.set_exception(FunctionError(answer))
        self.reply(202, {}, b"")


class Function:
    """A deployed binary, which takes one invocation after the other."""

    def __init__(self, binary, env, log):
        path = Path(BINARY).with_name(binary)
        assert path.exists(), f"{path.name} is not built: it is tested beside {Path(BINARY).name}"
        self.invocations, self.answers = queue.SimpleQueue(), {}
        self.runtime = _Server(_RuntimeApi, self)
        lambda_ = {
            "AWS_LAMBDA_RUNTIME_API": self.runtime.address,
            "AWS_LAMBDA_FUNCTION_NAME": binary,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        }
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [path], env=environment(lambda_ | env), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def invoke(self, event):
        request = str(uuid.uuid4())
        answered = self.answers[request] = concurrent.futures.Future()
        self.invocations.put((request, event))
        end = time.monotonic() + TIMEOUT
        while self.popen.poll() is None and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                return answered.result(0.5)
        raise FunctionError(f"no answer; exit {self.popen.poll()}\n{self.log.read_text()}")

    def close(self):
        self.popen.kill()
        self.popen.wait(DEADLINE)
        self.invocations.put((None, None))
        self.runtime.close()


class _Proxy(_Quiet):
    def do_POST(self):
        wire, body, at = self.server.owner, self.body(), time.time()
        if wire.refusal:
            status, answer = wire.refusal(json.loads(body))
            self.reply(status, {"Content-Type": "application/x-amz-json-1.0"}, json.dumps(answer).encode())
            return
        with contextlib.closing(http.client.HTTPConnection(wire.engine, timeout=DEADLINE)) as connection:
            connection.request("POST", self.path, body, dict(self.headers))
            response = connection.getresponse()
            answer = response.read()
        if self.headers["X-Amz-Target"] == "AmazonSQS.SendMessageBatch":
            assert response.status == 200 and not json.loads(answer).get("Failed"), answer
            wire.batches.append((at, json.loads(body)["Entries"]))
        self.reply(response.status, {"Content-Type": response.headers["Content-Type"]}, answer)


class Wire:
    """The way from the functions to SQS: what goes along it is recorded, or refused."""

    def __init__(self, engine):
        self.engine = urllib.parse.urlsplit(engine).netloc
        self.batches, self.refusal = [], None
        self.server = _Server(_Proxy, self)
        self.url = f"http://{self.server.address}"

    @property
    def sent(self):
        return [entry for _, entries in self.batches for entry in entries]


class FunctionApi(Api):
    """The HTTP API as one account, behind an API Gateway: each request is an event of the `api` function."""

    def __init__(self, function, key, account):
        super().__init__(None, key, account)
        self.function = function

    def call(self, method, path, body=None, headers=None, key=None):
        event = json.loads((EVENTS / "api-delete.json").read_text())
        parts = urllib.parse.urlsplit(path)
        event |= {"rawPath": parts.path, "rawQueryString": parts.query}
        event["headers"]["authorization"] = f"Bearer {key or self.key}"
        event["requestContext"]["http"] |= {"method": method, "path": parts.path}
        if body is not None:
            event["body"] = json.dumps(body)
            event["headers"]["content-type"] = "application/json"
        answered = self.function.invoke(event)
        all_headers = http.client.HTTPMessage()
        for name, value in answered["headers"].items():
            all_headers[name] = value
        answer = Answer(answered["statusCode"], all_headers, answered["body"])
        check_form(answer)
        return answer


class Deployment:
    """Tables, a queue, and the functions of one deployment."""

    ids = itertools.count(1)

    def __init__(self, service, sqs, folder, schedule):
        self.name = f"deployed-{next(self.ids)}"
        self.db, self.folder, self.closing = service.db, folder, contextlib.ExitStack()
        self.tables = {use: f"{self.name}-{use}" for use in ("webhooks", "deliveries")}
        for use, table in self.tables.items():
            self.create_like(service.tables[use], table)
        self.sqs = boto3.client(
            "sqs", endpoint_url=sqs, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any"
        )
        self.queue = self.sqs.create_queue(QueueName=self.name)["QueueUrl"]
        self.wire = Wire(sqs)
        self.closing.callback(self.wire.server.close)
        self.env = AWS | {
            "AWS_ENDPOINT_URL_DYNAMODB": service.dynamodb,
            "AWS_ENDPOINT_URL_SQS": self.wire.url,
            "WEBHOOKS_TABLE": self.tables["webhooks"],
            "DELIVERIES_TABLE": self.tables["deliveries"],
            "RETRY_QUEUE_URL": self.queue,
            "RETRY_SCHEDULE": schedule,
            "TARGETS": "any",
        }
        self.dispatch = self.function("dispatch")
        account = f"account-{uuid.uuid4()}"
        made = command(
            *("keys", "create", "--account", account, "--json", "--dynamodb-endpoint", service.dynamodb),
            env={name: self.env[name] for name in ("WEBHOOKS_TABLE", "DELIVERIES_TABLE")},
        )
        self.api = FunctionApi(self.function("api"), json.loads(made.stdout)["api_key"], account)

    def function(self, binary, **env):
        function = Function(binary, self.env | env, self.folder / f"{binary}-{uuid.uuid4()}.log")
        self.closing.callback(function.close)
        return function

    def create_like(self, model, name):
        """A table of the shape that the service itself gave to another."""
        shape = self.db.describe_table(TableName=model)["Table"]
        indexes = [
            {part: index[part] for part in ("IndexName", "KeySchema", "Projection")}
            for index in shape.get("GlobalSecondaryIndexes", [])
        ]
        self.db.create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=shape["KeySchema"],
            AttributeDefinitions=shape["AttributeDefinitions"],
            **({"GlobalSecondaryIndexes": indexes} if indexes else {}),
        )

    # --- what Lambda's event sources do

    def jobs_end(self, *tasks):
        """One batch of the jobs stream, in which these jobs are inserted completed."""
        sample = json.loads((EVENTS / "stream-completed.json").read_text())["Records"][0]
        records = []
        for task in tasks:
            record = copy.deepcopy(sample)
            change = record["dynamodb"]
            change["SequenceNumber"] = str(uuid.uuid4().int)
            change["Keys"]["task_id"]["S"] = change["NewImage"]["task_id"]["S"] = task
            change["NewImage"]["account_id"]["S"] = self.api.account
            records.append(record)
        assert self.dispatch.invoke({"Records": records}) == {"batchItemFailures": []}

    def sweep(self):
        return self.dispatch.invoke(json.loads((EVENTS / "schedule-sweep.json").read_text()))

    def receive(self, wait=1):
        return self.sqs.receive_message(
            QueueUrl=self.queue, MaxNumberOfMessages=10, WaitTimeSeconds=wait, AttributeNames=["All"]
        ).get("Messages", [])

    def poll(self, function=None):
        """Takes a batch from the queue as Lambda does; gives the ids of its messages, and of those that failed."""
        messages = self.receive()
        if not messages:
            return [], []
        failed = failures((function or self.dispatch).invoke(queue_event(messages)))
        for message in messages:
            handle = {"QueueUrl": self.queue, "ReceiptHandle": message["ReceiptHandle"]}
            if message["MessageId"] in failed:
                # Instead of waiting for it to be visible again.
                self.sqs.change_message_visibility(**handle, VisibilityTimeout=0)
            else:
                self.sqs.delete_message(**handle)
        return [message["MessageId"] for message in messages], failed

    def poll_until(self, condition, what):
        def polled():
            assert self.poll()[1] == []
            return condition()

        return eventually(polled, what)

    # --- what there is

    def in_queue(self):
        """How many messages are visible, in flight, and delayed."""
        names = [f"ApproximateNumberOfMessages{kind}" for kind in ("", "NotVisible", "Delayed")]
        found = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)["Attributes"]
        return tuple(int(found[name]) for name in names)

    def items(self):
        """The deliveries as they are in the table, by their task."""
        items = self.db.scan(TableName=self.tables["deliveries"], ConsistentRead=True)["Items"]
        return {item["task_id"]["S"]: item for item in items}

    def move(self, item, due_in, sweep_in):
        """Makes a pending delivery due, and to be looked at, so many seconds from now: time goes by without waiting."""
        times = {":due": due_in, ":sweep": sweep_in}
        self.db.update_item(
            TableName=self.tables["deliveries"],
            Key={name: item[name] for name in ("PK", "SK")},
            UpdateExpression="SET next_attempt_at = :due, sweep_at = :sweep",
            ConditionExpression="attribute_exists(sweep_at)",
            ExpressionAttributeValues={name: {"N": str(milliseconds() + at * 1000)} for name, at in times.items()},
        )


def milliseconds():
    return int(time.time() * 1000)


def queue_event(messages):
    """Messages as SQS gave them, as the event that Lambda makes of them."""
    sample = json.loads((EVENTS / "queue-retry.json").read_text())["Records"][0]
    return {
        "Records": [
            sample
            | {
                "messageId": message["MessageId"],
                "receiptHandle": message["ReceiptHandle"],
                "body": message["Body"],
                "md5OfBody": message["MD5OfBody"],
                "attributes": message["Attributes"],
            }
            for message in messages
        ]
    }


def message(body):
    """A message that did not come through a queue."""
    text = body if isinstance(body, str) else json.dumps(body)
    return {
        "MessageId": str(uuid.uuid4()),
        "ReceiptHandle": "any",
        "Body": text,
        "MD5OfBody": hashlib.md5(text.encode()).hexdigest(),
        "Attributes": {"ApproximateReceiveCount": "1"},
    }


def failures(answer):
    assert set(answer) == {"batchItemFailures"}, answer
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def status(code, after=0):
    def answer(handler):
        time.sleep(after)
        handler.reply(code)

    return answer


def one_after_the_other(*answers):
    """These, and the last from then on."""
    left = itertools.chain(answers, itertools.repeat(answers[-1]))
    return lambda handler: next(left)(handler)


@pytest.fixture(scope="module")
def sqs():
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def deploy(service, sqs, tmp_path):
    with contextlib.ExitStack() as deployed:

        def deploy(schedule):
            deployment = Deployment(service, sqs, tmp_path, schedule)
            deployed.callback(deployment.closing.close)
            return deployment

        yield deploy


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
