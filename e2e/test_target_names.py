"""DNS and the target policy: a name is checked at registration and again at every attempt, and
nothing bypasses the check.

The operator allows 127.0.0.2, where a receiver listens. On the same port of 127.0.0.1 and ::1,
connection counters show whether a name that changed its address reached them.
"""

import contextlib
import itertools

import pytest

from network import PUBLIC_V4, PUBLIC_V6, ConnectionCounter, find_reached, has_ipv6
from support import Receiver
from test_targets import assert_rejected

ALLOWED = "127.0.0.2"
EVENTS = ["job.completed"]
NOT_ALLOWED = "it resolves to an address that is not allowed"
# Addresses of names that are blocked. The unit tests of the guard have all ranges.
BLOCKED = [
    ["127.0.0.1"],
    ["169.254.169.254"],
    ["::1"],
    ["::ffff:127.0.0.1"],
    [PUBLIC_V4, "127.0.0.1"],
    ["127.0.0.1", PUBLIC_V4],
    [PUBLIC_V6, "::1"],
    [PUBLIC_V4, PUBLIC_V6, "1.0.0.1", "10.0.0.1"],
]
EACH_BLOCKED = pytest.mark.parametrize("addresses", BLOCKED, ids=str)
name_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def servers(authority):
    """The receiver, and the connection counters on the same port."""
    tls = authority.issue("*.target.example", "127.0.0.1", ALLOWED, "::1")
    for _ in range(100):
        receiver = Receiver(ALLOWED, tls=tls)
        counters = []
        # If the port is taken on another address, another port is tried.
        with contextlib.suppress(OSError):
            counters.append(ConnectionCounter("127.0.0.1", receiver.port, tls))
            if has_ipv6():
                counters.append(ConnectionCounter("::1", receiver.port, tls))
            yield receiver, counters
            break
        receiver.close()
    else:
        pytest.fail("no port that is free on all addresses")
    receiver.close()
    for counter in counters:
        counter.close()


@pytest.fixture(scope="module")
def receiver(servers):
    return servers[0]


@pytest.fixture
def counters(servers):
    """The connection counters, which must have no connection when the test ends."""
    for counter in servers[1]:
        counter.clear()
    yield servers[1]
    assert not find_reached(servers[1])


@pytest.fixture(scope="module")
def options(authority):
    return (
        "--in-memory",
        "--targets",
        "public",
        "--retry-schedule",
        "100ms,100ms",
        "--ca-file",
        str(authority.file),
    )


@pytest.fixture(scope="module")
def service(start, dns, options):
    return start(*options, "--allow-cidr", f"{ALLOWED}/32")


@pytest.fixture
def name():
    """A name that no other test uses."""
    return f"n{next(name_numbers)}.target.example"


@pytest.fixture
def url(name, receiver):
    return f"https://{name}:{receiver.port}/{name}"


def path_of(url):
    return "/" + url.rpartition("/")[2]


def deliver_job(service, api, webhook):
    """Completes a job, and returns the webhook's delivery when it is no longer pending."""
    service.put_job(f"{api.account}-job", api.account)
    row = api.wait_for_delivery(webhook, lambda row: row["status"] != "pending")
    return api.get_delivery(webhook, row["event_id"]).data


def assert_blocked(delivery):
    """Asserts that all three attempts were blocked before a connection, and that no detail names an
    address.
    """
    assert (delivery["status"], delivery["last_failure"], delivery["attempt_count"]) == (
        "failed",
        "blocked",
        3,
    )
    addresses = {address for addresses in BLOCKED for address in addresses}
    for attempt in delivery["attempts"]:
        assert attempt["failure"] == "blocked", attempt
        assert NOT_ALLOWED in attempt["detail"], attempt
        assert not [address for address in addresses if address in attempt["detail"]], attempt
        assert attempt["status_code"] is None and attempt["response_excerpt"] is None


# Controls: names, certificates and counters work


def test_allowed_address_is_reached(service, api, dns, receiver, url, name, counters):
    """A name in an allowed range with a trusted certificate receives events."""
    dns.set({name: ALLOWED})
    delivery = deliver_job(service, api, api.subscribe(url))
    assert (delivery["status"], delivery["attempt_count"]) == ("delivered", 1)
    assert receiver.requests_to(path_of(url))[0].headers["host"] == f"{name}:{receiver.port}"


