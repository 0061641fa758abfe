"""The target policy `public`: no URL reaches this machine, in any notation.

Connection counters listen on the machine's addresses, with and without TLS. The system's resolver
returns their address for each name that could mean it. `{p}` in a URL stands for the port of a
counter.
"""

import itertools
import json
import signal

import pytest

from network import PUBLIC_V4, ConnectionCounter, find_reached, has_ipv6

EVENTS = ["job.completed"]

IPV4 = """
    https://127.0.0.1:{p}/ https://127.0.0.1:{p} https://127.0.0.1:{p}?x
    https://127.255.255.254:{p}/ https://2130706433:{p}/ https://017700000001:{p}/
    https://0x7f000001:{p}/ https://0X7F000001:{p}/ https://127.1:{p}/ https://127.0.1:{p}/
    https://0177.1:{p}/ https://0x7f.1:{p}/ https://0177.0x0.0.1:{p}/ https://0x7f.0.0.0x1:{p}/
    https://00000177.0.0.01:{p}/ https://127.00000000000000000000000000.0.1:{p}/
    https://127.0.0.1.:{p}/ https://127.1.:{p}/ https://2130706433.:{p}/ https://0x7f000001.:{p}/
    https://4294967296:{p}/ https://6425673729:{p}/ https://256.0.0.1:{p}/ https://383.0.0.1:{p}/
    https://127.0.0.1.1:{p}/ https://0x100000000:{p}/ https://127.0.0.08:{p}/
    https://.127.0.0.1:{p}/ https://127.0.0.1..:{p}/ https://0:{p}/ https://00:{p}/
    https://0x0:{p}/ https://0x:{p}/
    https://0.:{p}/ https://0.0.0.0:{p}/ https://0.1:{p}/ https://10.0.0.1:{p}/
    https://012.0.0.1:{p}/ https://10.1:{p}/ https://100.64.0.1:{p}/ https://172.16.0.1:{p}/
    https://192.168.0.1:{p}/ https://3232235521:{p}/ https://224.0.0.1:{p}/
    https://255.255.255.255:{p}/ https://037777777777:{p}/ https://4294967295:{p}/
""".split()

METADATA = """
    https://169.254.169.254/latest/meta-data/ https://169.254.169.254:{p}/ https://169.254.169.254./
    https://2852039166/ https://0xa9fea9fe/ https://0xa9.0xfe.0xa9.0xfe/
    https://0251.0376.0251.0376/ https://169.254.43518/ https://169.16689662/ https://0xa9.16689662/
    https://169.254.170.2/v2/credentials https://169.254.100.1/ https://168.63.129.16/
    https://0xa83f8110/ https://2822734096/ https://100.100.100.200/latest/ https://1684301000/
    https://[fd00:ec2::254]/ https://[::ffff:169.254.169.254]/ https://[::ffff:a9fe:a9fe]/
    https://[64:ff9b::a9fe:a9fe]/ https://[2002:a9fe:a9fe::]/ https://metadata.example/
    http://169.254.169.254/latest/meta-data/ http://metadata.example/
""".split()

