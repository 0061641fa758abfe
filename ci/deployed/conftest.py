"""Fixtures: an emulated AWS account, functions under the runtime emulator, and a receiver."""

import contextlib
import json
import os
import signal
import uuid

import pytest

import stack
from emulators import ROOT, Account, Function
from support import Receiver, run_command, dynamodb_client, wait_until


def pytest_configure():
    # The servers run in their own sessions and do not receive this process's signals. An interrupt
    # instead of an immediate end lets the fixtures stop them.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def account(tmp_path_factory):
    account = Account(tmp_path_factory.mktemp("account"))
    yield account
    account.close()


@pytest.fixture(scope="session")
def dynamodb_local():
    """URL of Amazon's DynamoDB Local, which ci/test-deployment starts."""
    return os.environ["TEST_DYNAMODB_ENDPOINT"]


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


class DeployedFunctions:
    """Tables, a queue and the functions that use them. A function starts with its first invocation."""

    def __init__(self, endpoint, account, folder):
        name = f"deployed-{uuid.uuid4()}"
        self.db, self.sqs = dynamodb_client(endpoint), account.client("sqs")
        self.folder, self.closing = folder, contextlib.ExitStack()
        stack.create_tables(self.db, f"{name}-")
        self.tables = {"webhooks": f"{name}-Webhooks", "deliveries": f"{name}-Deliveries"}
        self.queue = self.sqs.create_queue(QueueName=name)["QueueUrl"]
        self.env = ROOT | {
            "AWS_ENDPOINT_URL_DYNAMODB": endpoint,
            "AWS_ENDPOINT_URL_SQS": account.url,
            "WEBHOOKS_TABLE": self.tables["webhooks"],
            "DELIVERIES_TABLE": self.tables["deliveries"],
            "RETRY_QUEUE_URL": self.queue,
            "TARGETS": "any",
            "RETRY_SCHEDULE": "1s,2h",
            "STACK_NAME": "tested",
        }
        self.endpoint, self.started = endpoint, {}

    def invoke(self, name, event):
        if name not in self.started:
            self.started[name] = self.start(name)
        return self.started[name].invoke(event)

    def start(self, name, **env):
        log = self.folder / f"{name}-{uuid.uuid4()}.log"
        function = Function(name, stack.functions()[name], self.env | env, log)
        self.closing.callback(function.close)
        return function

    def create_api_key(self):
        """Creates an API key for the account of the sample events."""
        env = {name: self.env[name] for name in ("WEBHOOKS_TABLE", "DELIVERIES_TABLE")}
        arguments = (
            "keys",
            "create",
            "--account",
            "acme",
            "--json",
            "--dynamodb-endpoint",
            self.endpoint,
        )
        return json.loads(run_command(*arguments, env=env).stdout)["api_key"]

    def scan(self, table):
        """Returns the items of a table as strings and integers."""
        pages = self.db.get_paginator("scan").paginate(
            TableName=self.tables[table], ConsistentRead=True
        )
        return [
            {name: to_plain(value) for name, value in item.items()}
            for page in pages
            for item in page["Items"]
        ]

    def receive_message(self):
        """Waits for the only message of the queue and deletes it."""
        (message,) = wait_until(
            lambda: self.sqs.receive_message(
                QueueUrl=self.queue,
                WaitTimeSeconds=1,
                MaxNumberOfMessages=10,
                AttributeNames=["All"],
            ).get("Messages"),
            "a message",
        )
        self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return message

    def message_count(self):
        """Counts the visible, received and delayed messages of the queue."""
        names = [f"ApproximateNumberOfMessages{kind}" for kind in ("", "NotVisible", "Delayed")]
        attributes = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)[
            "Attributes"
        ]
        return sum(int(attributes[name]) for name in names)


def to_plain(attribute):
    ((kind, value),) = attribute.items()
    return int(value) if kind == "N" else value


@pytest.fixture
def deployed(dynamodb_local, account, tmp_path):
    deployed = DeployedFunctions(dynamodb_local, account, tmp_path)
    with deployed.closing:
        yield deployed
