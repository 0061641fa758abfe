"""What `sam build` has made of the functions."""

import io
import os
import re
import zipfile
from pathlib import Path

import pytest

from emulators import BUILT
from stack import functions

# Lambda fetches and unpacks this whenever a function starts cold. The larger of the two has 6.0 MB, most of it the SDK and
# TLS; what brings in half a megabyte more is to be looked at before it is let in.
MOST_ZIPPED = 6_500_000
GLIBC = {"provided.al2023": 34}  # 2.34 is what that runtime has
ENGINE = b"SQLite format 3"  # what the engine of local mode writes at the beginning of each of its files


def built(name):
    return (BUILT / ".aws-sam/build" / name / "bootstrap").read_bytes()


@pytest.fixture(params=sorted(functions()))
def name(request):
    return request.param


def test_the_functions_are_those_of_the_template():
    assert set(functions()) == {"ApiFunction", "DispatchFunction", "RetryFunction"}
    for name, properties in functions().items():
        assert os.access(BUILT / ".aws-sam/build" / name / properties["Handler"], os.X_OK), name


def test_the_stream_and_the_queue_have_one_binary():
    assert built("DispatchFunction") == built("RetryFunction") != built("ApiFunction")


def test_a_function_is_no_larger_than_it_was_allowed_to_be(name, capsys):
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bootstrap", built(name))
    size = len(zipped.getvalue())
    with capsys.disabled():
        print(f"\n{name}: {size / 1e6:.2f} MB zipped, {len(built(name)) / 1e6:.2f} MB unpacked", end=" ")
    assert size <= MOST_ZIPPED, f"{name} has {size} bytes zipped, at most {MOST_ZIPPED} are allowed"


def test_a_function_is_stripped_of_symbols(name):
    assert b".shstrtab" in built(name) and b".symtab" not in built(name)


def test_a_function_asks_for_no_newer_library_than_its_runtime_has(name):
    versions = {int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)", built(name))}
    assert versions and max(versions) <= GLIBC[functions()[name]["Runtime"]], sorted(versions)


def test_a_panic_in_a_function_unwinds(name):
    # Nothing else asks for it; with `panic = "abort"`, which cargo-lambda would choose, it is not there.
    assert b"\0_Unwind_RaiseException\0" in built(name)


def test_the_engine_of_local_mode_is_not_in_a_function(name):
    assert ENGINE in Path(os.environ["NANO_BINARY"]).read_bytes(), "the engine can be recognised by this"
    assert ENGINE not in built(name)
