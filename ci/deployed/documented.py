"""The verifier that the README gives to a subscriber who writes Python, as it stands there."""

import re

import standardwebhooks

from emulators import BUILT

(_source,) = re.findall(r"```python\n([^`]*def verify\([^`]*)```", (BUILT / "README.md").read_text())
_readme = {}
exec(_source, _readme)


def assert_signed(request, secret):
    """Both signatures hold: the documented one, of these bytes with this secret alone, and that of Standard Webhooks."""
    verify, headers = _readme["verify"], request.headers
    assert verify(request.body, headers, secret), headers
    assert not verify(request.body + b" ", headers, secret), headers
    assert not verify(request.body, headers, secret + "x"), headers
    standardwebhooks.Webhook(secret.encode()).verify(request.body, headers)
