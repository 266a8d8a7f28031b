"""The official openai package against a device: whole answers, streams, errors."""

import os

import openai

client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], max_retries=0)
model = os.environ["MODEL"]
messages = [{"role": "user", "content": "turn on the fan in the boiler room"}]

assert model in [m.id for m in client.models.list()], "the model is listed"
assert client.models.retrieve(model).id == model

whole = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=64)
text = whole.choices[0].message.content
assert text and whole.choices[0].finish_reason == "stop", whole
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

stream = client.chat.completions.create(
    model=model, messages=messages, temperature=0, max_tokens=64, stream=True,
    stream_options={"include_usage": True},
)
parts, usage = [], None
for chunk in stream:
    usage = chunk.usage or usage
    if chunk.choices:
        parts.append(chunk.choices[0].delta.content or "")
assert "".join(parts) == text, ("".join(parts), text)
assert usage.completion_tokens == whole.usage.completion_tokens

same = [
    client.chat.completions.create(
        model=model, messages=messages, temperature=1.5, seed=7, max_tokens=20
    ).choices[0].message.content
    for _ in range(2)
]
assert same[0] == same[1], same

schema = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
constrained = client.chat.completions.create(
    model=model, messages=messages, temperature=0, max_tokens=64,
    response_format={"type": "json_schema", "json_schema": {"name": "r", "schema": schema}},
)
assert constrained.choices[0].message.content in ('{"ok":true}', '{"ok":false}', '{"ok": true}', '{"ok": false}')

try:
    client.chat.completions.create(model="no/such:model", messages=messages)
    raise SystemExit("an unknown model was answered for")
except openai.NotFoundError as error:
    assert "no/such:model" in str(error), error
try:
    client.chat.completions.create(model=model, messages=messages, extra_body={"tempratur": 1})
    raise SystemExit("an unknown field was accepted")
except openai.BadRequestError as error:
    assert "tempratur" in str(error), error
try:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    client.chat.completions.create(model=model, messages=[{"role": "user", "content": [image]}])
    raise SystemExit("an image was accepted")
except openai.BadRequestError as error:
    assert error.param == "messages" and "image_url" in str(error), error
try:
    openai.OpenAI(base_url=os.environ["BASE_URL"], api_key="wrong", max_retries=0).models.list()
    raise SystemExit("a wrong token was accepted")
except openai.AuthenticationError:
    pass
print("ok")
