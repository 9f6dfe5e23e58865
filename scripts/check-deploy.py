#!/usr/bin/env python3
"""Checks deploy/kubernetes, deploy/grafana and deploy/prometheus without a cluster.

    check-deploy.py [--crds FOLDER] [--metrics FILE] [--self-test]

Checks every object against its schema (custom resources only with --crds, where scripts/crd-schemas is
installed), references between objects, figures that depend on each other, every PromQL expression with a
parser, its metrics and labels against the table in docs/fleet.md, and the layout of the dashboard.
Prints one line for each problem and exits 1 if there is any. --self-test breaks each checked item in
turn, in memory, and expects a problem. scripts/lint-files.sh installs the modules that this imports.
"""

import argparse
import copy
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import kubernetes_validate
import promql_parser
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"

# The oldest supported version of Kubernetes, and the newest with a known schema.
KUBERNETES = ["1.30", kubernetes_validate.latest_version()]

# Applied separately: they need components that not every cluster has, or contain secrets.
OPTIONAL = {"keda.yaml", "podmonitor.yaml", "secret.example.yaml"}

# Memory of a pod in addition to its configured caches and decoders, in MiB (docs/performance.md).
API_OVERHEAD_MIB = 128
WORKER_OVERHEAD_MIB = 512

# KEDA's schema allows any map of strings as a trigger's metadata. Keys by type: required, optional.
TRIGGERS = {
    "rabbitmq": ({"queueName", "mode", "value", "protocol"}, {"activationValue", "vhostName", "timeout"}),
    "prometheus": ({"serverAddress", "query", "threshold"}, {"activationThreshold", "ignoreNullValues"}),
}

# Labels that Prometheus adds when it scrapes.
SCRAPE_LABELS = {"instance", "job", "namespace", "pod"}


class Deploy:
    """The checked files, parsed: `objects` are (file name, object) of deploy/kubernetes."""

    def __init__(self, metrics_file):
        self.kustomization = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())
        self.files = sorted(p.name for p in (DEPLOY / "kubernetes").glob("*.yaml"))
        self.objects = [
            (name, found)
            for name in self.files
            if name != "kustomization.yaml"
            for found in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())
        ]
        self.dashboard = json.loads((DEPLOY / "grafana/safelight.json").read_text())
        self.rules = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())
        self.metrics = metric_labels(metrics_file.read_text())
        self.defaults = tomllib.loads((ROOT / "common/config/src/defaults.toml").read_text())

    def of(self, *kinds):
        """Yields (where, object) for these kinds."""
        for name, found in self.objects:
            if found.get("kind") in kinds:
                yield f"{name}: {found['kind']} {found['metadata']['name']}", found

    def named(self, kind, name):
        """Returns the object, or None."""
        return next((found for _, found in self.of(kind) if found["metadata"]["name"] == name), None)


def metric_labels(text):
    """Labels by metric, from the rows `| name | type | labels | meaning |` under "## Metrics"."""
    section = re.search(r"^## Metrics$(.*?)(?=^## |\Z)", text, re.M | re.S)
    metrics = {}
    for row in re.findall(r"^\| *`(safelight_\w+)` *\|([^|]*)\|([^|]*)\|", section[1] if section else "", re.M):
        name, kind, labels = row[0], row[1].strip(), set(re.findall(r"\w+", row[2]))
        if kind == "histogram":
            metrics |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            metrics[name] = labels
    if not metrics:
        sys.exit("no table of metrics under `## Metrics`")
    return metrics


# --- Kubernetes -------------------------------------------------------------------------------


def is_custom(found):
    return "." in found["apiVersion"].split("/")[0] and not found["apiVersion"].split("/")[0].endswith(".k8s.io")


