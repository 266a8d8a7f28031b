"""How a family's answers are taken apart: reasoning, content and calls, whole and streamed.

A grammar has the model say exactly what a model of the family would, so that only the way from text
to fields is under test."""

import json
import os

import openai

client = openai.OpenAI(base_url=os.environ["BASE_URL"], api_key=os.environ["API_KEY"], max_retries=0)
call = '{"name": "switch", "%s": {"device": "fan"}}'
says = {
    "<tool_call>": "<tool_call>\n" + call % "arguments" + "\n</tool_call>",
    "<|python_tag|>": call % "parameters",
    "<|tool_call|>": "<|tool_call|>[" + call % "arguments" + "]<|/tool_call|>",
    "<start_of_turn>": "```json\n" + call % "parameters" + "\n```",
}[os.environ["MARKS"]]
tools = [{"type": "function", "function": {"name": "switch", "parameters": {
    "type": "object", "properties": {"device": {"enum": ["fan"]}}, "required": ["device"],
    "additionalProperties": False}}}]


def ask(text, **fields):
    """The message and the joined stream of an answer that is this text."""
    formed = {"type": "grammar", "syntax": "gbnf", "definition": "root ::= " + json.dumps(text)}
    fields = {"model": os.environ["MODEL"], "messages": [{"role": "user", "content": "go"}],
              "extra_body": {"response_format": formed}, "max_tokens": 400} | fields
    whole = client.chat.completions.create(**fields).choices[0]
    joined = {"content": "", "reasoning_content": "", "tool_calls": []}
    for chunk in client.chat.completions.create(stream=True, **fields):
        delta = chunk.choices[0].delta
        joined["content"] += delta.content or ""
        joined["reasoning_content"] += getattr(delta, "reasoning_content", None) or ""
        joined["tool_calls"] += delta.tool_calls or []
    return whole, joined


for logprobs in (False, True):
    whole, joined = ask("<think>\nhm, 2 < 3\n</think>\n\nYes.", logprobs=logprobs)
    assert whole.message.content == joined["content"] == "Yes.", (whole, joined)
    assert whole.message.reasoning_content == joined["reasoning_content"] == "hm, 2 < 3", whole
    assert whole.message.tool_calls is None
    assert bool(whole.logprobs) == logprobs
    if logprobs:
        said = "".join(entry.token for entry in whole.logprobs.content)
        assert "hm, 2 < 3" in said and said.endswith("Yes."), said

# Beside a constraint on the content, the model may still call: in this or in its own syntax.
whole, joined = ask(says, tools=tools, parallel_tool_calls=False)
for calls in (whole.message.tool_calls, joined["tool_calls"]):
    assert [c.function.name for c in calls] == ["switch"], (whole, joined)
    assert json.loads(calls[0].function.arguments) == {"device": "fan"}, calls
assert whole.finish_reason == "tool_calls" and not whole.message.content, whole
# Nobody offered tools: the same text is content.
whole, joined = ask(says)
assert whole.message.content == joined["content"] == says and not whole.message.tool_calls, whole
print("ok")