def test_counter_sees_allowed_connection(start, dns, options, servers, url, name):
    """A connection counter would see a connection if the policy allowed its address."""
    dns.set({name: "127.0.0.1"})
    service = start(*options, "--allow-cidr", "127.0.0.0/8")
    counter = servers[1][0]
    counter.clear()
    delivery = deliver_job(service, service.api, service.api.subscribe(url))
    assert (delivery["status"], delivery["attempt_count"]) == ("delivered", 1)
    assert counter.count_connections() == 1


@pytest.mark.parametrize("policy", ["public", "any"])
def test_denied_range_is_not_reached(start, dns, options, counters, url, name, policy):
    """A denied range wins over an allowed one and over the policy `any`."""
    options = [policy if option == "public" else option for option in options]
    ranges = ("--allow-cidr", "127.0.0.0/8", "--deny-cidr", "127.0.0.1/32")
    service = start(*options, *ranges)
    dns.set({name: "127.0.0.1"})
    assert_rejected(service.api.create({"url": url, "events": EVENTS}))
    dns.set({name: ALLOWED})
    webhook = service.api.subscribe(url)
    dns.set({name: "127.0.0.1"})
    assert_blocked(deliver_job(service, service.api, webhook))


def test_untrusted_certificate_receives_no_request(start, dns, receiver, url, name):
    dns.set({name: ALLOWED})
    options = (
        "--in-memory",
        "--targets",
        "public",
        "--allow-cidr",
        f"{ALLOWED}/32",
        "--retry-schedule",
        "50ms",
    )
    service = start(*options)
    delivery = deliver_job(service, service.api, service.api.subscribe(url))
    assert [attempt["failure"] for attempt in delivery["attempts"]] == ["tls", "tls"]
    assert not receiver.requests_to(path_of(url))


# Registration


@EACH_BLOCKED
def test_name_with_private_address_is_rejected(api, dns, url, name, counters, addresses):
    """Creating and changing a webhook rejects the name in every spelling, and changes nothing."""
    dns.set({name: addresses})
    for spelling in (url, url.replace(name, name.upper()), url.replace(f"{name}:", f"{name}.:")):
        assert_rejected(api.create({"url": spelling, "events": EVENTS}))
    assert api.list_webhooks().data == []
    webhook = api.subscribe(f"https://{ALLOWED}/kept")
    assert_rejected(api.update(webhook, url=url))
    assert api.list_webhooks().data[0]["url"] == f"https://{ALLOWED}/kept"


def test_allowed_address_excuses_no_private_one(api, dns, url, name, counters):
    for addresses in ([ALLOWED, "127.0.0.1"], ["127.0.0.1", ALLOWED]):
        dns.set({name: addresses})
        assert_rejected(api.create({"url": url, "events": EVENTS}))


# Attempts


@EACH_BLOCKED
def test_rebound_name_is_blocked(service, api, dns, url, name, counters, addresses):
    """A name that gets a private address after the registration is not called."""
    dns.set({name: PUBLIC_V4})
    webhook = api.subscribe(url)
    dns.set({name: addresses})
    assert_blocked(deliver_job(service, api, webhook))


def test_unresolved_name_is_accepted_then_checked(service, api, dns, url, name, counters):
    """A name without records is accepted and fails with `dns`.

    Once it has a private address it is blocked.
    """
    webhook = api.subscribe(url)
    delivery = deliver_job(service, api, webhook)
    assert [attempt["failure"] for attempt in delivery["attempts"]] == ["dns"] * 3
    assert all("resolve" in attempt["detail"] for attempt in delivery["attempts"])

    dns.set({name: "127.0.0.1"})
    assert api.retry(webhook, delivery["event_id"]).status == 202
    row = api.wait_for_delivery(
        webhook, lambda row: row["attempt_count"] == 4 and row["status"] != "pending"
    )
    last = api.get_delivery(webhook, row["event_id"]).data["attempts"][-1]
    assert last["failure"] == "blocked" and NOT_ALLOWED in last["detail"], last


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_retry_checks_name_again(service, api, dns, receiver, url, name, counters, connection):
    """A name that changes during the first attempt is blocked at the second, also with a pooled
    connection.
    """
    dns.set({name: ALLOWED})
    webhook = api.subscribe(url)

    def rebind_and_fail(handler):
        dns.set({name: "127.0.0.1"})
        handler.close_connection = connection == "close"
        handler.respond(500, [("Connection", connection)])

    receiver.respond(path_of(url), rebind_and_fail)
    delivery = deliver_job(service, api, webhook)
    failures = [attempt["failure"] for attempt in delivery["attempts"]]
    assert failures == ["status", "blocked", "blocked"], delivery["attempts"]
    assert NOT_ALLOWED in delivery["attempts"][-1]["detail"]
    assert len(receiver.requests_to(path_of(url))) == 1


