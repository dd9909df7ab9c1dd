"""What the server must withstand: wrong keys, other sites, hostile names, big and malformed bodies, anything at all."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from llma_rag.errors import DocumentError
from llma_rag.serving.uploads import checked_name
from tests.conftest import EXAMPLES
from tests.scripted_engine import scripted_engine
from tests.serving import serving

KEY = "a key ä"
ORIGIN = "https://pages.example"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(scripted_engine("Yes."), tmp_path_factory.mktemp("served")) as one:
        yield one


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("locked")
    with serving(scripted_engine("Yes."), folder, api_key=KEY, origins=(ORIGIN,), loopback_only=False) as one:
        yield one


def with_key(key, scheme="Bearer"):
    return {"Authorization": f"{scheme} {key}".encode()}


def test_all_but_health_and_the_pages_files_needs_the_key(locked):
    for path in ("/healthz", "/", "/page/main.js"):
        assert locked.http.get(path).status_code == 200
    page = locked.http.get("/").headers
    assert "default-src 'none'; script-src 'self'" in page["content-security-policy"]
    assert "trusted-types 'none'" in page["content-security-policy"]
    assert "unsafe" not in page["content-security-policy"]
    assert page["cache-control"] == "no-cache"
    assert locked.http.get("/v1/models", headers=with_key(KEY)).headers["cache-control"] == "no-store"
    assert locked.http.get("/page/../app.py").status_code == 401
    assert locked.http.get("/page/%2e%2e/app.py").status_code == 404
    for route in locked.app.openapi()["paths"]:
        path = route.format(model="scripted", document="x", conversation="x")
        if path != "/healthz":
            assert locked.http.get(path).status_code == 401, path
    for path in ("/openapi.json", "/docs", "/nowhere", "/healthz/", "/healthz/../metrics"):
        assert locked.http.get(path).status_code == 401, path


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (with_key(KEY), 200),
        (with_key(KEY, "bearer"), 200),
        (with_key(KEY + "x"), 401),
        (with_key(KEY[1:]), 401),
        (with_key(KEY, "Basic"), 401),
        ({"Authorization": KEY.encode()}, 401),
        ({"Authorization": b"Bearer \xff\xfe"}, 401),
        ({"X-Api-Key": KEY.encode()}, 401),
    ],
)
def test_only_the_right_key_opens(locked, header, status):
    response = locked.http.get("/v1/models", headers=header)
    assert response.status_code == status
    if status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"


def test_a_query_is_no_key(locked):
    assert locked.http.get(f"/v1/models?api_key={KEY}").status_code == 401


def test_pages_of_other_sites_may_not_ask(served, locked):
    other = {"Origin": "https://evil.example"}
    assert served.http.get("/v1/models", headers=other).status_code == 403
    upload = served.http.post("/v1/documents", files={"file": ("a.txt", b"x")}, headers=other)
    assert upload.status_code == 403
    assert served.http.get("/v1/models", headers={"Origin": "null"}).status_code == 403
    assert served.http.get("/v1/models", headers={"Origin": served.url}).status_code == 200
    assert "access-control-allow-origin" not in served.http.get("/v1/models").headers
    assert locked.http.get("/v1/models", headers=other | with_key(KEY)).status_code == 403


def test_pages_of_an_allowed_site_may_ask(locked):
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    before = locked.http.options("/v1/chat/completions", headers=asked)
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == ORIGIN
    response = locked.http.get("/v1/models", headers={"Origin": ORIGIN} | with_key(KEY))
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert locked.http.get("/v1/models", headers={"Origin": ORIGIN}).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1", ""])
def test_a_name_that_was_made_to_lead_here_is_no_name_of_the_server(served, host):
    assert served.http.get("/v1/models", headers={"Host": host}).status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "[::1]:8000", "127.0.0.1", "127.0.0.2:80"])
def test_this_machines_names_are(served, host):
    assert served.http.get("/v1/models", headers={"Host": host}).status_code == 200


# -- bodies -------------------------------------------------------------------------------------------


def _pieces(size):
    yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    for _ in range(size // 2**16):
        yield b"x" * 2**16


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/documents", "/v1/conversations"]
)
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_100_mb_is_refused(served, path, declared):
    size = 100 * 2**20
    headers = {
        "Content-Type": "multipart/form-data; boundary=x" if "documents" in path else "application/json"
    }
    if declared:
        headers["Content-Length"] = str(sum(map(len, _pieces(size))))
    sent = 0

    def counted():
        nonlocal sent
        for piece in _pieces(size):
            sent += len(piece)
            yield piece

    try:
        response = httpx.post(served.url + path, content=counted(), headers=headers)
    except (httpx.WriteError, httpx.ReadError):  # the server has closed the connection already
        assert sent < size
    else:
        assert response.status_code == 413
        assert "bytes at most" in response.json()["error"]["message"]
    assert served.http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe\x00",
        b'{"model": "scripted", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "other": 1e999}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "other": "\\udfff"}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "max_tokens": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "references": [{"text": "x", "metadata": '
        + b'{"a":' * 100 + b"1" + b"}" * 100 + b"}]}",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"model": "scripted", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        b'{"model": "scripted", "messages": []}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "stop": [""]}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], "references": '
        + b"[" + b",".join([b'"x"'] * 1001) + b"]}",
    ],
)  # fmt: skip
def test_a_malformed_body_is_the_clients_mistake(served, body):
    paths = ["/v1/chat/completions", "/v1/completions", "/v1/documents"]
    for path in paths if body in (b"", b"null") else [*paths, "/v1/conversations"]:  # which needs no body
        response = served.http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert 400 <= response.status_code < 500, (path, response.text)
        assert response.json()["error"]["message"]


def test_json_must_say_that_it_is_json(served):
    body = b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}]}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = served.http.post("/v1/chat/completions", content=body, headers={"Content-Type": kind})
        assert response.status_code == 400


def test_counters_do_not_grow_with_what_clients_invent(served):
    def series():
        return served.http.get("/metrics").text.count("\n")

    sizes = []
    for number in range(20):
        served.http.request(f"INVENTED{number}", "/healthz")
        served.http.get(f"/nowhere/{number}")
        served.http.get(f"/v1/documents/{number}")
        sizes.append(series())
    assert sizes[1] == sizes[-1]


# -- names of uploads ---------------------------------------------------------------------------------

NAMES = [
    "../escaped.txt",
    "..\\escaped.txt",
    "/etc/cron.d/escaped.txt",
    "C:escaped.txt",
    "folder/escaped.txt",
    "..",
    ".hidden.txt",
    "escaped.txt\0.md",
    "escaped\n.txt",
    "escaped\u202etxt.md",
    "no-suffix",
    "program.exe",
    "e" * 300 + ".txt",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_writes_nowhere(served, name, tmp_path):
    with pytest.raises(DocumentError):
        checked_name(name)
    before = served.http.get("/v1/documents").json()["data"]
    boundary = "b0"
    escaped = name.replace("\\", "\\\\")
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{escaped}"\r\n\r\nevil\r\n--{boundary}--\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    response = served.http.post("/v1/documents", content=body.encode(), headers=headers)
    assert response.status_code == 400, response.text
    assert served.http.get("/v1/documents").json()["data"] == before


@pytest.mark.parametrize(
    "document", ["..%2F..%2Fetc%2Fpasswd", "%2e%2e", "doc-x", "a" * 5000, "%ff%fe", "%00"]
)
def test_a_document_is_found_by_its_id_only(served, document):
    for method in ("GET", "DELETE"):
        assert 400 <= served.http.request(method, f"/v1/documents/{document}").status_code < 500


def test_whatever_the_description_allows_is_answered_without_failing(served):
    """Requests made from the OpenAPI description, valid ones and others, never make the server fail."""
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        modes = schemathesis.GenerationMode if operation.body else [schemathesis.GenerationMode.POSITIVE]
        for mode in modes:

            @settings(max_examples=max(EXAMPLES // 5, 10), suppress_health_check=list(HealthCheck))
            @given(operation.as_strategy(generation_mode=mode))
            def answered(case):
                response = case.call(timeout=30)
                assert response.status_code < 500, (case.method, case.path, case.body, response.text)

            answered()
