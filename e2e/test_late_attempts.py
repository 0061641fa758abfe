"""Attempts that end after their batch, in the deployed function."""

import threading

from support import TEST_TIMEOUT, respond_with, wait_until


def hold(receiver, path):
    """Holds the responses on a path until the returned event is set."""
    released = threading.Event()

    def respond(handler):
        released.wait(TEST_TIMEOUT)
        respond_with(204)(handler)

    receiver.respond(path, respond)
    return released


def test_response_after_batch_counts(deploy, receiver):
    """A batch is acknowledged while an endpoint wakes up, and the environment stays until the
    response is recorded. The endpoint receives its event once.
    """
    deployment = deploy("2s,1h")
    released = hold(receiver, "/cold")
    webhook = deployment.api.subscribe(receiver.url + "/cold")
    deployment.complete_jobs("task")
    row = deployment.api.wait_for_delivery(webhook)
    assert (row["status"], row["attempt_count"]) == ("pending", 0)
    assert not deployment.dispatch.extension_is_idle.is_set(), "the environment is held"
    assert deployment.sqs_proxy.sent_messages == []

    released.set()
    assert deployment.dispatch.extension_is_idle.wait(TEST_TIMEOUT), "the environment is free"
    row = deployment.api.wait_for_delivery(webhook)
    assert (row["status"], row["attempt_count"]) == ("delivered", 1)
    assert len(receiver.requests_to("/cold")) == 1
    assert '"Delivered":1' in deployment.dispatch.log.read_text(), "the metrics are written"


def test_environment_is_free_without_late_attempts(deploy, receiver):
    """An invocation whose attempts have ended does not hold the environment."""
    deployment = deploy("2s,1h")
    deployment.api.subscribe(receiver.url + "/hook")
    for task in ("first", "second"):
        deployment.complete_jobs(task)
        assert deployment.dispatch.extension_is_idle.wait(TEST_TIMEOUT)
    receiver.wait_for("/hook", 2)


def test_refused_extension_cuts_attempt(deploy, receiver):
    """Without an extension, an attempt is cut with its batch and repeated from the queue."""
    deployment = deploy("2s,1h")
    deployment.dispatch = deployment.function("dispatch", accepts_extensions=False)
    released = hold(receiver, "/cold")
    webhook = deployment.api.subscribe(receiver.url + "/cold")
    deployment.complete_jobs("task")
    released.set()
    row = deployment.api.wait_for_delivery(webhook)
    assert (row["attempt_count"], row["last_failure"]) == (1, "timeout")
    is_delivered = lambda: deployment.api.wait_for_delivery(webhook)["status"] == "delivered"
    deployment.poll_until(is_delivered, "the queue repeats the attempt")


def test_setting_turns_late_attempts_off(deploy, receiver):
    """With LATE_ATTEMPTS=off the function registers no extension."""
    deployment = deploy("2s,1h")
    deployment.dispatch = deployment.function("dispatch", LATE_ATTEMPTS="off")
    released = hold(receiver, "/cold")
    webhook = deployment.api.subscribe(receiver.url + "/cold")
    deployment.complete_jobs("task")
    released.set()
    assert not deployment.dispatch.has_extension
    wait_until(
        lambda: deployment.api.wait_for_delivery(webhook)["attempt_count"] == 1,
        "the attempt is cut",
    )
