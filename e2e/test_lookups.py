"""Names are looked up as the system does, and dead name servers delay only their own accounts."""

from support import wait_until

ACCOUNTS, EACH = 40, 2


def test_dead_name_servers_starve_no_other_account(start, dns, receiver):
    """While 80 names of 40 accounts hang, each event of another account is delivered by its first
    attempt, and no attempt fails for a reason of the service.
    """
    service = start("--in-memory", "--retry-schedule", "1s,1s,1h")
    victim = service.create_account()
    dns.set({"victim.lookup.example": "127.0.0.1"})
    healthy = victim.subscribe(f"http://victim.lookup.example:{receiver.port}/victim")
    dead = []
    for number in range(ACCOUNTS):
        api = service.create_account()
        names = [f"n{index}.a{number}.lookup.example" for index in range(EACH)]
        dns.set(dict.fromkeys(names, "127.0.0.1"))
        for name in names:
            dead.append((api, name, api.subscribe(f"http://{name}:{receiver.port}/dead")))
    dns.set({name: None for _, name, _ in dead})

    for number in range(5):
        for api, _, _ in dead[::EACH]:
            service.put_job(f"{api.account}-{number}", api.account)
        service.put_job(f"victim-{number}", victim.account)
        receiver.wait_for("/victim", number + 1)
    deliveries = wait_until(
        lambda: find_delivered(victim.list_deliveries(healthy)), "five delivered events"
    )
    assert [row["attempt_count"] for row in deliveries] == [1] * 5
    assert victim.get(healthy)["health"]["state"] == "healthy"

    # Whatever was attempted of the others failed for its name server.
    failures = set()
    for api, _, webhook in dead:
        for row in api.list_deliveries(webhook):
            failures.add(row["last_failure"])
    assert failures <= {None, "dns"}, failures
    assert not receiver.requests_to("/dead")


def test_hosts_file_and_search_domain_are_used(start, dns, receiver):
    """A short name is completed with the search domain. A name in the hosts file is not asked for,
    and a change of the file takes effect at once.
    """
    service = start("--in-memory", "--retry-schedule", "1h")
    api = service.create_account()
    dns.set({"short.lan.example": "127.0.0.1"})
    short = api.subscribe(f"http://short:{receiver.port}/short")
    listed = api.subscribe(f"http://listed.lookup.example:{receiver.port}/listed")
    service.put_job(f"{api.account}-1", api.account)
    assert api.wait_for_delivery(short, is_attempted)["status"] == "delivered"
    assert api.wait_for_delivery(listed, is_attempted)["last_failure"] == "dns"

    dns.set_hosts("127.0.0.1 listed.lookup.example\n")
    dns.asked.clear()
    [row] = api.list_deliveries(listed)
    api.retry(listed, row["event_id"])
    receiver.wait_for("/listed")
    assert "listed.lookup.example" not in dns.asked


def test_silent_name_server_is_named(start, dns):
    """An attempt whose name server does not respond fails with `dns`, and says what to check."""
    service = start("--in-memory", "--retry-schedule", "1h")
    api = service.create_account()
    dns.set({"silent.lookup.example": None})
    webhook = api.subscribe("http://silent.lookup.example/")
    service.put_job(f"{api.account}-1", api.account)
    row = api.wait_for_delivery(webhook, is_attempted)
    [attempt] = api.get_delivery(webhook, row["event_id"]).data["attempts"]
    assert attempt["failure"] == "dns" and "name servers" in attempt["detail"], attempt
    assert 4_000 < attempt["duration_ms"] < 10_000


def find_delivered(rows):
    """The rows of five deliveries, once all are delivered."""
    is_delivered = len(rows) == 5 and all(row["status"] == "delivered" for row in rows)
    return rows if is_delivered else None


def is_attempted(row):
    return row["attempt_count"] > 0
