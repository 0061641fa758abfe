"""Every value that DynamoDB can store in `data` arrives unchanged, and every receiver can verify
it.
"""

import random
import re
from decimal import Decimal

import canonical
from support import PLAIN_SECRET, STANDARD_SECRET, verify_signatures

UPDATED_AT = "2024-12-23T10:00:00Z"

NUMBERS = """
    0 -0 0.0 1 -1 6 6.0 100 1e3 0.1 -0.1 0.2 0.3 0.30000000000000004 1.5 -12.50 3.141592653589793
    1e20 1e21 1e22 123456789012345680000 1234567890123456800000 -1e21 1e-6 0.000001 1e-7 0.0000001
    1.5e-7 9007199254740991 9007199254740992 9007199254740993 9007199254740994 -9007199254740993
    9007199254740993.5 4294967295 4294967296 18446744073709551615 18446744073709551616
    9223372036854775807 -9223372036854775808 12345678901234567890123456789012345678
    99999999999999999999999999999999999999 -99999999999999999999999999999999999999
    0.12345678901234567890123456789012345678 1.2345678901234567890123456789012345678
    12345678901234567.5 0.1000000000000000055511151231257827 0.10000000000000001 5e-130 1E-130
    -1E-130 1.7E-129 9.9999999999999999999999999999999999999E+125
    -9.9999999999999999999999999999999999999E+125 9.9E+125 1E+125 1.7976931348623157E+100
    2.2250738585072014E-100 4.9406564584124654E-100 8.98846567431158E+107 1e23 9e22
    123456789.123456789 1.0000000000000002 1.00000000000000011102230246251565404 0.5 0.25 1e15 1e16
    1e17 2.5e-5 25e-6 1E+5 00012 0.00000012345 123e-20 5e-7 999999999999999900000
    999999999999999999999
""".split()

STRINGS = [
    "",
    " ",
    "\u2028 line \u2029 paragraph",
    "".join(map(chr, range(0x20))),
    "\x7f\x80\x9f\xa0\xad",
    "\"'\\/`",
    "\\u0041 \\ud83d \\n \\x00 \\\\u2028",
    "\\ud800",
    "</script><!-- &amp; --> <>&",
    "🎬👩‍👩‍👧‍👦🇨🇭 e\u0301 é \ufeff \ufffd \uffff \U0010ffff",
    "\u202e right to left \u200b zero width",
    '{"event":"job.failed"}',
    "null",
    "1e999",
    "a" * 100_000,
    '🔑\u2028"' * 5_000,
]

KEYS = [
    [
        "0",
        "10",
        "2",
        "01",
        "00",
        "4294967294",
        "4294967295",
        "4294967296",
        "-1",
        "+1",
        "1.0",
        "1e3",
        " 1",
        "１",
        "٣",
    ],
    [
        "__proto__",
        "constructor",
        "toJSON",
        "prototype",
        "hasOwnProperty",
        "toString",
        "length",
        "valueOf",
        "then",
    ],
    ["event", "task_id", "data", "timestamp", "status", "signature"],
    ["z", "a", "Z", "A", "é", "e\u0301", "z\u0301", "ü", "🎬", "\uffff", "\ufb01", "\U00010000"],
    [
        "\u2028",
        "\u2029",
        "\x00",
        "\n",
        '"',
        "\\",
        "\x7f",
        "a.b",
        "a/b",
        "$ref",
        " ",
        "9",
        "99",
        "100",
    ],
    [
        "18446744073709551615",
        "9007199254740993",
        "99999999999999999999",
        "4294967293",
        "NaN",
        "Infinity",
        "-0",
    ],
]


def nest(depth, value, wrap):
    for level in range(depth):
        value = wrap(level, value)
    return value


def chosen_documents():
    """One document for each known trap of JSON and of JavaScript objects."""
    for text in NUMBERS:
        yield {"n": {"N": text}}
    yield {"all": {"L": [{"N": text} for text in NUMBERS]}}
    for text in STRINGS:
        yield {"s": {"S": text}}
    for keys in KEYS:
        yield {key: {"N": str(index)} for index, key in enumerate(keys)}
        yield {"deep": {"L": [{"M": {key: {"S": key} for key in reversed(keys)}}]}}
    yield {"__proto__": {"M": {"polluted": {"BOOL": True}}}, "toJSON": {"S": "not a function"}}
    yield {"__proto__": {"NULL": True}}
    yield {"__proto__": {"L": [{"M": {"__proto__": {"M": {"1": {"N": "1"}, "0": {"N": "0"}}}}}]}}
    yield {"ss": {"SS": ["b", "a", "B", "10", "9", "é", "🎬", "\uffff", "z", "\u2028"]}}
    yield {
        "ns": {
            "NS": [
                "10",
                "9",
                "-1",
                "0",
                "9007199254740993",
                "1e21",
                "1E-130",
                "-9.5",
                "99999999999999999999999999999999999999",
            ]
        }
    }
    yield {"ns": {"NS": ["0.1", "0.01", "-0.1", "-0.01", "1e-7", "100", "20", "3"]}}
    yield {"bs": {"BS": [b"\xff", b"\x00\x01", b"\x00", b"nano", b"\x7f\x80", b"nan"]}}
    yield {"b": {"B": b'\x00\xff\xfe\n"\\'}, "empty": {"B": b""}, "all": {"B": bytes(range(256))}}
    yield {
        "m": {"M": {}},
        "l": {"L": []},
        "s": {"S": ""},
        "null": {"NULL": True},
        "t": {"BOOL": True},
        "f": {"BOOL": False},
    }
    yield {}
    yield {"lists": nest(29, {"L": []}, lambda level, inner: {"L": [inner, {"N": str(level)}]})}
    yield {
        "maps": nest(
            29,
            {"M": {}},
            lambda level, inner: {"M": {"b": {"N": "1"}, "10": inner, "9": {"S": "x"}}},
        )
    }
    yield {str(n): {"N": str(n)} for n in range(300, 0, -7)}


