"""Hub ids, against a hub of our own on the loopback: the few requests that a snapshot needs."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

REVISION = "0" * 40

LOAD = """
import sys
from diffusion.loading import load_model
for name in sys.argv[1:]:
    try:
        info = load_model(name, device="cpu").info
        print(info.name, info.fingerprint)
    except (OSError, ValueError) as error:
        print(error)
"""


class Hub(ThreadingHTTPServer):
    """Serves the repositories under `root`, and remembers which files were fetched."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.fetched: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"] and (self.server.root / parts[2] / parts[3]).is_dir():
            repository = self.server.root / parts[2] / parts[3]
            files = sorted(str(file.relative_to(repository)) for file in repository.rglob("*") if file.is_file())
            if parts[4] == "tree":
                tree = [
                    {
                        "type": "file",
                        "path": name,
                        "size": (repository / name).stat().st_size,
                        "oid": etag(repository / name),
                    }
                    for name in files
                ]
                self.answer(json.dumps(tree).encode())
            else:
                info = {
                    "id": "/".join(parts[2:4]),
                    "sha": REVISION,
                    "siblings": [{"rfilename": name} for name in files],
                }
                self.answer(json.dumps(info).encode())
        elif len(parts) > 4 and parts[2] == "resolve":
            file = self.server.root.joinpath(*parts[:2], *parts[4:])
            self.server.fetched.add("/".join(parts[:2] + parts[4:]))
            self.answer(file.read_bytes(), {"ETag": f'"{etag(file)}"', "X-Repo-Commit": REVISION})
        else:
            self.answer(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, status=404)

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path, cloud_folder) -> Iterator[Hub]:
    repository = tmp_path / "hub" / "someone" / "tiny"
    shutil.copytree(cloud_folder, repository)
    server = Hub(tmp_path / "hub")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def load_all(endpoint: str, cache: Path, *models: str) -> list[str]:
    """Load each model in one fresh process: the hub's client reads its environment when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    for variable in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        environment.pop(variable, None)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *models], capture_output=True, text=True, env=environment, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_hub_id_is_fetched_once_and_only_what_is_needed(hub, tmp_path, cloud):
    tiny, half = (hub.root / "someone" / name for name in ("tiny", "half"))
    shutil.copytree(tiny, half)
    (tiny / "model.ckpt").write_bytes(b"pickle")
    (tiny / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (tiny / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"the same in half precision")
    (tiny / "safety_checker").mkdir()
    (tiny / "safety_checker" / "model.safetensors").write_bytes(b"not used here")
    # Some repositories have no other weights than these.
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        (half / f"{name}.safetensors").rename(half / f"{name}.fp16.safetensors")
    endpoint = f"http://127.0.0.1:{hub.server_port}"

    outcome = load_all(endpoint, tmp_path / "cache", "someone/tiny", "someone/half", "someone/else")
    assert outcome[:2] == [f"someone/tiny {cloud.info.fingerprint}", f"someone/half {cloud.info.fingerprint}"]
    assert outcome[2].startswith("someone/else is neither a folder here nor a model that the hub hands out now (")
    assert len(outcome) == 3
    assert "someone/tiny/unet/diffusion_pytorch_model.safetensors" in hub.fetched
    unwanted = ("ckpt", ".bin", "tiny/unet/diffusion_pytorch_model.fp16", "safety_checker")
    assert not [name for name in hub.fetched if any(word in name for word in unwanted)]

    hub.shutdown()
    hub.server_close()
    outcome = load_all(endpoint, tmp_path / "cache", "someone/tiny", "someone/else")
    assert outcome[0] == f"someone/tiny {cloud.info.fingerprint}"
    assert outcome[1].startswith("someone/else is neither a folder here nor a model that the hub hands out now (")
    assert len(outcome) == 2
