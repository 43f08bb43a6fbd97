"""Both back ends for real: a server on this machine that misbehaves, and a tiny Llama with random weights."""

import dataclasses
import logging
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, good, make_tiny_llama, refused
from conftest import KEY

from synthgen.data import Category
from synthgen.errors import ModelError, ReplyError
from synthgen.language_models import open_local, open_server
from synthgen.prompts.questions import Question, make_questions, parse


def questions(count: int = 1, **sampling: float) -> list[Question]:
    dog = Category(0, "dog", "dog")
    return make_questions([dog], task="synthclip", model="tiny", sampling=sampling, seed=0, count=count)


QUESTION = questions(temperature=0.7, max_tokens=50)[0]


def test_a_question_is_sent_as_it_is(server: ChatServer) -> None:
    raw = open_server()(QUESTION, 0)
    assert parse(QUESTION, raw).texts
    (request,) = server.requests
    assert request["model"] == "tiny"
    assert request["messages"] == QUESTION.messages
    assert request["temperature"] == 0.7
    assert request["max_tokens"] == 50
    assert "top_p" not in request
    assert request["response_format"]["json_schema"]["schema"] == QUESTION.schema
    assert request["response_format"]["json_schema"]["strict"] is True
    assert server.keys == [f"Bearer {KEY}"]


def test_attempts_and_questions_have_seeds_of_their_own(server: ChatServer) -> None:
    reply = open_server()
    one, other = questions(2)
    for question, attempt in ((one, 0), (one, 1), (other, 0), (one, 0)):
        reply(question, attempt)
    seeds = [request["seed"] for request in server.requests]
    assert seeds[3] == seeds[0]
    assert len(set(seeds)) == 3


def test_a_local_server_needs_no_key(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert open_server()(QUESTION, 0)
    assert server.keys == ["Bearer none"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"OPENAI_BASE_URL": "", "OPENAI_API_KEY": ""}, "no language model server: set OPENAI_API_KEY"),
        ({"OPENAI_BASE_URL": "127.0.0.1:8000/v1"}, 'OPENAI_BASE_URL is ".*"; an address such as http://'),
        ({"OPENAI_BASE_URL": "http://[half"}, "an address such as http://"),
        (
            {"OPENAI_API_KEY": f"{KEY}\n{KEY}"},
            "OPENAI_API_KEY holds characters that no key has; set it",
        ),
    ],
)
def test_what_cannot_be_called_is_said_first(
    changes: dict[str, str], message: str, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelError, match=message):
        open_server()
    assert not server.requests


def test_a_missing_package_is_named() -> None:
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "from synthgen.language_models import open_server\n"
        "try: open_server()\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'the package openai is missing; pip install "synthgen-datasets[language]"\n'


def wants_no(*parts: str) -> Any:
    """A server that does not know parts of a request."""

    def script(request: dict[str, Any], number: int) -> Answer:
        form = request.get("response_format", {}).get("type")
        if "json_schema" in parts and form == "json_schema":
            return refused(400, "response_format of type json_schema is not supported by this model")
        if "json_object" in parts and form == "json_object":
            return refused(422, "Extra inputs are not permitted: response_format")
        if "max_tokens" in parts and "max_tokens" in request:
            return refused(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "seed" in parts and "seed" in request:
            return refused(422, "body.seed: extra field")
        if "system" in parts and request["messages"][0]["role"] == "system":
            return refused(400, "Conversation roles must alternate user/assistant/user/assistant/...")
        return Answer('{"caption": "A dog"}')

    return script


@pytest.mark.parametrize(
    "parts",
    [
        (),
        ("json_schema",),
        ("json_schema", "json_object"),
        ("max_tokens",),
        ("seed", "system"),
        ("json_schema", "json_object", "max_tokens", "seed", "system"),
    ],
)
def test_what_a_server_does_not_know_is_left_out_from_then_on(
    server: ChatServer, parts: tuple[str, ...]
) -> None:
    server.script, reply = wants_no(*parts), open_server()
    assert reply(QUESTION, 0) == '{"caption": "A dog"}'
    assert len(server.requests) == 1 + len(parts)
    reply(QUESTION, 1)
    assert len(server.requests) == 2 + len(parts)
    last = server.requests[-1]
    forms = {0: "json_schema", 1: "json_object", 2: None}
    wanted = forms[len({"json_schema", "json_object"} & set(parts))]
    assert last.get("response_format", {}).get("type") == wanted
    assert last.get("max_completion_tokens" if "max_tokens" in parts else "max_tokens") == 50
    if "system" in parts:
        (message,) = last["messages"]
        assert QUESTION.system in message["content"]
        assert QUESTION.user in message["content"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "the key is refused .*set OPENAI_API_KEY"),
        (403, "the key is refused .*set OPENAI_API_KEY"),
        (404, 'model "tiny" not found .*set model to one'),
        (400, 'model "tiny" does not take the request .*correct the keys'),
    ],
)
def test_what_no_retry_helps_is_one_line(server: ChatServer, status: int, words: str) -> None:
    server.script = lambda request, number: refused(status, f"wrong:\n {KEY} is not\nit")
    with pytest.raises(ModelError, match=words) as caught:
        open_server()(QUESTION, 0)
    line = str(caught.value)
    assert server.url in line
    assert f"HTTP {status}" in line
    assert "\n" not in line
    assert KEY not in line
    assert "[key] is not it" in line
    assert len(server.requests) == 1


