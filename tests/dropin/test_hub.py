"""Names on the hub: from a cache laid out as huggingface_hub does, without a socket; and fetched from one made here."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import scan_cache_dir

from minilm import AutoConfig, AutoModel, AutoTokenizer, BertForMaskedLM
from minilm.errors import CheckpointError, DataError, UserError

ROOT = Path(__file__).parents[2]
NAME = "org/name"
# revision -> (how its weights are stored, seed and layers of the model)
REVISIONS = {"main": ("safetensors", 1), "v2": ("safetensors", 2), "shards": ("shards", 3), "pickle": ("pickle", 4)}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "runs"]
COMMIT = {revision: hashlib.sha1(revision.encode()).hexdigest() for revision in REVISIONS}
FROM_CACHE = {"local_files_only": True}

# prints what AutoModel, AutoTokenizer and AutoConfig see of each argument, what was imported, and what was opened
CHILD = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(event) if event.startswith("socket.") else None)
from minilm import AutoConfig, AutoModel, AutoTokenizer
seen = []
for name, options in json.loads(sys.argv[1]):
    weights = {k: options.pop(k) for k in ("use_safetensors",) if k in options}
    try:
        model = AutoModel.from_pretrained(name, **options, **weights)
        ids = AutoTokenizer.from_pretrained(name, **options)("the dog runs").input_ids
        config = AutoConfig.from_pretrained(name, **options)
        seen.append([model.get_input_embeddings().weight[5, 0].item(), ids, config.num_hidden_layers])
    except Exception as error:
        seen.append(f"{type(error).__name__}: {error}")
late = [name for name in ("huggingface_hub", "torch._dynamo") if name in sys.modules]
print(json.dumps({"seen": seen, "opened": opened, "imported": late}))
"""


def save(directory: Path, stored: str, seed: int) -> list:
    """Write a tiny BERT of theirs, of `seed` layers, and a tokenizer whose words begin at another one; what is then
    seen of the two."""
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 16}
    torch.manual_seed(seed)
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=len(WORDS), num_hidden_layers=seed, **sizes)
    )
    model.save_pretrained(directory, max_shard_size="1KB" if stored == "shards" else "1GB")
    if stored == "pickle":
        (directory / "model.safetensors").unlink()
        torch.save(model.state_dict(), directory / "pytorch_model.bin")
    words = WORDS[:5] + WORDS[5:][seed % 3 :] + WORDS[5:][: seed % 3]
    tokenizer = transformers.BertTokenizer(vocab={word: id for id, word in enumerate(words)})
    tokenizer.save_pretrained(directory)
    return [model.get_input_embeddings().weight[5, 0].item(), tokenizer("the dog runs").input_ids, seed]


def seen(name: str | Path, **options) -> list:
    """What ours see, as `save` has it."""
    weights = {"use_safetensors": False} if options.get("revision") in ("pickle", COMMIT["pickle"]) else {}
    model = AutoModel.from_pretrained(name, **options, **weights)
    ids = AutoTokenizer.from_pretrained(name, **options)("the dog runs").input_ids
    config = AutoConfig.from_pretrained(name, **options)
    assert model.config.num_hidden_layers == config.num_hidden_layers
    return [model.get_input_embeddings().weight[5, 0].item(), ids, config.num_hidden_layers]


def run_child(asked: list, **environment: str) -> dict:
    """What CHILD prints in a fresh interpreter, with no other setting of the hub than these."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    own |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", **environment}
    command = [sys.executable, "-c", CHILD, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=own)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """revision -> (its directory, what is seen of it)."""
    found = {}
    for revision, how in REVISIONS.items():
        directory = tmp_path_factory.mktemp(revision)
        found[revision] = directory, save(directory, *how)
    return found


@pytest.fixture
def cache(saved, tmp_path):
    """models--org--name/ with refs/REVISION, blobs/HASH and snapshots/COMMIT/FILE -> ../../blobs/HASH."""
    home = tmp_path / "cache" / "models--org--name"
    for part in ("refs", "blobs"):
        (home / part).mkdir(parents=True)
    for revision, (directory, _) in saved.items():
        (home / "refs" / revision).write_text(COMMIT[revision])
        snapshot = home / "snapshots" / COMMIT[revision]
        snapshot.mkdir(parents=True)
        for file in directory.iterdir():
            blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    return home.parent


@pytest.fixture(autouse=True)
def sockets(monkeypatch):
    """The attempts to open one, each refused; no test may end with any."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    yield attempts
    assert attempts == []


def test_the_cache_is_as_the_hub_lays_it_out(cache, saved):
    info = scan_cache_dir(cache)
    assert not info.warnings
    assert {ref for each in next(iter(info.repos)).revisions for ref in each.refs} == set(saved)


def test_a_name_is_its_main_branch(cache, saved):
    assert seen(NAME, cache_dir=cache, **FROM_CACHE) == saved["main"][1]
    assert seen(NAME, cache_dir=str(cache), revision="main", **FROM_CACHE) == saved["main"][1]


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_revision_is_a_branch_or_a_commit(cache, saved, revision):
    assert len({json.dumps(what) for _, what in saved.values()}) == len(saved)
    for each in (revision, COMMIT[revision]):
        assert seen(NAME, cache_dir=cache, revision=each, **FROM_CACHE) == saved[revision][1]


