"""Fixtures: an emulated account, the functions under Lambda's runtime emulator, and a receiver."""

import contextlib
import json
import os
import signal
import uuid

import pytest

import stack
from emulators import ROOT, Account, Function
from support import Receiver, command, dynamodb, eventually


def pytest_configure():
    # The servers are in sessions of their own, which a signal to this one does not reach: it is to end the tests in good order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def account(tmp_path_factory):
    account = Account(tmp_path_factory.mktemp("account"))
    yield account
    account.close()


@pytest.fixture(scope="session")
def dynamodb_local():
    """The URL of Amazon's DynamoDB Local, which ci/test-deployment has started."""
    return os.environ["TEST_DYNAMODB_ENDPOINT"]


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


class Deployed:
    """Tables, a queue, and the functions over them, each started when it is first asked for."""

    def __init__(self, endpoint, account, folder):
        name = f"deployed-{uuid.uuid4()}"
        self.db, self.sqs = dynamodb(endpoint), account.client("sqs")
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
            self.started[name] = self.function(name)
        return self.started[name].invoke(event)

    def function(self, name, **env):
        function = Function(name, stack.functions()[name], self.env | env, self.folder / f"{name}-{uuid.uuid4()}.log")
        self.closing.callback(function.close)
        return function

    def new_key(self):
        """An API key of the account of the sample events."""
        env = {name: self.env[name] for name in ("WEBHOOKS_TABLE", "DELIVERIES_TABLE")}
        made = command("keys", "create", "--account", "acme", "--json", "--dynamodb-endpoint", self.endpoint, env=env)
        return json.loads(made.stdout)["api_key"]

    def items(self, table):
        """What is in a table, as plain text and numbers."""
        pages = self.db.get_paginator("scan").paginate(TableName=self.tables[table], ConsistentRead=True)
        return [{name: plain(value) for name, value in item.items()} for page in pages for item in page["Items"]]

    def received(self):
        """The one message that is in the queue, or comes when its delay is over."""
        (message,) = eventually(
            lambda: self.sqs.receive_message(
                QueueUrl=self.queue, WaitTimeSeconds=1, MaxNumberOfMessages=10, AttributeNames=["All"]
            ).get("Messages"),
            "a message",
        )
        self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return message

    def in_queue(self):
        names = [f"ApproximateNumberOfMessages{kind}" for kind in ("", "NotVisible", "Delayed")]
        found = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)


def plain(value):
    ((kind, inner),) = value.items()
    return int(inner) if kind == "N" else inner


@pytest.fixture
def deployed(dynamodb_local, account, tmp_path):
    deployed = Deployed(dynamodb_local, account, tmp_path)
    with deployed.closing:
        yield deployed
