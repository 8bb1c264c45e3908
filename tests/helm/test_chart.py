"""The Helm chart: what it renders is valid, locked down, and agrees with the settings and the Procfile."""

import functools
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from settings import Settings, __version__
from storage import queues

helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed"
)
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"

EVERYTHING = {
    "imagePullSecrets": ["registry"],
    "settings": {"HOSTLER_RATE_LIMIT": 1_000_000, "HOSTLER_OPEN_REGISTRATION": False, "S3_BUCKET": "fleet"},
    "drainSeconds": 600,
    "web": {"autoscaling": {"enabled": True}, "nodeSelector": {"disk": "ssd"}},
    "service": {"annotations": {"a": "b"}},
    "ingress": {"enabled": True, "className": "nginx", "host": "hostler.example", "tlsSecretName": "tls"},
    "workers": [
        {"name": "general", "replicas": 3, "slots": 4},
        {"name": "gpu", "replicas": 0, "slots": 1, "tags": ["gpu", "linux"], "workDirSize": "100Gi"},
    ],
}
FILES = sorted((CHART / "ci").glob("*.yaml"))
CONFIGURATIONS = {
    "everything": EVERYTHING,
    "no workers": {"workers": []},
    **{path.stem: yaml.safe_load(path.read_text()) for path in FILES},
}
#: What the objects of operators look like, as far as the chart makes them; Kubernetes itself does not know them.
#: upstream.py holds them against what the operators publish.
CUSTOM = {
    path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "custom").glob("*.json")
}
VERSIONS = ("1.30", "1.34", "1.37")


def render(values: dict, name: str = "demo") -> list[dict]:
    return json.loads(_rendered(json.dumps(values), name))


@functools.cache
def _rendered(told: str, name: str) -> str:
    values = json.loads(told)
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name=name, namespace="prod")
    texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
    return json.dumps([one for text in texts for one in yaml.load_all(text, yaml.CSafeLoader) if one])


def golden_text(path: Path) -> str:
    """Return all that the chart renders from a file of values, as it is kept."""
    rendered = render(yaml.safe_load(path.read_text()))
    rendered.sort(key=lambda manifest: (manifest["kind"], manifest["metadata"]["name"]))
    for manifest in rendered:
        if "hostler.json" in manifest.get("data", {}):
            manifest["data"]["hostler.json"] = "helm/files/dashboard.json"
        if manifest["kind"] == "PrometheusRule":
            manifest["spec"] = "helm/files/alerts.yaml"
    return yaml.safe_dump_all(rendered, sort_keys=False, width=200)


def scaled(*tags: str, **autoscaling: int) -> dict:
    workers = {"name": "some", "replicas": 7, "slots": 4, "tags": list(tags)}
    return {
        "workers": [workers | {"autoscaling": {"enabled": True, **autoscaling}}],
        "keda": {"prometheusAddress": "http://prometheus:9090"},
    }


def of_kind(manifests: list[dict], kind: str) -> dict[str, dict]:
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == kind}


def pods(manifests: list[dict]) -> dict[str, dict]:
    found = of_kind(manifests, "Deployment") | of_kind(manifests, "Job")
    return {name: manifest["spec"]["template"]["spec"] for name, manifest in found.items()}


def environment(pod: dict) -> dict[str, str | None]:
    return {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}


