"""The official ollama package against a device."""

import datetime
import json
import os
import time

import ollama

host = os.environ["BASE_URL"].removesuffix("/v1")
client = ollama.Client(host=host, headers={"Authorization": "Bearer " + os.environ["API_KEY"]})
model = os.environ["MODEL"]
messages = [{"role": "user", "content": "turn on the fan in the boiler room"}]
greedy = {"temperature": 0, "num_predict": 40}

listed = client.list().models
assert [m.model for m in listed] == [model] and listed[0].size > 0, listed
shown = client.show(model)
assert shown.details.family and shown.modelinfo["general.parameter_count"] > 0, shown

whole = client.chat(model, messages, options=greedy)
assert whole.message.content and whole.done and whole.done_reason in ("stop", "length"), whole
assert whole.prompt_eval_count > 0 and whole.eval_count > 0 and whole.total_duration > 0, whole
parts = list(client.chat(model, messages, options=greedy, stream=True))
assert "".join(p.message.content or "" for p in parts) == whole.message.content, parts
assert parts[-1].done and parts[-1].eval_count == whole.eval_count

answer = client.generate(model, messages[0]["content"], options=greedy)
assert answer.response == whole.message.content, answer
raw = client.generate(model, "turn on", raw=True, options=greedy | {"num_predict": 5, "stop": ["\n\n\n"]})
assert raw.eval_count <= 5
assert "".join(p.response for p in client.generate(model, "turn on", raw=True, stream=True,
                                                   options=greedy | {"num_predict": 5})) == raw.response
assert client.generate(model).done_reason == "load"
seeded = [client.generate(model, "hi", options={"seed": 7, "temperature": 1.5, "num_predict": 12}).response
          for _ in range(2)]
assert seeded[0] == seeded[1], seeded

schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
          "additionalProperties": False}
formed = client.chat(model, messages, format=schema, options={"num_predict": 100}).message.content
assert isinstance(json.loads(formed)["ok"], bool), formed

told = client.chat(model, messages, logprobs=True, top_logprobs=2, options=greedy | {"num_predict": 3})
assert len(told.logprobs) == told.eval_count == 3, told
assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in told.logprobs), told
assert "".join(entry.token for entry in told.logprobs) == told.message.content, told
usual = {"mirostat": 0, "num_keep": 4, "repeat_last_n": -1, "num_predict": 2}
assert client.chat(model, messages, options=usual).eval_count == 2

made = client.embed(model, ["a fan", "a valve"])
assert len(made.embeddings) == 2 and len(made.embeddings[0]) == len(made.embeddings[1]) > 8
assert abs(sum(x * x for x in made.embeddings[0]) - 1) < 1e-3 and made.prompt_eval_count > 1
running = client.ps().models
assert [m.model for m in running] == [model] and running[0].size > 0, running

client.generate(model, keep_alive="1h30m")
left_s = (client.ps().models[0].expires_at - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
assert 5300 < left_s < 5500, left_s
client.chat(model, messages, options=greedy, keep_alive=-1)
assert client.ps().models[0].expires_at is None
client.embed(model, "a fan", truncate=True, keep_alive=0)
deadline = time.monotonic() + 10
while client.ps().models:
    assert time.monotonic() < deadline, "a model with keep_alive 0 is still loaded"

for status, word, call in [
    (404, "no/such:model", lambda: client.chat("no/such:model", messages)),
    (400, "images", lambda: client.generate(model, "a", images=[b"x"])),
    (400, "content", lambda: client.chat(model, [{"role": "user"}])),
    (404, "fulmar pull", lambda: client.pull("qwen3")),
    (404, "fulmar rm", lambda: client.delete(model)),
    (404, "/api/embed", lambda: client.embeddings(model, "a")),
    (400, "suffix", lambda: client.generate(model, "a", suffix="b")),
    (400, "keep_alive", lambda: client.chat(model, messages, keep_alive="soon")),
    (400, "num_ctx", lambda: client.chat(model, messages, options={"num_ctx": 10_000_000})),
    (400, "mirostat", lambda: client.chat(model, messages, options={"mirostat": 1})),
    (400, "temperature", lambda: client.chat(model, messages, options={"temperature": 9})),
    (400, "uniqueItems", lambda: client.chat(model, messages,
                                             format={"type": "array", "uniqueItems": True})),
    (400, "dimensions", lambda: client.embed(model, "a", dimensions=3)),
]:
    try:
        call()
    except ollama.ResponseError as error:
        assert error.status_code == status and word in error.error, (word, error.status_code, error.error)
        continue
    raise SystemExit(f"{word} was not refused")
try:
    ollama.Client(host=host).list()
    raise SystemExit("no token was asked for")
except ollama.ResponseError as error:
    assert error.status_code == 401 and "fulmar token mint" in error.error, error
print("ok")