def test_an_empty_account_is_not_asked_again(server: ChatServer) -> None:
    body = '{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'
    server.script = lambda request, number: Answer(status=429, body=body)
    with pytest.raises(ModelError, match="no credit left"):
        open_server()(QUESTION, 0)


@pytest.mark.parametrize(
    ("answer", "words", "wait"),
    [
        (refused(429, "slow", Retry_After="7"), "HTTP 429", 7.0),
        (refused(503, "busy", Retry_After="soon"), "HTTP 503", 0.0),
        (refused(500, "oh"), "HTTP 500", 0.0),
        (refused(408, "oh"), "HTTP 408", 0.0),
        (refused(409, "oh"), "HTTP 409", 0.0),
        (Answer("A dog", drop=True), "connection failed", 0.0),
        (Answer("A dog", seconds=1.0), "no reply within 0.5 s", 0.0),
        (Answer(body="<html>wait</html>"), "the response is no chat completion", 0.0),
        (Answer(body="{}"), "the response is no chat completion", 0.0),
        (Answer(body='{"choices": []}'), "the response is no chat completion", 0.0),
        (Answer(content=None), "a reply without text", 0.0),
    ],
)
def test_what_a_retry_may_help_is_a_reply_error(
    server: ChatServer, answer: Answer, words: str, wait: float
) -> None:
    server.script = lambda request, number: answer
    with pytest.raises(ReplyError, match=words) as caught:
        open_server(timeout=0.5)(QUESTION, 0)
    assert caught.value.wait_seconds == wait
    assert KEY not in str(caught.value)
    assert len(server.requests) == 1


def test_retry_after_may_be_a_date(server: ChatServer) -> None:
    date = formatdate(time.time() + 60, usegmt=True)
    server.script = lambda request, number: refused(429, "slow", Retry_After=date)
    with pytest.raises(ReplyError) as caught:
        open_server()(QUESTION, 0)
    assert 50 < caught.value.wait_seconds <= 60


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://somebody:hidden@127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ReplyError, match="connection failed") as caught:
        open_server()(QUESTION, 0)
    assert "hidden" not in str(caught.value)


def test_the_key_is_in_no_reply_log_or_repr(server: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.script = lambda request, number: Answer(f'{{"caption": "A dog says {KEY}"}}')
    reply = open_server()
    raw = reply(QUESTION, 0)
    assert raw == '{"caption": "A dog says [key]"}'
    assert KEY not in repr(reply) + repr(vars(reply)) + repr(QUESTION) + caplog.text


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("llama"))


def test_a_local_model_says_the_same_to_the_same_question(tiny_llama: Path) -> None:
    import torch

    one, other = questions(2, temperature=0.9, top_p=0.95, max_tokens=24)
    reply = open_local(tiny_llama)
    state = torch.random.get_rng_state()
    first = reply(one, 0)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's numbers are used up
    assert first
    assert first != reply(other, 0)
    assert first != reply(one, 1)
    assert first == reply(one, 0) == open_local(tiny_llama)(one, 0)
    assert parse(one, first).error in ("no JSON object", "JSON that is cut off or broken", "an empty reply")


def test_a_local_model_without_chance(tiny_llama: Path) -> None:
    one, other = questions(2, temperature=0.0, max_tokens=12)
    reply = open_local(tiny_llama)
    assert reply(one, 0) == reply(one, 1) == reply(other, 0)


def test_a_local_model_without_a_system_role(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for path in tiny_llama.iterdir():
        (tmp_path / path.name).symlink_to(path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = strict + tokenizer.chat_template
    for path in tmp_path.glob("*token*"):
        path.unlink()
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(tmp_path)
    assert open_local(tmp_path)(questions(max_tokens=4)[0], 0)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no chat template; an instruction-tuned model is wanted"):
        open_local(tmp_path)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_tokens": 1000}, r"max_tokens is 1000, but the model has room for 1024; lower max_tokens"),
        ({"presence_penalty": 1.0}, "presence_penalty: a local model does not know it"),
    ],
)
def test_what_a_local_model_cannot_do_is_said(
    tiny_llama: Path, sampling: dict[str, float], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        open_local(tiny_llama)(questions(**sampling)[0], 0)


def test_local_weights_are_safetensors(tiny_llama: Path, tmp_path: Path) -> None:
    for path in tiny_llama.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelError, match="weights in safetensors is wanted"):
        open_local(tmp_path)
    with pytest.raises(ModelError, match="no language model can be loaded"):
        open_local(tmp_path / "nothing")


def test_good_is_good(server: ChatServer) -> None:
    """The default script of the test's server follows every schema."""
    question = make_questions(
        [Category(0, "dog", "dog")], task="divergen", model="m", sampling={}, seed=0, count=3, per_call=3
    )[0]
    assert len(parse(question, open_server()(question, 0)).texts) == 3
    assert server.script is good
    assert dataclasses.is_dataclass(question)
