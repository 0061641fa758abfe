"""The deployed functions, and substitutes for the AWS services around them.

The binaries `api` and `dispatch` from the folder of the tested binary run as Lambda runs them, over
the Runtime API of this file. Their events are built from the files in `events/`. An engine that
speaks the protocols of SQS and KMS replaces both. Each deployment has tables of its own in the
DynamoDB engine of a running `serve`.
"""

import concurrent.futures
import contextlib
import copy
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

from support import (
    BINARY,
    TEST_TIMEOUT,
    Api,
    Response,
    assert_envelope,
    build_environment,
    run_command,
    wait_until,
)

EVENTS = Path(__file__).parent.parent / "events"
INVOCATION_TIMEOUT = 60  # seconds
AWS_ENVIRONMENT = {
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "any",
    "AWS_SECRET_ACCESS_KEY": "any",
}
FUNCTION_ARN = "arn:aws:lambda:us-east-1:123456789012:function:tested"
UNREACHABLE = "http://127.0.0.1:9"  # the discard port, where nothing listens


# Substitutes for AWS


class FunctionError(Exception):
    """The function returned an error or exited."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def read_body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def respond(self, status, headers, body):
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
        """Prints nothing: a function that is killed drops its connections."""

    def close(self):
        self.shutdown()
        self.server_close()


class _RuntimeApi(_Handler):
    """The parts of Lambda's Runtime API 2018-06-01 and Extensions API 2020-01-01 that hand out
    invocations and take their results.
    """

    def do_GET(self):
        if self.path == "/2020-01-01/extension/event/next":
            self.next_extension_event()
        else:
            self.next_invocation()

    def next_extension_event(self):
        function = self.server.owner
        function.extension_is_idle.set()
        request_id = function.extension_events.get()
        if request_id is None:
            return
        event = {
            "eventType": "INVOKE",
            "deadlineMs": int((time.time() + INVOCATION_TIMEOUT) * 1000),
            "requestId": request_id,
            "invokedFunctionArn": FUNCTION_ARN,
        }
        headers = {"Content-Type": "application/json"}
        self.respond(200, headers, json.dumps(event).encode())

    def register_extension(self):
        """Registers an internal extension, unless the test wants it to be refused."""
        events = json.loads(self.read_body())["events"]
        assert events == ["INVOKE"], events
        function = self.server.owner
        if not function.accepts_extensions:
            self.respond(403, {}, b"{}")
            return
        function.has_extension = True
        body = {"functionName": "dispatch", "functionVersion": "$LATEST", "handler": "bootstrap"}
        headers = {"Content-Type": "application/json", "Lambda-Extension-Identifier": "extension"}
        self.respond(200, headers, json.dumps(body).encode())

    def next_invocation(self):
        assert self.path == "/2018-06-01/runtime/invocation/next", self.path
        function = self.server.owner
        request_id, event = function.invocations.get()
        if request_id is None:
            return
        if function.has_extension:
            function.extension_is_idle.clear()
            function.extension_events.put(request_id)
        headers = {
            "Content-Type": "application/json",
            "Lambda-Runtime-Aws-Request-Id": request_id,
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + INVOCATION_TIMEOUT) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": FUNCTION_ARN,
        }
        self.respond(200, headers, json.dumps(event).encode())

    def do_POST(self):
        if self.path == "/2020-01-01/extension/register":
            self.register_extension()
            return
        result = json.loads(self.read_body())
        *_, request_id, outcome = self.path.split("/")
        future = self.server.owner.results.pop(request_id)
        if outcome == "response":
            future.set_result(result)
        else:
            future.set_exception(FunctionError(result))
        self.respond(202, {}, b"")


class Function:
    """A deployed binary, which handles one invocation at a time.

    `extension_is_idle` is set while the binary's extension waits for an event: only then would
    Lambda freeze the environment or hand out another invocation.
    """

    def __init__(self, binary, env, log, accepts_extensions=True):
        path = Path(BINARY).with_name(binary)
        assert path.exists(), (
            f"{path.name} is missing: build it in the folder of {Path(BINARY).name}"
        )
        self.invocations, self.results = queue.SimpleQueue(), {}
        self.accepts_extensions, self.has_extension = accepts_extensions, False
        self.extension_events, self.extension_is_idle = queue.SimpleQueue(), threading.Event()
        self.runtime = _Server(_RuntimeApi, self)
        lambda_environment = {
            "AWS_LAMBDA_RUNTIME_API": self.runtime.address,
            "AWS_LAMBDA_FUNCTION_NAME": binary,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        }
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [path],
                env=build_environment(lambda_environment | env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def invoke(self, event):
        request_id = str(uuid.uuid4())
        future = self.results[request_id] = concurrent.futures.Future()
        self.invocations.put((request_id, event))
        deadline = time.monotonic() + INVOCATION_TIMEOUT
        while self.popen.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                return future.result(0.5)
        raise FunctionError(f"no response; exit {self.popen.poll()}\n{self.log.read_text()}")

    def close(self):
        self.popen.kill()
        self.popen.wait(TEST_TIMEOUT)
        self.invocations.put((None, None))
        self.extension_events.put(None)
        self.runtime.close()


class _ProxyHandler(_Handler):
    def do_POST(self):
        proxy, body, received_at = self.server.owner, self.read_body(), time.time()
        proxy.operations.append(self.headers["X-Amz-Target"])
        if proxy.override:
            status, response = proxy.override(json.loads(body))
            self.respond(
                status,
                {"Content-Type": "application/x-amz-json-1.0"},
                json.dumps(response).encode(),
            )
            return
        with contextlib.closing(
            http.client.HTTPConnection(proxy.engine, timeout=TEST_TIMEOUT)
        ) as connection:
            connection.request("POST", self.path, body, dict(self.headers))
            response = connection.getresponse()
            response_body = response.read()
        if self.headers["X-Amz-Target"] == "AmazonSQS.SendMessageBatch":
            assert response.status == 200 and not json.loads(response_body).get("Failed"), (
                response_body
            )
            proxy.message_batches.append((received_at, json.loads(body)["Entries"]))
        self.respond(
            response.status, {"Content-Type": response.headers["Content-Type"]}, response_body
        )


class RecordingProxy:
    """A proxy in front of an AWS engine. It records the requests.

    While `override` is set, `override(request)` returns the status and the response, and the engine
    gets no request.
    """

    def __init__(self, engine):
        self.engine = urllib.parse.urlsplit(engine).netloc
        self.operations, self.message_batches, self.override = [], [], None
        self.server = _Server(_ProxyHandler, self)
        self.url = f"http://{self.server.address}"

    @property
    def sent_messages(self):
        return [entry for _, entries in self.message_batches for entry in entries]


class FunctionApi(Api):
    """A client of the API behind API Gateway: each request is an event of the function `api`."""

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
        result = self.function.invoke(event)
        response_headers = http.client.HTTPMessage()
        for name, value in result["headers"].items():
            response_headers[name] = value
        response = Response(result["statusCode"], response_headers, result["body"])
        assert_envelope(response)
        return response


class Deployment:
    """The tables, the queue and the functions of one deployment."""

    ids = itertools.count(1)

    def __init__(self, service, sqs, folder, schedule, **env):
        self.name = f"deployed-{next(self.ids)}"
        self.db, self.folder, self.closing = service.db, folder, contextlib.ExitStack()
        self.tables = {use: f"{self.name}-{use}" for use in ("webhooks", "deliveries")}
        for use, table in self.tables.items():
            self.copy_table(service.tables[use], table)
        self.sqs = boto3.client(
            "sqs",
            endpoint_url=sqs,
            region_name="us-east-1",
            aws_access_key_id="any",
            aws_secret_access_key="any",
        )
        self.queue = self.sqs.create_queue(QueueName=self.name)["QueueUrl"]
        self.sqs_proxy = RecordingProxy(sqs)
        self.closing.callback(self.sqs_proxy.server.close)
        self.env = (
            AWS_ENVIRONMENT
            | {
                "AWS_ENDPOINT_URL_DYNAMODB": service.dynamodb,
                "AWS_ENDPOINT_URL_SQS": self.sqs_proxy.url,
                "WEBHOOKS_TABLE": self.tables["webhooks"],
                "DELIVERIES_TABLE": self.tables["deliveries"],
                "RETRY_QUEUE_URL": self.queue,
                "RETRY_SCHEDULE": schedule,
                "TARGETS": "any",
            }
            | env
        )
        self.dispatch = self.function("dispatch")
        account = f"account-{uuid.uuid4()}"
        created = run_command(
            *(
                "keys",
                "create",
                "--account",
                account,
                "--json",
                "--dynamodb-endpoint",
                service.dynamodb,
            ),
            env={name: self.env[name] for name in ("WEBHOOKS_TABLE", "DELIVERIES_TABLE")},
        )
        self.api = FunctionApi(self.function("api"), json.loads(created.stdout)["api_key"], account)

    def function(self, binary, accepts_extensions=True, **env):
        log = self.folder / f"{binary}-{uuid.uuid4()}.log"
        function = Function(binary, self.env | env, log, accepts_extensions)
        self.closing.callback(function.close)
        return function

    def copy_table(self, model, name):
        """Creates an empty table with the keys and indexes of the table `model`."""
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

    # Event sources of Lambda

    def complete_jobs(self, *tasks):
        """Invokes `dispatch` with one stream batch that inserts these jobs as completed."""
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

    def receive_messages(self):
        return self.sqs.receive_message(
            QueueUrl=self.queue, MaxNumberOfMessages=10, WaitTimeSeconds=1, AttributeNames=["All"]
        ).get("Messages", [])

    def poll(self, function=None):
        """Hands a batch from the queue to `dispatch`, as Lambda does.

        Returns its message ids and the failed ones.
        """
        messages = self.receive_messages()
        if not messages:
            return [], []
        failed = failed_message_ids((function or self.dispatch).invoke(build_queue_event(messages)))
        for message in messages:
            handle = {"QueueUrl": self.queue, "ReceiptHandle": message["ReceiptHandle"]}
            if message["MessageId"] in failed:
                # Makes the message visible again at once.
                self.sqs.change_message_visibility(**handle, VisibilityTimeout=0)
            else:
                self.sqs.delete_message(**handle)
        return [message["MessageId"] for message in messages], failed

    def poll_until(self, condition, description):
        """Polls the queue until `condition()` is true. No message may fail."""

        def poll_once():
            assert self.poll()[1] == []
            return condition()

        return wait_until(poll_once, description)

    # State

    def count_messages(self):
        """The numbers of visible, in-flight and delayed messages."""
        names = [f"ApproximateNumberOfMessages{kind}" for kind in ("", "NotVisible", "Delayed")]
        attributes = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)[
            "Attributes"
        ]
        return tuple(int(attributes[name]) for name in names)

    def scan_deliveries(self):
        """The items of the deliveries table."""
        return self.db.scan(TableName=self.tables["deliveries"], ConsistentRead=True)["Items"]

    def deliveries_by_task(self):
        """The items of the deliveries table by task id."""
        return {item["task_id"]["S"]: item for item in self.scan_deliveries()}

    def reschedule(self, item, due_in, sweep_in):
        """Sets the times of the next attempt and of the sweep of a pending delivery, in seconds
        from now.
        """
        times = {":due": due_in, ":sweep": sweep_in}
        self.db.update_item(
            TableName=self.tables["deliveries"],
            Key={name: item[name] for name in ("PK", "SK")},
            UpdateExpression="SET next_attempt_at = :due, sweep_at = :sweep",
            ConditionExpression="attribute_exists(sweep_at)",
            ExpressionAttributeValues={
                name: {"N": str(unix_milliseconds() + at * 1000)} for name, at in times.items()
            },
        )


def unix_milliseconds():
    return int(time.time() * 1000)


def build_queue_event(messages):
    """Builds the event that Lambda builds from messages of SQS."""
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


def failed_message_ids(response):
    assert set(response) == {"batchItemFailures"}, response
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]
