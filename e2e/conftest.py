"""Fixtures: services, a receiver, DNS names and certificates, and deployed functions."""

import contextlib

import pytest
from moto.server import ThreadedMotoServer

from deployment import Deployment
from network import CertificateAuthority, Dns, bring_loopback_up
from support import Receiver, Service


def pytest_sessionstart():
    bring_loopback_up()


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Starts a service, `start(*options, env={…}, open_files=(soft, hard))`.

    Kills the services that still run at the end.
    """
    services = []

    def start(*args, env=None, open_files=None):
        log = tmp_path_factory.mktemp("service") / "log"
        service = Service(args, log, env, open_files)
        services.append(service)
        return service

    yield start
    for service in services:
        service.kill()


@pytest.fixture(scope="session")
def service(start):
    """One service in memory for all tests without special settings.

    Each test uses accounts of its own.
    """
    return start("--in-memory", "--retry-schedule", "1h")


@pytest.fixture(scope="session")
def quick_service(start):
    """A service that retries once, after 100 ms."""
    return start("--in-memory", "--retry-schedule", "100ms")


@pytest.fixture
def api(service):
    """An API client of an account that only this test uses."""
    return service.create_account()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="session")
def aws():
    """The URL of an engine that speaks the protocols of SQS and KMS."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def deploy(service, aws, tmp_path):
    """Deploys the functions: `deploy(schedule, SETTING=value)`."""
    with contextlib.ExitStack() as deployments:

        def deploy(schedule, **env):
            deployment = Deployment(service, aws, tmp_path, schedule, **env)
            deployments.callback(deployment.closing.close)
            return deployment

        yield deploy


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate authority that services trust with `--ca-file`."""
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def dns(tmp_path_factory):
    """What names resolve to."""
    return Dns(tmp_path_factory.mktemp("dns"))
