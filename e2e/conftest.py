"""Fixtures: the service in memory, a receiver, names and certificates, and the functions as they are deployed."""

import contextlib

import pytest
from moto.server import ThreadedMotoServer

from deployment import Deployment
from network import Authority, Names
from support import Receiver, Service


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Starts services, `start(*options, env={…})`, and ends those that are left when the tests are done."""
    started = []

    def start(*args, env=None):
        log = tmp_path_factory.mktemp("service") / "log"
        service = Service(args, log, env)
        started.append(service)
        return service

    yield start
    for service in started:
        service.kill()


@pytest.fixture(scope="session")
def service(start):
    """One service in memory for all tests that need nothing special of it; each takes accounts of its own."""
    return start("--in-memory", "--retry-schedule", "1h")


@pytest.fixture
def api(service):
    """The API as an account that is this test's alone."""
    return service.new_account()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="session")
def aws():
    """An engine that speaks the protocols of SQS and KMS."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def deploy(service, aws, tmp_path):
    """Deploys the functions: `deploy(schedule, SETTING=value)`."""
    with contextlib.ExitStack() as deployed:

        def deploy(schedule, **env):
            deployment = Deployment(service, aws, tmp_path, schedule, **env)
            deployed.callback(deployment.closing.close)
            return deployment

        yield deploy


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate authority that a service can be told to trust."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What names resolve to in services that are started with `env=names.env`."""
    return Names(tmp_path_factory.mktemp("names"))
