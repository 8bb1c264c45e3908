"""Notes: a small FastAPI that keeps them in the app's data directory."""

import json
import os
import threading
from pathlib import Path

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

FILE = Path(os.environ.get("HOSTLER_DATA_DIR", ".")) / "notes.json"

app = FastAPI(title="Notes", version="1.0.0", openapi_url="/openapi.json")
changing = threading.Lock()


class Draft(BaseModel):
    """A note to be kept."""

    text: str = Field(min_length=1, max_length=10_000)


class Note(Draft):
    """A note that is kept."""

    id: int


def read() -> list[Note]:
    """Return all notes."""
    return [Note(**each) for each in json.loads(FILE.read_text())] if FILE.exists() else []


def write(notes: list[Note]) -> None:
    """Keep these notes, all or none of them."""
    beside = FILE.with_suffix(".new")
    beside.write_text(json.dumps([each.model_dump() for each in notes]))
    beside.replace(FILE)


@app.get("/api/health")
def health() -> dict[str, str]:
    """Say that all is well."""
    return {"status": "ok"}


@app.get("/api/notes")
def list_notes() -> list[Note]:
    """List the notes."""
    return read()


@app.post("/api/notes", status_code=201)
def add_note(draft: Draft) -> Note:
    """Keep a note."""
    with changing:
        notes = read()
        note = Note(id=max((each.id for each in notes), default=0) + 1, text=draft.text)
        write([*notes, note])
    return note


@app.delete("/api/notes/{note_id}", status_code=204)
def remove_note(note_id: int) -> None:
    """Throw a note away."""
    with changing:
        notes = read()
        left = [each for each in notes if each.id != note_id]
        if len(left) == len(notes):
            raise HTTPException(404, "There is no such note.")
        write(left)
