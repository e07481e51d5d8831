"""Sources -> artifact: bcc in a short-lived process, because its LLVM costs 150 MB and a second.

`python -m bpf.compile OUT` compiles and writes. `build` is what the agent calls: it finds the artifact of these sources
and headers in a cache directory, or has it made. Without OUT, that is all that is done: set-up does it, so that the
first agent need not. BCC_KERNEL_SOURCE names one merged tree of kernel headers (of any version: only UAPI structs are
used); default $GOSSAMER_HEADERS, then /var/cache/gossamer/headers.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bpf.artifact import FORMAT, Artifact, MapDefinition, layout_hash, symbolic
from bpf.error import PreflightError
from bpf.programs import HOOKS

SOURCE = Path(__file__).parent / "src"
CACHE = Path("/var/cache/gossamer/bpf")
_KEPT = 8  # artifacts in the cache
_COMPILES_S = 3600.0  # whatever a compiler has not finished by then, it never will

# bcc rewrites the main text only, so there are no includes of our own: one text, in the order of who uses whom.
ORDER = ("kernel.h", "reason.h", "layouts.h", "maps.h", "address.c", "account.c", "direct.c", "services.c",
         "fastopen.c", "connect.c", "names.c", "ends.c", "sequence.c", "accelerate.c", "promote.c", "flows.c",
         "legs.c", "sockops.c", "lookup.c")  # fmt: skip


def text() -> str:
    return "\n".join(f'#line 1 "bpf/src/{name}"\n{(SOURCE / name).read_text()}' for name in ORDER)


def headers() -> Path:
    """The merged kernel headers; PreflightError if there are none."""
    path = Path(
        os.environ.get("BCC_KERNEL_SOURCE") or os.environ.get("GOSSAMER_HEADERS") or "/var/cache/gossamer/headers"
    )
    if not (path / "include/uapi/linux/bpf.h").exists():
        raise PreflightError(
            f"no kernel headers in {path} (include/uapi/linux/bpf.h is missing)",
            "install linux-headers-amd64 and run deploy/setup/setup.sh, or name a merged tree by GOSSAMER_HEADERS",
        )
    return path


def fingerprint() -> str:
    """Names an artifact: sources, format, headers."""
    version = headers() / ".version"
    known = version.read_text() if version.exists() else str(headers().resolve())
    return hashlib.sha256(f"{FORMAT}\n{known}\n{text()}".encode()).hexdigest()[:24]


def build(cache: Path = CACHE) -> Artifact:
    """The artifact of these sources, from the cache or compiled now by a process of its own."""
    path = cache / f"{fingerprint()}.json"
    try:
        found = Artifact.decode(path.read_bytes())
        with contextlib.suppress(OSError):  # a cache in an image may be read-only
            path.touch()  # used: `prune` goes by that
        return found
    except (FileNotFoundError, ValueError):
        pass  # a damaged file is made anew
    cache.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "bpf.compile", str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE.parents[1]), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PreflightError(
            f"bpf/src did not compile: {done.stderr.strip()[-3000:]}",
            "is python3-bpfcc installed, and does the virtual environment have the system's site packages?",
        )
    prune(cache)
    return Artifact.decode(path.read_bytes())


def prune(cache: Path) -> None:
    """Remove all but the artifacts used last, and what a compiler that was killed left: each version of the sources has
    one of its own, and whoever needs a removed one makes it again."""
    found: list[tuple[float, Path]] = []
    for path in cache.glob("*.json*"):  # a compiler's own file has a name that begins with a dot
        with contextlib.suppress(FileNotFoundError):  # another agent prunes, too
            found.append((path.stat().st_mtime, path))
    found.sort(reverse=True)
    artifacts = [path for _, path in found if not path.name.startswith(".")]
    abandoned = [path for used, path in found if path.name.startswith(".") and used < time.time() - _COMPILES_S]
    for path in (*artifacts[_KEPT:], *abandoned):
        path.unlink(missing_ok=True)


def compile() -> Artifact:
    """Compile in this process. Needs root: bcc creates the maps while compiling."""
    os.environ.setdefault("BCC_KERNEL_SOURCE", str(headers()))
    from bcc import BPF
    from bcc.libbcc import lib

    size = (ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_size_t])  # bcc's own binding leaves these undeclared
    lib.bpf_table_name.restype, lib.bpf_table_name.argtypes = ctypes.c_char_p, size[1]
    for undeclared in (lib.bpf_table_key_size_id, lib.bpf_table_leaf_size_id):
        undeclared.restype, undeclared.argtypes = size
    lib.bpf_table_fd_id.restype, lib.bpf_table_fd_id.argtypes = ctypes.c_int, size[1]
    module = BPF(text=text(), cflags=["-Wno-macro-redefined", "-Wno-duplicate-decl-specifier"]).module
    maps, names = [], {}
    for i in range(lib.bpf_num_tables(module)):
        name = lib.bpf_table_name(module, i).decode()
        names[lib.bpf_table_fd_id(module, i)] = name
        maps.append(
            MapDefinition(
                name=name,
                kind=lib.bpf_table_type_id(module, i),
                key=lib.bpf_table_key_size_id(module, i),
                value=lib.bpf_table_leaf_size_id(module, i),
                entries=lib.bpf_table_max_entries_id(module, i),
                flags=lib.bpf_table_flags_id(module, i),
            )
        )
    programs = tuple(symbolic(hook.name, _instructions(lib, module, hook.name), names) for hook in HOOKS)
    ordered = tuple(sorted(maps, key=lambda m: m.name))
    layout = layout_hash(ordered, (SOURCE / "layouts.h").read_text())
    return Artifact(maps=ordered, programs=programs, layout=layout, sources=fingerprint())


def _instructions(lib: ctypes.CDLL, module: int, name: str) -> bytes:
    start = lib.bpf_function_start(module, name.encode())
    if not start:
        raise ValueError(f"bpf/src has no program {name}")
    return ctypes.string_at(start, lib.bpf_function_size(module, name.encode()))


def main(out: Path) -> None:
    """Write atomically: several agents on one machine may compile at once."""
    data = compile().encode()
    with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            Path(file.name).replace(out)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


if __name__ == "__main__":
    if len(sys.argv) > 2 or sys.argv[1:2] == ["--help"]:
        sys.exit("usage: python -m bpf.compile [OUT]")
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        try:
            build()
        except PreflightError as error:
            sys.exit(f"bpf.compile: {error}")
