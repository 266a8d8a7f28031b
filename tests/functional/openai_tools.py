"""The official openai package: which tool is called is the request's choice, and the arguments are
valid under the tool's schema."""

import json
import os

import openai

client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], max_retries=0)
model = os.environ["MODEL"]
messages = [{"role": "user", "content": "turn on the fan in the boiler room"}]
switch = {"type": "function", "function": {"name": "switch", "description": "Switches a device.", "parameters": {
    "type": "object",
    "properties": {"device": {"enum": ["fan", "pump"]}, "on": {"type": "boolean"}},
    "required": ["device", "on"], "additionalProperties": False}}}
status = {"type": "function", "function": {"name": "status"}}


def ask(**fields):
    fields = {"tools": [switch, status], "temperature": 1, "max_tokens": 200} | fields
    return client.chat.completions.create(model=model, messages=messages, **fields)


def check(call):
    arguments = json.loads(call.function.arguments)
    if call.function.name == "switch":
        assert set(arguments) == {"device", "on"}, arguments
        assert arguments["device"] in ("fan", "pump") and isinstance(arguments["on"], bool), arguments
    else:
        assert call.function.name == "status" and arguments == {}, call


for seed in range(2):
    choice = ask(tool_choice="required", parallel_tool_calls=False, seed=seed).choices[0]
    assert choice.finish_reason == "tool_calls" and len(choice.message.tool_calls) == 1, choice
    check(choice.message.tool_calls[0])
    named = ask(tool_choice={"type": "function", "function": {"name": "switch"}}, seed=seed).choices[0]
    assert [c.function.name for c in named.message.tool_calls] == ["switch"], named
    check(named.message.tool_calls[0])
    many = ask(tool_choice="required", seed=seed, max_tokens=300).choices[0]
    for call in many.message.tool_calls or []:
        check(call)
    assert many.message.tool_calls or many.finish_reason == "length"

# A tool's call streams, and the conversation goes on with its result.
parts = list(ask(tool_choice="required", parallel_tool_calls=False, stream=True, seed=1))
calls = [c for part in parts for c in part.choices[0].delta.tool_calls or []]
assert len(calls) == 1 and parts[-1].choices[0].finish_reason == "tool_calls", parts
check(calls[0])

for choice in ("none", "auto"):
    free = ask(tool_choice=choice, temperature=0).choices[0]
    assert free.message.content or free.message.tool_calls, free
assert ask(tool_choice="none").choices[0].message.tool_calls is None

bad = {"type": "function", "function": {"name": "bad", "parameters": {
    "type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}}}
for field, words, fields in [
    ("tool_choice", ["other"], {"tool_choice": {"type": "function", "function": {"name": "other"}}}),
    ("tool_choice", ["required"], {"tool_choice": "any"}),
    ("tool_choice", ["no tools"], {"tool_choice": "required", "tools": []}),
    ("tools", ["bad", "/properties/a/uniqueItems"], {"tool_choice": "required", "tools": [bad]}),
    ("tools", ["[1].function.name"], {"tools": [switch, {"type": "function", "function": {}}]}),
    ("tools", ["twice"], {"tools": [switch, switch]}),
]:
    try:
        ask(**fields)
    except openai.BadRequestError as error:
        assert error.body["param"] == field, error.body
        assert all(word in error.body["message"] for word in words), error.body
        continue
    raise SystemExit(f"{field} was not refused: {fields}")
print("ok")
