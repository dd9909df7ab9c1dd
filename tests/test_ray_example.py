"""The Ray Serve example: it answers, and refuses beyond its queue."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.ray

QUESTION = {
    "question": "When is it closed?",
    "passages": ["The pier is closed in winter."],
    "max_tokens": 200,
}


@pytest.fixture(scope="module")
def address(tiny_folder):
    serve = pytest.importorskip("ray.serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMA_RAG_MODEL", str(tiny_folder))
        path = Path(__file__).parent.parent / "examples" / "ray_serve_app.py"
        spec = importlib.util.spec_from_file_location("ray_serve_app", path)
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        serve.start(http_options={"host": "127.0.0.1", "port": 8765})
        serve.run(example.app)
    yield "http://127.0.0.1:8765/answer"
    serve.shutdown()


@pytest.mark.filterwarnings("default")
def test_it_answers_and_refuses_beyond_its_queue(address):
    first = httpx.post(address, json=QUESTION, timeout=60)
    assert first.status_code == 200
    assert first.json()["forward_passes"] > 0
    with ThreadPoolExecutor(40) as threads:
        codes = list(
            threads.map(lambda _: httpx.post(address, json=QUESTION, timeout=120).status_code, range(40))
        )
    assert set(codes) == {200, 503}
    assert httpx.post(address, json={"question": 5}).status_code == 422
    assert httpx.post(address, json={**QUESTION, "max_token": 5}).status_code == 422
    too_long = httpx.post(address, json={**QUESTION, "question": "why " * 100_000}, timeout=60)
    assert (too_long.status_code, "context" in too_long.text) == (413, True)
    with pytest.raises(httpx.ReadTimeout):  # a client that leaves
        httpx.post(address, json={**QUESTION, "max_tokens": 1024}, timeout=0.2)
    assert httpx.post(address, json=QUESTION, timeout=60).json()["answer"] == first.json()["answer"]
