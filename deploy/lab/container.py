"""What to run for a container: bubblewrap's arguments, environment, capabilities, resolv.conf. Pure, but it looks at /.

A container sees the host's files read-only, under a root of its own. Hidden are /run (keys, agents' sockets, handles of
namespaces, pinned programs), the host's /sys and /proc; /tmp, /var/tmp, /dev/shm and /run are empty and writable.
`image` has no meaning here. The applications in deploy/lab/apps are at /apps in every container.

bubblewrap makes the mounts and namespaces, setpriv(1) sets user and capabilities: both are Debian's. bubblewrap sets
no_new_privs, so set-user-ID programs gain nothing (as with `allowPrivilegeEscalation: false`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.fault import LabError
from deploy.lab.manifest import Object

APPS = Path(__file__).parent / "apps"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OWN = frozenset({"dev", "proc", "sys", "run", "tmp", "apps", "lost+found"})
_WRITABLE = ("/tmp", "/var/tmp", "/run", "/dev/shm")
# As Kubernetes masks them (its default masked and read-only paths).
_MASKED = ("/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug")

# What containerd and CRI-O give a container that asks for nothing.
DEFAULT_CAPABILITIES = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
    "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
)  # fmt: skip
CAPABILITIES = frozenset(DEFAULT_CAPABILITIES) | {
    "AUDIT_CONTROL", "AUDIT_READ", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "DAC_READ_SEARCH", "IPC_LOCK",
    "IPC_OWNER", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "NET_ADMIN", "NET_BROADCAST", "PERFMON",
    "SYS_ADMIN", "SYS_BOOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE",
    "SYS_TIME", "SYS_TTY_CONFIG", "SYSLOG", "WAKE_ALARM",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """User, groups and capabilities of a container. `capabilities` None: all there are (privileged)."""

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    capabilities: frozenset[str] | None = frozenset(DEFAULT_CAPABILITIES)


def security(pod: Object, container: Object) -> Security:
    """The container's securityContext over the pod's; LabError names an unknown capability."""
    own = container.get("securityContext") or {}
    shared = pod["spec"].get("securityContext") or {}
    uid, gid = (own.get(name, shared.get(name)) for name in ("runAsUser", "runAsGroup"))
    if own.get("runAsNonRoot", shared.get("runAsNonRoot")) and not uid:
        raise LabError(f"container {container['name']}: runAsNonRoot needs a runAsUser other than 0")
    groups = tuple(shared.get("supplementalGroups") or ())
    if "fsGroup" in shared:
        groups += (shared["fsGroup"],)
    if own.get("privileged"):
        return Security(uid=uid, gid=gid, groups=groups, capabilities=None)
    change = own.get("capabilities") or {}
    add, drop = (_capabilities(container, change.get(name) or []) for name in ("add", "drop"))
    return Security(uid=uid, gid=gid, groups=groups, capabilities=(frozenset(DEFAULT_CAPABILITIES) - drop) | add)


def _capabilities(container: Object, names: Sequence[str]) -> frozenset[str]:
    found = {name.upper().removeprefix("CAP_") for name in names}
    if "ALL" in found:
        return CAPABILITIES
    if found - CAPABILITIES:
        unknown = ", ".join(sorted(found - CAPABILITIES))
        raise LabError(f"container {container['name']}: securityContext.capabilities: there is no capability {unknown}")
    return frozenset(found)


def setpriv_argv(want: Security) -> list[str]:
    """setpriv(1) with the arguments that turn full root into `want`."""
    argv = ["/usr/bin/setpriv"]
    if want.gid is not None or want.uid is not None:
        argv += ["--regid", str(want.gid or 0)]
    if want.uid is not None:
        argv += ["--reuid", str(want.uid)]
    if want.groups:
        argv += ["--groups", ",".join(map(str, want.groups))]
    elif want.uid is not None or want.gid is not None:
        argv.append("--clear-groups")
    if want.capabilities is not None:
        argv += ["--bounding-set", ",".join(["-all", *(f"+{name.lower()}" for name in sorted(want.capabilities))])]
    return [*argv, "--inh-caps", "-all", "--"]


def field_value(pod: Object, container: Object, path: str) -> str:
    """A fieldRef's value (downward API); LabError for a field the lab does not know."""
    meta, spec, status = pod["metadata"], pod["spec"], pod["status"]
    plain = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec["nodeName"],
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": status["podIP"],
        "status.podIPs": ",".join(entry["ip"] for entry in status["podIPs"]),
        "status.hostIP": status["hostIP"],
        "status.hostIPs": ",".join(entry["ip"] for entry in status["hostIPs"]),
    }
    if path in plain:
        return plain[path]
    keyed = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if keyed is None:
        raise LabError(
            f"container {container['name']}: env fieldRef {path!r}: the lab knows {', '.join(plain)} and labels"
        )
    return (meta.get(keyed[1]) or {}).get(keyed[2], "")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Kubernetes' `$(NAME)`: replaced if known, left if not; `$$(NAME)` is a literal `$(NAME)`."""

    def value(found: re.Match[str]) -> str:
        if found[0].startswith("$$"):
            return found[0][1:]
        return variables.get(found[1], found[0])

    return re.sub(r"\$?\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", value, text)


