"""How our tunnel stands against the better of the two Envoys, and what it shall reach. Pure.

The better one is chosen per figure and metric, by the median over all rounds; the ratio is the median of the rounds'
ratios to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from deploy.bench.figures import METRICS, Figure, Sample, summarise

_OURS = "gossamer"
_HBONE, _TCP = "envoy-hbone", "envoy-tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`wanted` is a ratio: at most, where lower is `better`, else at least. `among`: the columns to compare with."""

    command: str
    metric: str
    wanted: float
    applies: Callable[[Figure], bool] = lambda figure: True
    among: tuple[str, ...] = (_TCP, _HBONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One figure's metric against the better Envoy; `better` is "lower" or "higher"."""

    figure: str
    metric: str
    against: str
    ratio: float
    better: str
    wanted: float

    @property
    def reached(self) -> bool:
        return self.ratio <= self.wanted if self.better == "lower" else self.ratio >= self.wanted


TARGETS: tuple[Target, ...] = (
    Target(command="echo", metric="p50_us", wanted=0.7, applies=lambda figure: figure.options["connections"] == 1),
    Target(
        command="echo",
        metric="messages_per_s",
        wanted=2.0,
        applies=lambda figure: figure.options["connections"] in (16, 64),
    ),
    Target(command="echo", metric="cpu_proxies_ms_per_10k", wanted=0.6),
    Target(command="stream", metric="gbit_per_s", wanted=1.3),
    Target(command="connects", metric="connects_per_s", wanted=2.0, among=(_HBONE,)),
)


def standings(samples: Sequence[Sample], figures: Iterable[Figure]) -> list[Standing]:
    """Every target that the columns of this run can tell something about."""
    found = []
    for figure in figures:
        for target in TARGETS:
            if target.command == figure.command and target.applies(figure):
                standing = _stand(samples, figure, target)
                if standing is not None:
                    found.append(standing)
    return found


def _stand(samples: Sequence[Sample], figure: Figure, target: Target) -> Standing | None:
    (better,) = (metric.better for metric in METRICS[figure.command] if metric.name == target.metric)
    columns = {sample.column for sample in samples if sample.figure == figure.name}
    rivals = [name for name in target.among if name in columns]
    if _OURS not in columns or not rivals:
        return None
    medians = summarise(samples, figure.name, target.metric, _OURS)
    best = (min if better == "lower" else max)(rivals, key=lambda name: medians[name].median)
    ratio = summarise(samples, figure.name, target.metric, best)[_OURS].ratio
    if ratio is None:
        return None
    return Standing(
        figure=figure.name, metric=target.metric, against=best, ratio=ratio, better=better, wanted=target.wanted
    )
