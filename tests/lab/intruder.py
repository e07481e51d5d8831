"""An intruder in a pod, a host-network pod or on the node, with NET_ADMIN and NET_RAW: what a socket can be told to do,
and packets made by hand. And a server that says at once whom it let in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from deploy.lab.cluster import Lab

ARMED = {"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}}
ISTIO_MARK = 1337
MPTCP = 262

WELCOME = "welcome"
PROBED = 9001  # the kubelet comes here: whoever comes to the other is no probe
SERVER = f"""
import os, socket, sys, threading
def tell(line): os.write(1, line.encode() + b"\\n")  # one write: lines stay whole
def listening(port):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    listener.setsockopt(socket.IPPROTO_TCP, 23, 16)  # TCP_FASTOPEN
    return listener
def serve(s, host):
    tell("let in " + host)
    try:
        s.sendall(b"{WELCOME}")
        while data := s.recv(65536): tell("heard %d from %s" % (len(data), host))
    except OSError: pass
def let_in(listener):
    while True:
        s, address = listener.accept()
        threading.Thread(target=serve, args=(s, address[0].removeprefix("::ffff:")), daemon=True).start()
for port in map(int, sys.argv[1:] or ["9000"]): threading.Thread(target=let_in, args=(listening(port),)).start()
probed = listening({PROBED})
while True: probed.accept()[0].close()
"""
# All dials at once, as most wait in vain; those with Fast Open last, as others may earn the cookie for them. Of each
# what was heard, or the error's name.
DIAL = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def dial(to, port, bound, mark, protocol, early, repair, device):
    v6 = ":" in to
    with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM, protocol) as s:
        s.settimeout(1)
        try:
            if mark: s.setsockopt(socket.SOL_SOCKET, 36, mark)
            if device: s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            if bound:
                s.setsockopt(*((socket.IPPROTO_IPV6, 75, 1) if v6 else (socket.IPPROTO_IP, 19, 1)))  # TRANSPARENT
                s.bind((bound, 0))
            if repair: s.setsockopt(socket.IPPROTO_TCP, 19, 1)
            if early: s.sendto(b"SECRET", socket.MSG_FASTOPEN, (to, port))
            else: s.connect((to, port))
            if repair: s.setsockopt(socket.IPPROTO_TCP, 19, 0)
            if not early: s.send(b"GET / HTTP/1.0\\r\\n\\r\\n")
            return s.recv(1000).decode("latin-1")
        except OSError as error:
            return type(error).__name__
specs, heard = json.loads(sys.argv[1]), {}
for early in (False, True):
    wave = [number for number, spec in enumerate(specs) if spec["early"] is early]
    with ThreadPoolExecutor(32) as pool: heard.update(zip(wave, pool.map(lambda number: dial(**specs[number]), wave)))
print(json.dumps([heard[number] for number in range(len(specs))]))
"""
# SYNs by hand: from addresses that are others', the destination's own among them, out of the device.
_FORGE = """
import json, socket, struct, sys
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16: total = (total & 65535) + (total >> 16)
    return ~total & 65535
def syn(source, to, sport, dport, seq):
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    a, b = socket.inet_pton(family, source), socket.inet_pton(family, to)
    tcp = struct.pack("!HHIIBBHHH", sport, dport, seq, 0, 5 << 4, 2, 64000, 0, 0)
    pseudo = a + b + (struct.pack("!BBH", 0, 6, 20) if family == socket.AF_INET else struct.pack("!II", 20, 6))
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    if family == socket.AF_INET6: return 0x86dd, struct.pack("!IHBB", 6 << 28, 20, 6, 64) + a + b + tcp
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + a + b
    return 0x0800, ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + tcp
device, gateway, packets = sys.argv[1], bytes.fromhex(sys.argv[2].replace(":", "")), json.loads(sys.argv[3])
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
for number, (source, to, port) in enumerate(packets):
    kind, packet = syn(source, to, 40000 + number, port, 1)
    s.sendto(packet, (device, kind, 0, 0, gateway))
print(len(packets))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dial:
    """`early`: with TCP Fast Open; `repair`: established without a handshake; `bound`: to whosever address."""

    to: str
    port: int = 9000
    bound: str = ""
    mark: int = 0
    protocol: int = 0
    early: bool = False
    repair: bool = False
    device: str = ""


@dataclass(frozen=True, slots=True)
class Intruder:
    """`name`: of a pod, or node/NAME."""

    lab: Lab
    name: str
    namespace: str

    def _python(self, program: str, *arguments: str) -> str:
        command = ["/usr/bin/python3", "-S", "-c", program, *arguments]
        return self.lab.exec(self.name, command, namespace=self.namespace, check=True).stdout

    def dial(self, *dials: Dial) -> dict[Dial, str]:
        """What came back of each: bytes, or the name of the error."""
        heard = json.loads(self._python(DIAL, json.dumps([asdict(d) for d in dials])))
        return dict(zip(dials, heard, strict=True))

    def forge(self, *syns: tuple[str, str, int]) -> None:
        """(source, destination, port) of each, out of eth0 to the pod's gateway."""
        routes = self.lab.exec(self.name, ["ip", "neigh"], namespace=self.namespace, check=True).stdout
        gateway = next(line.split()[4] for line in routes.splitlines() if "lladdr" in line)
        assert int(self._python(_FORGE, "eth0", gateway, json.dumps(syns))) == len(syns)

    @contextmanager
    def owning(self, *addresses: str) -> Iterator[None]:
        """Addresses of others on its own interface."""

        def change(what: str, address: str) -> None:
            argv = [
                "ip",
                "addr",
                what,
                address,
                "dev",
                "eth0",
                *(["nodad"] if ":" in address and what == "add" else []),
            ]
            self.lab.exec(self.name, argv, namespace=self.namespace, check=True)

        added = []
        try:
            for address in addresses:
                change("add", address)
                added.append(address)
            yield
        finally:
            for address in added:
                change("del", address)
