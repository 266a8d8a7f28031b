"""Generates the demo model's task: conversations with the one right answer each.

Four kinds: `command` (a spoken-style command -> JSON), `triage` (a log line -> JSON), `table`
(a question about a small telemetry table -> a short answer) and `chat` (small talk and everything
out of scope -> a fixed polite reply).

Two splits: `train`, and `held_out`, whose phrasings, log layouts, real-word names and made-up names
are not those of training; what both have are the words that phrasings are made of, the layouts of
tables and the fixed replies. Made-up words are assigned to a split by a hash of the word, so the two
can never meet. Case number i of a split is always the same.

`python generate.py held_out 5` prints five cases.
"""

import hashlib
import json
import random
import sys

import phrases as P

KINDS = ("command", "triage", "table", "chat")
# Training's second part also makes names of the vocabulary's own pieces, so that every token is
# copied often enough (`train.py` fills both in). Words that have a token together with their space
# stand at the start of names more often: there the tokens of a name and of its copy differ.
FRAGMENTS: list[str] = []
SPACED: list[str] = []
_ONSETS = "b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pl pr sk sl st tr th ch sh qu x y".split()
_VOWELS = "a e i o u a e i o u ai ea ee oo ou".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "x", "nd", "rk", "st", "ck", "th"]


def _is_held_out(word: str) -> bool:
    return hashlib.sha256(word.lower().encode()).digest()[0] % 8 == 0


def _real(split: str) -> set[str]:
    lists = (P.DEVICES, P.ADJECTIVES, P.PLACES, P.COMPONENTS, P.METRICS, P.STATES, P.PROPERTIES)
    return {w for one in lists for w in one[split]}


assert not _real("train") & _real("held_out"), _real("train") & _real("held_out")
_NEVER_MADE_UP = _real("train") | _real("held_out")


def made_up(rng: random.Random, split: str) -> str:
    """A word that means nothing, of the split's own words only."""
    while True:
        style = rng.random()
        if FRAGMENTS and split == "train" and style < 0.45:
            start = rng.choice(SPACED if rng.random() < 0.2 else FRAGMENTS)
            word = start + "".join(rng.choice(FRAGMENTS) for _ in range(rng.choice((0, 1, 1, 2))))[:16]
        elif style < 0.82:
            word = "".join(
                rng.choice(_ONSETS) + rng.choice(_VOWELS) + (rng.choice(_CODAS) if rng.random() < 0.6 else "")
                for _ in range(rng.choice((1, 2, 2, 2, 3)))
            )
        else:
            word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 5)))
        if len(word) > 2 and word not in _NEVER_MADE_UP and _is_held_out(word) == (split == "held_out"):
            return word


def _word(rng: random.Random, split: str, words: dict, invented: float = 0.55) -> str:
    if rng.random() < invented:
        return made_up(rng, split)
    return rng.choice(words[split]).replace("+", " ")


def _code(rng: random.Random, split: str) -> str:
    while True:
        letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
        code = rng.choice(("{}-{}", "{}{}")).format(letters, rng.randint(1, 120))
        if _is_held_out(code) == (split == "held_out"):
            return code


def device(rng: random.Random, split: str) -> str:
    """How people name a device: `pump`, `exhaust fan`, `pump 3`, `AHU-2`."""
    noun, form = _word(rng, split, P.DEVICES), rng.random()
    if form < 0.50:
        return noun
    if form < 0.75:
        return f"{_word(rng, split, P.ADJECTIVES, 0.3)} {noun}"
    if form < 0.90:
        return f"{noun} {rng.choice((rng.randint(1, 20), rng.randint(1, 9), rng.choice('ABCDEF')))}"
    return _code(rng, split)


def place(rng: random.Random, split: str) -> str:
    """Where: `kitchen`, `boiler room`, `tarvo hall`, `hall 3`."""
    form = rng.random()
    if form < 0.65:
        return _word(rng, split, P.PLACES)
    if form < 0.80:
        return f"{made_up(rng, split)} {rng.choice(('hall', 'room', 'wing', 'floor', 'station', 'building'))}"
    if form < 0.93:
        return f"{rng.choice(('room', 'hall', 'line', 'zone', 'floor', 'building'))} {rng.choice((rng.randint(1, 40), rng.choice('ABCDEF')))}"
    return _code(rng, split)


