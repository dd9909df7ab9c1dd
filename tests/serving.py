"""A real HTTP server in a thread of the test's process, or as a process of its own."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

from llma_rag.conversation import ChatSettings, ConversationStore
from llma_rag.retrieval import DocumentStore
from llma_rag.serving import Server, ServerSettings, Uploads, create_app
from tests.letters import LetterEmbedder, chunk

PIER = "The northern pier is closed from November to March."
MUSEUM = "The museum of clocks opens at nine on weekdays."


class Served:
    """A server, with what the test may look at."""

    def __init__(self, url, app, engine, store, uploads, conversations, stop):
        self.url = url
        self.app = app
        self.engine = engine
        self.store = store
        self.uploads = uploads
        self.conversations = conversations
        self.stop = stop
        self.http = httpx.Client(base_url=url, timeout=60)

    def chat(self, content, model="scripted", **more):
        """Ask; return the response."""
        messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
        return self.http.post("/v1/chat/completions", json={"model": model, "messages": messages, **more})

    def metric(self, name):
        """Return a number that Prometheus is told."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else None


@contextmanager
def serving(engine, folder: Path, *, chat=None, **settings):
    """Serve an engine and a store of two passages until the block ends."""
    store = DocumentStore(LetterEmbedder())
    store.add([chunk(PIER, "pier.txt"), chunk(MUSEUM, "museum.txt")])
    with store, ConversationStore() as conversations, Uploads(store, folder / "uploads") as uploads:
        app = create_app(
            engine,
            store,
            uploads,
            conversations,
            about="here",
            chat_settings=chat or ChatSettings(min_similarity=0.1),
            settings=ServerSettings(**settings),
        )
        with listening(app) as (url, stop):
            served = Served(url, app, engine, store, uploads, conversations, stop)
            with served.http:
                yield served


@contextmanager
def listening(app):
    """Run an ASGI application; yield its address, and what stops it."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = Server(app, log_config=None)

    def stop():
        server.should_exit = True

    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", stop
    finally:
        stop()
        thread.join()
        bound.close()


@contextmanager
def served_process(*arguments, **environment):
    """Run `llma-rag serve`; yield the process and its address, once it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llma_rag.cli", "serve", "--port", "0", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment or None,
    )
    lines = []
    address = None
    for line in process.stderr:
        lines.append(line)
        found = re.search(r"http://\S+:\d+(?=/v1)", line)
        if found:
            address = found[0]
        if "startup complete" in line:
            break
    drain = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    drain.start()
    try:
        assert address is not None, "".join(lines)
        process.told = lines
        yield process, address
    finally:
        process.kill()
        process.wait()
        drain.join()
        process.stderr.close()


def until(condition, seconds=30):
    """Wait until something holds; return it."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it does not come to hold"
        time.sleep(0.01)
    return value
