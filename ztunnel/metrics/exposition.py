"""Metrics as text: Prometheus 0.0.4 and OpenMetrics 1.0.

Written here and not by `prometheus_client.generate_latest`, because that sorts labels by name, and people compare our
series with Istio's, label by label. Only the kinds we have are known: counter and gauge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from prometheus_client import Metric

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def negotiate(accept: str) -> str:
    """The content type to answer with: OpenMetrics if the Accept header asks for a version we have, else Prometheus.

    The one with the higher `q` wins (RFC 9110 §12.5.1); Prometheus itself lists OpenMetrics first.
    """
    best, best_quality = PROMETHEUS, -1.0
    for media_range in accept.split(","):
        media, *parameters = (part.strip() for part in media_range.split(";"))
        given = dict(p.split("=", 1) for p in parameters if "=" in p)
        if media == "application/openmetrics-text" and given.get("version", "1.0.0") in ("0.0.1", "1.0.0"):
            offered = OPENMETRICS
        elif media in ("text/plain", "text/*", "*/*"):
            offered = PROMETHEUS
        else:
            continue
        try:
            quality = float(given.get("q", "1"))
        except ValueError:
            continue
        if quality > best_quality and quality > 0:
            best, best_quality = offered, quality
    return best


def render(families: Iterable[Metric], content_type: str = PROMETHEUS) -> bytes:
    """The exposition of some families, labels in the order in which each sample's mapping has them."""
    openmetrics = content_type == OPENMETRICS
    lines: list[str] = []
    # The TCP families share one mapping of labels per series: its text is made once per scrape.
    texts: dict[int, tuple[Mapping[str, str], str]] = {}
    for family in families:
        name = family.name if openmetrics or family.type != "counter" else f"{family.name}_total"
        lines.append(f"# HELP {name} {_escape_help(family.documentation, openmetrics)}\n")
        lines.append(f"# TYPE {name} {family.type}\n")
        for sample in family.samples:
            if sample.name.endswith("_created") and not openmetrics:
                continue
            labels = sample.labels
            known = texts.get(id(labels))
            if known is None:
                known = texts[id(labels)] = (labels, label_text(labels))
            lines.append(f"{sample.name}{known[1]} {_number(sample.value)}\n")
    if openmetrics:
        lines.append("# EOF\n")
    return "".join(lines).encode()


def label_text(labels: Mapping[str, str]) -> str:
    """`{name="value",…}` in the mapping's order; empty without labels."""
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape_value(value)}"' for name, value in labels.items()) + "}"


def _escape_value(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _escape_help(text: str, openmetrics: bool) -> str:
    escaped = text.replace("\\", r"\\").replace("\n", r"\n")
    return escaped.replace('"', r"\"") if openmetrics else escaped


def _number(value: float) -> str:
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return str(int(value))
    if math.isnan(value):
        return "NaN"
    return repr(value) if math.isfinite(value) else ("+Inf" if value > 0 else "-Inf")
