"""The network of a service: DNS names, certificates, and listeners that count connections."""

import contextlib
import datetime
import fcntl
import ipaddress
import socket
import ssl
import struct
import subprocess
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support import read_request

# Public addresses for names that later change to a private address. Nothing is sent to them.
PUBLIC_V4 = "93.184.215.14"
PUBLIC_V6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"


SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40
RESOLV_CONF = "nameserver 127.0.0.1\nsearch lan.example\noptions timeout:10 attempts:2\n"
HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
DNS_HEADER = struct.Struct(">HHHHHH")
DNS_QUERY_END = struct.Struct(">HH")
DNS_RECORD = struct.Struct(">HHIH")
# Flags of a response with recursion available, without and with the code for a missing name.
DNS_FOUND, DNS_MISSING = 0x8180, 0x8183
DNS_TYPES = {1: socket.AF_INET, 28: socket.AF_INET6}


def bring_loopback_up():
    """Starts the loopback interface of the tests' network, see `e2e/run`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP | IFF_RUNNING))


class Dns:
    """A name server, and the files by which every process of the tests finds it.

    The tests have a network of their own, see `e2e/run`. A change takes effect at once.
    """

    def __init__(self, folder):
        self.names = {}
        self.asked = []
        self.hosts = Path(folder) / "hosts"
        self.hosts.write_text(HOSTS)
        resolv_conf = Path(folder) / "resolv.conf"
        resolv_conf.write_text(RESOLV_CONF)
        for file in (self.hosts, resolv_conf):
            subprocess.run(["mount", "--bind", file, f"/etc/{file.name}"], check=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def set(self, names):
        """Sets the records of some names.

        A value is an address, a list of addresses, or None: then the questions are not answered.
        Other names do not exist.
        """
        for name, addresses in names.items():
            self.names[name] = [addresses] if isinstance(addresses, str) else addresses

    def set_hosts(self, lines):
        """Replaces the contents of the hosts file."""
        self.hosts.write_text(HOSTS + lines)

    def _serve(self):
        while True:
            query, client = self.socket.recvfrom(4096)
            if response := self._respond(query):
                self.socket.sendto(response, client)

    def _respond(self, query):
        labels, offset = [], DNS_HEADER.size
        while length := query[offset]:
            labels.append(query[offset + 1 : offset + 1 + length].decode())
            offset += 1 + length
        name = ".".join(labels).lower()
        record_type, _ = DNS_QUERY_END.unpack_from(query, offset + 1)
        question = query[DNS_HEADER.size : offset + 1 + DNS_QUERY_END.size]
        self.asked.append(name)
        addresses = self.names.get(name, [])
        if addresses is None:
            return None
        records = b""
        count = 0
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            if DNS_TYPES.get(record_type) == family:
                data = socket.inet_pton(family, address)
                # A record points to the name of the question.
                records += b"\xc0\x0c" + DNS_RECORD.pack(record_type, 1, 300, len(data)) + data
                count += 1
        flags = DNS_FOUND if addresses else DNS_MISSING
        query_id = int.from_bytes(query[:2], "big")
        return DNS_HEADER.pack(query_id, flags, 1, count, 0, 0) + question + records


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
