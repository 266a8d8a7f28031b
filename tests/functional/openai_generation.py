"""The official openai package: completions, embeddings, every sampling parameter, every form of
constraint, and errors that name their field."""

import base64
import json
import math
import os
import re
import struct

import openai

client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], max_retries=0)
model = os.environ["MODEL"]
messages = [{"role": "user", "content": "turn on the fan in the boiler room"}]


def chat(extra=None, **fields):
    fields = {"temperature": 0, "max_tokens": 40} | fields
    return client.chat.completions.create(model=model, messages=messages, extra_body=extra, **fields)


def complete(prompt, extra=None, **fields):
    fields = {"temperature": 0, "max_tokens": 24} | fields
    return client.completions.create(model=model, prompt=prompt, extra_body=extra, **fields)


def refused(field, call):
    """The call is refused with 400, and the error names the field."""
    try:
        call()
    except openai.BadRequestError as error:
        assert error.body["param"] == field, (field, error.body)
        return error.body["message"]
    raise SystemExit(f"{field} was not refused")


# Completions: one prompt, several, tokens, streams, stops, log-probabilities.
text = "turn on the fan in the boiler room"
one = complete(text)
assert one.object == "text_completion" and one.choices[0].finish_reason in ("stop", "length")
assert one.usage.prompt_tokens > 3 and one.usage.completion_tokens <= 24
two = complete([text, "close the valve"])
assert [c.index for c in two.choices] == [0, 1]
assert two.choices[0].text == one.choices[0].text
streamed = ["", ""]
usage = None
for chunk in complete([text, "close the valve"], stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for c in chunk.choices:
        streamed[c.index] += c.text
assert streamed == [c.text for c in two.choices], (streamed, two)
assert usage.total_tokens == two.usage.total_tokens
tokens = complete([5, 6, 7, 8])
assert tokens.usage.prompt_tokens == 4
assert complete([[5, 6, 7, 8], [5, 6]]).choices[0].text == tokens.choices[0].text
rated = complete(text, logprobs=3).choices[0]
assert len(rated.logprobs.tokens) == len(rated.logprobs.token_logprobs) > 0
assert all(p <= 0 for p in rated.logprobs.token_logprobs)
assert all(1 <= len(top) <= 3 for top in rated.logprobs.top_logprobs)
assert rated.logprobs.text_offset[0] == 0 and rated.text == one.choices[0].text
whole = complete(text, max_tokens=60).choices[0].text
stop = whole[3:7]
cut = complete(text, max_tokens=60, stop=[stop]).choices[0]
assert cut.text == whole[: whole.index(stop)] and cut.finish_reason == "stop", (whole, cut)
for field, call in [
    ("echo", lambda: complete(text, echo=True)),
    ("suffix", lambda: complete(text, suffix="end")),
    ("n", lambda: complete(text, n=2)),
    ("best_of", lambda: complete(text, best_of=2)),
    ("prompt", lambda: complete([])),
    ("prompt", lambda: complete([99_999_999])),
    ("prompt", lambda: complete("word " * 20_000)),
]:
    refused(field, call)

# Embeddings.
inputs = ["the fan is on", "the valve is closed", "the fan is on"]
made = client.embeddings.create(model=model, input=inputs, encoding_format="float")
vectors = [item.embedding for item in made.data]
assert [item.index for item in made.data] == [0, 1, 2]
assert vectors[0] == vectors[2] != vectors[1]
assert all(abs(math.sqrt(sum(x * x for x in v)) - 1) < 1e-3 for v in vectors)
assert made.usage.prompt_tokens == made.usage.total_tokens > 6
alone = client.embeddings.create(model=model, input=inputs[1], encoding_format="float")
near = max(abs(a - b) for a, b in zip(alone.data[0].embedding, vectors[1]))
assert near < 1e-4, near
# The package asks for base64 by itself and unpacks it.
assert max(abs(a - b) for a, b in zip(
    client.embeddings.create(model=model, input=inputs[0]).data[0].embedding, vectors[0])) < 1e-6
packed = client.embeddings.create(model=model, input=inputs[0], encoding_format="base64")
raw = packed.data[0].embedding
assert isinstance(raw, str)
assert list(struct.unpack(f"<{len(vectors[0])}f", base64.b64decode(raw))) == [
    struct.unpack("<f", struct.pack("<f", x))[0] for x in vectors[0]
]
assert len(client.embeddings.create(model=model, input=[[5, 6], [7]]).data) == 2
assert len(client.embeddings.create(model=model, input=[5, 6, 7]).data) == 1
for field, fields in [
    ("dimensions", {"input": "a", "dimensions": 8}),
    ("input", {"input": ""}),
    ("input", {"input": ["a", ""]}),
    ("input", {"input": [99_999_999]}),
    ("input", {"input": "word " * 20_000}),
    ("encoding_format", {"input": "a", "encoding_format": "hex"}),
]:
    refused(field, lambda fields=fields: client.embeddings.create(model=model, **fields))

# Sampling parameters change what they should, and the same seed gives the same text.
greedy = chat().choices[0].message.content
hot = {"temperature": 2.0, "seed": 5}
assert chat(**hot).choices[0].message.content == chat(**hot).choices[0].message.content
for narrowed in ({"top_k": 1}, {"min_p": 1.0}):
    assert chat(narrowed, **hot).choices[0].message.content == greedy, narrowed
assert chat(**hot, top_p=0.0).choices[0].message.content == greedy
first = chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
assert len(first) > 1 and len(first[0].top_logprobs) == 2
assert first[0].logprob == first[0].top_logprobs[0].logprob
# A bias of 100 leaves these tokens only; penalties change which of them come.
few = {"logit_bias": {str(token): 100 for token in range(20, 90)}, "max_tokens": 30}
plain = chat(**few, logprobs=True, top_logprobs=0).choices[0]
assert len({entry.token for entry in plain.logprobs.content}) < 15, "unpenalised, tokens repeat"
one = chat(logit_bias={"40": 100}, max_tokens=5, logprobs=True).choices[0].logprobs.content
assert len(one) == 5 and len({entry.token for entry in one}) == 1, one
for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
    assert chat(**few, **penalty).choices[0].message.content != plain.message.content, penalty
assert chat({"repeat_penalty": 10.0}, **few).choices[0].message.content != plain.message.content
for field, extra in [("temperature", {"temperature": 2.5}), ("top_p", {"top_p": 1.5}),
                     ("min_p", {"min_p": -1}), ("top_k", {"top_k": -1}),
                     ("repeat_penalty", {"repeat_penalty": 0}),
                     ("presence_penalty", {"presence_penalty": 3}),
                     ("frequency_penalty", {"frequency_penalty": 3}),
                     ("logit_bias", {"logit_bias": {"x": 1}}), ("seed", {"seed": "x"}),
                     ("stop", {"stop": [1]}), ("stop", {"stop": [""]}), ("n", {"n": 2}),
                     ("logprobs", {"logprobs": True, "top_logprobs": 21}),
                     ("top_logprobs", {"top_logprobs": 2})]:
    refused(field, lambda extra=extra: chat(extra))

# A stop string that lies across tokens is found and not given out, also in a stream.
for at in range(1, max(2, len(greedy) - 3)):
    stop = greedy[at : at + 3]
    before = greedy[: greedy.index(stop)]
    assert chat(stop=stop).choices[0].message.content == before, stop
    parts = [c.choices[0].delta.content or "" for c in chat(stop=stop, stream=True)]
    assert "".join(parts) == before, (stop, parts)

# Every form of constraint.
schema = {"type": "object", "properties": {"level": {"type": "integer", "minimum": 0, "maximum": 9}},
          "required": ["level"], "additionalProperties": False}
for seed in range(3):
    fields = {"temperature": 1.0, "seed": seed, "max_tokens": 200}
    answer = chat(**fields, response_format={
        "type": "json_schema", "json_schema": {"name": "r", "schema": schema}})
    assert 0 <= json.loads(answer.choices[0].message.content)["level"] <= 9
    for syntax, definition in [("regex", "[ab]{3}-[0-9]{2}"),
                               ("lark", 'start: /[ab]{3}/ "-" /[0-9]{2}/'),
                               ("gbnf", 'root ::= [ab] [ab] [ab] "-" [0-9] [0-9]')]:
        formed = {"type": "grammar", "syntax": syntax, "definition": definition}
        for answer in (chat({"response_format": formed}, **fields).choices[0].message.content,
                       complete("a", {"response_format": formed}, **fields).choices[0].text):
            assert re.fullmatch("[ab]{3}-[0-9]{2}", answer), (syntax, answer)
    answer = chat({"grammar": 'root ::= "yes" | "no"'}, **fields).choices[0].message.content
    assert answer in ("yes", "no")
free = chat(response_format={"type": "json_object"}, max_tokens=300).choices[0]
assert free.finish_reason == "length" or json.loads(free.message.content) is not ...
for place, bad in [("/uniqueItems", {"type": "array", "uniqueItems": True}),
                   ("/$ref", {"$ref": "https://example.org/s.json"}),
                   ("/properties/a~1b/not", {"properties": {"a/b": {"not": {"type": "string"}}}})]:
    message = refused("response_format", lambda bad=bad: chat(response_format={
        "type": "json_schema", "json_schema": {"name": "r", "schema": bad}}))
    assert f'"{place}"' in message, message
refused("grammar", lambda: chat({"grammar": "root ::= ("}))
refused("response_format", lambda: chat({"response_format": {
    "type": "grammar", "syntax": "ebnf", "definition": "a"}}))
print("ok")
