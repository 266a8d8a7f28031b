use serde_json::json;

use super::*;
use crate::chat::{self, Calls, Family, Start, ToolChoice, ToolOffer, Tools, parse_output};

/// One token per byte, and an end token.
fn bytes() -> Vocabulary {
    let mut words: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
    words.push(Vec::new());
    Vocabulary::new(words, &[256]).expect("a vocabulary")
}

const END: u32 = 256;

fn allows(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|bits| bits >> (token % 32) & 1 == 1)
}

/// The same with a token for every mark, behind the end token, in the order of the list.
fn bytes_and_marks() -> Vocabulary {
    let words = (0..=255u8).map(|b| vec![b]).chain(vec![Vec::new(); 1 + chat::MARKS.len()]);
    let marks = (END + 1..).zip(chat::MARKS).collect();
    Vocabulary::with_marks(words.collect(), &[END], marks).expect("a vocabulary")
}

/// The tokens of a text in which `«…»` is the token of a mark.
fn tokens(text: &str) -> Vec<u32> {
    let (mut ids, mut rest) = (Vec::new(), text);
    while let Some((before, (mark, behind))) =
        rest.split_once('«').and_then(|(before, rest)| Some((before, rest.split_once('»')?)))
    {
        let at = chat::MARKS.iter().position(|m| *m == mark).expect("a mark");
        ids.extend(before.bytes().map(u32::from));
        ids.push(END + 1 + at as u32);
        rest = behind;
    }
    ids.extend(rest.bytes().map(u32::from));
    ids
}

/// Whether the whole text follows the constraint.
fn accepts(constraint: &Constraint, text: &str) -> bool {
    let mut guide = bytes().compile(constraint).expect("a guide");
    for byte in text.bytes() {
        if !allows(guide.mask().expect("a mask"), u32::from(byte)) {
            return false;
        }
        guide.take(u32::from(byte)).expect("an allowed token");
    }
    allows(guide.mask().expect("a mask"), END)
}

