"""What a name resolves to is checked when a webhook is made and again at every attempt, and nothing leads around that.

The operator allows 127.0.0.2, where a receiver is; on the same port of 127.0.0.1 and ::1 are canaries, so that a name
that is bound anew would lead to them.
"""

import contextlib
import itertools

import pytest

from network import PUBLIC, PUBLIC_V6, Canary, has_ipv6, reached
from support import Receiver, eventually
from test_targets import is_refused

HOOKS = "/api/v1/webhooks"
ALLOWED = "127.0.0.2"
EVENTS = ["job.completed"]
PRIVATE = {
    "127.0.0.1": "loopback address",
    "127.8.9.10": "loopback address",
    "0.0.0.0": "this network",
    "10.0.0.1": "private address",
    "172.16.0.1": "private address",
    "192.168.0.1": "private address",
    "100.64.0.1": "shared address space",
    "169.254.169.254": "link-local address",
    "168.63.129.16": "platform service address",
    "192.0.2.1": "documentation address",
    "224.0.0.1": "multicast address",
    "255.255.255.255": "reserved address",
    "::1": "not a global unicast address",
    "::": "not a global unicast address",
    "::ffff:127.0.0.1": "not a global unicast address",
    "64:ff9b::7f00:1": "not a global unicast address",
    "fd00:ec2::254": "not a global unicast address",
    "fe80::1": "not a global unicast address",
    "2002:7f00:1::": "6to4 address",
    "2001:0:7f00:1::": "protocol assignments",
}
MIXED = [
    [PUBLIC, "127.0.0.1"],
    ["127.0.0.1", PUBLIC],
    [PUBLIC, "::1"],
    ["::1", PUBLIC],
    [PUBLIC_V6, "127.0.0.1"],
    ["127.0.0.1", PUBLIC_V6],
    [PUBLIC_V6, "::1"],
    ["::1", PUBLIC_V6],
    [PUBLIC, PUBLIC_V6, "1.0.0.1", "10.0.0.1"],
]
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def place(authority):
    """The receiver, and the canaries on the same port."""
    context = authority.server("*.target.example", "127.0.0.1", ALLOWED, "::1")
    for _ in range(100):
        receiver = Receiver(ALLOWED, tls=context)
        canaries = []
        # The port may be taken on another address: then another one.
        with contextlib.suppress(OSError):
            canaries.append(Canary("127.0.0.1", receiver.port, context))
            if has_ipv6():
                canaries.append(Canary("::1", receiver.port, context))
            yield receiver, canaries
            break
        receiver.close()
    else:
        pytest.fail("no port that is free on all addresses")
    receiver.close()
    for canary in canaries:
        canary.close()


@pytest.fixture(scope="module")
def receiver(place):
    return place[0]


@pytest.fixture
def canaries(place):
    """The canaries, to which nothing may have come when the test is done."""
    for canary in place[1]:
        canary.forget()
    yield place[1]
    assert not reached(place[1])


@pytest.fixture(scope="module")
def options(authority):
    return ("--in-memory", "--targets", "public", "--retry-schedule", "100ms,100ms", "--ca-file", str(authority.file))


@pytest.fixture(scope="module")
def service(start, names, options):
    return start(*options, "--allow-cidr", f"{ALLOWED}/32", env=names.env)


@pytest.fixture
def name():
    """A name that no other test uses."""
    return f"n{next(numbers)}.target.example"


@pytest.fixture
def url(name, place):
    return f"https://{name}:{place[0].port}/{name}"


def path(url):
    return "/" + url.rpartition("/")[2]


def ends(service, api, webhook):
    """Ends a job; gives the delivery once it is settled."""
    service.put_job(f"{api.account}-job", api.account)
    row = api.row(webhook, lambda row: row["status"] != "pending")
    return api.delivery(webhook, row["event_id"]).data


