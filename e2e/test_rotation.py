"""A secret that is rotated while events go out: no receiver refuses one on the way."""

import base64
import hashlib
import hmac
import threading

import standardwebhooks

from support import PLAIN_SECRET, eventually, verify

JOBS = 120


def rotate(api, webhook, body=None):
    answer = api.call("POST", f"/api/v1/webhooks/{webhook}/rotate-secret", body)
    assert answer.status == 200, answer.text
    return answer.data


def nano(request, secret):
    signed = f"{request.headers['x-nano-timestamp']}.".encode() + request.body
    return "v1=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def test_official_verifiers_accept_every_request_while_the_secret_is_rotated(service, api, receiver):
    webhook = api.subscribe(f"{receiver.url}/hook", PLAIN_SECRET)
    rotated = [threading.Event(), threading.Event()]

    def work():
        for number in range(JOBS):
            if number in (JOBS // 3, 2 * JOBS // 3):
                assert rotated[number * 3 // JOBS - 1].wait(30)
            service.put_job(f"{api.account}-{number}", api.account)

    worker = threading.Thread(target=work)
    worker.start()
    eventually(lambda: len(receiver.at("/hook")) > JOBS // 6, "some events with the first secret")
    first = rotate(api, webhook)
    assert first["secret_key"].startswith("whsec_") and first["live_secrets"] == 2
    assert len(base64.b64decode(first["secret_key"].removeprefix("whsec_"))) == 32
    rotated[0].set()
    eventually(lambda: len(receiver.at("/hook")) > JOBS // 2, "some with the second")
    given = "another secret of my own"
    second = rotate(api, webhook, {"secret_key": given, "grace_hours": 1})
    assert "secret_key" not in second and second["live_secrets"] == 3
    rotated[1].set()
    worker.join(30)
    requests = eventually(lambda: len(got := receiver.at("/hook")) == JOBS and got, "all events")

    # Whoever still knows the first secret alone is content with each of them,
    old = standardwebhooks.Webhook(PLAIN_SECRET.encode())
    for request in requests:
        old.verify(request.body, request.headers)
    # and the product's own signature is always that of one secret, the newest.
    by_secret = {secret: [] for secret in (PLAIN_SECRET, first["secret_key"], given)}
    for request in requests:
        (signer,) = [secret for secret in by_secret if nano(request, secret) == request.headers["x-nano-signature"]]
        by_secret[signer].append(request)
    for secret, signed in by_secret.items():
        assert len(signed) >= JOBS // 6
        verify(signed, secret)

    ended = rotate(api, webhook, {"grace_hours": 0})
    assert (ended["live_secrets"], ended["previous_valid_until"]) == (1, None)
    service.put_job(f"{api.account}-last", api.account)
    last = eventually(lambda: len(got := receiver.at("/hook")) > JOBS and got[-1], "the last event")
    verify([last], ended["secret_key"])
    assert last.headers["webhook-signature"].count(" ") == 0
