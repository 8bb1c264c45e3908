"""Holds the chart and tests/helm/custom against definitions as the operators publish them, given as files.

`python tests/helm/upstream.py keda.sh_scaledobjects.yaml monitoring.coreos.com_servicemonitors.yaml …`

KEDA at 8b4f083 (2026-08-20) and prometheus-operator at 6adcebc (2026-08-08): no difference. The definitions are not
kept here; custom/*.json says the same of what the chart makes, in less, and this says whether it still does.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import test_chart
import yaml

Schema = dict[str, Any]


def strict(schema: Any) -> Any:
    """Return a structural schema as JSON Schema that refuses fields which the API server would drop."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def unknown(ours: Schema, theirs: Schema, path: str) -> Iterator[str]:
    """Yield the fields that our schema knows and theirs does not."""
    if not theirs.get("additionalProperties"):
        for name, each in ours.get("properties", {}).items():
            if name in theirs.get("properties", {}):
                yield from unknown(each, theirs["properties"][name], f"{path}.{name}")
            else:
                yield f"{path}.{name}"
    if "items" in ours and "items" in theirs:
        yield from unknown(ours["items"], theirs["items"], f"{path}[]")


def main(paths: list[str]) -> int:
    """Print what does not fit; answer how much that is."""
    wrong = []
    manifests = [each for values in test_chart.CONFIGURATIONS.values() for each in test_chart.render(values)]
    for path in paths:
        definition = yaml.safe_load(Path(path).read_text())
        kind = definition["spec"]["names"]["kind"]
        stored = next(each for each in definition["spec"]["versions"] if each["storage"])
        schema = strict(stored["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object", "additionalProperties": True}
        check = jsonschema.Draft202012Validator(schema)
        mine = [each for each in manifests if each["kind"] == kind]
        print(f"{kind} {stored['name']}: {len(mine)} of the chart")
        wrong += [f"{error.json_path}: {error.message}" for each in mine for error in check.iter_errors(each)]
        wrong += [f"{field}: not known upstream" for field in unknown(test_chart.CUSTOM[kind], schema, kind)]
    print("\n".join(wrong) or "no difference")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
