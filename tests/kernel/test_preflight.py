"""What is missing is named, with the cure, before anything is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpf import PreflightError, compile, preflight, syscall
from tests.kernel.rig import Rig


def check(rig: Rig, **changes: object) -> None:
    arguments = {"pins": rig.pins, "cgroup": rig.cgroup, "agent_cgroup": rig.cgroup / "agent",
                 "kubelet_cgroup": rig.cgroup / "kubelet", **changes}  # fmt: skip
    effective = arguments.pop("effective", None)
    preflight.check(*arguments.values(), effective=effective)


def test_this_machine_is_fit(rig: Rig) -> None:
    check(rig)
    node, settings = preflight.check(rig.pins, rig.cgroup, rig.cgroup / "agent", None)
    assert node.level == 1
    assert settings == ((rig.cgroup / "agent").stat().st_ino, 0, 2, 0)
    assert not rig.pins.exists()


@pytest.mark.parametrize(
    ("changes", "missing", "cure"),
    [
        ({"effective": 0}, "CAP_NET_ADMIN and CAP_SYS_ADMIN are missing", "root"),
        ({"effective": 1 << 21}, "CAP_NET_ADMIN is missing", "root"),
        ({"effective": 1 << 12}, "CAP_SYS_ADMIN is missing", "root"),
        ({"cgroup": "/tmp"}, "the node's cgroup /tmp is not in a cgroup v2", "cgroup v2"),
        ({"agent_cgroup": "ROOT"}, "the agent's cgroup .* is the root", "cgroup of its own"),
        ({"kubelet_cgroup": "ROOT"}, "the kubelet's cgroup .* is the root", "cgroup of its own"),
        ({"agent_cgroup": "ROOT/gkt-not-there"}, "the agent's cgroup .* does not exist", "create it"),
        ({"pins": "/tmp/gkt-pins"}, "/tmp/gkt-pins is not in a bpffs", "mount -t bpf"),
        ({"pins": "BPFFS/no/pins"}, "BPFFS/no does not exist", "create it"),
    ],
)
def test_what_is_missing_is_named(rig: Rig, changes: dict[str, object], missing: str, cure: str) -> None:
    places = {"ROOT": str(rig.cgroup.parent), "BPFFS": str(rig.bpffs)}

    def placed(text: str) -> str:
        for name, path in places.items():
            text = text.replace(name, path)
        return text

    changes = {k: Path(placed(v)) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(PreflightError, match=placed(missing)) as caught:
        check(rig, **changes)
    assert cure in caught.value.cure
    assert str(caught.value) == f"{caught.value.missing}; {caught.value.cure}"


def test_acceleration_needs_one_more_capability() -> None:
    """To wake a reader that fell behind; without it the self-test fails, and direct connections go by TCP."""
    preflight.can_accelerate()
    with pytest.raises(PreflightError, match="CAP_NET_RAW is missing") as caught:
        preflight.can_accelerate(effective=1 << 12 | 1 << 21)
    assert "--direct-acceleration off" in caught.value.cure


def test_a_program_type_that_the_kernel_refuses_is_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    load = syscall.load_program

    def refuse(**arguments: object) -> int:
        if arguments["attach"] == 36:
            raise OSError(22, "Invalid argument")
        return load(**arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(syscall, "load_program", refuse)
    with pytest.raises(PreflightError, match=r"refuses lookup programs.*Linux 5\.9"):
        check(rig)


def test_the_agent_ends_with_the_error_alone(rig: Rig, tmp_path: Path) -> None:
    argv = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", sys.executable, "-m", "ztunnel",
            "--node", "n", "--node-ip", "10.0.0.1", "--pods", tmp_path, "--run", tmp_path, "--bpf", rig.pins,
            "--cgroup", rig.cgroup, "--controller", "127.0.0.1:1", "--root", tmp_path, "--token", tmp_path]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "CAP_NET_ADMIN is missing; run the agent as root" in line


def test_without_headers_or_a_cached_artifact_the_cure_is_the_set_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    monkeypatch.setenv("GOSSAMER_HEADERS", str(tmp_path))
    with pytest.raises(PreflightError, match=r"no kernel headers.*setup\.sh"):
        compile.build(tmp_path / "cache")


def test_sources_that_do_not_compile_say_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "bpf" / "src"
    source.mkdir(parents=True)
    for path in (*compile.SOURCE.iterdir(), *compile.SOURCE.parent.glob("*.py")):
        target = source / path.name if path.parent == compile.SOURCE else source.parent / path.name
        target.write_text(path.read_text())
    (tmp_path / "mesh").symlink_to(compile.SOURCE.parents[1] / "mesh")
    (source / "names.c").write_text("int broken(struct bpf_sock_addr *ctx) { return nothing; }\n")
    monkeypatch.setattr(compile, "SOURCE", source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PreflightError, match=r"bpf/src/names\.c:1.*undeclared identifier 'nothing'"):
        compile.build(tmp_path / "cache")


def test_the_verifiers_words_are_in_the_error() -> None:
    with pytest.raises(OSError, match=r"program bad was refused: .*(?s:.)*R0 !read_ok"):
        os.close(syscall.load_program(kind=13, attach=3, name="bad", instructions=b"\x95" + bytes(7), license="GPL"))


def test_an_agent_outside_of_its_cgroup_is_told(rig: Rig) -> None:
    agent = rig.cgroup / "agent"
    with pytest.raises(PreflightError, match="does not run in the agent's cgroup") as caught:
        preflight.runs_in(agent)
    assert f"{agent}/cgroup.procs" in caught.value.cure
    below = agent / "below"
    below.mkdir()
    program = "import sys; from pathlib import Path; from bpf import preflight; preflight.runs_in(Path(sys.argv[1]))"
    try:
        for cgroup in (agent, below):
            enter = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'
            subprocess.run(["sh", "-c", enter, "sh", sys.executable, "-c", program, str(agent)], check=True, timeout=60)
    finally:
        below.rmdir()
