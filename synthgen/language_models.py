"""Language models as functions from a question to its raw reply: a server that speaks OpenAI's protocol, or
weights on this machine. Knows nothing of prompts, files or retries.

A back end raises ReplyError where asking again may help, and ModelError where it cannot. The key of a server
is read from the environment and is in no message.
"""

import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from synthgen.errors import ModelError, ReplyError

OPENAI = "https://api.openai.com/v1"
CONCESSIONS = {
    "json_schema": re.compile(r"response_?format|json_?\s?schema|structured output|guided", re.IGNORECASE),
    "json_object": re.compile(r"response_?format|json_?\s?object", re.IGNORECASE),
    "max_tokens": re.compile(r"max_completion_tokens", re.IGNORECASE),
    "seed": re.compile(r"\bseed\b", re.IGNORECASE),
    "system": re.compile(r"system (role|message|prompt|instruction)|roles must alternate", re.IGNORECASE),
}
"""What requests do without, in this order, once a server has refused it in words like these."""
RETRIED = (408, 409, 429)
"""With all from 500: statuses after which the same request may go well."""
UNKNOWN_TO_TRANSFORMERS = ("presence_penalty", "frequency_penalty")


class Question(Protocol):
    """What a back end reads of a question (`synthgen.prompts.questions` makes them)."""

    @property
    def task(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def sampling(self) -> dict[str, float]: ...
    @property
    def messages(self) -> list[dict[str, str]]: ...
    @property
    def schema(self) -> dict[str, Any]: ...
    @property
    def key(self) -> str: ...


Reply = Callable[[Question, int], str]
"""A back end: the raw reply to a question at its n-th attempt, from 0; attempts have seeds of their own."""


def open_server(*, timeout: float = 120.0) -> Reply:
    """A server that speaks OpenAI's chat completions: at OPENAI_BASE_URL (default: OpenAI), with the key
    OPENAI_API_KEY (a local server may do without).

    The question names the model and how to sample. Replies are asked for by JSON schema; a server that does
    not know that, or another part of the request in `CONCESSIONS`, is asked without it from then on.

    Args:
        timeout: seconds that a reply may take.

    Raises:
        ModelError: openai is not installed, or the address or the key cannot be used.
    """
    try:
        import openai
    except ImportError:
        raise ModelError('the package openai is missing; pip install "synthgen-datasets[language]"') from None
    address, key = (os.environ.get(name, "").strip() for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"))
    if not address and not key:
        raise ModelError(
            "no language model server: set OPENAI_API_KEY, or OPENAI_BASE_URL to a server of yours, "
            "such as http://127.0.0.1:8000/v1"
        )
    if not key.isascii() or any(not letter.isprintable() or letter == " " for letter in key):
        raise ModelError("OPENAI_API_KEY holds characters that no key has; set it again")
    if address and not (re.match(r"https?://[^/]", address) and plain_address(address)):
        raise ModelError(
            f'OPENAI_BASE_URL is "{plain_address(address)}"; '
            "an address such as http://127.0.0.1:8000/v1 is wanted"
        )
    # retries are the caller's, who stores every reply and knows how many are allowed
    client = openai.OpenAI(base_url=address or OPENAI, api_key=key or "none", max_retries=0, timeout=timeout)
    url, refused = plain_address(address or OPENAI), set[str]()

    def hide(text: str) -> str:
        return text.replace(key, "[key]") if key else text

    def said(error: openai.APIStatusError) -> str:
        return hide(" ".join(error.message.split()))[:300]

    def reply(question: Question, attempt: int = 0) -> str:
        while True:
            without = frozenset(refused)
            request: dict[str, Any] = {
                "model": question.model,
                "messages": _merged(question.messages) if "system" in without else question.messages,
                **_sampling(question, attempt, without),
                **_form(question, without),
            }
            try:
                completion = client.chat.completions.create(**request)
                content = completion.choices[0].message.content
            except openai.APIStatusError as error:
                if error.status_code in (400, 422):
                    text = f"{error.message} {error.body}"
                    new = [name for name, words in CONCESSIONS.items() if words.search(text)]
                    new = [name for name in new if name not in without]
                    if new:
                        refused.add(new[0])
                        continue
                raise _judged(error, said(error), url, question.model) from None
            except openai.APITimeoutError:
                raise ReplyError(f"{url}: no reply within {timeout:g} s") from None
            except openai.APIConnectionError as error:
                cause = hide(" ".join(str(error.__cause__ or error).split()))[:120]
                raise ReplyError(f"{url}: connection failed ({cause})") from None
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, IndexError):
                raise ReplyError(f"{url}: the response is no chat completion") from None
            if not isinstance(content, str):
                raise ReplyError(f"{url}: a reply without text")
            return hide(content) if len(key) >= 8 else content

    return reply


def _sampling(question: Question, attempt: int, without: frozenset[str]) -> dict[str, float]:
    sampling = dict(question.sampling)
    if "max_tokens" in without and "max_tokens" in sampling:
        sampling["max_completion_tokens"] = sampling.pop("max_tokens")
    if "seed" not in without:  # servers with a fixed seed would say the same to each question of a class
        sampling["seed"] = _seed(question.key, attempt)
    return sampling


def _form(question: Question, without: frozenset[str]) -> dict[str, object]:
    """How the server is asked for JSON: by schema, as any object, or by words alone."""
    if "json_schema" not in without:
        schema = {"name": question.task, "strict": True, "schema": question.schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": "json_object"}} if "json_object" not in without else {}


def _judged(error: Any, said: str, url: str, model: str) -> ModelError | ReplyError:
    """What a status other than 200 means for the run. `error` is openai's."""
    status = error.status_code
    if status in (401, 403):
        return ModelError(
            f"{url}: the key is refused (HTTP {status}: {said}); set OPENAI_API_KEY to a key of this server, "
            "or OPENAI_BASE_URL to another server"
        )
    if error.code == "insufficient_quota":
        return ModelError(f"{url}: the account has no credit left ({said})")
    if status in RETRIED or status >= 500:
        return ReplyError(f"{url}: HTTP {status}", _wait_seconds(error.response.headers))
    if status == 404:
        return ModelError(
            f'{url}: model "{model}" not found (HTTP 404: {said}); set model to one that this server has, '
            'and OPENAI_BASE_URL to the part before "/chat/completions" (it mostly ends in /v1)'
        )
    return ModelError(
        f'{url}: model "{model}" does not take the request (HTTP {status}: {said}); correct the keys of the '
        "recipe that it names"
    )


def _wait_seconds(headers: Mapping[str, str]) -> float:
    """Retry-After, in seconds or as a date; 0 where there is none."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def plain_address(address: str) -> str:
    """An address without the user, password and query that it may hold; "" where it is none."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _seed(key: str, attempt: int) -> int:
    """31 bits: what all servers take."""
    return int(hashlib.sha256(f"{key} {attempt}".encode()).hexdigest()[:8], 16) >> 1


def _merged(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """One message of the user, for models that have no system role."""
    return [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]


def open_local(path: str | Path, *, device: str = "cpu", dtype: str = "float32") -> Reply:
    """A causal language model with a chat template, in this process. One reply at a time; the same question
    gets the same reply on the same device and library versions.

    Args:
        path: a folder or a hub id; safetensors only, no remote code.
        device: as torch names it.
        dtype: "float32", "float16" or "bfloat16".

    Raises:
        ModelError: there is no such model, or it has no chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            str(path), use_safetensors=True, trust_remote_code=False, dtype=getattr(torch, dtype)
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: no language model can be loaded from there ({reason}); a folder or hub id of a causal "
            "language model with weights in safetensors is wanted"
        ) from error
    if not tokenizer.chat_template:
        raise ModelError(f"{path}: the tokenizer has no chat template; an instruction-tuned model is wanted")
    model = model.to(device).eval()
    room, lock = getattr(model.config, "max_position_embeddings", math.inf), threading.Lock()
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []

    def template(messages: list[dict[str, str]]) -> Any:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )

    def reply(question: Question, attempt: int = 0) -> str:
        for name in UNKNOWN_TO_TRANSFORMERS:
            if question.sampling.get(name):
                raise ModelError(f"{name}: a local model does not know it; set it to 0, or ask a server")
        try:
            inputs = template(question.messages)
        except Exception as error:  # jinja's: templates of models without a system role raise it
            try:
                inputs = template(_merged(question.messages))
            except Exception:
                raise ModelError(f"{path}: the chat template fails ({error})") from error
        length = inputs["input_ids"].shape[1]
        most = int(question.sampling.get("max_tokens", 1024))
        if length + most > room:
            raise ModelError(
                f"{path}: the question has {length} tokens and max_tokens is {most}, but the model has room "
                f"for {room}; lower max_tokens"
            )
        is_drawn = question.sampling.get("temperature") != 0
        drawn = {
            name: question.sampling[name] for name in ("temperature", "top_p") if name in question.sampling
        }
        with lock, torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(_seed(question.key, attempt))
            tokens = model.generate(
                **inputs.to(device),
                max_new_tokens=most,
                do_sample=is_drawn,
                pad_token_id=tokenizer.pad_token_id
                if tokenizer.pad_token_id is not None
                else tokenizer.eos_token_id,
                **(drawn if is_drawn else {}),
            )
        return str(tokenizer.decode(tokens[0, length:], skip_special_tokens=True))

    return reply
