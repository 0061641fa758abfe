"""Runs the Python verifier from the README."""

import re

import standardwebhooks

from emulators import BUILT

(_source,) = re.findall(
    r"```python\n([^`]*def verify\([^`]*)```", (BUILT / "README.md").read_text()
)
_readme = {}
exec(_source, _readme)


def assert_signed(request, secret):
    """Asserts that the documented verifier and the Standard Webhooks library accept the signature.

    The documented verifier must also reject another body and another secret.
    """
    verify, headers = _readme["verify"], request.headers
    assert verify(request.body, headers, secret), headers
    assert not verify(request.body + b" ", headers, secret), headers
    assert not verify(request.body, headers, secret + "x"), headers
    standardwebhooks.Webhook(secret.encode()).verify(request.body, headers)
