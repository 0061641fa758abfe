"""Secrets of a deployment: encrypted under data keys that KMS wraps."""

import base64
import json

import boto3
import pytest

from deployment import AWS_ENVIRONMENT, RecordingProxy
from support import (
    PLAIN_SECRET,
    STANDARD_SECRET,
    run_command,
    verify_signatures,
    wait_until,
)

ACCESS_DENIED = 400, {"__type": "AccessDeniedException", "message": "not allowed"}


@pytest.fixture
def kms(aws):
    """A recording proxy in front of KMS, with a client and a key."""
    proxy = RecordingProxy(aws)
    proxy.client = boto3.client(
        "kms",
        endpoint_url=aws,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    proxy.key = proxy.client.create_key()["KeyMetadata"]["Arn"]
    yield proxy
    proxy.server.close()


@pytest.fixture
def encrypted(deploy, kms):
    """A deployment that encrypts its secrets."""
    return deploy("1h", SECRETS_KMS_KEY_ID=kms.key, AWS_ENDPOINT_URL_KMS=kms.url)


def dump_tables(deployment):
    """All items of the deployment's tables as text."""
    tables = [deployment.db.scan(TableName=table)["Items"] for table in deployment.tables.values()]
    return json.dumps(tables, default=repr, ensure_ascii=False)


def list_data_keys(deployment):
    query = {
        "KeyConditionExpression": "PK = :keys",
        "ExpressionAttributeValues": {":keys": {"S": "DATAKEY"}},
    }
    return deployment.db.query(TableName=deployment.tables["webhooks"], **query)["Items"]


def find_pending(deployment):
    return [item for item in deployment.scan_deliveries() if item["status"]["S"] == "pending"]


def test_tables_hold_only_encrypted_secrets(encrypted, kms, receiver):
    """The functions sign with secrets that are in no table.

    Each process calls KMS once in its lifetime.
    """
    plain = encrypted.api.subscribe(receiver.url + "/plain", PLAIN_SECRET)
    encrypted.api.subscribe(receiver.url + "/standard", STANDARD_SECRET)
    encrypted.complete_jobs("one", "two")
    encrypted.complete_jobs("three")
    verify_signatures(receiver.wait_for("/plain", 3), PLAIN_SECRET)
    verify_signatures(receiver.wait_for("/standard", 3), STANDARD_SECRET)

    new_secret = "another-" + PLAIN_SECRET
    assert encrypted.api.update(plain, secret_key=new_secret).status == 200
    encrypted.complete_jobs("four")
    verify_signatures(receiver.wait_for("/plain", 4)[3:], new_secret)
    tables = dump_tables(encrypted)
    for secret in (PLAIN_SECRET, STANDARD_SECRET, STANDARD_SECRET.removeprefix("whsec_")):
        assert secret not in tables and secret.encode().hex() not in tables
    (data_key,) = list_data_keys(encrypted)
    assert data_key["kms_key"]["S"] == kms.key
    assert kms.operations == ["TrentService.GenerateDataKey", "TrentService.Decrypt"]


def test_unsigned_webhook_needs_no_kms(encrypted, kms, receiver):
    """A function that needs no secret sends no request to KMS."""
    encrypted.api.subscribe(receiver.url + "/hook", None)
    encrypted.complete_jobs("task")
    assert len(receiver.requests_to("/hook")) == 1 and kms.operations == []


def test_data_key_requires_encryption_context(encrypted, kms, receiver):
    """KMS unwraps a data key only with the context that names its purpose and its version."""
    encrypted.api.subscribe(receiver.url + "/hook", PLAIN_SECRET)
    (data_key,) = list_data_keys(encrypted)
    wrapped = base64.b64decode(data_key["wrapped"]["S"])
    with pytest.raises(kms.client.exceptions.ClientError):
        kms.client.decrypt(CiphertextBlob=wrapped)
    unwrapped = kms.client.decrypt(
        CiphertextBlob=wrapped, EncryptionContext={"nano-webhooks-data-key": "1"}
    )
    assert len(unwrapped["Plaintext"]) == 32


def test_kms_outage_delays_only_signed_deliveries(encrypted, kms, receiver):
    """While KMS refuses, signed deliveries wait without an attempt, and creating a signed webhook
    returns 503.
    """
    encrypted.api.subscribe(receiver.url + "/signed", PLAIN_SECRET)
    encrypted.api.subscribe(receiver.url + "/unsigned", None)
    kms.override = lambda _: ACCESS_DENIED
    encrypted.complete_jobs("task")
    assert len(receiver.requests_to("/unsigned")) == 1 and receiver.requests_to("/signed") == []
    waiting = wait_until(lambda: encrypted.poll() and find_pending(encrypted), "a pending delivery")
    assert waiting[0]["attempt_count"]["N"] == "0" and "POISON#" not in dump_tables(encrypted)
    encrypted.api.function = encrypted.function("api")
    response = encrypted.api.create(
        {"url": receiver.url, "events": ["job.failed"], "secret_key": PLAIN_SECRET}
    )
    response.assert_error(503, "unavailable")
    assert "KMS" not in response.text

    kms.override = None
    encrypted.dispatch = encrypted.function("dispatch")
    (waiting,) = find_pending(encrypted)
    encrypted.reschedule(waiting, due_in=-1, sweep_in=-1)
    assert encrypted.sweep() == 1
    encrypted.poll_until(lambda: receiver.requests_to("/signed"), "the signed event")
    verify_signatures(receiver.requests_to("/signed"), PLAIN_SECRET)
    assert receiver.requests_to("/signed")[0].headers["x-nano-attempt"] == "1"


def test_unavailable_key_is_requested_and_logged_once(encrypted, kms, receiver):
    """However many deliveries wait, KMS gets one request and the log one line."""
    for path in ("/one", "/two", "/three"):
        encrypted.api.subscribe(receiver.url + path, PLAIN_SECRET)
    kms.override = lambda _: ACCESS_DENIED
    encrypted.complete_jobs("one", "two", "three")
    waiting = find_pending(encrypted)
    assert len(waiting) == 9 and receiver.requests == []
    assert {item["waiting_for"]["S"] for item in waiting} == {"secret"}
    assert kms.operations.count("TrentService.Decrypt") == 1
    log = encrypted.dispatch.log.read_text()
    assert log.count("Could not unwrap a data key") == 1 and log.count('"level":"ERROR"') == 1


def test_command_encrypts_existing_secrets_again(deploy, kms, receiver):
    """The command encrypts plain secrets, and with `--new-key` encrypts all secrets under a new
    data key.
    """
    deployment = deploy("1h")
    deployment.api.subscribe(receiver.url + "/hook", PLAIN_SECRET)
    assert PLAIN_SECRET in dump_tables(deployment)
    settings = {"SECRETS_KMS_KEY_ID": kms.key, "AWS_ENDPOINT_URL_KMS": kms.url}
    names = ("AWS_ENDPOINT_URL_DYNAMODB", "WEBHOOKS_TABLE", "DELIVERIES_TABLE")
    operator = AWS_ENVIRONMENT | {name: deployment.env[name] for name in names} | settings
    first = run_command("secrets", "re-encrypt", "--aws", env=operator)
    assert first.stdout == ("Re-encrypted the secrets of 1 webhook; 0 needed no change.\n")
    assert PLAIN_SECRET not in dump_tables(deployment)
    deployment.dispatch = deployment.function("dispatch", **settings)
    deployment.complete_jobs("one")
    second = run_command("secrets", "re-encrypt", "--new-key", "--aws", env=operator)
    assert second.stdout == first.stdout
    third = run_command("secrets", "re-encrypt", "--aws", "--json", env=operator)
    assert json.loads(third.stdout) == {"re_encrypted": 0, "unchanged": 1}
    assert [data_key["SK"]["S"] for data_key in list_data_keys(deployment)] == [
        "0000000001",
        "0000000002",
    ]
    deployment.complete_jobs("two")
    verify_signatures(receiver.requests_to("/hook"), PLAIN_SECRET)
    assert len(receiver.requests_to("/hook")) == 2
