"""Pod, its containers, probes, volumes and status (k8s.io/api core/v1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mesh.resources import check
from mesh.resources.fault import Invalid
from mesh.resources.meta import ObjectMeta

PortNumber = Annotated[int, Meta(ge=1, le=65535)]
Protocol = Literal["TCP", "UDP", "SCTP"]


class ContainerPort(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    container_port: PortNumber
    name: str = ""
    protocol: Protocol = "TCP"
    host_port: int = 0


class FieldRef(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    field_path: str
    api_version: str = ""


class ConfigMapKeyRef(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    name: str
    key: str
    optional: bool = False


class EnvVarSource(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    field_ref: FieldRef | None = None
    config_map_key_ref: ConfigMapKeyRef | None = None
    secret_key_ref: Any = None
    resource_field_ref: Any = None


class EnvVar(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    name: str
    value: str = ""
    value_from: EnvVarSource | None = None


class HttpHeader(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    name: str
    value: str = ""


class HttpGet(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    port: int | str
    path: str = "/"
    host: str = ""
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"
    http_headers: tuple[HttpHeader, ...] = ()


class TcpSocket(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    port: int | str
    host: str = ""


class Exec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    command: tuple[str, ...] = ()


class Probe(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Exactly one of http_get, tcp_socket, exec, grpc; times in seconds."""

    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    exec: Exec | None = None
    grpc: Any = None
    initial_delay_seconds: Annotated[int, Meta(ge=0)] = 0
    period_seconds: Annotated[int, Meta(ge=1)] = 10
    timeout_seconds: Annotated[int, Meta(ge=1)] = 1
    success_threshold: Annotated[int, Meta(ge=1)] = 1
    failure_threshold: Annotated[int, Meta(ge=1)] = 3


