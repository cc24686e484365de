"""All missing places are named at once, and only those that are missing."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from huggingface_hub import constants

from qat_lightning.data import hub
from qat_lightning.data.hub import UnreachableError, require_hub

BOTH = {"model.path": "google-bert/bert-base-uncased", "data.path": "nyu-mll/glue"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Empty caches, and a hub at a local port without a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@contextmanager
def answering(monkeypatch, status: int) -> Iterator[list[str]]:
    """A hub on this machine; yields the requests that it gets."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()


def cache(root, *parts):
    file = root.joinpath(*parts)
    file.parent.mkdir(parents=True)
    file.write_text("{}")


def test_one_message_names_everything_and_both_overrides_within_seconds():
    began = time.monotonic()
    with pytest.raises(UnreachableError) as error:
        require_hub(BOTH)
    assert time.monotonic() - began < 8
    assert str(error.value) == (
        "model.path='google-bert/bert-base-uncased', data.path='nyu-mll/glue': neither a local folder nor cached, and"
        " the hub cannot be reached: set model.path=FOLDER data.path=FOLDER"
    )


def test_folders_need_no_hub_and_ask_none(tmp_path, monkeypatch):
    with answering(monkeypatch, 200) as asked:
        require_hub({"model.path": str(tmp_path), "data.path": str(tmp_path)})
    assert not asked


@pytest.mark.parametrize("place", ["/no/such/folder", "~/data", "data/glue/cola"])
def test_path_that_is_not_a_folder_is_named(place):
    with pytest.raises(UnreachableError) as error:
        require_hub({"model.path": place, "data.path": "nyu-mll/glue"})
    assert str(error.value).startswith(f"model.path={place!r} is not a folder; data.path='nyu-mll/glue': neither")
    assert str(error.value).endswith("set model.path=FOLDER data.path=FOLDER")


def test_cached_models_and_data_sets_need_no_hub(tmp_path):
    cache(tmp_path, "hub", "models--google-bert--bert-base-uncased", "snapshots", "abc", "config.json")
    cache(tmp_path, "hub", "datasets--nyu-mll--glue", "snapshots", "abc", "README.md")
    require_hub(BOTH)


def test_a_hub_that_answers_is_asked_once(monkeypatch):
    with answering(monkeypatch, 200) as asked:
        require_hub(BOTH)
    assert len(asked) == 1


def test_offline_mode_sends_no_request(monkeypatch):
    asked = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "get_session", lambda: asked.append("session"))
    with pytest.raises(UnreachableError):
        require_hub(BOTH)
    assert not asked


def test_hanging_request_ends_after_the_time_limit(monkeypatch):
    """As the look-up of a name can, which no time limit of the request covers."""

    class Hanging:
        def head(self, *_, **__):
            time.sleep(60)

    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    monkeypatch.setattr(hub, "get_session", Hanging)
    began = time.monotonic()
    with pytest.raises(UnreachableError):
        require_hub(BOTH)
    assert time.monotonic() - began < 5