IPV6 = """
    https://[::1]:{p}/ https://[0:0:0:0:0:0:0:1]:{p}/
    https://[0000:0000:0000:0000:0000:0000:0000:0001]:{p}/ https://[::0.0.0.1]:{p}/
    https://[::]:{p}/ https://[0::0]:{p}/ https://[::127.0.0.1]:{p}/ https://[::7f00:1]:{p}/
    https://[::ffff:127.0.0.1]:{p}/ https://[::ffff:7f00:1]:{p}/ https://[::FFFF:7F00:1]:{p}/
    https://[::ffff:0:7f00:1]:{p}/ https://[0:0:0:0:0:ffff:127.0.0.1]:{p}/
    https://[::ffff:0.0.0.0]:{p}/ https://[::ffff:10.0.0.1]:{p}/ https://[64:ff9b::127.0.0.1]:{p}/
    https://[64:ff9b::7f00:1]:{p}/ https://[64:ff9b:1::7f00:1]:{p}/ https://[2002:7f00:1::]:{p}/
    https://[2002:7f00:0001::1]:{p}/ https://[2002:0a00:1::]:{p}/ https://[2001:0:7f00:1::]:{p}/
    https://[2001:0:4136:e378:8000:63bf:80ff:fffe]:{p}/ https://[fe80::5efe:127.0.0.1]:{p}/
    https://[2001:db8::5efe:7f00:1]:{p}/ https://[fe80::1]:{p}/ https://[fe80::1%25lo]:{p}/
    https://[fe80::1%lo]:{p}/ https://[::1%25lo]:{p}/ https://[::1%lo]:{p}/ https://[::1%251]:{p}/
    https://[fc00::1]:{p}/ https://[fec0::1]:{p}/ https://[ff02::1]:{p}/ https://[100::1]:{p}/
    https://[127.0.0.1]:{p}/ https://[localhost]:{p}/ https://[::1:{p}/ https://::1:{p}/
    https://[::1]]:{p}/ https://[[::1]]:{p}/ https://[::1].:{p}/ https://%5B::1%5D:{p}/
    https://[%3A%3A1]:{p}/ https://[v1.::1]:{p}/ https://[::ffff:127.1]:{p}/
    https://[::ffff:0x7f.0.0.1]:{p}/ https://[::1]{p}/
""".split()

LOOK_ALIKES = """
    https://１２７.０.０.１:{p}/ https://１２７．０．０．１:{p}/ https://127。0。0。1:{p}/ https://127｡0｡0｡1:{p}/
    https://127。1:{p}/ https://①②⑦.⓪.⓪.①:{p}/ https://𝟏𝟐𝟕.𝟎.𝟎.𝟏:{p}/ https://１２７.1。:{p}/
    https://０x7f.1:{p}/ https://0ｘ7f000001:{p}/ https://²¹³⁰⁷⁰⁶⁴³³:{p}/ https://１６９．２５４．１６９．２５４/
    https://[::①]:{p}/ https://［::1］:{p}/ https://ｌｏｃａｌｈｏｓｔ:{p}/ https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{p}/
    https://localhoſt:{p}/ https://localhoﬆ:{p}/ https://𝓵𝓸𝓬𝓪𝓵𝓱𝓸𝓼𝓽:{p}/ https://LOCALHOST。:{p}/
    https://a。localhost:{p}/ https://127.0.0.1：{p}/ https：//127.0.0.1:{p}/ https:／／127.0.0.1:{p}/
    https://hooks.example.com／@127.0.0.1:{p}/ https://hooks.example.com＠127.0.0.1:{p}/
    https://hooks.example.com＃@127.0.0.1:{p}/ https://127.0.0.1:{p}＃.example.com/
    https://hooks.example.com：443@127.0.0.1:{p}/ https://hooks.example.com：443＠127.0.0.1:{p}/
    https://127.0.0.1？hooks.example.com:{p}/ https://hooks.example.com＼@127.0.0.1:{p}/
    https://127.0.0.1℀.example.com:{p}/ https://127.0.0.1:４４３/
    https://127%E3%80%820%E3%80%820%E3%80%821:{p}/ https://%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1:{p}/
    ｈｔｔｐｓ://127.0.0.1:{p}/ httpſ://127.0.0.1:{p}/
""".split()

INVISIBLE = [
    "https://127.0.0.1\u200b:{p}/",
    "https://127.\u200b0.0.1:{p}/",
    "https://127.0\u00ad.0.1:{p}/",
    "https://127.0.0\u2060.1:{p}/",
    "https://\ufeff127.0.0.1:{p}/",
    "\ufeffhttps://127.0.0.1:{p}/",
    "https://127.0.0.1\ufe0f:{p}/",
    "https://\u202e1.0.0.721:{p}/",
    "https://\u2066127.0.0.1\u2069:{p}/",
    "https://local\u00adhost:{p}/",
    "https://local\u200dhost:{p}/",
    "https://local\U000e0041host:{p}/",
    "https://127.0.0.1\u3164:{p}/",
    "https://127.0.0.1\u115f:{p}/",
]

