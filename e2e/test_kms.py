"""Secrets at rest in a deployment: sealed under data keys that KMS wraps."""

import base64
import json

import boto3
import pytest

from deployment import AWS, Wire
from support import PLAIN_SECRET, STANDARD_SECRET, command, eventually, verify


@pytest.fixture
def kms(aws):
    """KMS, with every request recorded."""
    wire = Wire(aws)
    wire.client = boto3.client(
        "kms", endpoint_url=aws, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any"
    )
    wire.key = wire.client.create_key()["KeyMetadata"]["Arn"]
    yield wire
    wire.server.close()


@pytest.fixture
def sealed(deploy, kms):
    return deploy("1h", SECRETS_KMS_KEY_ID=kms.key, AWS_ENDPOINT_URL_KMS=kms.url)


def everything(deployment):
    tables = [deployment.db.scan(TableName=table)["Items"] for table in deployment.tables.values()]
    return json.dumps(tables, default=repr, ensure_ascii=False)


def data_keys(deployment):
    query = {"KeyConditionExpression": "PK = :keys", "ExpressionAttributeValues": {":keys": {"S": "DATAKEY"}}}
    return deployment.db.query(TableName=deployment.tables["webhooks"], **query)["Items"]


def test_whoever_reads_the_tables_learns_no_secret_and_the_functions_sign_with_it(sealed, kms, receiver):
    plain = sealed.api.subscribe(receiver.url + "/plain", PLAIN_SECRET)
    sealed.api.subscribe(receiver.url + "/standard", STANDARD_SECRET)
    sealed.jobs_end("one", "two")
    sealed.jobs_end("three")
    verify(eventually(lambda: (got := receiver.at("/plain")) and len(got) == 3 and got, "three"), PLAIN_SECRET)
    verify(receiver.at("/standard"), STANDARD_SECRET)
    changed = "another-" + PLAIN_SECRET
    assert sealed.api.call("PATCH", f"/api/v1/webhooks/{plain}", {"secret_key": changed}).status == 200
    sealed.jobs_end("four")
    verify(receiver.at("/plain")[3:], changed)
    found = everything(sealed)
    for secret in (PLAIN_SECRET, STANDARD_SECRET, STANDARD_SECRET.removeprefix("whsec_")):
        assert secret not in found and secret.encode().hex() not in found
    (row,) = data_keys(sealed)
    assert row["kms_key"]["S"] == kms.key
    assert kms.calls == ["TrentService.GenerateDataKey", "TrentService.Decrypt"], "one call in each process's life"


def test_a_function_that_needs_no_secret_asks_kms_nothing(sealed, kms, receiver):
    sealed.api.subscribe(receiver.url + "/hook", None)
    sealed.jobs_end("task")
    assert len(receiver.at("/hook")) == 1 and kms.calls == []


def test_the_purpose_and_the_version_of_a_data_key_are_bound_to_it(sealed, kms, receiver):
    sealed.api.subscribe(receiver.url + "/hook", PLAIN_SECRET)
    (row,) = data_keys(sealed)
    wrapped = base64.b64decode(row["wrapped"]["S"])
    with pytest.raises(kms.client.exceptions.ClientError):
        kms.client.decrypt(CiphertextBlob=wrapped)
    opened = kms.client.decrypt(CiphertextBlob=wrapped, EncryptionContext={"nano-webhooks-data-key": "1"})
    assert len(opened["Plaintext"]) == 32


def test_while_kms_refuses_signed_events_wait_without_an_attempt_and_hold_up_no_others(sealed, kms, receiver):
    sealed.api.subscribe(receiver.url + "/signed", PLAIN_SECRET)
    sealed.api.subscribe(receiver.url + "/unsigned", None)
    kms.refusal = lambda _: (400, {"__type": "AccessDeniedException", "message": "not allowed"})
    sealed.jobs_end("task")
    assert len(receiver.at("/unsigned")) == 1 and receiver.at("/signed") == []
    waiting = eventually(
        lambda: sealed.poll() and [item for item in sealed.deliveries() if item["status"]["S"] == "pending"],
        "a delivery that waits",
    )
    assert waiting[0]["attempt_count"]["N"] == "0" and "POISON#" not in everything(sealed)
    sealed.api.function = sealed.function("api")
    webhook = {"url": receiver.url, "events": ["job.failed"], "secret_key": PLAIN_SECRET}
    answer = sealed.api.call("POST", "/api/v1/webhooks", webhook)
    answer.is_error(503, "unavailable")
    assert "KMS" not in answer.text

    kms.refusal = None
    sealed.dispatch = sealed.function("dispatch")
    (waiting,) = [item for item in sealed.deliveries() if item["status"]["S"] == "pending"]
    sealed.move(waiting, due_in=-1, sweep_in=-1)
    assert sealed.sweep() == 1
    sealed.poll_until(lambda: receiver.at("/signed"), "the event, signed")
    verify(receiver.at("/signed"), PLAIN_SECRET)
    assert receiver.at("/signed")[0].headers["x-nano-attempt"] == "1"


def test_secrets_are_sealed_anew_under_a_new_data_key_and_those_from_before_there_was_one(deploy, kms, receiver):
    before = deploy("1h")
    before.api.subscribe(receiver.url + "/before", PLAIN_SECRET)
    assert PLAIN_SECRET in everything(before)
    settings = {"SECRETS_KMS_KEY_ID": kms.key, "AWS_ENDPOINT_URL_KMS": kms.url}
    operator = AWS | {name: before.env[name] for name in ("AWS_ENDPOINT_URL_DYNAMODB", "WEBHOOKS_TABLE", "DELIVERIES_TABLE")}
    first = command("secrets", "reseal", "--aws", env=operator | settings)
    assert first.stdout == "Secrets of 1 webhooks sealed anew, 0 were so already.\n"
    assert PLAIN_SECRET not in everything(before)
    before.dispatch = before.function("dispatch", **settings)
    before.jobs_end("one")
    again = command("secrets", "reseal", "--new-key", "--aws", env=operator | settings)
    assert again.stdout == "Secrets of 1 webhooks sealed anew, 0 were so already.\n"
    assert [row["SK"]["S"] for row in data_keys(before)] == ["0000000001", "0000000002"]
    before.jobs_end("two")
    verify(receiver.at("/before"), PLAIN_SECRET)
    assert len(receiver.at("/before")) == 2