def test_a_pickle_in_the_cache_is_read_when_asked_for(cache, saved):
    options = {"cache_dir": cache, "revision": "pickle", **FROM_CACHE}
    with pytest.raises(CheckpointError, match="is a pickle; if you trust its maker"):
        AutoModel.from_pretrained(NAME, **options)
    ours = BertForMaskedLM.from_pretrained(NAME, use_safetensors=False, **options)
    theirs = transformers.BertForMaskedLM.from_pretrained(saved["pickle"][0], use_safetensors=False).eval()
    ids = torch.tensor([[2, 5, 4, 7, 3]])
    with torch.no_grad():
        assert (ours(ids).logits - theirs(ids).logits).abs().max() < 1e-6


def test_a_directory_of_that_name_wins(cache, saved, tmp_path, monkeypatch):
    expected = save(tmp_path / NAME, "safetensors", 5)
    monkeypatch.chdir(tmp_path)
    assert seen(NAME, cache_dir=cache, **FROM_CACHE) == seen(NAME, cache_dir=cache) == seen(NAME) == expected
    assert expected != saved["main"][1]


@pytest.mark.parametrize(
    "asked",
    [
        {"pretrained_model_name_or_path": "org/other"},
        {"pretrained_model_name_or_path": "other"},
        {"pretrained_model_name_or_path": "no/such/directory"},
        {"pretrained_model_name_or_path": "../other"},
        {"pretrained_model_name_or_path": "not a name"},
        {"pretrained_model_name_or_path": ""},
        {"revision": "v3"},
        {"revision": COMMIT["v2"][:7]},
        {"revision": "0" * 40},
    ],
    ids=str,
)
def test_what_is_not_in_the_cache_is_one_line(cache, asked):
    options = {"pretrained_model_name_or_path": NAME, "cache_dir": cache, **FROM_CACHE, **asked}
    said = f"model {options['pretrained_model_name_or_path']}.*: no such directory"
    for opens in (AutoModel, AutoTokenizer, AutoConfig):
        with pytest.raises(CheckpointError, match=said) as caught:
            opens.from_pretrained(**options)
        assert "\n" not in str(caught.value)


def test_a_snapshot_that_lacks_a_file_says_which(cache):
    snapshot = cache / "models--org--name" / "snapshots" / COMMIT["main"]
    for file, opens in (
        ("model.safetensors", AutoModel),
        ("tokenizer.json", AutoTokenizer),
        ("config.json", AutoConfig),
    ):
        (snapshot / file).unlink()
        wanted = "no tokenizer in it" if opens is AutoTokenizer else file
        with pytest.raises(UserError, match=wanted) as caught:
            opens.from_pretrained(NAME, cache_dir=cache, **FROM_CACHE)
        assert "\n" not in str(caught.value)


def test_a_snapshot_without_files_that_nobody_reads_opens(cache, saved):
    """As transformers leaves it, which fetches what it reads, with the listing of the repository beside it."""
    (cache / "models--org--name" / "trees").mkdir()
    names = [*(file.name for file in saved["main"][0].iterdir()), "onnx/config.json", "data_config.json"]
    listing = {"format_version": 1, "files": {name: {"size": 1, "blob_id": "0" * 40} for name in names}}
    (cache / "models--org--name" / "trees" / f"{COMMIT['main']}.json").write_text(json.dumps(listing))
    assert seen(NAME, cache_dir=cache, **FROM_CACHE) == saved["main"][1]


# where a file of a snapshot may lead, below the test's directory
ELSEWHERE = {
    "outside": "outside/FILE",
    "another model's blobs": "cache/models--org--other/blobs/FILE",
    "beside the blobs": "cache/models--org--name/FILE",
    "another snapshot": f"cache/models--org--name/snapshots/{COMMIT['v2']}/another-FILE",
    "a blob that leads on": "outside/FILE",
    "a directory": "cache/models--org--name/blobs/directory/FILE",
}


@pytest.mark.parametrize("way", ELSEWHERE)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_link_to_elsewhere_than_its_blobs_is_refused(cache, tmp_path, file, way):
    """Even where what it leads to would do."""
    home = cache / "models--org--name"
    link, target = home / "snapshots" / COMMIT["main"] / file, tmp_path / ELSEWHERE[way].replace("FILE", file)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(link.read_bytes())
    link.unlink()
    if way == "a blob that leads on":
        (home / "blobs" / "onwards").symlink_to(target)
        target = home / "blobs" / "onwards"
    link.symlink_to(target.parent if way == "a directory" else target)
    with pytest.raises((CheckpointError, DataError), match=rf"{file}.*(leads out of its directory|not a regular file)"):
        seen(NAME, cache_dir=cache, **FROM_CACHE)


@pytest.fixture(scope="module")
def local(saved):
    """What a child says of local directories, even where a setting would have it go online."""
    asked = [[str(directory), {"use_safetensors": revision != "pickle"}] for revision, (directory, _) in saved.items()]
    return run_child(asked, HF_HUB_OFFLINE="0")


