"""A webhook is shown, changed, disabled by its endpoint and enabled again."""

from support import eventually


def shown(api, webhook):
    return api.call("GET", f"/api/v1/webhooks/{webhook}").data


def changed(api, webhook, **fields):
    answer = api.call("PATCH", f"/api/v1/webhooks/{webhook}", fields)
    assert answer.status == 200, answer.json
    return answer.data


def test_an_endpoint_that_was_gone_gets_what_was_parked_once_it_is_enabled_again(start, receiver):
    service = start("--in-memory", "--retry-schedule", "200ms,200ms,200ms")
    api = service.new_account()
    receiver.answer("/hook", lambda handler: handler.reply(410))
    webhook = api.subscribe(receiver.url + "/hook")
    service.put_job("task_gone", api.account)
    gone = eventually(lambda: (found := shown(api, webhook))["status"] == "disabled" and found, "the webhook is disabled")
    assert gone["disabled_reason"] == "The endpoint answered 410 Gone."
    assert (gone["health"]["state"], gone["health"]["last_failure"]) == ("failing", "status")
    parked = api.row(webhook, lambda row: row["next_attempt_at"] is None)
    assert (parked["status"], parked["attempt_count"]) == ("pending", 1)

    receiver.answer("/hook", lambda handler: handler.reply(200))
    enabled = changed(api, webhook, status="active")
    assert (enabled["status"], enabled["disabled_reason"]) == ("active", None)
    assert enabled["health"] == {"state": "healthy", "failing_since": None, "last_success_at": None, "last_failure": None}
    assert api.row(webhook, lambda row: row["status"] == "delivered")["event_id"] == parked["event_id"]


def test_a_changed_url_is_where_the_next_attempt_goes(start, receiver):
    service = start("--in-memory", "--retry-schedule", "1s,1s")
    api = service.new_account()
    receiver.answer("/old", lambda handler: handler.reply(500))
    webhook = api.subscribe(receiver.url + "/old", "my-secret-key")
    service.put_job("task_moved", api.account)
    receiver.wait_for("/old")
    changed(api, webhook, url=receiver.url + "/new", secret_key=None)
    moved = receiver.wait_for("/new")[0]
    assert moved.headers["x-nano-attempt"] == "2"
    assert "x-nano-signature" not in moved.headers
    row = api.row(webhook, lambda row: row["status"] == "delivered")
    assert api.delivery(webhook, row["event_id"]).data["url"] == receiver.url + "/new"