#[test]
fn a_schema_allows_what_is_valid_and_nothing_else() {
    let schema = Constraint::JsonSchema(json!({
        "type": "object",
        "properties": { "a": { "type": "integer" }, "b": { "enum": ["x", "y"] } },
        "required": ["a"],
        "additionalProperties": false,
    }));
    assert!(accepts(&schema, r#"{"a":12,"b":"y"}"#));
    assert!(accepts(&schema, r#"{"a":-3}"#));
    for bad in [r#"{"a":1.5}"#, r#"{"b":"x"}"#, r#"{"a":1"#, r#"{ "a":1}"#, r#"{"a":1,"c":2}"#] {
        assert!(!accepts(&schema, bad), "{bad}");
    }
}

#[test]
fn any_json_regular_expressions_and_lark_work() {
    assert!(accepts(&Constraint::Json, r#"[1,{"k":null},"é",true]"#));
    assert!(!accepts(&Constraint::Json, "[1,"));
    let regex = Constraint::Regex("[a-c]{2,3}|x".to_owned());
    assert!(accepts(&regex, "abc") && accepts(&regex, "x") && !accepts(&regex, "a"));
    let lark = Constraint::Lark("start: \"(\" start \")\" | /[0-9]+/".to_owned());
    assert!(accepts(&lark, "((42))") && !accepts(&lark, "((42)"));
}

#[test]
fn after_a_complete_text_only_the_end_is_allowed() {
    let mut guide = bytes().compile(&Constraint::Regex("ab".to_owned())).unwrap();
    assert_eq!(guide.take(u32::from(b'a')).unwrap(), Progress::Open);
    assert_eq!(guide.take(u32::from(b'b')).unwrap(), Progress::Complete);
    let mask = guide.mask().unwrap();
    assert!(allows(mask, END) && !allows(mask, u32::from(b'c')));
}

#[test]
fn an_unsupported_schema_is_refused_with_the_keyword_to_blame() {
    let cases = [
        ("uniqueItems", json!({ "type": "array", "uniqueItems": true })),
        ("not", json!({ "not": { "type": "string" } })),
        ("if", json!({ "if": { "type": "string" }, "then": { "minLength": 3 } })),
        ("oneOf", json!({ "oneOf": [{ "minimum": 3 }, { "maximum": 10 }] })),
        ("pattern", json!({ "type": "string", "pattern": "(?=a)b" })),
        ("format", json!({ "type": "string", "format": "no-such-format" })),
        ("const", json!({ "const": [12_345_678_901_234_567_u64] })),
        ("contains", json!({ "type": "array", "contains": { "const": 1 } })),
    ];
    for (keyword, schema) in cases {
        match bytes().compile(&Constraint::JsonSchema(schema.clone())) {
            Err(ConstraintError::Keyword { keyword: found, pointer, .. }) => {
                assert_eq!(found, keyword, "{schema}");
                assert!(schema.pointer(&pointer).is_some(), "{schema}: {pointer}");
            }
            other => panic!("{schema}: {other:?}"),
        }
    }
}

#[test]
fn what_the_compiler_refuses_is_found_deep_in_the_schema() {
    let overlapping = json!({ "patternProperties": { "a": {}, "^a": {} } });
    let empty = json!({ "type": "string", "minLength": 3, "maxLength": 2 });
    let cases = [
        (
            "/properties/a/items/patternProperties",
            json!({
                "properties": { "x": false, "a": { "items": overlapping } },
            }),
        ),
        (
            "/$defs/a~1b/oneOf",
            json!({
                "items": { "$ref": "#/$defs/a~1b" },
                "$defs": { "a/b": { "oneOf": [{ "minimum": 3 }, { "maximum": 10 }] } },
            }),
        ),
        (
            "/properties/a/minLength",
            json!({ "type": "object", "properties": { "a": empty, "b": empty },
            "required": ["a"] }),
        ),
        ("/allOf", json!({ "allOf": [true, false] })),
        ("/allOf", json!({ "allOf": [{ "type": "string" }, { "type": "null" }] })),
    ];
    for (place, schema) in cases {
        match bytes().compile(&Constraint::JsonSchema(schema.clone())) {
            Err(ConstraintError::Keyword { pointer, .. }) => assert_eq!(pointer, place, "{schema}"),
            other => panic!("{schema}: {other:?}"),
        }
    }
}

#[test]
fn each_character_has_one_spelling_so_that_no_name_comes_twice() {
    let schema = Constraint::JsonSchema(json!({
        "properties": { "a": { "const": 1 } }, "additionalProperties": { "const": 2 },
    }));
    assert!(accepts(&schema, r#"{"a":1,"\"":2,"é\n":2}"#));
    assert!(!accepts(&schema, r#"{"a":1,"\u0061":2}"#));
    assert!(!accepts(&Constraint::Json, r#"{"\u0061":2}"#));
}

#[test]
fn what_is_not_well_formed_is_an_error_value() {
    let bad = [
        Constraint::Regex("(".to_owned()),
        Constraint::Lark("start: nowhere".to_owned()),
        Constraint::Lark(String::new()),
        Constraint::Gbnf("root ::= \"a".to_owned()),
        Constraint::Gbnf("root ::= missing".to_owned()),
        Constraint::Gbnf(String::new()),
        Constraint::JsonSchema(json!(42)),
        Constraint::JsonSchema(json!({ "type": "nonsense" })),
        Constraint::JsonSchema(json!({ "$ref": "#/nowhere" })),
        Constraint::JsonSchema(json!({ "enum": "é".repeat(200) })),
    ];
    for constraint in bad {
        assert!(bytes().compile(&constraint).is_err(), "{constraint:?}");
    }
}

#[test]
fn depth_and_size_are_bounded() {
    let mut deep = json!({});
    for _ in 0..1000 {
        deep = json!({ "items": deep });
    }
    let cases = [
        Constraint::JsonSchema(deep),
        Constraint::Regex("(".repeat(1000) + &")".repeat(1000)),
        Constraint::Gbnf(format!("root ::= {}\"a\"{}", "(".repeat(1000), ")".repeat(1000))),
        Constraint::Lark("a".repeat(GRAMMAR_BYTES_MAX + 1)),
    ];
    for constraint in cases {
        let refused = bytes().compile(&constraint).unwrap_err();
        assert!(matches!(refused, ConstraintError::TooBig { .. }), "{refused}");
    }
}

fn gbnf(text: &str) -> Constraint {
    Constraint::Gbnf(text.to_owned())
}

#[test]
fn a_regular_gbnf_grammar_is_taken_exactly() {
    let g = gbnf(
        "root ::= greeting (\", \" name)? [.!]\ngreeting ::= \"hi\" | \"h\" [ae] \"llo\"\nname ::= [A-Z] [a-z]{1,3} # short\n",
    );
    for good in ["hi.", "hello!", "hallo, Ann.", "hi, Anna!"] {
        assert!(accepts(&g, good), "{good}");
    }
    for bad in ["hi", "hollo.", "hi, A.", "hi, Annas.", "hi,Ann."] {
        assert!(!accepts(&g, bad), "{bad}");
    }
}

#[test]
fn a_recursive_gbnf_grammar_works_with_white_space_that_may_be_empty() {
    let g = gbnf(
        r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4})
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
"#,
    );
    for good in [
        "{}",
        r#"{"a":1}"#,
        r#"{"a": [1,2, {"b": "cé\n"}], "d": true}"#,
        "{\"a\":\n  null}",
        r#"{"x":-1.5e+3}"#,
    ] {
        assert!(accepts(&g, good), "{good}");
    }
    for bad in ["[]", r#"{"a":}"#, r#"{"a":1,}"#, r#"{a:1}"#, r#"{"a":"}"#, "{"] {
        assert!(!accepts(&g, bad), "{bad}");
    }
}

#[test]
fn gbnf_escapes_and_repetitions_are_understood() {
    let g = gbnf("root ::= \"\\x41\\u00e9\\\"\" [\\-a-c/] .{2} \"\"");
    assert!(accepts(&g, "Aé\"-xy") && accepts(&g, "Aé\"/\né") && !accepts(&g, "Aé\"d12"));
    assert!(bytes().compile(&gbnf("root ::= \"a\"{99999}")).is_err());
    assert!(bytes().compile(&gbnf("root ::= [z-a]")).is_err());
}

#[test]
fn a_vocabulary_without_an_end_token_is_refused() {
    assert!(matches!(
        Vocabulary::new(vec![b"a".to_vec()], &[]),
        Err(ConstraintError::Vocabulary(_))
    ));
    assert!(Vocabulary::new(vec![b"a".to_vec()], &[7]).is_err());
}

#[test]
fn numbers_stay_within_what_readers_hold_and_bounds_are_kept() {
    let number = Constraint::JsonSchema(json!({ "type": "number" }));
    assert!(accepts(&number, "-12.5e-3") && !accepts(&number, "1e999"));
    assert!(!accepts(&Constraint::Json, "[1234567890123456789]"));
    let between = Constraint::JsonSchema(
        json!({ "type": "number", "exclusiveMinimum": -5.5, "exclusiveMaximum": -5.0 }),
    );
    assert!(accepts(&between, "-5.25"));
    for outside in ["-5", "-5.0", "-5.5", "-5.50"] {
        assert!(!accepts(&between, outside), "{outside}");
    }
}

/// Whether the whole text follows the shape.
fn follows(shape: &Shape<'_>, text: &str) -> bool {
    follows_in(&bytes(), shape, text)
}

fn follows_in(vocabulary: &Vocabulary, shape: &Shape<'_>, text: &str) -> bool {
    let mut guide = vocabulary.compile_shape(shape).expect("a guide").expect("not free");
    for token in tokens(text) {
        if !allows(guide.mask().expect("a mask"), token) {
            return false;
        }
        guide.take(token).expect("an allowed token");
    }
    allows(guide.mask().expect("a mask"), END)
}

fn calls(family: Family, limit: Calls) -> String {
    calls_in(&bytes(), family, limit)
}

fn calls_in(vocabulary: &Vocabulary, family: Family, limit: Calls) -> String {
    let schema = json!({
        "type": "object",
        "properties": { "city": { "$ref": "#/$defs/city" } },
        "required": ["city"],
        "additionalProperties": false,
        "$defs": { "city": { "enum": ["Rome", "Oslo"] } },
    });
    let offer = ToolOffer {
        tools: json!([
            { "type": "function", "function": { "name": "get_weather", "parameters": schema } },
            { "type": "function", "function": { "name": "now" } },
        ]),
        choice: ToolChoice::Required,
        calls: limit,
    };
    let functions = chat::functions(&offer).expect("functions");
    chat::calls_grammar(family, &functions, limit, |mark| vocabulary.mark(mark), arguments)
}

#[test]
fn calls_follow_each_familys_syntax_and_the_functions_schemas() {
    let weather = |key: &str| format!(r#"{{"name": "get_weather", "{key}": {{"city": "Rome"}}}}"#);
    let now = |key: &str| format!(r#"{{"name": "now", "{key}": {{}}}}"#);
    let hermes = |call: &str| format!("<tool_call>\n{call}\n</tool_call>");
    let (a, p) = ("arguments", "parameters");
    for (family, one, two) in [
        (
            Family::Hermes,
            hermes(&weather(a)),
            format!("{}\n{}", hermes(&weather(a)), hermes(&now(a))),
        ),
        (Family::Llama3, weather(p), format!("{}; {}", weather(p), now(p))),
        (
            Family::Phi4,
            format!("functools[{}]", weather(a)),
            format!("functools[{}, {}]", weather(a), now(a)),
        ),
        (Family::Gemma, weather(p), format!("[{}, {}]", weather(p), now(p))),
    ] {
        let many = calls(family, Calls::Many);
        let many = Shape { calls: Some(&many), ..Shape::default() };
        assert!(follows(&many, &two), "{family:?}: {two}");
        assert!(!follows(&many, &two.replace("Rome", "Bonn")), "{family:?}");
        assert!(!follows(&many, &two.replace("get_weather", "get_time")), "{family:?}");
        assert!(!follows(&many, "Let me see."), "{family:?}");
        let single = calls(family, Calls::One);
        let single = Shape { calls: Some(&single), ..Shape::default() };
        assert!(follows(&single, &one) && !follows(&single, &two), "{family:?}");
        let parsed = parse_output(family, Tools::Offered, Start::Content, &two);
        assert_eq!((parsed.tool_calls.len(), parsed.content.as_str()), (2, ""), "{family:?}");
    }
}

#[test]
fn reasoning_is_free_and_what_follows_it_is_not() {
    let schema = Constraint::JsonSchema(json!({ "type": "array", "items": { "type": "integer" } }));
    let begun =
        Shape { constraint: Some(&schema), reasoning: Reasoning::Begun, ..Shape::default() };
    assert!(follows(&begun, "say \"1234567890123456789\" < 2\n</think>\n\n[1,2]"));
    assert!(follows(&begun, "</think>[1]"));
    for bad in
        ["[1]", "never ends", "so</think> [1", "so</think>x", "</think>[12345678901234567890]"]
    {
        assert!(!follows(&begun, bad), "{bad}");
    }
    let grammar = calls(Family::Hermes, Calls::One);
    let possible =
        Shape { calls: Some(&grammar), reasoning: Reasoning::Possible, ..Shape::default() };
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    assert!(follows(&possible, call));
    assert!(follows(&possible, &format!("<think>\nhm\n</think>\n\n{call}")));
    assert!(!follows(&possible, &format!("hm</think>{call}")));
    assert!(!follows(&possible, &format!("<think>hm{call}")));
}

#[test]
fn calls_or_content_may_stand_beside_each_other() {
    let schema = Constraint::JsonSchema(json!({ "const": "done" }));
    let grammar = calls(Family::Hermes, Calls::One);
    let either = Shape { constraint: Some(&schema), calls: Some(&grammar), ..Shape::default() };
    assert!(follows(&either, "\"done\""));
    assert!(follows(&either, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"));
    assert!(!follows(&either, "other"));
}

#[test]
fn marks_that_are_tokens_stand_where_marks_may_and_nowhere_else() {
    let vocabulary = bytes_and_marks();
    let follows = |shape: &Shape<'_>, text: &str| follows_in(&vocabulary, shape, text);
    let schema = Constraint::JsonSchema(json!({ "type": "array", "items": { "type": "string" } }));
    let begun =
        Shape { constraint: Some(&schema), reasoning: Reasoning::Begun, ..Shape::default() };
    for good in [
        "hm, 1234567890123456789 < 2\n«</think>»\n\n[\"a\"]",
        "«</think>»[]",
        "é</think>\n\n[\"</think>\"]",
    ] {
        assert!(follows(&begun, good), "{good}");
    }
    for bad in [
        "a«<think>»b«</think>»[]",
        "a«</think>»«</think>»[]",
        "a«</think>»[\"«</think>»\"]",
        "a«</think>»[\"«<tool_call>»\"]",
        "«<|tool_call|>»a«</think>»[]",
    ] {
        assert!(!follows(&begun, bad), "{bad}");
    }
    let now = |key: &str| format!("{{\"name\": \"now\", \"{key}\": {{}}}}");
    for (family, open, close) in [
        (Family::Hermes, "«<tool_call>»\n", "\n«</tool_call>»"),
        (Family::Phi4, "«<|tool_call|>»[", "]«<|/tool_call|>»"),
        (Family::Phi4, "functools[", "]"),
        (Family::Llama3, "«<|python_tag|>»", ""),
        (Family::Llama3, "", ""),
    ] {
        let key = if family == Family::Llama3 { "parameters" } else { "arguments" };
        let call = format!("{open}{}{close}", now(key));
        let grammar = calls_in(&vocabulary, family, Calls::One);
        let shape = Shape { calls: Some(&grammar), ..Shape::default() };
        assert!(follows(&shape, &call), "{call}");
        assert!(!follows(&shape, &call.replace("now", "n«<tool_call>»ow")), "{call}");
        let possible = Shape { reasoning: Reasoning::Possible, ..shape };
        assert!(follows(&possible, &format!("«<think>»\nhm\n«</think>»\n\n{call}")), "{call}");
        assert!(follows(&possible, &call), "{call}");
    }
    assert!(!follows_in(
        &vocabulary,
        &Shape { constraint: Some(&Constraint::Json), ..Shape::default() },
        "[\"«<think>»\"]"
    ));
}