def check_schemas(deploy):
    for where, found in deploy.objects:
        if is_custom(found):
            continue
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(found, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = "/".join(map(str, error.path))
                yield f"{where}: {found['kind']} {path}: {error.message} (Kubernetes {version})"
            except kubernetes_validate.SchemaNotFoundError as error:
                yield f"{where}: {error.message}"


def check_custom(deploy, crds):
    custom = [(where, found) for where, found in deploy.objects if is_custom(found)]
    # alerts.yaml claims to be usable as a PrometheusRule.
    rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "safelight"}}
    custom.append(("alerts.yaml", rule | {"spec": deploy.rules}))
    output = subprocess.run(
        ["node", crds / "validate.mjs"],
        input=json.dumps([found for _, found in custom]),
        capture_output=True, text=True, check=True,
    )
    for (where, found), problems in zip(custom, json.loads(output.stdout), strict=True):
        for problem in problems:
            yield f"{where}: {found['kind']} {found['metadata']['name']} {problem}"


def check_kustomization(deploy):
    listed = set(deploy.kustomization["resources"])
    for name in sorted(set(deploy.files) ^ (listed | OPTIONAL | {"kustomization.yaml"})):
        yield f"kustomization.yaml: {name} is listed and not there, or there and neither listed nor optional"
    for where, found in deploy.objects:
        namespace = found["metadata"].get("namespace")
        if found["kind"] != "Namespace" and namespace != deploy.kustomization["namespace"]:
            yield f"{where}: {found['kind']} is in the namespace {namespace}"


def pod_template(found):
    """The pod's template, its specification and its only container."""
    template = found["spec"]["template"]
    return template, template["spec"], template["spec"]["containers"][0]


def environment(deploy, container):
    """Variables of a container, and the names of missing sources."""
    variables, missing = {}, []
    for source in container.get("envFrom", []):
        for key, kind, field in (("configMapRef", "ConfigMap", "data"), ("secretRef", "Secret", "stringData")):
            if key in source:
                found = deploy.named(kind, source[key]["name"])
                missing += [] if found else [f"{kind} {source[key]['name']}"]
                variables |= found[field] if found else {}
    variables |= {entry["name"]: entry["value"] for entry in container.get("env", [])}
    return variables, missing


