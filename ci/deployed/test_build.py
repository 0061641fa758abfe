"""Checks the binaries that `sam build` produced."""

import io
import os
import re
import zipfile
from pathlib import Path

import pytest

from emulators import BUILT
from stack import functions

# Lambda downloads and unpacks the archive at each cold start. The larger archive has 6.4 MB, mostly
# the SDK and TLS.
# A review decides whether a dependency may add another half megabyte.
MAX_ZIPPED = 7_000_000
# Minor version of the glibc 2 in each runtime.
GLIBC = {"provided.al2023": 34}
# Header of the database files of local mode's embedded engine.
ENGINE = b"SQLite format 3"


def read_binary(name):
    return (BUILT / ".aws-sam/build" / name / "bootstrap").read_bytes()


@pytest.fixture(params=sorted(functions()))
def name(request):
    return request.param


def test_every_function_is_built():
    """Each function of the template has an executable handler."""
    assert set(functions()) == {"ApiFunction", "DispatchFunction", "RetryFunction"}
    for name, properties in functions().items():
        assert os.access(BUILT / ".aws-sam/build" / name / properties["Handler"], os.X_OK), name


def test_dispatch_and_retry_share_binary():
    """The dispatch and retry functions have the same binary, and the API function has another."""
    assert (
        read_binary("DispatchFunction")
        == read_binary("RetryFunction")
        != read_binary("ApiFunction")
    )


def test_archive_size_is_limited(name, capsys):
    """The zipped binary has at most `MAX_ZIPPED` bytes."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bootstrap", read_binary(name))
    size = len(zipped.getvalue())
    with capsys.disabled():
        print(
            f"\n{name}: {size / 1e6:.2f} MB zipped, {len(read_binary(name)) / 1e6:.2f} MB unpacked",
            end=" ",
        )
    assert size <= MAX_ZIPPED, f"{name} has {size} bytes zipped, at most {MAX_ZIPPED} are allowed"


def test_symbols_are_stripped(name):
    """The binary has no symbol table."""
    assert b".shstrtab" in read_binary(name) and b".symtab" not in read_binary(name)


def test_glibc_version_fits_runtime(name):
    """The binary requires no newer glibc than its Lambda runtime has."""
    versions = {int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)", read_binary(name))}
    assert versions and max(versions) <= GLIBC[functions()[name]["Runtime"]], sorted(versions)


def test_panics_unwind(name):
    """The binary unwinds on panic. cargo-lambda's default, `panic = "abort"`, does not import this
    function.
    """
    assert b"\0_Unwind_RaiseException\0" in read_binary(name)


def test_embedded_engine_is_absent(name):
    """The embedded DynamoDB of local mode is in `nano-webhooks` and not in a function."""
    assert ENGINE in Path(os.environ["NANO_BINARY"]).read_bytes(), (
        "the header identifies the engine"
    )
    assert ENGINE not in read_binary(name)