def is_blocked(delivery, rule, attempts=3):
    """Asserts that no attempt was made, since a rule refuses the target, and that no address is told."""
    assert (delivery["status"], delivery["last_failure"], delivery["attempt_count"]) == ("failed", "blocked", attempts)
    for attempt in delivery["attempts"]:
        assert attempt["failure"] == "blocked", attempt
        assert rule in attempt["detail"], attempt
        assert not [
            address for address in [*PRIVATE, PUBLIC, PUBLIC_V6] if len(address) > 2 and address in attempt["detail"]
        ]
        assert attempt["status_code"] is None and attempt["response_excerpt"] is None


# Controls: that the names, the certificates and the canaries work --------------------------------------------------


def test_an_allowed_range_and_a_trusted_authority_let_a_name_through(
    service, api, names, receiver, url, name, canaries
):
    names.set({name: ALLOWED})
    webhook = api.subscribe(url)
    delivery = ends(service, api, webhook)
    assert (delivery["status"], delivery["attempt_count"]) == ("delivered", 1)
    assert receiver.at(path(url))[0].headers["host"] == f"{name}:{receiver.port}"


def test_a_canary_would_be_reached_if_its_range_were_allowed(start, names, options, place, url, name):
    names.set({name: "127.0.0.1"})
    service = start(*options, "--allow-cidr", "127.0.0.0/8", env=names.env)
    canary = place[1][0]
    canary.forget()
    delivery = ends(service, service.api, service.api.subscribe(url))
    assert (delivery["status"], delivery["attempt_count"]) == ("delivered", 1)
    assert canary.connections() == 1


def test_without_the_authority_no_request_is_sent(start, names, receiver, url, name):
    names.set({name: ALLOWED})
    service = start(
        "--in-memory", "--targets", "public", "--allow-cidr", f"{ALLOWED}/32", "--retry-schedule", "50ms", env=names.env
    )
    delivery = ends(service, service.api, service.api.subscribe(url))
    assert [attempt["failure"] for attempt in delivery["attempts"]] == ["tls", "tls"]
    assert not receiver.at(path(url))


def test_an_allowed_range_allows_no_plain_http(api, receiver):
    is_refused(api.post({"url": f"http://{ALLOWED}:{receiver.port}/", "events": EVENTS}))


# What is checked when a webhook is made or changed ------------------------------------------------------------------


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_of_a_private_address_is_refused(api, names, url, name, canaries, address):
    names.set({name: address})
    for given in (url, url.replace(name, name.upper()), url.replace(f"{name}:", f"{name}.:")):
        is_refused(api.post({"url": given, "events": EVENTS}))
    assert api.list().data == []
    webhook = api.subscribe(f"https://{ALLOWED}/kept")
    is_refused(api.call("PATCH", f"{HOOKS}/{webhook}", {"url": url}))
    assert api.list().data[0]["url"] == f"https://{ALLOWED}/kept"


@pytest.mark.parametrize("addresses", MIXED, ids=str)
def test_one_private_address_among_several_refuses_the_name(api, names, url, name, canaries, addresses):
    names.set({name: addresses})
    is_refused(api.post({"url": url, "events": EVENTS}))
    webhook = api.subscribe(f"https://{ALLOWED}/kept")
    is_refused(api.call("PATCH", f"{HOOKS}/{webhook}", {"url": url}))


def test_an_allowed_address_makes_a_private_one_beside_it_no_better(api, names, url, name, canaries):
    for addresses in ([ALLOWED, "127.0.0.1"], ["127.0.0.1", ALLOWED]):
        names.set({name: addresses})
        is_refused(api.post({"url": url, "events": EVENTS}))


# What is checked at every attempt -----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_that_is_bound_anew_after_its_creation_is_blocked(service, api, names, url, name, canaries, address):
    names.set({name: PUBLIC})
    webhook = api.subscribe(url)
    names.set({name: address})
    is_blocked(ends(service, api, webhook), PRIVATE[address])


@pytest.mark.parametrize("addresses", MIXED, ids=str)
def test_a_name_with_one_private_address_among_several_is_blocked(service, api, names, url, name, canaries, addresses):
    names.set({name: PUBLIC})
    webhook = api.subscribe(url)
    names.set({name: addresses})
    is_blocked(ends(service, api, webhook), next(PRIVATE[one] for one in addresses if one in PRIVATE))