class Capabilities(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


class SecurityContext(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Of a pod or a container; a container's fields win."""

    run_as_user: Annotated[int, Meta(ge=0)] | None = None
    run_as_group: Annotated[int, Meta(ge=0)] | None = None
    run_as_non_root: bool | None = None
    fs_group: Annotated[int, Meta(ge=0)] | None = None
    supplemental_groups: tuple[int, ...] = ()
    privileged: bool = False
    read_only_root_filesystem: bool = False
    allow_privilege_escalation: bool | None = None
    capabilities: Capabilities = Capabilities()
    seccomp_profile: Any = None
    sysctls: tuple[Any, ...] = ()


class VolumeMount(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    name: str
    mount_path: str
    read_only: bool = False
    sub_path: str = ""


class EmptyDir(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    medium: str = ""
    size_limit: int | str = ""


class HostPath(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    path: str
    type: str = ""


class KeyToPath(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    key: str
    path: str


class ConfigMapVolume(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Each of `items` becomes a file, or every key if there are none."""

    name: str
    items: tuple[KeyToPath, ...] = ()
    optional: bool = False


class Volume(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Sources other than these are known by all being None."""

    name: str
    empty_dir: EmptyDir | None = None
    config_map: ConfigMapVolume | None = None
    host_path: HostPath | None = None


class Container(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[Any, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    volume_mounts: tuple[VolumeMount, ...] = ()
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    startup_probe: Probe | None = None
    security_context: SecurityContext = SecurityContext()
    restart_policy: str = ""  # "Always" on an init container makes it a sidecar
    stdin: bool = False
    tty: bool = False

    @property
    def probes(self) -> tuple[tuple[str, Probe], ...]:
        """The probes that are given, each with the name of its field."""
        all_three = (
            ("readinessProbe", self.readiness_probe),
            ("livenessProbe", self.liveness_probe),
            ("startupProbe", self.startup_probe),
        )
        return tuple((field, probe) for field, probe in all_three if probe is not None)


class PodSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    node_name: str = ""
    node_selector: Mapping[str, str] = {}
    service_account_name: str = ""
    service_account: str = ""  # deprecated alias of the former
    host_network: bool = False
    hostname: str = ""
    subdomain: str = ""
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    termination_grace_period_seconds: Annotated[int, Meta(ge=0)] = 30
    dns_policy: str = "ClusterFirst"
    security_context: SecurityContext = SecurityContext()

    @property
    def identity_account(self) -> str:
        """The service account the pod runs as."""
        return self.service_account_name or self.service_account or "default"


class PodIp(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    ip: str


class PodCondition(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class PodStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown", ""] = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    pod_ips: tuple[PodIp, ...] = msgspec.field(name="podIPs", default=())
    host_ip: str = msgspec.field(name="hostIP", default="")
    conditions: tuple[PodCondition, ...] = ()
    reason: str = ""
    message: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """All of the pod's IPs, the primary one first, each once."""
        return tuple(dict.fromkeys(ip for ip in (self.pod_ip, *(p.ip for p in self.pod_ips)) if ip))

    @property
    def ready(self) -> bool:
        return any(c.type == "Ready" and c.status == "True" for c in self.conditions)


class Pod(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, tag_field="kind", tag="Pod"):
    api_version: Literal["v1"]
    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def terminal(self) -> bool:
        """It has ended and will not come back under this uid."""
        return self.status.phase in ("Succeeded", "Failed")


def check_pod(pod: Pod) -> None:
    check_pod_spec(pod.spec, "spec")
    for index, ip in enumerate(pod.status.addresses):
        check.address("status.podIP" if index == 0 else f"status.podIPs[{index}].ip", ip)


def check_pod_spec(spec: PodSpec, path: str) -> None:
    if not spec.containers:
        raise Invalid(f"{path}.containers", "a pod needs at least one container", "list its containers")
    everything = [(f"{path}.containers", spec.containers), (f"{path}.initContainers", spec.init_containers)]
    check.unique(f"{path}.containers[*].name", (c.name for _, group in everything for c in group), "container name")
    if spec.identity_account != "default":
        check.dns_subdomain(f"{path}.serviceAccountName", spec.identity_account)
    volumes = [volume.name for volume in spec.volumes]
    check.unique(f"{path}.volumes[*].name", volumes, "volume name")
    for at, group in everything:
        for index, container in enumerate(group):
            _check_container(container, f"{at}[{index}]", volumes)


def _check_container(container: Container, path: str, volumes: Collection[str]) -> None:
    check.dns_label(f"{path}.name", container.name)
    for index, port in enumerate(container.ports):
        if port.name:
            check.port_name(f"{path}.ports[{index}].name", port.name)
    check.unique(f"{path}.ports[*].name", (p.name for p in container.ports if p.name), "port name")
    for index, variable in enumerate(container.env):
        if not variable.name or "=" in variable.name or "\0" in variable.name:
            raise Invalid(f"{path}.env[{index}].name", f"{check.quoted(variable.name)} is not a variable name", "")
    for index, mount in enumerate(container.volume_mounts):
        if mount.name not in volumes:
            cure = check.suggest(mount.name, volumes) or f"the pod's volumes are: {', '.join(volumes) or '(none)'}"
            raise Invalid(f"{path}.volumeMounts[{index}].name", f"{check.quoted(mount.name)} is not a volume", cure)
    for name, probe in container.probes:
        _check_probe(probe, f"{path}.{name}")


def _check_probe(probe: Probe, path: str) -> None:
    given = [h for h in (probe.http_get, probe.tcp_socket, probe.exec, probe.grpc) if h is not None]
    if len(given) != 1:
        raise Invalid(path, f"{len(given)} handlers given", "a probe has exactly one of httpGet, tcpSocket, exec, grpc")
    if probe.http_get is not None:
        check.port_reference(f"{path}.httpGet.port", probe.http_get.port)
    if probe.tcp_socket is not None:
        check.port_reference(f"{path}.tcpSocket.port", probe.tcp_socket.port)
    if probe.exec is not None and not probe.exec.command:
        raise Invalid(f"{path}.exec.command", "it is missing", "give the program and its arguments")
