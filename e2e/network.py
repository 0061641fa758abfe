"""The network as the service sees it: names that a test decides on, certificates, and listeners to watch."""

import contextlib
import datetime
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support import environment, read_request

RESOLVER = "libnss_wrapper.so"
# A public address that names have before they are bound anew. Nothing is sent to it.
PUBLIC = "93.184.215.14"
PUBLIC_V6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"


class Names:
    """What the system's resolver answers in a process that has `env`; `set` takes effect at once."""

    def __init__(self, folder):
        self.file = Path(folder) / "hosts"
        # It knows 100 names unless it is told that there are more.
        self.env = {
            "LD_PRELOAD": RESOLVER,
            "NSS_WRAPPER_HOSTS": str(self.file),
            "NSS_WRAPPER_MAX_HOSTENTS": "10000",
        }
        self.names = {}
        self.lock = threading.Lock()
        # The resolver reads the file again when it was modified in another second: each version has its own.
        self.stamp = 1_000_000_000
        self.set({"probe.example": "192.0.2.77"})
        lookup = "import socket; print(socket.getaddrinfo('probe.example', 443)[0][4][0])"
        done = subprocess.run([sys.executable, "-c", lookup], env=environment(self.env), capture_output=True, text=True)
        if done.stdout.strip() != "192.0.2.77":
            pytest.fail(
                f"{RESOLVER} is missing: install it with `apt-get install libnss-wrapper`, "
                "these tests decide with it what names resolve to",
                pytrace=False,
            )

    def set(self, names):
        """Changes what some names resolve to: an address, several in this order, or None for nothing."""
        with self.lock:
            for name, addresses in names.items():
                self.names[name] = [addresses] if isinstance(addresses, str) else addresses or []
            lines = [f"{address} {name}\n" for name, several in self.names.items() for address in several]
            new = self.file.with_suffix(".new")
            new.write_text("".join(lines))
            self.stamp += 1
            os.utime(new, (self.stamp, self.stamp))
            new.replace(self.file)


class Authority:
    """A certificate authority of the test's own; `file` is its certificate, for `--ca-file`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "example authority")])
        certificate = self._certificate(self.name, self.key, x509.BasicConstraints(ca=True, path_length=0))
        self.file = self.folder / "ca.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, *names):
        """The TLS context of a server that is known by these names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "example server")])
        certificate = self._certificate(subject, key, x509.SubjectAlternativeName([_general(name) for name in names]))
        file = self.folder / f"{certificate.serial_number}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _certificate(self, subject, key, extension):
        now = datetime.datetime.now(datetime.timezone.utc)
        day = datetime.timedelta(days=1)
        builder = x509.CertificateBuilder(self.name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - day).not_valid_after(now + day)
        return builder.add_extension(extension, critical=False).sign(self.key, hashes.SHA256())


def _general(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Canary:
    """A server on this machine that counts every connection, and answers 204 to whoever speaks HTTP."""

    def __init__(self, address="127.0.0.1", port=0, tls=None):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.create_server((address, port), family=family, backlog=512)
        self.at = {"0.0.0.0": "127.0.0.1"}.get(address, address)
        self.port = self.listener.getsockname()[1]
        self.tls = tls
        self.peers = []
        self.own = set()
        self.came = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, peer = self.listener.accept()
                with self.came:
                    self.peers.append(peer[1])
                    self.came.notify_all()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        # Whoever connects may go away again or speak no HTTP: nothing to report.
        with connection, contextlib.suppress(OSError, StopIteration):
            connection.settimeout(10)
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
            read_request(connection)
            connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    def connections(self):
        """How many connections came. What is queued before the call's own connection is counted when that one is."""
        before = len(self.peers)
        with socket.create_connection((self.at, self.port), timeout=10) as own:
            port = own.getsockname()[1]
            with self.came:
                counted = self.came.wait_for(lambda: port in self.peers[before:], timeout=10)
            assert counted, f"the canary on {self.at} does not count"
            self.own.add(self.peers.index(port, before))
        return len(self.peers) - len(self.own)

    def forget(self):
        """Counts from here on."""
        self.connections()
        self.own = set(range(len(self.peers)))

    def close(self):
        self.listener.close()


def has_ipv6():
    """Whether this machine has the IPv6 loopback address."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def reached(canaries):
    """The canaries that a connection came to; there must be none."""
    counts = {f"{canary.at}:{canary.port}": canary.connections() for canary in canaries}
    return {place: count for place, count in counts.items() if count}
