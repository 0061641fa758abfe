"""The deployed functions, and what stands in for AWS around them.

The `api` and `dispatch` binaries beside the tested one run as Lambda runs them, on a Runtime API of this file, and the
events that they get are those of `events/`. SQS and KMS are an engine that speaks their protocols; the tables are the
tests' own, in the engine of a `serve` that knows nothing of them.
"""

import concurrent.futures
import contextlib
import copy
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

from support import BINARY, DEADLINE, Answer, Api, check_form, command, environment, eventually

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
        wire.calls.append(self.headers["X-Amz-Target"])
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
    """The way from the functions to an engine: what goes along it is recorded, or refused."""

    def __init__(self, engine):
        self.engine = urllib.parse.urlsplit(engine).netloc
        self.calls, self.batches, self.refusal = [], [], None
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

    def __init__(self, service, sqs, folder, schedule, **env):
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
        } | env
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

    def deliveries(self):
        """The deliveries as they are in the table."""
        return self.db.scan(TableName=self.tables["deliveries"], ConsistentRead=True)["Items"]

    def items(self):
        """The same by their task."""
        return {item["task_id"]["S"]: item for item in self.deliveries()}

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