@pytest.fixture(params=CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def manifests(request) -> list[dict]:
    return render(request.param)


@pytest.mark.parametrize("values", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_the_chart_passes_helms_own_lint(values):
    report = helm.lint(CHART, values, strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_fits_the_kubernetes_schema(manifests, version):
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_every_object_of_an_operator_fits_its_schema(manifests):
    import jsonschema  # takes two seconds, which everybody who collects tests would spend

    for manifest in manifests:
        if manifest["kind"] in CUSTOM:
            jsonschema.validate(manifest, CUSTOM[manifest["kind"]])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_rendered_is_what_was_looked_at(path):
    golden = Path(__file__).parent / "golden" / path.name
    assert golden.read_text() == golden_text(path), "It has changed: look at it, and run make golden."


def test_nothing_is_rendered_twice(manifests):
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert sorted(names) == sorted(set(names))


def test_every_pod_meets_the_restricted_standard(manifests):
    for pod in pods(manifests).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(set(volume) <= {"name", "emptyDir", "secret"} for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_no_pod_holds_a_token_of_the_cluster(manifests):
    accounts = of_kind(manifests, "ServiceAccount")
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    for pod in pods(manifests).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
    assert {
        pod["serviceAccountName"] for pod in pods(manifests).values() if "serviceAccountName" in pod
    } == set(accounts)


def test_the_settings_accept_what_each_pod_is_given(manifests):
    for pod in pods(manifests).values():
        given = environment(pod)
        from_secret = {name for name, value in given.items() if value is None}
        secrets = dict.fromkeys(from_secret, "https://long-enough-for-a-secret-key.example")
        given.pop("HOSTLER_REDIS_CA_FILE", None)  # it is in the pod
        settings = Settings.from_env(given | secrets)
        assert from_secret >= {"REDIS_URL", "S3_ENDPOINT_URL", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"}
        assert settings.secret_key == secrets["HOSTLER_SECRET_KEY"]
        assert pod["terminationGracePeriodSeconds"] >= settings.drain_s + settings.kill_grace_s + 10


def test_settings_reach_every_pod_as_they_were_written():
    for pod in pods(render(EVERYTHING)).values():
        settings = Settings.from_env(
            {name: value for name, value in environment(pod).items() if value is not None}
        )
        assert (settings.rate_limit_per_s, settings.open_registration, settings.s3_bucket) == (
            1_000_000,
            False,
            "fleet",
        )
        assert settings.drain_s == 600


def test_workers_never_see_the_administrators_password():
    for name, pod in pods(render({})).items():
        assert ("HOSTLER_ADMIN_PASSWORD" in environment(pod)) is ("-worker-" not in name)


def test_each_set_of_workers_has_its_tags_slots_and_folder():
    found = pods(render(EVERYTHING))
    for name, tags, slots, size in [("general", (), 4, "10Gi"), ("gpu", ("gpu", "linux"), 1, "100Gi")]:
        pod = found[f"demo-hostler-worker-{name}"]
        given = {key: value for key, value in environment(pod).items() if value is not None}
        settings = Settings.from_env(given)
        assert (settings.tags, settings.slots) == (tags, slots)
        mounted = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert str(settings.work_dir) in mounted
        assert {"name": "work", "emptyDir": {"sizeLimit": size}} in pod["volumes"]


def test_selectors_choose_the_pods_of_one_deployment_and_no_other(manifests):
    deployments = of_kind(manifests, "Deployment")
    budgets = of_kind(manifests, "PodDisruptionBudget")
    assert set(budgets) == set(deployments)
    labels = {name: one["spec"]["template"]["metadata"]["labels"] for name, one in deployments.items()}
    for name, deployment in deployments.items():
        for selector in (deployment["spec"]["selector"], budgets[name]["spec"]["selector"]):
            chosen = [other for other in labels if selector["matchLabels"].items() <= labels[other].items()]
            assert chosen == [name]
    (service,) = of_kind(manifests, "Service").values()
    chosen = [name for name in labels if service["spec"]["selector"].items() <= labels[name].items()]
    assert chosen == ["demo-hostler-web"]


def test_the_web_is_probed_where_it_listens(manifests):
    container = pods(manifests)["demo-hostler-web"]["containers"][0]
    given = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    given.pop("HOSTLER_REDIS_CA_FILE", None)  # it is in the pod
    settings = Settings.from_env(given)
    assert container["ports"] == [{"name": "http", "containerPort": settings.port}]
    assert settings.bind_host == "0.0.0.0"  # noqa: S104  a pod is reached from outside itself
    paths = {
        probe: container[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {
        "startupProbe": {"path": "/api/health/live", "port": "http"},
        "livenessProbe": {"path": "/api/health/live", "port": "http"},
        "readinessProbe": {"path": "/api/health/ready", "port": "http"},
    }


def test_the_commands_are_those_of_the_procfile():
    lines = (ROOT / "Procfile").read_text().splitlines()
    procfile = {name: shlex.split(command) for name, command in (line.split(": ", 1) for line in lines)}
    # in a slug Hostler is not installed, in an image it is
    for name, command in procfile.items():
        if command[:2] == ["python", "-m"]:
            procfile[name] = [
                "hostler",
                *({"workers": "worker"}.get(word, word) for word in command[2:] if word != "cli"),
            ]
    commands = {name: pod["containers"][0]["command"] for name, pod in pods(render({})).items()}
    assert commands == {
        "demo-hostler-prepare": procfile["release"],
        "demo-hostler-web": procfile["web"],
        "demo-hostler-worker-general": procfile["worker"],
        "demo-hostler-scheduler": procfile["clock"],
    }


def test_autoscaling_leaves_the_number_of_pods_to_the_autoscaler():
    plain, scaled = render({}), render(EVERYTHING)
    assert of_kind(plain, "Deployment")["demo-hostler-web"]["spec"]["replicas"] == 2
    assert of_kind(plain, "HorizontalPodAutoscaler") == {}
    assert "replicas" not in of_kind(scaled, "Deployment")["demo-hostler-web"]["spec"]
    (scaler,) = of_kind(scaled, "HorizontalPodAutoscaler").values()
    assert scaler["spec"]["scaleTargetRef"]["name"] == "demo-hostler-web"


def test_all_requests_of_a_session_reach_one_pod():
    manifests = render(EVERYTHING)
    (service,) = of_kind(manifests, "Service").values()
    assert service["spec"]["sessionAffinity"] == "ClientIP"
    (ingress,) = of_kind(manifests, "Ingress").values()
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/affinity"] == "cookie"


def test_an_ingress_leads_to_the_service():
    assert of_kind(render({}), "Ingress") == {}
    (ingress,) = of_kind(render(EVERYTHING), "Ingress").values()
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "hostler.example"
    assert rule["http"]["paths"][0]["backend"]["service"] == {
        "name": "demo-hostler-web",
        "port": {"name": "http"},
    }
    assert ingress["spec"]["tls"] == [{"hosts": ["hostler.example"], "secretName": "tls"}]


@pytest.mark.parametrize("name", ["hostler", "my-hostler", "a" * 53])
def test_names_stay_within_what_kubernetes_takes(name):
    values = {"workers": [{"name": "w" * 20, "replicas": 1, "slots": 1}]}
    for manifest in render(values, name=name):
        assert len(manifest["metadata"]["name"]) <= 63


@pytest.mark.parametrize(
    "values",
    [
        {"settings": {"HOSTLER_SECRET_KEY": "in plain sight"}},
        {"settings": {"HOSTLER_PORT": 9000}},
        {"ingress": {"enabled": True}},
        {"web": {"replica": 3}},
        {"drainSeconds": -1},
        {"workers": [{"name": "Not a name", "replicas": 1, "slots": 1}]},
        {"workers": [{"name": "a", "replicas": 1, "slots": 0}]},
        {"workers": [{"name": "a", "replicas": 1, "slots": 1, "tags": ["a,b"]}]},
        {"workers": [{"name": "a", "replicas": 1, "slots": 1}] * 2},
        {"workers": [{"name": "a", "replicas": 1, "slots": 1, "tags": ["a+b"]}]},
        {"workers": [{"name": "a", "replicas": 1, "slots": 1, "autoscaling": {"enabled": True}}]},
        scaled(minReplicas=5, maxReplicas=2),
        {"web": {"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 2}}},
        {"keda": {"prometheusAddress": "prometheus:9090"}},
        {"networkPolicy": {"egressPorts": [0]}},
        {"settings": {"HOSTLER_METRICS_TAGS": "gpu"}},
    ],
)
def test_values_that_make_no_sense_are_refused(values):
    with pytest.raises(helm.HelmError):
        render(values)


def scalers(values: dict) -> dict[str, dict]:
    return {name: one["spec"] for name, one in of_kind(render(values), "ScaledObject").items()}


def test_keda_sets_the_number_of_workers_by_what_waits_and_for_how_long():
    values = scaled(minReplicas=0, maxReplicas=9, oldestSeconds=30)
    assert "replicas" not in of_kind(render(values), "Deployment")["demo-hostler-worker-some"]["spec"]
    spec = scalers(values)["demo-hostler-worker-some"]
    assert spec["scaleTargetRef"] == {"name": "demo-hostler-worker-some"}
    assert (spec["minReplicaCount"], spec["maxReplicaCount"], spec["fallback"]["replicas"]) == (0, 9, 1)
    triggers = {each["name"]: each["metadata"] for each in spec["triggers"]}
    assert {name: each["threshold"] for name, each in triggers.items()} == {"jobs": "4", "oldest": "30"}
    assert "hostler_queue_jobs" in triggers["jobs"]["query"]
    assert "hostler_queue_running_jobs" in triggers["jobs"]["query"]
    assert "hostler_queue_oldest_seconds" in triggers["oldest"]["query"]


def test_the_numbers_that_keda_asks_for_are_those_that_metrics_tells():
    told = (ROOT / "api/shared/metrics.py").read_text()
    queries = " ".join(
        each["metadata"]["query"] for each in scalers(scaled())["demo-hostler-worker-some"]["triggers"]
    )
    for name in set(re.findall(r"hostler_\w+(?={)", queries)):
        assert f'"{name}"' in told


@pytest.mark.parametrize(
    ("tags", "calls", "leaves"),
    [
        ((), [""], ["gpu", "node"]),
        (("linux", "gpu"), ["gpu", "linux", "gpu+linux"], ["", "gpu+arm", "gpux", "others"]),
        (("c.d",), ["c.d"], ["cxd", "c.d+e"]),
    ],
)
def test_a_set_of_workers_is_called_for_by_the_jobs_that_ask_for_its_tags(tags, calls, leaves):
    query = scalers(scaled(*tags))["demo-hostler-worker-some"]["triggers"][0]["metadata"]["query"]
    if not tags:
        assert 'tags=""' in query
        return
    expression = re.search(r"tags=~`([^`]+)`", query)[1]
    assert [name for name in [*calls, *leaves] if re.fullmatch(expression, name)] == calls


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool in PATH")
@pytest.mark.parametrize("tags", [(), ("gpu",), ("linux", "a.b")])
def test_prometheus_understands_what_keda_asks(tags, tmp_path):
    triggers = scalers(scaled(*tags))["demo-hostler-worker-some"]["triggers"]
    rules = [{"record": f"asked:{each['name']}", "expr": each["metadata"]["query"]} for each in triggers]
    written = tmp_path / "rules.yaml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "keda", "rules": rules}]}))
    ended = subprocess.run(
        ["promtool", "check", "rules", str(written)], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout


def test_metrics_names_the_tags_of_workers_that_are_all_away():
    workers = [{"name": name, "replicas": 0, "slots": 1, "tags": tags} for name, tags in
               [("a", ["linux", "gpu"]), ("b", ["gpu"]), ("c", [])]]  # fmt: skip
    web = pods(render({"workers": workers}))["demo-hostler-web"]
    settings = Settings.from_env({"HOSTLER_METRICS_TAGS": environment(web)["HOSTLER_METRICS_TAGS"] or ""})
    assert set(settings.metrics_tags) == {"gpu", "linux", queues.tag_set(["linux", "gpu"])}


def test_only_the_web_is_reached_and_nobody_reaches_a_clouds_credentials(manifests):
    policies = {
        name.removeprefix("demo-hostler-"): one["spec"]
        for name, one in of_kind(manifests, "NetworkPolicy").items()
    }
    assert set(policies) == {"web", "worker", "scheduler", "prepare"}
    assert [name for name, policy in policies.items() if policy["ingress"]] == ["web"]
    for policy in policies.values():
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        for rule in policy["egress"]:
            ports = {each["port"] for each in rule.get("ports", [])}
            blocks = [each["ipBlock"] for each in rule.get("to", [])]
            assert ports == {53} or "169.254.0.0/16" in blocks[0]["except"]


def test_each_pod_has_a_policy(manifests):
    policies = [
        one["spec"]["podSelector"]["matchLabels"] for one in of_kind(manifests, "NetworkPolicy").values()
    ]
    found = of_kind(manifests, "Deployment") | of_kind(manifests, "Job")
    for one in found.values():
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert len([policy for policy in policies if policy.items() <= labels.items()]) == 1


def test_a_policy_names_who_may_come_and_where_the_control_plane_may_go():
    peers = [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]
    values = {"networkPolicy": {"webFrom": peers, "egressPorts": [443, 6379]}}
    policies = {name: one["spec"] for name, one in of_kind(render(values), "NetworkPolicy").items()}
    assert policies["demo-hostler-web"]["ingress"][0]["from"] == peers
    assert [each["port"] for each in policies["demo-hostler-scheduler"]["egress"][1]["ports"]] == [443, 6379]
    assert "ports" not in policies["demo-hostler-worker"]["egress"][1]  # jobs go where they are told to


def test_prometheus_finds_metrics_where_the_web_serves_them():
    values = {"monitoring": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}}
    manifests = render(values)
    (monitor,) = of_kind(manifests, "ServiceMonitor").values()
    (service,) = of_kind(manifests, "Service").values()
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == (service["spec"]["ports"][0]["name"], "/metrics")
    assert of_kind(render({}), "ServiceMonitor") == {}


def test_rules_and_dashboard_are_those_of_the_files():
    values = {"monitoring": {"rules": {"enabled": True}, "dashboard": {"enabled": True}}}
    manifests = render(values)
    (rules,) = of_kind(manifests, "PrometheusRule").values()
    assert rules["spec"] == yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    (dashboard,) = of_kind(manifests, "ConfigMap").values()
    assert json.loads(dashboard["data"]["hostler.json"]) == json.loads(
        (CHART / "files/dashboard.json").read_text()
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, None),
        ({"ingress": {"enabled": True, "host": "a.example"}}, "http://a.example"),
        ({"ingress": {"enabled": True, "host": "a.example", "tlsSecretName": "tls"}}, "https://a.example"),
        (
            {"ingress": {"enabled": True, "host": "a"}, "settings": {"HOSTLER_PUBLIC_URL": "https://b"}},
            "https://b",
        ),
    ],
)
def test_the_web_knows_the_address_from_which_browsers_may_use_it(values, told):
    web = pods(render(values))["demo-hostler-web"]
    assert environment(web).get("HOSTLER_PUBLIC_URL") == told
    assert sum(each["name"] == "HOSTLER_PUBLIC_URL" for each in web["containers"][0]["env"]) == (
        told is not None
    )


def test_sockets_and_uploads_pass_the_ingress():
    (ingress,) = of_kind(render(EVERYTHING), "Ingress").values()
    told = {name.rpartition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()}
    assert int(told["proxy-read-timeout"]) >= 3600
    assert (
        int(told["proxy-body-size"].removesuffix("m")) * 1024 * 1024
        > Settings.from_env({}).upload_limit_bytes
    )


def test_a_redis_of_an_authority_of_its_own_is_trusted():
    found = pods(render({"redisCA": {"secretName": "redis-ca"}}))
    assert found
    for pod in found.values():
        path = environment(pod)["HOSTLER_REDIS_CA_FILE"]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert path == mounts["redis-ca"] + "/ca.crt"
        assert {"name": "redis-ca", "secret": {"secretName": "redis-ca"}} in pod["volumes"]


def test_the_chart_runs_the_release_that_it_belongs_to():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    assert {path.stem for path in FILES} == {"minimal", "production", "scale-to-zero"}
