"""Runs the functions under Lambda's runtime emulator, and emulates an AWS account."""

import contextlib
import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import botocore.config
import samcli

from support import TEST_TIMEOUT, build_environment, wait_until

# A clone of the repository in which `sam build` has run.
BUILT = Path(os.environ["NANO_BUILT"])
RUNTIME_EMULATOR = Path(samcli.__file__).parent / "local/rapid/aws-lambda-rie-x86_64"
REGION = "us-east-1"
# The account's root user, who has all permissions. The functions use their roles.
ROOT = {"AWS_ACCESS_KEY_ID": "root", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": REGION}


class FunctionError(Exception):
    """An invocation returned an error or ended the function's process."""


class _Server:
    """A process that listens on a loopback port. Its child processes end with it."""

    def __init__(self, port, command, env, log):
        self.port, self.log = port, log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            wait_until(
                self._listens,
                lambda: f"{command[0]} on port {port}\n{self.log_text()}",
                3 * TEST_TIMEOUT,
            )
        except BaseException:
            self.close()
            raise

    def _listens(self):
        assert self.popen.poll() is None, f"exit {self.popen.returncode}\n{self.log_text()}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True

    def log_text(self):
        return self.log.read_text(errors="replace")

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(TEST_TIMEOUT)


class Function(_Server):
    """A built function under Lambda's runtime emulator, with the template's time-out and memory.

    Invocations run one at a time, because the emulator supports no more.
    """

    def __init__(self, name, properties, env, log):
        port, runtime_port = free_ports(2)
        lambda_ = {
            "AWS_LAMBDA_FUNCTION_NAME": name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(properties["MemorySize"]),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(properties["Timeout"]),
            "AWS_REGION": REGION,
        }
        command = [
            *(RUNTIME_EMULATOR, "--runtime-interface-emulator-address", f"127.0.0.1:{port}"),
            *("--runtime-api-address", f"127.0.0.1:{runtime_port}"),
            BUILT / ".aws-sam/build" / name / properties["Handler"],
        ]
        self.timeout, self.invoking = properties["Timeout"], threading.Lock()
        super().__init__(port, command, build_environment(lambda_ | env), log)

    def invoke(self, event):
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=self.timeout + TEST_TIMEOUT
        )
        with self.invoking, contextlib.closing(connection):
            connection.request(
                "POST", "/2015-03-31/functions/function/invocations", json.dumps(event)
            )
            response = connection.getresponse()
            text = response.read().decode()
        # The status is 502 if the process ended. An error result has status 200.
        result = json.loads(text) if response.status == 200 else None
        if response.status != 200 or isinstance(result, dict) and "errorMessage" in result:
            raise FunctionError(f"{response.status} {text}\n{self.log_text()}")
        return result

    def log_lines(self, *fields, **values):
        """Waits for log lines that have these fields and values, and returns them."""

        def matching():
            texts = [text for text in self.log_text().splitlines() if text.startswith("{")]
            lines = [json.loads(text) for text in texts]
            return [
                line for line in lines if {*fields} <= {*line} and values.items() <= line.items()
            ]

        return wait_until(matching, lambda: f"{fields} {values} in\n{self.log_text()}")

    def wait_for_metric(self, metric, expected):
        """Waits until the sum of a metric in the log has this value.

        The function writes metrics after its response.
        """

        def total():
            lines = [json.loads(line) for line in self.log_text().splitlines() if '"_aws"' in line]
            return sum(line.get(metric, 0) for line in lines)

        wait_until(
            lambda: total() == expected,
            lambda: f"{metric}: {total()} instead of {expected} in\n{self.log_text()}",
        )


class Account(_Server):
    """An emulated AWS account that enforces the permissions of the functions' roles."""

    def __init__(self, folder):
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        env = {
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "AUTH": "true",
            # The functions inherit this variable and send their requests to the emulated account.
            "AWS_ENDPOINT_URL": self.url,
            "TMPDIR": str(folder),
            "HOME": str(folder),
        }
        super().__init__(
            port,
            [sys.executable, "-m", "ministack"],
            build_environment(ROOT | env),
            folder / "account.log",
        )

    @functools.cache
    def client(self, service):
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=ROOT["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ROOT["AWS_SECRET_ACCESS_KEY"],
            config=botocore.config.Config(read_timeout=60, retries={"total_max_attempts": 1}),
        )


def free_ports(count):
    with contextlib.ExitStack() as sockets:
        return [
            sockets.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for _ in range(count)
        ]


def milliseconds():
    return int(time.time() * 1000)