def test_a_name_that_is_bound_anew_after_a_change_is_blocked(service, api, names, url, name, canaries):
    webhook = api.subscribe(f"https://{ALLOWED}/before")
    names.set({name: PUBLIC})
    assert api.call("PATCH", f"{HOOKS}/{webhook}", {"url": url}).status == 200
    names.set({name: "127.0.0.1"})
    is_blocked(ends(service, api, webhook), "loopback address")


def test_a_name_that_does_not_resolve_is_accepted_says_dns_and_is_blocked_once_it_is_private(
    service, api, names, url, name, canaries
):
    webhook = api.subscribe(url)
    other = api.subscribe(f"https://{ALLOWED}/before", events=["webhook.disabled"])
    assert api.call("PATCH", f"{HOOKS}/{other}", {"url": url}).status == 200
    delivery = ends(service, api, webhook)
    assert [attempt["failure"] for attempt in delivery["attempts"]] == ["dns"] * 3
    assert all("resolve" in attempt["detail"] for attempt in delivery["attempts"])

    names.set({name: "127.0.0.1"})
    assert api.retry(webhook, delivery["event_id"]).status == 202
    row = api.row(webhook, lambda row: row["attempt_count"] == 4 and row["status"] != "pending")
    last = api.delivery(webhook, row["event_id"]).data["attempts"][-1]
    assert last["failure"] == "blocked" and "loopback address" in last["detail"], last
    is_refused(api.call("PATCH", f"{HOOKS}/{other}", {"url": url}))


def test_a_blocked_name_is_delivered_to_once_it_is_allowed_again(service, api, names, receiver, url, name, canaries):
    names.set({name: ALLOWED})
    webhook = api.subscribe(url)
    names.set({name: "127.0.0.1"})
    delivery = ends(service, api, webhook)
    is_blocked(delivery, "loopback address")
    names.set({name: ALLOWED})
    assert api.retry(webhook, delivery["event_id"]).status == 202
    api.row(webhook, lambda row: row["status"] == "delivered")
    assert len(receiver.at(path(url))) == 1


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_a_retry_is_guarded_as_the_first_attempt_is(
    service, api, names, receiver, url, name, canaries, number, connection
):
    """The name is bound anew while attempt `number` is in flight; a connection that is kept leads not around that."""
    names.set({name: ALLOWED})
    webhook = api.subscribe(url)

    def answer(handler):
        if handler.headers["X-Nano-Attempt"] == str(number):
            names.set({name: "127.0.0.1"})
        handler.close_connection = connection == "close"
        handler.reply(500, [("Connection", connection)])

    receiver.answer(path(url), answer)
    delivery = ends(service, api, webhook)
    failures = [attempt["failure"] for attempt in delivery["attempts"]]
    assert failures == ["status"] * number + ["blocked"] * (3 - number), delivery["attempts"]
    assert "loopback address" in delivery["attempts"][-1]["detail"]
    assert len(receiver.at(path(url))) == number


def test_a_manual_retry_is_guarded_as_the_first_attempt_is(service, api, names, receiver, url, name, canaries):
    names.set({name: ALLOWED})
    webhook = api.subscribe(url)
    delivery = ends(service, api, webhook)
    assert delivery["status"] == "delivered"
    names.set({name: [PUBLIC, "127.0.0.1"]})
    assert api.retry(webhook, delivery["event_id"]).status == 202
    eventually(lambda: api.row(webhook)["attempt_count"] == 2, "the second attempt")
    last = api.delivery(webhook, delivery["event_id"]).data["attempts"][-1]
    assert last["failure"] == "blocked" and "loopback address" in last["detail"], last
    assert len(receiver.at(path(url))) == 1


