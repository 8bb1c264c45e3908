"""The Helm chart: what it renders is valid, locked down, and agrees with the settings and the Procfile."""

import shlex
from pathlib import Path

import pytest

from settings import Settings

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
CONFIGURATIONS = {"default": {}, "everything": EVERYTHING, "no workers": {"workers": []}}


def render(values: dict, name: str = "demo") -> list[dict]:
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name=name, namespace="prod")
    texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


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


@pytest.mark.parametrize("version", ["1.32", "1.37"])
def test_every_manifest_fits_the_kubernetes_schema(manifests, version):
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_nothing_is_rendered_twice(manifests):
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert sorted(names) == sorted(set(names))


def test_every_pod_meets_the_restricted_standard(manifests):
    for pod in pods(manifests).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(set(volume) <= {"name", "emptyDir"} for volume in pod["volumes"])
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
    settings = Settings.from_env({e["name"]: e["value"] for e in container["env"] if "value" in e})
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
    ],
)
def test_values_that_make_no_sense_are_refused(values):
    with pytest.raises(helm.HelmError):
        render(values)
