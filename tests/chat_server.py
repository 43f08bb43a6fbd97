"""A real server that speaks OpenAI's chat completions and misbehaves as a test tells it to; and a tiny
local model.
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What the server sends. `drop` cuts the connection in the middle of the body."""

    content: str | None = None
    status: int = 200
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    drop: bool = False
    seconds: float = 0.0


Script = Callable[[dict[str, Any], int], Answer]


def good(request: dict[str, Any], number: int = 0) -> Answer:
    """A reply that follows the schema in the request, with texts that differ."""
    schema = request["response_format"]["json_schema"]["schema"]
    (name, kind), *_ = schema["properties"].items()
    texts = [f"A dog, number {number}-{k}, on a lawn" for k in range(kind.get("maxItems", 1))]
    return Answer(json.dumps({name: texts if kind["type"] == "array" else texts[0]}))


def refused(status: int, message: str, **headers: str) -> Answer:
    """An error as OpenAI words it."""
    return Answer(
        status=status,
        body=json.dumps({"error": {"message": message, "type": "x", "code": None, "param": None}}),
        headers=tuple((name.replace("_", "-"), value) for name, value in headers.items()),
    )


class ChatServer(ThreadingHTTPServer):
    """`script` is asked what to send for each request and its number; `requests` and `peak` say what came."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: Script = good
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.parallel = self.peak = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed or stopped go away in the middle; that is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(request)
            self.server.keys.append(self.headers.get("Authorization", ""))
            self.server.parallel += 1
            self.server.peak = max(self.server.peak, self.server.parallel)
        try:
            answer = self.server.script(request, number)
            time.sleep(answer.seconds)
        finally:
            with self.server.lock:
                self.server.parallel -= 1
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        body = answer.body or json.dumps(
            {
                "id": "c",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": answer.content},
                    }
                ],
            }
        )
        data = body.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        if answer.drop:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.wfile.write(data)

    def log_message(self, format: str, *values: object) -> None:
        pass


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def make_tiny_llama(folder: Path) -> Path:
    """A chat model of some thousand random weights, saved in a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {word: k for k, word in enumerate(["<pad>", "<eos>", "<unk>", *letters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    return folder