def test_a_name_that_is_bound_anew_all_the_time_is_never_followed_to_a_private_address(
    service, api, names, receiver, url, name, canaries
):
    """Between the check of an address and the connection to it no second look-up could answer otherwise."""
    names.set({name: ALLOWED})
    webhooks = [api.subscribe(url) for _ in range(20)]
    service.put_job(f"{api.account}-job", api.account)
    settled = lambda: all(
        row["status"] != "pending" for webhook in webhooks for row in api.log(webhook) or [{"status": "pending"}]
    )
    flip = itertools.cycle(["127.0.0.1", ALLOWED])

    def flipped():
        for _ in range(20):
            names.set({name: next(flip)})
        return settled()

    eventually(flipped, "all deliveries settle")
    failures = {row["last_failure"] for webhook in webhooks for row in api.log(webhook)}
    assert failures <= {None, "blocked"}, failures


# What could lead around it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 300, 301, 302, 303, 304, 305, 307, 308, 401, 407, 503])
def test_no_answer_makes_the_service_call_another_address(
    service, api, names, receiver, url, name, place, canaries, status
):
    canary = f"127.0.0.1:{canaries[0].port}"
    headers = [
        ("Location", f"https://{canary}/location"),
        ("Content-Location", f"https://{canary}/content-location"),
        ("Refresh", f"0; url=https://{canary}/refresh"),
        ("Link", f'<https://{canary}/link>; rel="preload"'),
        ("Alt-Svc", f'h2="{canary}"; ma=3600, http/1.1="{canary}"'),
        ("Proxy-Authenticate", "Basic"),
        ("WWW-Authenticate", f'Bearer resource_metadata="https://{canary}/"'),
        ("Retry-After", "0"),
    ]
    body = f'<meta http-equiv="refresh" content="0; url=https://{canary}/meta">'.encode()
    receiver.answer(path(url), lambda handler: handler.reply(status, headers, body if status != 304 else b""))
    names.set({name: ALLOWED})
    delivery = ends(service, api, api.subscribe(url))
    failure = None if status < 300 else "redirect" if status < 400 else "status"
    assert delivery["last_failure"] == failure
    assert len(receiver.at(path(url))) == (1 if failure is None else 3)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "https://127.0.0.1:{p}/elsewhere",
        "http://127.0.0.1:{p}/elsewhere",
        "//127.0.0.1:{p}/elsewhere",
        "/elsewhere",
        "elsewhere",
        "?elsewhere",
        "https://{allowed}:{p}/elsewhere",
        "https://user@127.0.0.1:{p}/elsewhere",
        "https://redirected.target.example:{p}/elsewhere",
        "file:///etc/passwd",
        "",
    ],
)
def test_no_redirect_is_followed(service, api, names, receiver, url, name, canaries, status, location):
    names.set({name: ALLOWED, "redirected.target.example": "127.0.0.1"})
    value = location.format(p=receiver.port, allowed=ALLOWED)
    receiver.answer(path(url), lambda handler: handler.reply(status, [("Location", value)], b"gone elsewhere"))
    delivery = ends(service, api, api.subscribe(url))
    assert [attempt["failure"] for attempt in delivery["attempts"]] == ["redirect"] * 3
    assert all(str(status) in attempt["detail"] for attempt in delivery["attempts"])
    assert len(receiver.at(path(url))) == 3
    assert not [request for request in receiver.requests if "elsewhere" in request.path]


def test_proxies_from_the_environment_are_ignored(start, names, options, receiver, url, name, canaries):
    names.set({name: ALLOWED})
    env = dict(names.env)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "SOCKS_PROXY", "PROXY"):
        env[variable] = env[variable.lower()] = f"http://127.0.0.1:{canaries[0].port}"
    service = start(*options, "--allow-cidr", f"{ALLOWED}/32", env=env)
    api = service.api
    assert ends(service, api, api.subscribe(url))["status"] == "delivered"
    assert "via" not in receiver.at(path(url))[0].headers

    # Another name, to which there is no connection yet.
    second, url = f"second-{name}", url.replace(name, f"second-{name}")
    names.set({second: "127.0.0.1"})
    other = service.new_account()
    is_refused(other.post({"url": url, "events": EVENTS}))
    names.set({second: PUBLIC})
    webhook = other.subscribe(url)
    names.set({second: "127.0.0.1"})
    is_blocked(ends(service, other, webhook), "loopback address")