def check_references(deploy):
    pods = [pod_template(found)[0]["metadata"]["labels"] for _, found in deploy.of("Deployment")]
    images = {image["name"] for image in deploy.kustomization["images"]}
    for where, found in deploy.of("Deployment", "Job"):
        template, spec, container = pod_template(found)
        if found["kind"] == "Deployment":
            wanted = found["spec"]["selector"]["matchLabels"]
            if not wanted.items() <= template["metadata"]["labels"].items():
                yield f"{where}: its selector does not match its pods"
            ports = {port["name"] for port in container["ports"]}
            for probe in ("readinessProbe", "livenessProbe"):
                if container[probe]["httpGet"]["port"] not in ports:
                    yield f"{where}: {probe} asks a port that is not there"
        if container["image"] not in images:
            yield f"{where}: the image {container['image']} is not set in kustomization.yaml"
        variables, missing = environment(deploy, container)
        for name in missing:
            yield f"{where}: no {name}"
        for variable in variables:
            key = variable.removeprefix("SAFELIGHT_").lower()
            if variable.startswith("SAFELIGHT_") and key not in deploy.defaults:
                yield f"{where}: {variable} is no key of the configuration"
        # Service links would add such variables too.
        if spec.get("enableServiceLinks", True):
            yield f"{where}: enableServiceLinks is on"
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{where}: no volume {mount['name']}"
    for where, found in deploy.of("Service", "PodDisruptionBudget", "PodMonitor"):
        selector = found["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        if not any(selector.items() <= labels.items() for labels in pods):
            yield f"{where}: selects no pod"


def check_security(deploy):
    for where, found in deploy.of("Deployment", "Job"):
        _, spec, container = pod_template(found)
        inside, pod = container["securityContext"], spec["securityContext"]
        if not (
            pod["runAsNonRoot"] and pod["seccompProfile"]["type"] == "RuntimeDefault"
            and inside["readOnlyRootFilesystem"] and inside["allowPrivilegeEscalation"] is False
            and inside["capabilities"] == {"drop": ["ALL"]} and not spec["automountServiceAccountToken"]
        ):  # fmt: skip
            yield f"{where}: has more rights than it needs"


def is_selected(selector, labels):
    """Whether a selector of pods matches these labels. Knows the operator In only."""
    named = selector.get("matchLabels", {}).items() <= labels.items()
    return named and all(
        labels.get(one["key"]) in {"In": one["values"]}[one["operator"]] for one in selector.get("matchExpressions", [])
    )


def check_network(deploy):
    for where, found in deploy.of("Deployment", "Job"):
        template, _, container = pod_template(found)
        policies = [
            policy["spec"]
            for _, policy in deploy.of("NetworkPolicy")
            if is_selected(policy["spec"]["podSelector"], template["metadata"]["labels"])
        ]
        if {kind for policy in policies for kind in policy["policyTypes"]} != {"Ingress", "Egress"}:
            yield f"{where}: no network policy limits what reaches it or what it reaches"
        rules = lambda direction: [rule for policy in policies for rule in policy.get(direction, [])]  # noqa: E731
        admitted = {port["port"] for rule in rules("ingress") for port in rule["ports"]}
        for port in container.get("ports", []):
            if port["name"] not in admitted:
                yield f"{where}: no network policy admits anybody to its port {port['name']}"
        reached = {port["port"] for rule in rules("egress") for port in rule["ports"]}
        variables, _ = environment(deploy, container)
        if ("SAFELIGHT_QUEUE_URL" in variables) != (5672 in reached):
            yield f"{where}: has the URL of the queue without reaching it, or the other way round"


def quantity(text):
    """Bytes of a Kubernetes quantity with a binary unit."""
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", text).groups()
    return int(number) << {"Ki": 10, "Mi": 20, "Gi": 30}[unit]


def check_figures(deploy):
    """Compares what a process needs by its configuration with the limits of its pod."""
    for where, found in deploy.of("Deployment"):
        _, spec, container = pod_template(found)
        variables, _ = environment(deploy, container)
        value = lambda key: int(variables.get(f"SAFELIGHT_{key.upper()}", deploy.defaults[key]))  # noqa: E731
        args = container["args"]
        pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if spec["terminationGracePeriodSeconds"] < pause + value("drain_timeout_ms") / 1000 + 5:
            yield f"{where}: terminationGracePeriodSeconds is shorter than preStop, drain_timeout_ms and 5 s"
        if found["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] != 0:
            yield f"{where}: a rolling update takes capacity away"
        if args[0] == "worker":
            slots = int(args[args.index("--concurrency") + 1])
            memory = (slots + 2) * value("decode_memory_bytes") + (WORKER_OVERHEAD_MIB << 20)
            disk = 0
        else:
            uploads = 0 if "delivery" in args else value("max_uploads_in_flight")
            memory = value("memory_cache_bytes") + (API_OVERHEAD_MIB << 20) + uploads * 300_000
            disk = value("disk_cache_bytes") + uploads * value("max_upload_bytes")
        if quantity(container["resources"]["limits"]["memory"]) < memory:
            yield f"{where}: the limit of memory is below {memory >> 20} MiB, its worst case"
        if quantity(spec["volumes"][0]["emptyDir"]["sizeLimit"]) < disk:
            yield f"{where}: the volume is smaller than {disk >> 20} MiB, its worst case"


def check_scaling(deploy):
    for where, found in deploy.of("ScaledObject"):
        target = deploy.named("Deployment", found["spec"]["scaleTargetRef"]["name"])
        if target is None:
            yield f"{where}: there is no such Deployment"
            continue
        if "replicas" in target["spec"]:
            yield f"{where}: the Deployment sets replicas too, and each apply would win"
        args = pod_template(target)[2]["args"]
        lane = args[args.index("--lanes") + 1]
        for trigger in found["spec"]["triggers"]:
            required, optional = TRIGGERS[trigger["type"]]
            keys = set(trigger["metadata"])
            for key in sorted((required - keys) | (keys - required - optional)):
                yield f"{where}: {trigger['type']}: {key} is missing, or unknown"
            queue = trigger["metadata"].get("queueName", f"safelight.any.{lane}.v1")
            if not re.fullmatch(rf"safelight\.[a-z]+\.{lane}\.v1", queue):
                yield f"{where}: {queue} is no queue of the lane {lane}"
            # KEDA falls back for averages only.
            if trigger.get("metricType") != "AverageValue":
                yield f"{where}: {trigger['type']}: fallback wants metricType AverageValue"
            authentication = trigger.get("authenticationRef", {}).get("name")
            if authentication and not deploy.named("TriggerAuthentication", authentication):
                yield f"{where}: no TriggerAuthentication {authentication}"
    for where, found in deploy.of("TriggerAuthentication"):
        for source in found["spec"]["secretTargetRef"]:
            secret = deploy.named("Secret", source["name"])
            if secret is None or source["key"] not in secret["stringData"]:
                yield f"{where}: no {source['key']} in the Secret {source['name']}"


# --- PromQL -----------------------------------------------------------------------------------


def expressions(deploy):
    """Yields (where, PromQL, labels of the result that a legend or a text uses)."""
    for panel in deploy.dashboard["panels"]:
        for target in panel.get("targets", []):
            legend = re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))
            yield f"safelight.json: {panel['title']}", target.get("expr", ""), legend
    for group in deploy.rules["groups"]:
        for rule in group["rules"]:
            text = json.dumps(rule.get("annotations", {}))
            yield f"alerts.yaml: {rule.get('alert')}", rule["expr"], re.findall(r"\$labels\.(\w+)", text)
    for where, found in deploy.of("ScaledObject"):
        for trigger in found["spec"]["triggers"]:
            if trigger["type"] == "prometheus":
                yield f"{where}: {trigger.get('name')}", trigger["metadata"]["query"], []


