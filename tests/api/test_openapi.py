from pathlib import Path
from typing import Any

import pytest

from api import openapi
from api.app import groups


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.document(groups())


def test_the_document_is_openapi_3_1_and_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    found = []

    def walk(each: Any) -> None:
        if isinstance(each, dict):
            found.extend([each["$ref"]] if isinstance(each.get("$ref"), str) else [])
            for inner in each.values():
                walk(inner)
        elif isinstance(each, list):
            for inner in each:
                walk(inner)

    walk(document)
    assert found
    for reference in found:
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_an_answer_names_every_field_and_admits_no_other(document: dict[str, Any]) -> None:
    answer = document["paths"]["/api/jobs/submit"]["post"]["responses"]["201"]["content"]["application/json"][
        "schema"
    ]
    assert answer["properties"]["success"] == {"type": "boolean", "const": True}
    assert set(answer["required"]) == {"success", "jobId", "status", "createdAt", "estimatedWaitTime"}
    assert answer["additionalProperties"] is False
    for name in ("JobEntry", "JobDetail", "WorkerEntry", "ReasonEntry", "NextJob"):
        assert document["components"]["schemas"][name]["additionalProperties"] is False
    ready = document["paths"]["/api/health/ready"]["get"]["responses"]["200"]["content"]["application/json"][
        "schema"
    ]
    assert "success" not in ready["properties"]


def test_what_may_be_nothing_and_what_may_go_wrong_is_told(document: dict[str, Any]) -> None:
    get_job = document["paths"]["/api/jobs/get-job"]["get"]
    assert set(get_job["responses"]) == {"200", "204", "400", "401", "403", "429", "503"}
    assert get_job["security"] == [{"workerToken": []}]
    assert set(document["paths"]["/api/jobs/stream-output"]["post"]["responses"]) >= {"404", "409", "413"}
    error = document["components"]["schemas"]["ExecutorErrorBody"]
    assert set(error["required"]) == {"error", "message", "code"}
    assert document["paths"]["/api/health"]["get"]["security"] == []


def test_bodies_that_are_no_json_are_described_too(document: dict[str, Any]) -> None:
    for path, method, media_type in (
        ("/api/files/upload", "post", "multipart/form-data"),
        ("/api/jobs/{id}/artifacts/{name}", "put", "application/octet-stream"),
    ):
        assert set(document["paths"][path][method]["requestBody"]["content"]) == {media_type}


def test_paths_are_spelled_without_converters_and_name_their_variables(document: dict[str, Any]) -> None:
    operation = document["paths"]["/api/jobs/{id}/artifacts/{name}"]["get"]
    assert [each["name"] for each in operation["parameters"] if each["in"] == "path"] == ["id", "name"]
    names = {each["name"] for each in document["paths"]["/api/jobs/list"]["get"]["parameters"]}
    assert names == {"limit", "offset", "status", "workerId", "tags", "sort", "search"}


def test_a_string_may_stand_for_a_webhook(document: dict[str, Any]) -> None:
    webhook = document["components"]["schemas"]["OrderBody"]["properties"]["webhook"]
    assert [each.get("type") or each["$ref"] for each in webhook["anyOf"]] == [
        "string",
        "#/components/schemas/WebhookBody",
    ]


def test_writing_and_checking_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(openapi, "DOCS", tmp_path / "docs")
    assert openapi.main(["--check"]) == 1
    assert "docs/routes.md is out of date" in capsys.readouterr().err
    assert openapi.main([]) == 0
    assert openapi.main(["--check"]) == 0
    page = (tmp_path / "docs" / "routes.md").read_text()
    assert "| POST | `/api/jobs/submit` | operator | `api/executor/jobs.py:submit` |" in page
    (tmp_path / "docs" / "routes.md").write_text(page.replace("operator", "viewer"))
    assert openapi.main(["--check"]) == 1