def environment(pod: Object, container: Object, config_map: Callable[[str], Mapping[str, str]]) -> dict[str, str]:
    """The container's environment; `config_map` gives the data of a ConfigMap of the pod's namespace by name."""
    result = {"PATH": PATH, "HOME": "/root", "HOSTNAME": hostname(pod), "TERM": "xterm", "LANG": "C.UTF-8"}
    for variable in container.get("env") or []:
        source = variable.get("valueFrom")
        if source is None:
            result[variable["name"]] = expand(variable.get("value", ""), result)
        elif "fieldRef" in source:
            result[variable["name"]] = field_value(pod, container, source["fieldRef"]["fieldPath"])
        else:
            reference = source["configMapKeyRef"]
            data = config_map(reference["name"])
            if reference["key"] in data:
                result[variable["name"]] = data[reference["key"]]
            elif not reference.get("optional"):
                raise LabError(
                    f"container {container['name']}: ConfigMap {reference['name']} has no key {reference['key']!r}"
                )
    return result


def hostname(pod: Object) -> str:
    spec = pod["spec"]
    if spec.get("hostNetwork"):
        return spec["nodeName"]
    return (spec.get("hostname") or pod["metadata"]["name"])[:63].rstrip("-.")


def resolv_conf(namespace: str, nameservers: Sequence[str], cluster_domain: str = "cluster.local") -> str:
    """As the kubelet writes it for dnsPolicy ClusterFirst."""
    search = f"{namespace}.svc.{cluster_domain} svc.{cluster_domain} {cluster_domain}"
    return f"search {search}\n{''.join(f'nameserver {ip}{chr(10)}' for ip in nameservers)}options ndots:5\n"


def hosts_file(pod: Object) -> str:
    """/etc/hosts as the kubelet writes it."""
    name = hostname(pod)
    subdomain = pod["spec"].get("subdomain")
    full = f"{name}.{subdomain}.{pod['metadata']['namespace']}.svc.cluster.local\t{name}" if subdomain else name
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{entry['ip']}\t{full}" for entry in pod["status"]["podIPs"]]
    for alias in pod["spec"].get("hostAliases") or []:
        lines.append(f"{alias['ip']}\t{' '.join(alias.get('hostnames') or [])}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    source: Path
    target: str
    read_only: bool


def host_root(root: Path = Path("/")) -> list[str]:
    """bubblewrap's arguments that show the host's top-level directories, read-only."""
    argv: list[str] = []
    for entry in sorted(root.iterdir()):
        if entry.name in _OWN:
            continue
        if entry.is_symlink():
            argv += ["--symlink", str(entry.readlink()), f"/{entry.name}"]
        elif entry.is_dir():
            argv += ["--ro-bind", str(entry), f"/{entry.name}"]
    return argv


def run_argv(pod: Object, container: Object, etc: Path, mounts: Sequence[Mount], env: Mapping[str, str]) -> list[str]:
    """The whole command line of a container. Network, UTS and IPC namespaces and the cgroup are entered before it.

    `etc` holds the pod's resolv.conf, hosts and hostname.
    """
    argv = ["/usr/bin/bwrap", *host_root(), "--proc", "/proc", "--dev", "/dev"]
    for path in _WRITABLE:
        argv += ["--perms", "1777", "--tmpfs", path]
    argv += [
        "--tmpfs",
        "/sys",
        "--ro-bind-try",
        "/sys/devices/system/cpu",
        "/sys/devices/system/cpu",
        "--remount-ro",
        "/sys",
    ]
    for path in _MASKED:
        if Path(path).exists():
            argv += ["--ro-bind", "/dev/null", path]
    argv += ["--ro-bind", str(APPS), "/apps"]
    for name in ("resolv.conf", "hosts", "hostname"):
        # On some hosts /etc/resolv.conf is a link into /run, which is the container's own here.
        argv += ["--ro-bind", str(etc / name), str(Path("/etc", name).resolve())]
    for mount in mounts:
        check_mountable(container, mount.target)
        argv += ["--ro-bind" if mount.read_only else "--bind", str(mount.source), mount.target]
    argv += ["--unshare-pid", "--unshare-cgroup", "--as-pid-1", "--cap-add", "ALL"]
    argv += ["--chdir", container.get("workingDir") or "/"]
    command = [expand(part, env) for part in (container.get("command") or []) + (container.get("args") or [])]
    return [*argv, "--", *setpriv_argv(security(pod, container)), *command]


def check_mountable(container: Object, target: str) -> None:
    """The host's directories are read-only, so a mount point must exist there, or lie outside of them."""
    inside_own = any(Path(target).is_relative_to(own) for own in _WRITABLE)
    top = Path("/", *Path(target).parts[1:2])
    if not target.startswith("/") or (not inside_own and top.exists() and not Path(target).exists()):
        raise LabError(
            f"container {container['name']}: volumeMounts: {target} does not exist on the host, whose files "
            f"the container sees; mount at a new top-level directory or below /tmp"
        )


def exec_argv(pid: int, pod: Object, container: Object, command: Sequence[str]) -> list[str]:
    """The command line that joins a running container whose first process has `pid` on the host."""
    flags = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", f"--wdns={container.get('workingDir') or '/'}"]
    # nsenter forks; without a death signal its child would go on when only nsenter is killed.
    setpriv, *rest = setpriv_argv(security(pod, container))
    return ["/usr/bin/nsenter", "--target", str(pid), *flags, "--", setpriv, "--pdeathsig", "KILL", *rest, *command]


def init_pid(processes: Sequence[int]) -> int | None:
    """Of a container's processes, the one that is process 1 in its own pid namespace."""
    for pid in processes:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        ids = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
        if len(ids) >= 2 and ids[-1] == "1":
            return pid
    return None