ESCAPED = """
    https://%31%32%37.0.0.1:{p}/ https://127%2E0%2E0%2E1:{p}/ https://127%2e1:{p}/
    https://%30x7f.1:{p}/ https://127.0.0.1%2e:{p}/ https://%32%31%33%30%37%30%36%34%33%33:{p}/
    https://%E2%91%A0%E2%91%A1%E2%91%A6.0.0.1:{p}/ https://l%6fcalhost:{p}/
    https://%6c%6f%63%61%6c%68%6f%73%74:{p}/ https://%4C%4F%43%41%4C%48%4F%53%54:{p}/
    https://%2531%2532%2537.0.0.1:{p}/ https://127.0.0.1%00.hooks.example.com:{p}/
    https://hooks.example.com%00@127.0.0.1:{p}/ https://127.0.0.1%0d%0a:{p}/
    https://127.0.0.1%09:{p}/ https://127.0.0.1%20:{p}/ https://%20127.0.0.1:{p}/
    https://127.0.0.1%2f.example.com:{p}/ https://hooks.example.com%40127.0.0.1:{p}/
    https://127.0.0.1%23.example.com:{p}/ https://127.0.0.1%3a{p}/
    https://127.0.0.1%5c.example.com:{p}/ https://hooks.example.com%2f@127.0.0.1:{p}/ https://%:{p}/
    https://%zz127.0.0.1:{p}/ https://%ff.127.0.0.1:{p}/ https%3a//127.0.0.1:{p}/
    https:%2f%2f127.0.0.1:{p}/ https://%31%36%39.254.169.254/
""".split()

LOCAL_NAMES = """
    https://localhost:{p}/ https://LOCALHOST:{p}/ https://LocalHost:{p}/ https://localhost.:{p}/
    https://LOCALHOST.:{p}/ https://a.localhost:{p}/ https://a.b.localhost:{p}/
    https://A.LocalHost.:{p}/ https://ip6-localhost:{p}/ https://localhost.localdomain:{p}/
    https://localhost4:{p}/ https://internal.example:{p}/ https://INTERNAL.Example.:{p}/
    https://127.0.0.1.hooks.example:{p}/ https://127-0-0-1.hooks.example:{p}/
    https://2130706433.hooks.example:{p}/ https://xn--bcher-kva.example:{p}/
    https://bücher.example:{p}/ https://BÜCHER.example:{p}/ https://b%C3%BCcher.example:{p}/
    https://mixed.example:{p}/ https://mapped.example:{p}/ https://nat64.example:{p}/
    https://unspecified.example:{p}/
""".split()

