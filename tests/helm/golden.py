"""Write tests/helm/golden anew: what the chart renders from each file of values in helm/ci."""

from pathlib import Path

from test_chart import FILES, golden_text

if __name__ == "__main__":
    for path in FILES:
        (Path(__file__).parent / "golden" / path.name).write_text(golden_text(path))
