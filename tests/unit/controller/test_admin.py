"""What /status says."""

from __future__ import annotations

from controller.admin import status
from controller.metrics import Metrics
from controller.sources.files import Files
from controller.state import Input, State
from controller.translate.settings import Settings
from mesh.control import PodStatus, Redirection
from tests.unit.controller.shop import SHOP, WEB


async def state_of(files: Files) -> State:
    state = State(Settings(), Metrics())
    state.take(Input(objects=files.objects(), files=files.owners(), refusals=tuple(files.refusals())))
    await state.refresh()
    return state


async def test_objects_in_force_refused_and_both() -> None:
    files = Files()
    files.put("a.yaml", SHOP)
    files.put("a.yaml", SHOP.replace("istio.io/dataplane-mode: ambient", "x: '*'"))
    files.put("b.yaml", "kind: Podd\nmetadata: {name: p, namespace: shop}")
    files.put("c.yaml", "{")
    made = status(await state_of(files))
    found = {(o["file"], o["kind"], o["name"]): o["conditions"] for o in made["objects"]}
    assert set(found) == {
        ("a.yaml", "Namespace", "shop"),
        ("a.yaml", "Pod", "web"),
        ("b.yaml", "Podd", "p"),
        ("c.yaml", "", ""),
    }
    assert found["a.yaml", "Pod", "web"] == [{"type": "Accepted", "status": "True", "reason": "Accepted"}]
    (refused,) = found["a.yaml", "Namespace", "shop"]
    assert (refused["status"], refused["reason"]) == ("False", "Invalid")
    assert refused["message"].endswith("the last good state stays in force")
    assert found["b.yaml", "Podd", "p"][0]["message"].endswith("did you mean Pod?")
    assert "stays" not in found["c.yaml", "", ""][0]["message"]


async def test_nodes_and_what_they_said_of_pods() -> None:
    files = Files()
    files.put("a.yaml", SHOP)
    state = await state_of(files)
    node = state.node("n1")
    node.connected, node.rejected = True, {f"workload/{WEB}": "no"}
    state.report("n1", PodStatus(uid=WEB, instance="u1", redirection=Redirection.PENDING, error="no netns"))
    made = status(state)
    (said,) = made["nodes"]
    assert (said["name"], said["connected"]) == ("n1", True)
    assert said["pods"] == [{"uid": WEB, "instance": "u1", "redirection": "pending", "error": "no netns"}]
    (pod,) = [o for o in made["objects"] if o["kind"] == "Pod"]
    assert {(c["type"], c["status"], c.get("message")) for c in pod["conditions"]} == {
        ("Accepted", "True", None),
        ("NodesAccepted", "False", "n1: no"),
        ("Enrolled", "False", "no netns"),
    }