DELIMITERS = [
    "https://user@127.0.0.1:{p}/",
    "https://user:password@127.0.0.1:{p}/",
    "https://@127.0.0.1:{p}/",
    "https://:@127.0.0.1:{p}/",
    "https://%40@127.0.0.1:{p}/",
    "https://hooks.example.com@127.0.0.1:{p}/",
    "https://hooks.example.com:443@127.0.0.1:{p}/",
    "https://hooks.example.com@@127.0.0.1:{p}/",
    "https://hooks.example.com@hooks.example.com@127.0.0.1:{p}/",
    "https://127.0.0.1:{p}@hooks.example.com/",
    "https://127.0.0.1@hooks.example.com:{p}/",
    "https://hooks.example.com#@127.0.0.1:{p}/",
    "https://hooks.example.com/#@127.0.0.1:{p}/",
    "https://127.0.0.1:{p}#@hooks.example.com/",
    "https://127.0.0.1:{p}/#hooks.example.com",
    "https://127.0.0.1:{p}?@hooks.example.com/",
    "https://127.0.0.1:{p}/@hooks.example.com",
    "https://127.0.0.1:{p};hooks.example.com/",
    "https://hooks.example.com,127.0.0.1:{p}/",
    "https://127.0.0.1;@hooks.example.com:{p}/",
    "https://127.0.0.1|hooks.example.com:{p}/",
    "https://127.0.0.1&@hooks.example.com#@hooks.example.com:{p}/",
    "https://{{127.0.0.1}}:{p}/",
    "https://<127.0.0.1>:{p}/",
    'https://"127.0.0.1":{p}/',
    "https://127.0.0.1^.example.com:{p}/",
    "https://127.0.0.1`.example.com:{p}/",
    "https://*.0.0.1:{p}/",
    "https://127.0.0.1:{p}\\@hooks.example.com/",
    "https://hooks.example.com\\@127.0.0.1:{p}/",
    "https://hooks.example.com\\.127.0.0.1:{p}/",
    "https:\\\\127.0.0.1:{p}\\",
    "https:/\\127.0.0.1:{p}/",
    "https://\\127.0.0.1:{p}/",
    "https:127.0.0.1:{p}/",
    "https:/127.0.0.1:{p}/",
    "https:///127.0.0.1:{p}/",
    "https:////127.0.0.1:{p}/",
    "//127.0.0.1:{p}/",
    "/127.0.0.1:{p}/",
    "127.0.0.1:{p}/",
    "://127.0.0.1:{p}/",
    "https://127.0.0.1:{p}:443/",
    "https://127.0.0.1:443:{p}/",
    "https://127.0.0.1:+{p}/",
    "https://127.0.0.1:-{p}/",
    "https://127.0.0.1:00000{p}/",
    "https://127.0.0.1:0x{p}/",
    "https://127.0.0.1:{p}.0/",
    "https://127.0.0.1:/",
    "https://127.0.0.1:0/",
    "https://127.0.0.1:65536/",
    "https://127.0.0.1:{p}/../../",
    "https://127.0.0.1 :{p}/",
    "https:// 127.0.0.1:{p}/",
    " https://127.0.0.1:{p}/",
    "https://127.0.0.1:{p}/ ",
    "https ://127.0.0.1:{p}/",
    "ht\ttps://127.0.0.1:{p}/",
    "https:\t//127.0.0.1:{p}/",
    "https:/\t/127.0.0.1:{p}/",
    "https://127.0\t.0.1:{p}/",
    "https://127.0\n.0.1:{p}/",
    "https://127.0\r\n.0.1:{p}/",
    "\nhttps://127.0.0.1:{p}/",
    "https://127.0.0.1:{p}/\n",
    "https://127.0.0.1:{p}\n/",
    "https://127.0.0.1:\n{p}/",
    "https://hooks.example.com\n@127.0.0.1:{p}/",
    "https://hooks.example.com/ HTTP/1.1\r\nHost: 127.0.0.1:{p}/",
    "https://127.0.0.1\x00:{p}/",
    "https://127.0.0.1\x00.hooks.example.com:{p}/",
    "https://\x00127.0.0.1:{p}/",
    "\x00https://127.0.0.1:{p}/",
    "https://127.0.0.1\x1f:{p}/",
    "https://127.0.0.1\x7f:{p}/",
    "https://127.0.0.1\x85:{p}/",
    "https://127.0.0.1\u00a0:{p}/",
    "https://127.0.0.1\u2028:{p}/",
    "https://127.0.0.1\u3000:{p}/",
    "https://hooks.example.com https://127.0.0.1:{p}/",
    "https://hooks.example.com/\nhttps://127.0.0.1:{p}/",
    "https://https:{p}@127.0.0.1/",
]

