"""What a container's command line, environment and files are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.lab.container import (
    CAPABILITIES,
    DEFAULT_CAPABILITIES,
    Mount,
    Security,
    check_mountable,
    environment,
    exec_argv,
    expand,
    host_root,
    hosts_file,
    resolv_conf,
    run_argv,
    security,
    setpriv_argv,
)
from deploy.lab.fault import LabError
from deploy.lab.manifest import Object


def pod(container: Object | None = None, **spec: object) -> Object:
    return {
        "metadata": {"name": "web-1", "namespace": "shop", "uid": "u", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [container or {"name": "c", "command": ["x"]}], **spec},
        "status": {
            "podIP": "10.0.0.2",
            "podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}],
            "hostIP": "10.1.0.1",
            "hostIPs": [{"ip": "10.1.0.1"}],
        },
    }


def test_default_capabilities_are_the_14_of_containerd() -> None:
    assert len(DEFAULT_CAPABILITIES) == 14 and len(CAPABILITIES) == 41


@pytest.mark.parametrize(
    ("own", "shared", "wanted"),
    [
        ({}, {}, Security()),
        ({"runAsUser": 5}, {"runAsUser": 6, "runAsGroup": 7}, Security(uid=5, gid=7)),
        ({}, {"fsGroup": 9, "supplementalGroups": [8]}, Security(groups=(8, 9))),
        ({"privileged": True}, {}, Security(capabilities=None)),
        (
            {"capabilities": {"drop": ["ALL"], "add": ["net_admin"]}},
            {},
            Security(capabilities=frozenset({"NET_ADMIN"})),
        ),
        ({"capabilities": {"add": ["ALL"]}}, {}, Security(capabilities=CAPABILITIES)),
        (
            {"capabilities": {"drop": ["CAP_NET_RAW"]}},
            {},
            Security(capabilities=frozenset(DEFAULT_CAPABILITIES) - {"NET_RAW"}),
        ),
    ],
)
def test_security_context(own: Object, shared: Object, wanted: Security) -> None:
    container = {"name": "c", "command": ["x"], "securityContext": own}
    assert security(pod(container, securityContext=shared), container) == wanted


def test_security_context_that_cannot_be() -> None:
    wrong = {"name": "c", "securityContext": {"capabilities": {"add": ["NET_ADMN"]}}}
    with pytest.raises(LabError, match="there is no capability NET_ADMN"):
        security(pod(wrong), wrong)
    root = {"name": "c", "securityContext": {"runAsNonRoot": True}}
    with pytest.raises(LabError, match="runAsNonRoot needs a runAsUser"):
        security(pod(root), root)


def test_setpriv_arguments() -> None:
    argv = setpriv_argv(Security(uid=1, gid=2, groups=(3, 4), capabilities=frozenset({"KILL", "CHOWN"})))
    assert argv == [
        "/usr/bin/setpriv", "--regid", "2", "--reuid", "1", "--groups", "3,4",
        "--bounding-set", "-all,+chown,+kill", "--inh-caps", "-all", "--",
    ]  # fmt: skip
    assert "--bounding-set" not in setpriv_argv(Security(capabilities=None))
    assert "--clear-groups" in setpriv_argv(Security(uid=1))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("$(A)-$(B)", "1-$(B)"), ("$$(A)", "$(A)"), ("$A $(", "$A $("), ("$$$(A)", "$$(A)"), ("", "")],
)
def test_expansion(text: str, wanted: str) -> None:
    assert expand(text, {"A": "1"}) == wanted


def test_environment() -> None:
    def field(path: str) -> Object:
        return {"valueFrom": {"fieldRef": {"fieldPath": path}}}

    container = {
        "name": "c",
        "env": [
            {"name": "IP", **field("status.podIP")},
            {"name": "APP", **field("metadata.labels['app']")},
            {"name": "URL", "value": "http://$(IP)/$(NONE)"},
            {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
            {"name": "MAYBE", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "z", "optional": True}}},
        ],
    }
    env = environment(pod(container), container, lambda name: {"k": name})
    assert (env["IP"], env["APP"], env["URL"], env["KEY"]) == ("10.0.0.2", "web", "http://10.0.0.2/$(NONE)", "m")
    assert env["HOSTNAME"] == "web-1" and "MAYBE" not in env
    for wrong, message in (
        (field("spec.nope"), "fieldRef 'spec.nope'"),
        ({"valueFrom": {"configMapKeyRef": {"name": "m", "key": "z"}}}, "has no key 'z'"),
    ):
        container["env"] = [{"name": "X", **wrong}]
        with pytest.raises(LabError, match=message):
            environment(pod(container), container, lambda name: {})


def test_resolv_conf_and_hosts() -> None:
    assert resolv_conf("shop", ["10.70.0.10"]) == (
        "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.70.0.10\noptions ndots:5\n"
    )
    hosts = hosts_file(pod(hostname="h", subdomain="s", hostAliases=[{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]))
    assert "10.0.0.2\th.s.shop.svc.cluster.local\th\n" in hosts and "fd00::2\t" in hosts and "1.2.3.4\ta b\n" in hosts


def test_host_root_shows_no_runtime_directories(tmp_path: Path) -> None:
    for name in ("usr", "run", "proc", "sys", "dev", "tmp", "etc"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "file").write_text("")
    assert host_root(tmp_path) == [
        "--symlink", "usr/bin", "/bin",
        "--ro-bind", str(tmp_path / "etc"), "/etc",
        "--ro-bind", str(tmp_path / "usr"), "/usr",
    ]  # fmt: skip


def test_command_line(tmp_path: Path) -> None:
    container = {"name": "c", "command": ["serve", "$(A)"], "args": ["x"], "workingDir": "/tmp"}
    places = (("/tmp/data", False), ("/cfg", True))
    mounts = [Mount(source=tmp_path, target=target, read_only=fixed) for target, fixed in places]
    argv = run_argv(pod(container), container, tmp_path, mounts, {"A": "1"})
    assert argv[0] == "/usr/bin/bwrap" and argv[-3:] == ["serve", "1", "x"]
    text = " ".join(argv)
    for part in (
        f"--bind {tmp_path} /tmp/data", f"--ro-bind {tmp_path} /cfg", "--unshare-pid", "--unshare-cgroup", "--as-pid-1",
        "--chdir /tmp", "--tmpfs /run", "--tmpfs /sys", f"--ro-bind {tmp_path / 'resolv.conf'} ", "-- /usr/bin/setpriv",
    ):  # fmt: skip
        assert part in text, part
    assert "--bind / " not in text and "--bind /run" not in text
    assert text.index("--tmpfs /run") < text.index("/tmp/data"), "a mount below /run or /tmp must come after it"


def test_mount_points_must_be_possible() -> None:
    container = {"name": "c"}
    for good in ("/data/deep/er", "/tmp/x", "/run/x", "/etc"):
        check_mountable(container, good)
    for bad in ("/etc/no/such", "/usr/share/nothing-here", "relative"):
        with pytest.raises(LabError, match=r"volumeMounts: \S+ does not exist on the host"):
            check_mountable(container, bad)


def test_exec_joins_with_the_container_s_privileges() -> None:
    container = {"name": "c", "workingDir": "/tmp", "securityContext": {"runAsUser": 7}}
    argv = exec_argv(42, pod(container), container, ["id", "-u"])
    assert argv[:3] == ["/usr/bin/nsenter", "--target", "42"] and argv[-2:] == ["id", "-u"]
    assert "--wdns=/tmp" in argv and argv[argv.index("--reuid") + 1] == "7" and "--bounding-set" in argv
