"""An independent implementation of the canonical body of an event, from typed DynamoDB values."""

import base64
import json
import re
from decimal import Context, Decimal

# Wide enough that no DynamoDB number is rounded.
EXACT = Context(prec=400)


def body(event, task_id, task_type, status, data, timestamp):
    fields = [("event", event), ("task_id", task_id), ("task_type", task_type), ("status", status)]
    head = ",".join(f"{string(name)}:{string(text)}" for name, text in fields)
    return f'{{{head},"data":{value(data)},"timestamp":{string(timestamp)}}}'


def value(typed):
    ((kind, content),) = typed.items()
    match kind:
        case "NULL":
            return "null"
        case "BOOL":
            return "true" if content else "false"
        case "N":
            return number(content)
        case "S":
            return string(content)
        case "B":
            return binary(content)
        case "L":
            return array(map(value, content))
        case "M":
            return (
                "{"
                + ",".join(
                    f"{string(key)}:{value(content[key])}" for key in sorted(content, key=key_order)
                )
                + "}"
            )
        case "SS":
            return array(map(string, sorted(content, key=str.encode)))
        case "NS":
            return array(map(number, sorted(content, key=Decimal)))
        case "BS":
            return array(map(binary, sorted(content)))


def array(items):
    return "[" + ",".join(items) + "]"


def string(text):
    # With `ensure_ascii=False` Python writes the same escapes as JSON.stringify.
    return json.dumps(text, ensure_ascii=False)


def binary(content):
    return string(base64.b64encode(content).decode())


def key_order(key):
    is_index = re.fullmatch("0|[1-9][0-9]*", key, re.ASCII) is not None and int(key) < 2**32 - 1
    return (0, int(key), b"") if is_index else (1, 0, key.encode())


def number(text):
    """A JSON number if the shortest decimal of the nearest double is exact, otherwise a string of
    plain digits.
    """
    exact = Decimal(text)
    double = float(exact)
    if Decimal(repr(double)) == exact:
        return ecmascript(double)
    return f'"{EXACT.normalize(exact):f}"'


def ecmascript(double):
    """Number::toString of ECMA-262.

    Python's `repr` has the same shortest digits in another layout.
    """
    if double == 0:
        return "0"
    _, digits, exponent = Decimal(repr(abs(double))).normalize().as_tuple()
    digits, k = "".join(map(str, digits)), len(digits)
    n = k + exponent
    if k <= n <= 21:
        text = digits + "0" * (n - k)
    elif 0 < n <= 21:
        text = f"{digits[:n]}.{digits[n:]}"
    elif -6 < n <= 0:
        text = "0." + "0" * -n + digits
    else:
        text = digits[0] + ("." + digits[1:] if k > 1 else "") + f"e{n - 1:+d}"
    return "-" + text if double < 0 else text
