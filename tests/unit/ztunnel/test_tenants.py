"""Cookies of network namespaces and the pods that have them, also such as have left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bpf import PodSlot
from ztunnel import tenants
from ztunnel.tenants import Tenants


class Kernel:
    """What is enrolled, and how often that was asked for."""

    def __init__(self) -> None:
        self.cookies: dict[str, int] = {}
        self.asked = 0

    def pods(self) -> dict[str, PodSlot]:
        self.asked += 1
        return {
            name: PodSlot(instance=name, slot=n, cookie=cookie, addresses=())
            for n, (name, cookie) in enumerate(self.cookies.items())
        }


def test_who_has_left_is_known_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "_COOKIES", 3)
    kernel = Kernel()
    known = Tenants(kernel=kernel, pods={})
    kernel.cookies = {"a": 1, "b": 2}
    assert [known.instance(cookie) for cookie in (1, 2, 1)] == ["a", "b", "a"]
    assert kernel.asked == 1, "the kernel side is asked of what is new alone"
    kernel.cookies = {"c": 3}
    assert [known.instance(cookie) for cookie in (3, 1, 2)] == ["c", "a", "b"]
    kernel.cookies = {"d": 4}
    assert [known.instance(cookie) for cookie in (4, 1, 3)] == ["d", "", "c"]
    assert known.instance(99) == ""


def test_names_are_for_people() -> None:
    """By its instance, who is in the kernel and has no record yet."""
    kernel = Kernel()
    kernel.cookies = {"a": 1, "b": 2}
    pods: dict[str, Any] = {"a": SimpleNamespace(namespace="shop", name="web")}
    assert Tenants(kernel=kernel, pods=pods).names() == {1: "shop/web", 2: "b"}