SCHEMES = """
    http://127.0.0.1:{p}/ HTTP://127.0.0.1:{p}/ http://localhost:{p}/ http://[::1]:{p}/
    http://2130706433:{p}/ http://0:{p}/ http://hooks.example.com/ http://hooks.example.com:443/
    hTTp://hooks.example.com:{p}/ http://internal.example:{p}/ ftp://127.0.0.1:{p}/
    ftps://127.0.0.1:{p}/ file:///etc/passwd file://127.0.0.1/etc/passwd file://localhost/etc/passwd
    gopher://127.0.0.1:{p}/_POST%20/ dict://127.0.0.1:{p}/info ldap://127.0.0.1:{p}/
    tftp://127.0.0.1:{p}/ telnet://127.0.0.1:{p} ws://127.0.0.1:{p}/ wss://127.0.0.1:{p}/
    smtp://127.0.0.1:{p}/ ssh://127.0.0.1:{p}/ redis://127.0.0.1:{p}/ unix:/var/run/service.sock
    unix:///var/run/service.sock http+unix://%2Fvar%2Frun%2Fservice.sock/
    https+unix://127.0.0.1:{p}/ javascript://127.0.0.1:{p}/%0aalert(1)
    data:text/plain,https://127.0.0.1:{p}/ blob:https://127.0.0.1:{p}/ jar:https://127.0.0.1:{p}/!/
    view-source:https://127.0.0.1:{p}/ url:https://127.0.0.1:{p}/ https.://127.0.0.1:{p}/
    httpss://127.0.0.1:{p}/ xhttps://127.0.0.1:{p}/ h://127.0.0.1:{p}/ about:blank
""".split()

# Hosts that look like an address and are names by the URL standard, which do not resolve.
UNRESOLVED = """
    https://०.०.०.०:{p}/ https://127.0.0.1⁄.example.com:{p}/
    https://127.0.0.1,hooks.example.com:{p}/ https://'127.0.0.1':{p}/ https://https://127.0.0.1:{p}/
    https://127.0.0.1.example:{p}/ https://127.0.0.l:{p}/ https://I27.O.O.I:{p}/
    https://localhost-:{p}/ https://1ocalhost:{p}/ https://lосаlhоst:{p}/ https://127_0_0_1:{p}/
    https://0x7f.0.0.0x1.example:{p}/ https://169.254.169.254.example/ https://$127.0.0.1$:{p}/
""".split()

HOSTILE = {
    "IPv4": IPV4,
    "metadata services": METADATA,
    "IPv6": IPV6,
    "look-alikes": LOOK_ALIKES,
    "invisible characters": INVISIBLE,
    "percent encoding": ESCAPED,
    "local names": LOCAL_NAMES,
    "delimiters": DELIMITERS,
    "schemes": SCHEMES,
}

LOCAL = {
    name: "127.0.0.1"
    for name in (
        "localhost a.localhost a.b.localhost ip6-localhost localhost.localdomain localhost4 "
        "internal.example 127.0.0.1.hooks.example 127-0-0-1.hooks.example "
        "2130706433.hooks.example xn--bcher-kva.example"
    ).split()
}
RESOLVED = LOCAL | {
    "metadata.example": "169.254.169.254",
    "hooks.example.com": PUBLIC_V4,
    "mixed.example": [PUBLIC_V4, "127.0.0.1"],
    "mapped.example": "::ffff:127.0.0.1",
    "nat64.example": "64:ff9b::7f00:1",
    "unspecified.example": "0.0.0.0",
}
# Texts that would disclose the network behind the service.
CONFIDENTIAL = [
    "127.0.0",
    "::1",
    "0.0.0.0",
    "::ffff",
    "64:ff9b",
    "169.254",
    PUBLIC_V4,
    "hosts",
    "os error",
    "refused by",
]


@pytest.fixture(scope="module")
def counters(authority):
    """Connection counters on all addresses of this machine that a URL could mean."""
    tls = authority.issue("localhost", "internal.example", "127.0.0.1", "::1")
    contexts = (None, tls)
    counters = [
        ConnectionCounter(host, tls=context)
        for host in ("127.0.0.1", "0.0.0.0")
        for context in contexts
    ]
    if has_ipv6():
        counters += [ConnectionCounter("::1", tls=context) for context in contexts]
    yield counters
    for counter in counters:
        counter.close()


@pytest.fixture(scope="module")
def service(start, dns, counters):
    dns.set(RESOLVED)
    return start("--in-memory", "--targets", "public", "--retry-schedule", "50ms")


def with_each_port(url, counters):
    return list(dict.fromkeys(url.format(p=counter.port) for counter in counters))


