"""Names and addresses of a lab."""

from __future__ import annotations

import itertools

import pytest

from deploy.lab.fault import LabError
from deploy.lab.layout import SLOTS, Layout, check_lab_name, short_name


def test_networks_of_all_labs_are_apart() -> None:
    networks4 = [
        n
        for slot in range(SLOTS)
        for lab in [Layout(name="x", slot=slot)]
        for n in (lab.pods4, lab.services4, lab.fabric4)
    ]
    networks6 = [
        n
        for slot in range(SLOTS)
        for lab in [Layout(name="x", slot=slot)]
        for n in (lab.pods6, lab.services6, lab.fabric6)
    ]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(networks4, 2))
    assert not any(a.overlaps(b) for a, b in itertools.combinations(networks6, 2))


def test_addresses_of_one_lab() -> None:
    lab = Layout(name="x", slot=2)
    assert str(lab.node_pods4(3)) == "10.12.3.0/24"
    assert str(lab.node_pods6(3)) == "fd67:6d00:2:3::/64"
    assert lab.node_addresses(0) == ("10.132.0.10", "fd67:6d00:2:ff00::a")
    assert lab.cluster_dns == ("10.72.0.10", "fd67:6d00:2:fe00::a")
    assert lab.node_pods4(199).subnet_of(lab.pods4) and lab.node_pods6(199).subnet_of(lab.pods6)


@pytest.mark.parametrize("name", ["lab", "a", "t123x", "abcdefghijklmno"])
def test_good_names(name: str) -> None:
    assert check_lab_name(name) == name


@pytest.mark.parametrize("name", ["", "a-b", "1a", "Lab", "a/b", "..", "abcdefghijklmnop", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(LabError, match="lab name"):
        check_lab_name(name)


def test_no_lab_s_namespaces_look_like_another_s() -> None:
    assert not Layout(name="ab").pod_netns("x", "y").startswith(Layout(name="a").netns_prefix)
    names = {Layout(name="a").pod_netns(ns, pod) for ns, pod in (("b", "a.b"), ("b", "a"), ("a-b", "c"), ("b", "c-a"))}
    assert len(names) == 4


def test_interface_names_fit() -> None:
    assert len(short_name("veth", "a" * 60, "b" * 200)) == 15
    assert short_name("veth", "a", "bc") != short_name("veth", "ab", "c")
