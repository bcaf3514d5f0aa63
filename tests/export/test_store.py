"""Candidate stores as data sets of the hub, read by datasets and made a store again."""

import http.server
import json
import shutil
import sys
import threading
from typing import ClassVar

import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import HfApi, constants

from clsp_plugin import cli
from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.errors import ClspError
from clsp_plugin.export.hub import from_hub, push_to_hub
from clsp_plugin.export.store import export_store, import_store


def clsp_does(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["clsp", *map(str, words)])
    cli.main()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The cache of the hub, without a connection."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_there_and_back(store, tmp_path, monkeypatch, capsys):
    clsp_does(monkeypatch, "export", store, "--out", tmp_path / "made")
    said = capsys.readouterr()
    assert "Exported" in said.out
    assert "parquet" not in said.err  # the only bar is our own
    rows = load_dataset(str(tmp_path / "made"), split="train", cache_dir=str(tmp_path / "cache"))
    opened = CandidateStore(store)
    assert rows["index"][:] == list(range(48))
    for index in (0, 30, 47):
        images = np.stack([np.asarray(image) for image in rows[index]["candidates"]])
        assert (images == opened.images([index])[0]).all()
    clsp_does(monkeypatch, "import-candidates", tmp_path / "made", "--out", tmp_path / "again")
    assert content(tmp_path / "again") == content(store)
    card = (tmp_path / "made/README.md").read_text()
    assert "# 3 synthetic positives for each of 48 images" in card
    assert "| w | 0.1 |" in card


def test_from_the_hub(store, hub, tmp_path, monkeypatch, capsys):
    repository = hub / "datasets--me--candidates"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0123")
    export_store(store, repository / "snapshots/0123")
    clsp_does(monkeypatch, "import-candidates", "hf:me/candidates", "--out", tmp_path / "again")
    assert content(tmp_path / "again") == content(store)
    with pytest.raises(SystemExit):
        clsp_does(monkeypatch, "import-candidates", "hf:me/others", "--out", tmp_path / "no")
    assert "hf:me/others cannot be had from the hub" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_what_was_changed_is_refused(store, tmp_path):
    made = export_store(store, tmp_path / "made")
    _, second, third = sorted((made / "data").iterdir())
    shutil.copy(second, tmp_path / "kept")
    shutil.copy(third, second)
    with pytest.raises(ClspError, match="does not hold the rows 20 to 39 of a store"):
        import_store(made, tmp_path / "again")
    second.write_bytes(b"PAR1")
    with pytest.raises(ClspError, match=r"00001-of-00003.parquet cannot be read"):
        import_store(made, tmp_path / "again")
    second.unlink()
    with pytest.raises(ClspError, match=r"00001-of-00003.parquet is missing"):
        import_store(made, tmp_path / "again")
    shutil.copy(tmp_path / "kept", second)
    assert "3 for each of 48 images" in import_store(made, tmp_path / "again")  # it goes on
    assert content(tmp_path / "again") == content(store)
    (digest,) = (made / "store").glob("shard-00000*.b2")
    digest.write_text(digest.read_text().replace("  ", "0  "))
    with pytest.raises(ClspError, match="holds other candidates than its digests say"):
        import_store(made, tmp_path / "third")
    with pytest.raises(ClspError, match="is not what `clsp export STORE` wrote"):
        import_store(store, tmp_path / "fourth")
    with pytest.raises(ClspError, match="is there already"):
        export_store(store, made)


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload asks for; what it was sent is in ``asked``."""

    asked: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, sent))
        if self.path.endswith("/repos/create"):
            answer = {"url": "https://huggingface.co/datasets/me/candidates"}
        elif "/preupload/" in self.path:
            files = json.loads(sent)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular",
                                 "shouldIgnore": False} for f in files]}  # fmt: skip
        elif "/commit/" in self.path:
            answer = {
                "commitUrl": "https://huggingface.co/datasets/me/candidates/commit/0123",
                "commitOid": "0123",
                "success": True,
            }
        else:
            answer = {}
        self._answer(answer)

    def do_GET(self):
        self._answer({"id": "me/candidates", "sha": "0123", "siblings": []})

    def _answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_it_is_pushed(store, tmp_path, monkeypatch, capsys):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    plain = HfApi.__init__

    def local(self, *args, **kwargs):
        plain(self, endpoint=address, token="hf_test")

    monkeypatch.setattr(HfApi, "__init__", local)
    try:
        clsp_does(monkeypatch, "export", store, "--push-to-hub", "me/candidates", "--private")
    finally:
        server.shutdown()
        server.server_close()
    assert "On the hub: " in capsys.readouterr().out
    created = json.loads(next(sent for path, sent in _Hub.asked if path.endswith("create")))
    assert (created["name"], created["type"]) == ("candidates", "dataset")
    commit = next(sent for path, sent in _Hub.asked if "/commit/" in path)
    names = {json.loads(line)["value"].get("path") for line in commit.splitlines()}
    assert {"README.md", "store/manifest.json", "data/train-00000-of-00003.parquet"} <= names


def test_no_hub_is_told(hub, tmp_path):
    (tmp_path / "some").mkdir()
    with pytest.raises(ClspError, match=r"the hub did not take it .* log in by `hf auth login`"):
        push_to_hub(tmp_path / "some", "me/some", "model")


def test_no_connection_is_told(tmp_path, monkeypatch):
    """With the errors of a connection that fails, which are of the library below the hub's."""
    plain = HfApi.__init__
    monkeypatch.setattr(
        HfApi, "__init__", lambda self, **kwargs: plain(self, endpoint="http://127.0.0.1:9")
    )
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ClspError, match=r"the hub did not take it .*; log in by"):
        push_to_hub(tmp_path, "me/some", "model")
    with pytest.raises(ClspError, match=r"hf:me/some cannot be had from the hub .*check the name"):
        from_hub("me/some", "dataset")
