"""Pack examples/hello-web for the page, which offers it to whoever has no product yet."""

import zipfile
from io import BytesIO
from pathlib import Path

FOLDER = Path(__file__).parent / "hello-web"
PACKED = Path(__file__).parents[1] / "api" / "page" / "app" / "hello-web.zip"


def packed(folder: Path) -> bytes:
    """Return the files of a folder as a zip that depends on their names and contents alone."""
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (2026, 1, 1, 0, 0, 0))
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, path.read_bytes())
    return made.getvalue()


if __name__ == "__main__":
    PACKED.write_bytes(packed(FOLDER))