def check_promql(deploy):
    for where, expression, shown in expressions(deploy):
        # Grafana replaces its variables before Prometheus parses the expression.
        try:
            tree = promql_parser.parse(expression.replace("$__rate_interval", "5m"))
        except ValueError as error:
            yield f"{where}: {error}: {expression.strip()}"
            continue
        nodes = []
        promql_parser.walk(tree, nodes.append)
        known, grouped = set(SCRAPE_LABELS), set()
        for node in nodes:
            if isinstance(node, promql_parser.VectorSelector):
                labels = deploy.metrics.get(node.name)
                if labels is None:
                    yield f"{where}: {node.name} is not among the metrics in docs/fleet.md"
                    continue
                known |= labels
                for matcher in node.matchers.matchers:
                    if matcher.name not in labels | SCRAPE_LABELS:
                        yield f"{where}: {node.name} has no label {matcher.name}"
            elif isinstance(node, promql_parser.AggregateExpr) and node.modifier:
                grouped |= set(node.modifier.labels)
            elif isinstance(node, promql_parser.BinaryExpr) and node.modifier and node.modifier.matching:
                grouped |= set(node.modifier.matching.labels)
        for label in sorted(grouped - known):
            yield f"{where}: none of its metrics has the label {label}"
        for label in sorted(set(shown) - grouped):
            yield f"{where}: shows the label {label}, which its result does not have"


def check_rules(deploy):
    for group in deploy.rules["groups"]:
        for rule in group["rules"]:
            if not {"alert", "expr", "for", "labels", "annotations"} <= set(rule):
                yield f"alerts.yaml: {rule.get('alert')} lacks expr, for, labels or annotations"
            elif not {"summary", "action"} <= set(rule["annotations"]) or "severity" not in rule["labels"]:
                yield f"alerts.yaml: {rule['alert']} lacks summary, action or severity"


# --- Grafana ----------------------------------------------------------------------------------