# Ways around the check


@pytest.mark.parametrize(
    "status", [200, 201, 202, 299, 300, 301, 302, 303, 304, 305, 307, 308, 401, 407, 503]
)
def test_response_reaches_no_other_address(
    service, api, dns, receiver, url, name, counters, status
):
    """No header and no body of a response makes the service call another address."""
    other = f"127.0.0.1:{counters[0].port}"
    headers = [
        ("Location", f"https://{other}/location"),
        ("Content-Location", f"https://{other}/content-location"),
        ("Refresh", f"0; url=https://{other}/refresh"),
        ("Link", f'<https://{other}/link>; rel="preload"'),
        ("Alt-Svc", f'h2="{other}"; ma=3600, http/1.1="{other}"'),
        ("Proxy-Authenticate", "Basic"),
        ("WWW-Authenticate", f'Bearer resource_metadata="https://{other}/"'),
        ("Retry-After", "0"),
    ]
    body = f'<meta http-equiv="refresh" content="0; url=https://{other}/meta">'.encode()
    receiver.respond(
        path_of(url),
        lambda handler: handler.respond(status, headers, body if status != 304 else b""),
    )
    dns.set({name: ALLOWED})
    delivery = deliver_job(service, api, api.subscribe(url))
    is_redirect = status in (301, 302, 303, 307, 308)
    failure = None if status < 300 else "redirect" if is_redirect else "status"
    assert delivery["last_failure"] == failure
    assert len(receiver.requests_to(path_of(url))) == (1 if failure is None else 3)


@pytest.mark.parametrize(
    "location",
    [
        "https://127.0.0.1:{port}/elsewhere",
        "http://127.0.0.1:{port}/elsewhere",
        "//127.0.0.1:{port}/elsewhere",
        "/elsewhere",
        "?elsewhere",
        "https://{allowed}:{port}/elsewhere",
        "https://user@127.0.0.1:{port}/elsewhere",
        "https://redirected.target.example:{port}/elsewhere",
        "file:///etc/passwd",
        "",
    ],
)
def test_redirect_is_not_followed(service, api, dns, receiver, url, name, counters, location):
    """A redirect is a failed attempt, wherever it points."""
    dns.set({name: ALLOWED, "redirected.target.example": "127.0.0.1"})
    value = location.format(port=receiver.port, allowed=ALLOWED)
    receiver.respond(
        path_of(url), lambda handler: handler.respond(307, [("Location", value)], b"gone elsewhere")
    )
    delivery = deliver_job(service, api, api.subscribe(url))
    assert [attempt["failure"] for attempt in delivery["attempts"]] == ["redirect"] * 3
    assert all("307" in attempt["detail"] for attempt in delivery["attempts"])
    assert len(receiver.requests_to(path_of(url))) == 3
    assert not [request for request in receiver.requests if "elsewhere" in request.path]


def test_proxy_variables_are_ignored(start, dns, options, receiver, url, name, counters):
    """Proxies in the environment neither receive a request nor excuse a private address."""
    dns.set({name: ALLOWED})
    env = {}
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "SOCKS_PROXY", "PROXY"):
        env[variable] = env[variable.lower()] = f"http://127.0.0.1:{counters[0].port}"
    service = start(*options, "--allow-cidr", f"{ALLOWED}/32", env=env)
    api = service.api
    assert deliver_job(service, api, api.subscribe(url))["status"] == "delivered"
    assert "via" not in receiver.requests_to(path_of(url))[0].headers

    # Another name, to which no connection is open yet.
    second_name, second_url = f"second-{name}", url.replace(name, f"second-{name}")
    other = service.create_account()
    dns.set({second_name: "127.0.0.1"})
    assert_rejected(other.create({"url": second_url, "events": EVENTS}))
    dns.set({second_name: PUBLIC_V4})
    webhook = other.subscribe(second_url)
    dns.set({second_name: "127.0.0.1"})
    assert_blocked(deliver_job(service, other, webhook))