def random_number(source):
    while True:
        digits = "".join(
            source.choices("0123456789", k=source.choice([1, 2, 5, 15, 16, 17, 18, 30, 38]))
        )
        exponent = source.choice([0, 0, -3, 5, -10, 20, -100, 80, source.randint(-160, 120)])
        text = f"{source.choice(['', '-'])}{digits}E{exponent}"
        exact = Decimal(text)
        # DynamoDB stores zero, and magnitudes from 1E-130 to just under 1E+126.
        if exact == 0 or -130 <= exact.adjusted() <= 125:
            return text


def random_string(source):
    alphabet = 'ab01 "\\/\n\t\x00\x1f\x7f\u2028\u2029é\ud7ff\ue000\uffff🎬🔑'
    return "".join(source.choices(alphabet, k=source.choice([0, 1, 2, 5, 20])))


def random_key(source):
    indices = [str(source.randint(0, 20)), str(source.randint(4294967290, 4294967300))]
    # DynamoDB rejects an empty key.
    return source.choice([random_string(source) or "empty", *indices, "__proto__"])


def random_value(source, depth):
    kinds = ["NULL", "BOOL", "N", "N", "S", "S", "B", "SS", "NS", "BS"] + (
        ["L", "M", "M"] if depth else []
    )
    kind, count = source.choice(kinds), source.randint(0, 6)
    match kind:
        case "NULL":
            content = True
        case "BOOL":
            content = source.random() < 0.5
        case "N":
            content = random_number(source)
        case "S":
            content = random_string(source)
        case "B":
            content = source.randbytes(count)
        case "L":
            content = [random_value(source, depth - 1) for _ in range(count)]
        case "M":
            content = {random_key(source): random_value(source, depth - 1) for _ in range(count)}
        # A set has at least one member, and no two equal members.
        case "SS":
            content = list({random_string(source) for _ in range(count + 1)})
        case "NS":
            content = list(
                {
                    Decimal(text): text
                    for text in (random_number(source) for _ in range(count + 1))
                }.values()
            )
        case "BS":
            content = list({source.randbytes(source.randint(1, 4)) for _ in range(count + 1)})
    return {kind: content}


def random_documents(count):
    source = random.Random(20241223)
    for _ in range(count):
        yield {random_key(source): random_value(source, 4) for _ in range(source.randint(1, 6))}


def test_hostile_data_arrives_verifiable(service, api, receiver):
    """Each job becomes one event with the expected bytes, which all verifiers accept."""
    secrets = {"/plain": PLAIN_SECRET, "/standard": STANDARD_SECRET}
    for path, secret in secrets.items():
        api.subscribe(receiver.url + path, secret)
    documents = list(chosen_documents())
    documents += random_documents(320 - len(documents))
    expected = {}
    for index, data in enumerate(documents):
        task_id, task_type = f"task-{index}-{STRINGS[index % 12]}", STRINGS[(index + 5) % 12]
        status = "failed" if index % 5 == 0 else "completed"
        attributes = {
            "data": {"M": data},
            "task_type": {"S": task_type},
            "updated_at": {"S": UPDATED_AT},
        }
        service.put_job(task_id, api.account, status, **attributes)
        expected[task_id] = canonical.body(
            f"job.{status}", task_id, task_type, status, {"M": data}, UPDATED_AT
        )

    ids = {}
    for path, secret in secrets.items():
        requests = receiver.wait_for(path, len(documents))
        verify_signatures(requests, secret)
        for request in requests:
            task_id = request.json["task_id"]
            assert request.body.decode() == expected[task_id]
            assert request.method == "POST"
            assert request.headers["content-type"] == "application/json"
            assert request.headers["x-nano-event"] == request.json["event"]
            assert request.headers["x-nano-attempt"] == "1"
            assert request.headers["webhook-timestamp"] == request.headers["x-nano-timestamp"]
            assert re.fullmatch(r"nano-webhooks/\d+\.\d+\.\d+\S*", request.headers["user-agent"])
            assert re.fullmatch("evt_[0-9A-HJKMNP-TV-Z]{26}", request.id)
            assert re.fullmatch("v1=[0-9a-f]{64}", request.headers["x-nano-signature"])
            assert ids.setdefault(task_id, request.id) == request.id, (
                "one event has one id for all webhooks"
            )
    assert len(ids) == len(set(ids.values())) == len(documents)


def test_missing_attributes_have_defaults(service, api, receiver):
    """The default of `data` is an empty object, and of `updated_at` the time of the write."""
    api.subscribe(f"{receiver.url}/hook", PLAIN_SECRET)
    service.put_job(f"{api.account}-bare", api.account, data=None)
    (request,) = receiver.wait_for("/hook")
    verify_signatures([request], PLAIN_SECRET)
    assert request.json["data"] == {}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", request.json["timestamp"])
