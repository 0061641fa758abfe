"""The network of a service: DNS names, certificates, and listeners that count connections."""

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

from support import build_environment, read_request

RESOLVER = "libnss_wrapper.so"
# Public addresses for names that later change to a private address. Nothing is sent to them.
PUBLIC_V4 = "93.184.215.14"
PUBLIC_V6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"


class Dns:
    """DNS records for processes that run with `env`. A change takes effect at once."""

    def __init__(self, folder):
        self.file = Path(folder) / "hosts"
        # The wrapper's default limit is 100 names.
        self.env = {
            "LD_PRELOAD": RESOLVER,
            "NSS_WRAPPER_HOSTS": str(self.file),
            "NSS_WRAPPER_MAX_HOSTENTS": "10000",
        }
        self.names = {}
        self.lock = threading.Lock()
        # The wrapper reads the file again when the modification time changes by a second or more.
        self.modified_at = 1_000_000_000
        self.set({"probe.example": "192.0.2.77"})
        lookup = "import socket; print(socket.getaddrinfo('probe.example', 443)[0][4][0])"
        completed = subprocess.run(
            [sys.executable, "-c", lookup],
            env=build_environment(self.env),
            capture_output=True,
            text=True,
        )
        if completed.stdout.strip() != "192.0.2.77":
            pytest.fail(
                f"{RESOLVER} is missing, which these tests need for DNS names: "
                "run `apt-get install libnss-wrapper`",
                pytrace=False,
            )

    def set(self, names):
        """Sets the records of some names.

        A value is an address, a list of addresses in this order, or None.
        """
        with self.lock:
            for name, addresses in names.items():
                self.names[name] = [addresses] if isinstance(addresses, str) else addresses or []
            lines = [
                f"{address} {name}\n"
                for name, addresses in self.names.items()
                for address in addresses
            ]
            new_file = self.file.with_suffix(".new")
            new_file.write_text("".join(lines))
            self.modified_at += 1
            os.utime(new_file, (self.modified_at, self.modified_at))
            new_file.replace(self.file)


class CertificateAuthority:
    """A certificate authority. `file` is its certificate, for `--ca-file`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "example authority")])
        certificate = self._certificate(
            self.name, self.key, x509.BasicConstraints(ca=True, path_length=0)
        )
        self.file = self.folder / "ca.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, *names):
        """Issues a certificate for these names and addresses, and returns the TLS context of a
        server.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "example server")])
        certificate = self._certificate(
            subject, key, x509.SubjectAlternativeName([_general(name) for name in names])
        )
        file = self.folder / f"{certificate.serial_number}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _certificate(self, subject, key, extension):
        now = datetime.datetime.now(datetime.timezone.utc)
        day = datetime.timedelta(days=1)
        builder = x509.CertificateBuilder(
            self.name, subject, key.public_key(), x509.random_serial_number()
        )
        builder = builder.not_valid_before(now - day).not_valid_after(now + day)
        return builder.add_extension(extension, critical=False).sign(self.key, hashes.SHA256())


def _general(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class ConnectionCounter:
    """A server on this machine that counts its connections.

    It responds with 204 to an HTTP request.
    """

    def __init__(self, address="127.0.0.1", port=0, tls=None):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.create_server((address, port), family=family, backlog=512)
        self.address = {"0.0.0.0": "127.0.0.1"}.get(address, address)
        self.port = self.listener.getsockname()[1]
        self.tls = tls
        self.peers = []
        self.own = set()
        self.changed = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, peer = self.listener.accept()
                with self.changed:
                    self.peers.append(peer[1])
                    self.changed.notify_all()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        # A client may disconnect early or not speak HTTP, which is not an error of the server.
        with connection, contextlib.suppress(OSError, StopIteration):
            connection.settimeout(10)
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
            read_request(connection)
            connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    def count_connections(self):
        """The number of connections since the start or the last `clear`.

        The call opens a connection of its own, which the server accepts after all earlier ones.
        """
        before = len(self.peers)
        with socket.create_connection((self.address, self.port), timeout=10) as own:
            port = own.getsockname()[1]
            with self.changed:
                counted = self.changed.wait_for(lambda: port in self.peers[before:], timeout=10)
            assert counted, f"the counter on {self.address} does not count"
            self.own.add(self.peers.index(port, before))
        return len(self.peers) - len(self.own)

    def clear(self):
        """Sets the count to zero."""
        self.count_connections()
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


def find_reached(counters):
    """The connection counts of those counters that are not zero, by address."""
    counts = {
        f"{counter.address}:{counter.port}": counter.count_connections() for counter in counters
    }
    return {address: count for address, count in counts.items() if count}