def check_dashboard(deploy):
    variables = {variable["name"]: variable["type"] for variable in deploy.dashboard["templating"]["list"]}
    if variables.get("datasource") != "datasource":
        yield "safelight.json: no variable for the data source"
    ids, taken, titles = set(), {}, set()
    for panel in deploy.dashboard["panels"]:
        title, place = panel["title"], panel["gridPos"]
        if not title or title in titles or panel["id"] in ids:
            yield f"safelight.json: the panel {panel['id']} {title!r} needs an id and a title of its own"
        ids.add(panel["id"])
        titles.add(title)
        if place["x"] < 0 or place["x"] + place["w"] > 24:
            yield f"safelight.json: {title} is wider than the 24 columns"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if (x, y) in taken:
                    yield f"safelight.json: {title} lies on {taken[x, y]}"
                    break
                taken[x, y] = title
            else:
                continue
            break
        if panel["type"] == "row":
            continue
        if not panel.get("targets") or not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"safelight.json: {title} needs targets and a unit"
        for part in [panel, *panel.get("targets", [])]:
            if part.get("datasource") != {"type": "prometheus", "uid": "${datasource}"}:
                yield f"safelight.json: {title} does not use the variable for the data source"
        if len({target["refId"] for target in panel.get("targets", [])}) != len(panel.get("targets", [])):
            yield f"safelight.json: {title} has a refId twice"


# --- all --------------------------------------------------------------------------------------

CHECKS = [
    check_schemas, check_kustomization, check_references, check_security, check_network, check_figures, check_scaling,
    check_promql, check_rules, check_dashboard,
]  # fmt: skip


def problems(deploy, crds):
    """Every problem, one line each."""
    found = [problem for check in CHECKS for problem in check(deploy)]
    return found + list(check_custom(deploy, crds) if crds else [])


