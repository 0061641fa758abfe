"""What the functions run on here: Lambda's own runtime emulator, and an account with the services around it."""

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

from support import DEADLINE, environment, eventually

BUILT = Path(os.environ["NANO_BUILT"])  # a clone in which `sam build` has run
RUNTIME_EMULATOR = Path(samcli.__file__).parent / "local/rapid/aws-lambda-rie-x86_64"
REGION = "us-east-1"
# The account's root user, who may do everything; the functions have their roles instead.
ROOT = {"AWS_ACCESS_KEY_ID": "root", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": REGION}


class FunctionError(Exception):
    """The function answered an invocation with an error, or ended."""


class _Server:
    """A process that listens on a port of loopback. It may start others, and all of them are ended with it."""

    def __init__(self, port, command, env, log):
        self.port, self.log = port, log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        try:
            eventually(self._listens, lambda: f"{command[0]} on port {port}\n{self.log_text()}", 3 * DEADLINE)
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
        self.popen.wait(DEADLINE)


class Function(_Server):
    """A built function under AWS's Lambda Runtime Interface Emulator, with the time and memory that the template gives it.

    The emulator takes one invocation at a time, and so does this.
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
        self.timeout, self.turn = properties["Timeout"], threading.Lock()
        super().__init__(port, command, environment(lambda_ | env), log)

    def invoke(self, event):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout + DEADLINE)
        with self.turn, contextlib.closing(connection):
            connection.request("POST", "/2015-03-31/functions/function/invocations", json.dumps(event))
            response = connection.getresponse()
            text = response.read().decode()
        # 502 is said of a function that ended; one that answers with an error has this in its answer.
        answer = json.loads(text) if response.status == 200 else None
        if response.status != 200 or isinstance(answer, dict) and "errorMessage" in answer:
            raise FunctionError(f"{response.status} {text}\n{self.log_text()}")
        return answer

    def log_lines(self, message):
        """The lines of the function's log with this message, once there is one: the emulator passes them on as they come."""

        def found():
            lines = [line for line in self.log_text().splitlines() if line.startswith("{")]
            return [json.loads(line) for line in lines if f'"message":"{message}"' in line]

        return eventually(found, lambda: f"{message!r} in\n{self.log_text()}")

    def wait_until_counted(self, metric, number):
        """Waits for as much of a metric as this in what CloudWatch takes from the log, the answer being there before."""

        def counted():
            lines = [json.loads(line) for line in self.log_text().splitlines() if '"_aws"' in line]
            return sum(line.get(metric, 0) for line in lines)

        eventually(lambda: counted() == number, lambda: f"{number} {metric}, not {counted()}, in\n{self.log_text()}")


class Account(_Server):
    """An AWS account on this machine, in which functions may do what their roles allow, and nothing else."""

    def __init__(self, folder):
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        env = {
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "AUTH": "true",
            # It hands its own environment on to the functions, which find it by this. Nothing in the template has to say so.
            "AWS_ENDPOINT_URL": self.url,
            "TMPDIR": str(folder),
            "HOME": str(folder),
        }
        super().__init__(port, [sys.executable, "-m", "ministack"], environment(ROOT | env), folder / "account.log")

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
    with contextlib.ExitStack() as held:
        return [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def milliseconds():
    return int(time.time() * 1000)