def assert_rejected(response):
    """Asserts that a URL was rejected with a message that names the field and discloses nothing of
    the network.
    """
    response.assert_error(400, "invalid_request")
    assert "url" in response.message and "expected" in response.message, response.message
    assert not [text for text in CONFIDENTIAL if text in response.message.lower()], response.message
    assert len(response.message) < 300


@pytest.mark.parametrize("urls", HOSTILE.values(), ids=HOSTILE)
def test_hostile_url_is_rejected(service, counters, urls):
    """Creating and changing a webhook rejects each URL and opens no connection."""
    api = service.create_account()
    webhook = api.subscribe("https://hooks.example.com/kept")
    for url in (url for template in urls for url in with_each_port(template, counters)):
        assert_rejected(api.create({"url": url, "events": EVENTS}))
        assert_rejected(api.update(webhook, url=url, description="changed"))
    assert [listed["url"] for listed in api.list_webhooks().data] == [
        "https://hooks.example.com/kept"
    ]
    assert api.get(webhook)["description"] is None
    assert not find_reached(counters)


def test_lookalike_name_does_not_resolve(service, counters):
    """Hosts that only look like an address are accepted as names, and no connection is made."""
    api = service.create_account()
    webhooks = {
        api.subscribe(with_each_port(template, counters)[0]): template for template in UNRESOLVED
    }
    service.put_job(f"{api.account}-job", api.account)
    for webhook, template in webhooks.items():
        row = api.wait_for_delivery(webhook, lambda row: row["status"] != "pending")
        assert row["status"] == "failed" and row["last_failure"] == "dns", template
    assert not find_reached(counters)


def create_under_any_policy(service, counters):
    """Creates a webhook for each URL that is accepted without a policy.

    Returns the URLs by webhook id.
    """
    webhooks = {}
    templates = itertools.chain(*HOSTILE.values(), UNRESOLVED)
    for template, counter in zip(templates, itertools.cycle(counters)):
        url = template.format(p=counter.port)
        response = service.api.create({"url": url, "events": EVENTS})
        assert response.status in (201, 400), response.text
        if response.status == 201:
            webhooks[response.data["id"]] = url
    assert len(webhooks) > 60
    return webhooks


def test_stricter_policy_blocks_existing_webhooks(start, dns, counters, tmp_path):
    """Each attempt checks the current policy, also for webhooks that were created under another
    policy.
    """
    dns.set(RESOLVED)
    options = ("--data-dir", str(tmp_path / "data"), "--retry-schedule", "50ms")
    env = {"WEBHOOKS_PER_ACCOUNT": "10000"}
    lenient = start(*options, "--targets", "any", env=env)
    webhooks = create_under_any_policy(lenient, counters)
    # A control: one of the names is reached while the policy allows it.
    control = lenient.api.subscribe(
        f"http://internal.example:{counters[0].port}/", events=["job.failed"]
    )
    lenient.put_job("control", lenient.api.account, "failed")
    row = lenient.api.wait_for_delivery(control, lambda row: row["status"] != "pending")
    assert row["status"] == "delivered" and counters[0].count_connections() == 1
    counters[0].clear()
    assert lenient.signal(signal.SIGTERM) == 0

    strict = start(*options, "--targets", "public", env=env)
    strict.put_job("blocked", strict.api.account)
    unexpected = {}
    for webhook, url in webhooks.items():
        row = strict.api.wait_for_delivery(webhook, lambda row: row["status"] != "pending")
        attempts = strict.api.get_delivery(webhook, row["event_id"]).data["attempts"]
        failures = [attempt["failure"] for attempt in attempts]
        is_expected = failures == ["blocked"] * 2 or set(failures) == {"dns"}
        if row["status"] != "failed" or not is_expected:
            unexpected[url] = (row, attempts)
        for attempt in attempts:
            assert attempt["status_code"] is None and attempt["response_excerpt"] is None, (
                url,
                attempt,
            )
            assert not [text for text in CONFIDENTIAL if text in attempt["detail"].lower()], (
                url,
                attempt["detail"],
            )
    assert not unexpected, json.dumps(unexpected, indent=1, ensure_ascii=False)[:8000]
    assert not find_reached(counters)