def self_test(deploy, crds):
    """Breaks one item after the other; returns how many its check did not notice."""
    container = lambda d, name: pod_template(d.named("Deployment", name))[2]  # noqa: E731
    scaled = lambda d: d.named("ScaledObject", "worker-interactive")["spec"]  # noqa: E731
    panel = lambda d: next(p for p in d.dashboard["panels"] if p["type"] != "row")  # noqa: E731
    api = lambda d: d.named("Deployment", "api")["spec"]  # noqa: E731
    rule = lambda d: d.rules["groups"][0]["rules"][0]  # noqa: E731
    broken = [
        (check_schemas, "replcas", lambda d: api(d).update(replcas=2)),
        (check_schemas, "integer", lambda d: api(d).update(replicas="two")),
        (check_kustomization, "extra.yaml", lambda d: d.files.append("extra.yaml")),
        (check_kustomization, "namespace other", lambda d: d.named("Service", "api")["metadata"].update(namespace="other")),
        (check_references, "does not match", lambda d: api(d)["selector"].update(matchLabels={"a": "b"})),
        (check_references, "selects no pod", lambda d: d.named("Service", "api")["spec"].update(selector={"a": "b"})),
        (check_references, "port", lambda d: container(d, "api")["readinessProbe"]["httpGet"].update(port="web")),
        (check_references, "not set", lambda d: container(d, "api").update(image="other")),
        (check_references, "no Secret", lambda d: container(d, "api")["envFrom"][1]["secretRef"].update(name="other")),
        (check_references, "SAFELIGHT_LISTN", lambda d: container(d, "api").update(env=[{"name": "SAFELIGHT_LISTN", "value": ""}])),
        (check_references, "enableServiceLinks", lambda d: api(d)["template"]["spec"].pop("enableServiceLinks")),
        (check_references, "no volume", lambda d: container(d, "api")["volumeMounts"][0].update(name="other")),
        (check_security, "more rights", lambda d: container(d, "api")["securityContext"].update(readOnlyRootFilesystem=False)),
        (check_network, "no network policy limits", lambda d: d.named("NetworkPolicy", "default")["spec"].update(policyTypes=["Ingress"], podSelector={"matchLabels": {"a": "b"}})),
        (check_network, "no network policy admits", lambda d: d.named("NetworkPolicy", "metrics")["spec"].pop("ingress")),
        (check_network, "URL of the queue", lambda d: container(d, "delivery")["envFrom"].append({"secretRef": {"name": "safelight-queue"}})),
        (check_figures, "terminationGrace", lambda d: api(d)["template"]["spec"].update(terminationGracePeriodSeconds=30)),
        (check_figures, "capacity", lambda d: api(d)["strategy"]["rollingUpdate"].update(maxUnavailable=1)),
        (check_figures, "limit of memory", lambda d: container(d, "worker-bulk").update(args=["worker", "--lanes", "bulk", "--concurrency", "4"])),
        (check_figures, "volume is smaller", lambda d: api(d)["template"]["spec"]["volumes"][0]["emptyDir"].update(sizeLimit="1Gi")),
        (check_scaling, "no such Deployment", lambda d: scaled(d)["scaleTargetRef"].update(name="other")),
        (check_scaling, "sets replicas", lambda d: d.named("Deployment", "worker-bulk")["spec"].update(replicas=1)),
        (check_scaling, "queueLength", lambda d: scaled(d)["triggers"][0]["metadata"].update(queueLength="5")),
        (check_scaling, "no queue", lambda d: scaled(d)["triggers"][0]["metadata"].update(queueName="safelight.thumbnail.bulk.v1")),
        (check_scaling, "AverageValue", lambda d: scaled(d)["triggers"][0].update(metricType="Value")),
        (check_scaling, "no TriggerAuth", lambda d: scaled(d)["triggers"][0]["authenticationRef"].update(name="other")),
        (check_promql, "safelight_job ", lambda d: scaled(d)["triggers"][3]["metadata"].update(query="sum(safelight_job)")),
        (check_promql, "parenthesis", lambda d: panel(d)["targets"][0].update(expr="sum(safelight_jobs")),
        (check_promql, "matrix", lambda d: rule(d).update(expr="rate(safelight_leases_lost_total)")),
        (check_promql, "safelight.json", lambda d: panel(d)["targets"][0].pop("expr")),
        (check_promql, "safelight_wrong", lambda d: rule(d).update(expr="safelight_wrong > 1")),
        (check_promql, "no label queue", lambda d: rule(d).update(expr='safelight_jobs{queue="a"}')),
        (check_promql, "label queue", lambda d: rule(d).update(expr="sum by (queue) (safelight_jobs)")),
        (check_promql, "shows the label lane", lambda d: panel(d)["targets"][0].update(expr="max(safelight_jobs)")),
        (check_rules, "severity", lambda d: rule(d)["labels"].clear()),
        (check_dashboard, "of its own", lambda d: panel(d).update(id=1)),
        (check_dashboard, "24 columns", lambda d: panel(d)["gridPos"].update(x=20)),
        (check_dashboard, "lies on", lambda d: panel(d)["gridPos"].update(y=0)),
        (check_dashboard, "data source", lambda d: panel(d)["targets"][0].update(datasource=None)),
        (check_dashboard, "a unit", lambda d: panel(d)["fieldConfig"]["defaults"].pop("unit")),
        (check_custom, "polingInterval: unknown", lambda d: scaled(d).update(polingInterval=1)),
        (check_custom, "metadata/value", lambda d: scaled(d)["triggers"][0]["metadata"].update(value=64)),
        (check_custom, "expression: unknown", lambda d: rule(d).update(expression="1")),
        (check_custom, "portt: unknown", lambda d: d.named("PodMonitor", "safelight")["spec"]["podMetricsEndpoints"][0].update(portt="http")),
    ]  # fmt: skip
    unnoticed = 0
    for check, wanted, change in broken:
        if check is check_custom and not crds:
            continue
        changed = copy.deepcopy(deploy)
        change(changed)
        found = check(changed, crds) if check is check_custom else check(changed)
        if not any(wanted in problem for problem in found):
            print(f"self-test: {check.__name__} did not report {wanted!r}", file=sys.stderr)
            unnoticed += 1
    return unnoticed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crds", type=pathlib.Path, help="where scripts/crd-schemas is installed")
    parser.add_argument("--metrics", type=pathlib.Path, default=ROOT / "docs/fleet.md", help="file with the table of metrics")
    parser.add_argument("--self-test", action="store_true", help="also break each checked item in turn")
    options = parser.parse_args()
    if not options.metrics.exists():
        sys.exit(f"{options.metrics} does not exist: cannot check the metrics in use")
    deploy = Deploy(options.metrics)
    found = problems(deploy, options.crds)
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        sys.exit(1)
    if options.self_test and self_test(deploy, options.crds):
        sys.exit(1)


if __name__ == "__main__":
    main()