def component(rng: random.Random, split: str) -> str:
    """How software and machines name themselves: `mqttd`, `pump-3`, `door_hub`."""
    noun, form = _word(rng, split, P.COMPONENTS), rng.random()
    if form < 0.45:
        return noun
    if form < 0.75:
        return f"{noun}-{rng.randint(1, 30)}"
    if form < 0.92:
        return f"{noun}{rng.choice('-_')}{_word(rng, split, P.COMPONENTS, 0.4)}"
    return _code(rng, split)


def _number(rng: random.Random) -> str:
    form = rng.random()
    if form < 0.6:
        return str(rng.randint(1, 99))
    if form < 0.8:
        return f"{rng.randint(0, 99)}.{rng.randint(0, 9)}"
    return str(rng.randint(100, 3000))


def _spoken(rng: random.Random, text: str, question: bool) -> str:
    form = rng.random()
    if form < 0.45 and not text[:2].isupper():
        text = text[0].upper() + text[1:]
    if rng.random() < 0.35:
        text += "?" if question else rng.choice(".!.")
    return text


def command(rng: random.Random, split: str) -> tuple[str, str]:
    """A command and its action."""
    action = rng.choice(("on", "on", "off", "off", "open", "close", "set", "set", "status"))
    if split == "train" and rng.random() < 0.3:
        action = "set"
    core = rng.choice(P.COMMANDS[action][split])
    answer: dict = {"action": action, "device": device(rng, split)}
    where, spot = "", None
    if rng.random() < 0.6:
        spot = place(rng, split)
        where = rng.choice(P.WHERE).format(p=spot)
    slots = {"d": answer["device"], "w": where}
    if spot:
        answer["place"] = spot
    if action == "set":
        answer["property"] = slots["q"] = _word(rng, split, P.PROPERTIES, 0.45)
        slots["v"] = _number(rng)
        answer["value"] = json.loads(slots["v"])
        slots["v"] += rng.choice(("", "", "", " percent", " degrees", "%"))
    text = core.format(**slots)
    if action in ("on", "off") and rng.random() < 0.12:
        minutes = rng.randint(1, 90)
        text += rng.choice(P.DURATIONS).format(n=minutes)
        answer["minutes"] = minutes
    openers, closers = (P.OPENERS, P.CLOSERS) if split == "train" else (P.OPENERS_HELD_OUT, P.CLOSERS_HELD_OUT)
    if action != "status":
        text = rng.choice(openers) + text + rng.choice(closers)
    return _spoken(rng, text, action == "status"), json.dumps(answer, separators=(",", ":"))