def test_a_local_directory_opens_no_socket_and_imports_no_hub(local, saved):
    assert local["seen"] == [what for _, what in saved.values()]
    assert local["opened"] == []
    assert "huggingface_hub" not in local["imported"]


def test_a_load_does_not_import_torchs_compiler(local):
    """Which takes longer than all else of it."""
    assert "torch._dynamo" not in local["imported"]


def test_offline_by_the_environment(cache, saved):
    """Without local_files_only, and from the cache that the environment names."""
    asked = [[NAME, {}], [NAME, {"revision": "v2"}], [NAME, {"revision": COMMIT["v2"]}]]
    said = run_child(
        [*asked, [NAME, {"revision": "v3"}], ["org/other", {}]], HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache)
    )
    *found, revision, name = said["seen"]
    assert found == [saved["main"][1], saved["v2"][1], saved["v2"][1]]
    assert re.match(rf"CheckpointError: model {NAME}.*: no such directory", revision)
    assert name.startswith("CheckpointError: model org/other: no such directory")
    assert "\n" not in revision + name
    assert said["opened"] == []


def test_a_hub_out_of_reach_is_the_cache(cache, saved, sockets, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert seen(NAME, cache_dir=cache) == saved["main"][1]
    assert len(sockets) >= 3  # it was tried, which these tests would notice
    sockets.clear()


def test_a_hub_out_of_reach_and_an_unknown_name_are_one_line(cache, sockets, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError, match="model org/other: no such directory") as caught:
        AutoModel.from_pretrained("org/other", cache_dir=cache)
    sockets.clear()
    assert "\n" not in str(caught.value)


# -- fetched ----------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """So much of huggingface.co as fetching takes: name -> file -> bytes, each name with one commit."""

    repositories: dict[str, dict[str, bytes]]
    fetched: list[str]

    def do_GET(self, body: bool = True) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        name = "/".join(path[2:4] if path[:2] == ["api", "models"] else path[:2])
        files = self.repositories.get(name)
        if name == "org/broken":
            self.close_connection = True  # without an answer
        elif files is None:
            self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, body)
        elif path[0] == "api" and path[4] == "revision":
            listing = {"id": name, "sha": COMMIT["main"], "siblings": [{"rfilename": file} for file in files]}
            self.answer(200, json.dumps(listing).encode(), {}, body)
        elif path[0] == "api":
            listing = [{"type": "file", "path": f, "size": len(b), "oid": _oid(b)} for f, b in files.items()]
            self.answer(200, json.dumps(listing).encode(), {}, body)
        else:
            file = "/".join(path[4:])
            if body:
                self.fetched.append(f"{name}/{file}")
            self.answer(200, files[file], {"X-Repo-Commit": COMMIT["main"], "ETag": f'"{_oid(files[file])}"'}, body)

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def answer(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture(scope="module")
def fetched(saved, tmp_path_factory):
    """What a child sees of four names on such a hub, which holds two; the files that it fetched; and its cache."""
    unread = ["README.md", "training_args.bin", "onnx/model.safetensors", "coreml/weight.bin", "tf_model.h5"]
    repositories = {
        name: {file.name: file.read_bytes() for file in saved[revision][0].iterdir()}
        | {file: file.encode() for file in unread}
        for name, revision in (("org/name", "main"), ("org/pickle", "pickle"))
    }
    handler = type("Own", (Hub,), {"repositories": repositories, "fetched": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cache = tmp_path_factory.mktemp("fetched")
    try:
        said = run_child(
            [["org/name", {}], ["org/pickle", {"use_safetensors": False}], ["org/unknown", {}], ["org/broken", {}]],
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
            HF_HOME=str(cache),
        )
    finally:
        server.shutdown()
        server.server_close()
    return said["seen"], handler.fetched, cache / "hub"


def test_a_name_is_fetched_and_then_in_the_cache(fetched, saved):
    found, files, cache = fetched
    assert found[:2] == [saved["main"][1], saved["pickle"][1]]
    for file in saved["main"][0].iterdir():
        assert files.count(f"org/name/{file.name}") == 1
    assert "org/pickle/pytorch_model.bin" in files
    assert not [file for file in files if file.endswith((".md", ".h5"))]
    assert not [file for file in files if file.startswith("org/name/") and file.endswith(".bin")]
    assert seen("org/name", cache_dir=cache, **FROM_CACHE) == saved["main"][1]


def test_nothing_is_fetched_that_nobody_reads(fetched):
    unread = ("training_args.bin", "onnx/model.safetensors", "coreml/weight.bin")
    assert not [file for file in fetched[1] if file.endswith(unread)]


def test_an_unknown_name_is_one_line(fetched):
    assert fetched[0][2].startswith("CheckpointError: model org/unknown: no such directory, and the hub does not know")
    assert "\n" not in fetched[0][2]


def test_a_connection_that_breaks_is_one_line(fetched):
    assert fetched[0][3].startswith("CheckpointError: model org/broken: no such directory")
    assert "\n" not in fetched[0][3]