def triage(rng: random.Random, split: str) -> tuple[str, str]:
    """A log line and what it means."""
    action = rng.choice(list(P.SYMPTOMS) + ["none"])
    severity = "info" if action == "none" else rng.choice(("critical", "error", "warning", "error", "warning"))
    name = component(rng, split)
    other = component(rng, split)
    while other == name:
        other = component(rng, split)
    message = rng.choice(P.SYMPTOMS[action][split]).format(x=other, n=rng.randint(1, 99))
    if rng.random() < 0.3:
        message = message[0].upper() + message[1:]
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02} "
    stamp = rng.choice(("", "", "", clock, clock, f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T{clock}"))
    line = rng.choice(P.LOG_LINES[split]).format(
        t=stamp, l=rng.choice(P.LEVELS[severity]), c=name, m=message, n=rng.randint(1, 9999)
    )
    answer = {"severity": severity, "component": name, "action": action}
    return rng.choice(P.LOG_INTROS[split]) + line, json.dumps(answer, separators=(",", ":"))


def _layout(rng: random.Random, rows: list) -> str:
    """Rows of name, metric and value as text; with a column's header where all have one metric."""
    head = rng.choice(("name", "device", "sensor", "id"))
    form = rng.random()
    if form < 0.4:
        mark, gap = rng.choice(("=", ": ", " ")), rng.choice((": ", ": ", " "))
        return "\n".join(f"{n}{gap}{m}{mark}{v}" for n, m, v in rows)
    if len({m for _, m, _ in rows}) == 1:
        cells = [[head, rows[0][1]]] + [[n, v] for n, _, v in rows]
    else:
        cells = [[head, rng.choice(("metric", "reading", "what")), "value"], *([*row] for row in rows)]
    if form < 0.8:
        mark = rng.choice((",", ", ", " | ", ";"))
        return "\n".join(mark.join(row) for row in cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _distinct(rng: random.Random, count: int, make) -> list:
    found: list = []
    while len(found) < count:
        one = make()
        if one not in found:
            found.append(one)
    return found


def table(rng: random.Random, split: str, questions: int = 1) -> list[tuple[str, str]]:
    """A small table of readings, one per line, with questions about it; the answers stand in it.

    The first question comes with the table, further ones alone.
    """
    names = _distinct(rng, rng.choice((2, 3, 3, 4, 5)), lambda: component(rng, split))
    metric = _word(rng, split, P.METRICS, 0.45)
    mixed = rng.random() < 0.35
    states = rng.random() < 0.45
    unit = rng.choice(P.UNITS)
    rows = []
    for name in names:
        if mixed:
            metric, unit = _word(rng, split, P.METRICS, 0.45), rng.choice(P.UNITS)
        value = _word(rng, split, P.STATES, 0.4) if states else _number(rng) + unit
        rows.append((name, metric, value))
    exchanges = [_question(rng, split, rows) for _ in range(questions)]
    first, answer = exchanges[0]
    exchanges[0] = (_layout(rng, rows) + "\n" + first, answer)
    return exchanges


def _question(rng: random.Random, split: str, rows: list) -> tuple[str, str]:
    name, metric, value = rng.choice(rows)
    return rng.choice(P.LOOKUPS[split]).format(n=name, m=metric), value


def chat(rng: random.Random, split: str) -> tuple[str, str]:
    """Small talk, or a wish that the model cannot fulfil."""
    reply = rng.choice((P.HELLO, P.ABOUT, P.SORRY, P.SORRY, P.SORRY, P.THANKS, P.BYE))
    text = rng.choice(P.CHAT[reply][split])
    x = " ".join(made_up(rng, split) if rng.random() < 0.7 else rng.choice(P.PLACES[split]).replace("+", " ") for _ in range(rng.choice((1, 1, 2))))
    return _spoken(rng, text.format(x=x, n=rng.randint(1, 99)), rng.random() < 0.6), reply


_MAKERS = {"command": command, "triage": triage, "chat": chat}
_SHARES = (0.36, 0.26, 0.33, 0.05)
# In the second part tables, which are learned last, come more often.
_SHARES_LATER = (0.44, 0.16, 0.33, 0.07)


def case(split: str, index: int, kind: str | None = None, go_on: bool = True) -> dict:
    """Case `index` of a split: `{"kind", "messages": [{"role", "content"}, ...]}`.

    Held-out cases are single exchanges, and all without `go_on`. Training cases may go on, those
    about a table mostly: each further question teaches as much as the first and costs little.
    """
    rng = random.Random(f"fulmar-demo/{split}/{kind}/{index}")
    kind = kind or rng.choices(KINDS, _SHARES_LATER if FRAGMENTS else _SHARES)[0]
    messages = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": rng.choice(P.SYSTEMS[split])})
    go_on = go_on and split == "train"
    if kind == "table":
        exchanges = table(rng, split, rng.choice((1, 4, 6, 8)) if go_on else 1)
    else:
        exchanges = [_MAKERS[kind](rng, split)]
        if go_on and rng.random() < 0.12:
            kind = rng.choice(("command", "triage", "chat"))
            exchanges.append(_MAKERS[kind](rng, split))
    for asked, answer in exchanges:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"kind": kind, "messages": messages}


def main() -> None:
    """Prints cases."""
    split = sys.argv[1] if len(sys.argv) > 1 else "train"
    for index in range(int(sys.argv[2]) if len(sys.argv) > 2 else 20):
        print(json.dumps(case(split, index), ensure_ascii=False))


if __name__ == "__main__":
    main()
