//! Chat templates made to do harm: each ends with an error that names the limit it reached, within
//! bounded time, in a process whose address space is limited.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::time::{Duration, Instant};

use fulmar_inference::chat::{ChatError, ChatTemplate, RenderInput};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::{Value as Json, json};

/// What a process may map: the allowance of a rendering (64 MiB) several times, for what doubles
/// while it grows, stacks and the allocator's arenas.
const ADDRESS_SPACE_BYTES_MAX: u64 = 512 << 20;
/// How long a rendering may take on a machine that has other things to do.
const TIME_MAX: Duration = Duration::from_secs(20);

fn render(source: &str, messages: &Json) -> Result<String, ChatError> {
    let limit =
        Rlimit { current: Some(ADDRESS_SPACE_BYTES_MAX), maximum: Some(ADDRESS_SPACE_BYTES_MAX) };
    setrlimit(Resource::As, limit).unwrap();
    let started = Instant::now();
    let template = ChatTemplate::from_source(source, "<s>", "</s>")?;
    let rendered = template.render(&RenderInput {
        messages: messages.as_array().unwrap(),
        tools: None,
        kwargs: &Json::Null,
        add_generation_prompt: true,
        now_s: 0,
    });
    let shown = source.char_indices().rev().nth(100).map_or(0, |(at, _)| at);
    println!("{:?} {}", started.elapsed(), &source[shown..]);
    assert!(started.elapsed() < TIME_MAX, "{source} took {:?}", started.elapsed());
    rendered
}

/// Each of the templates is refused for this.
fn refused(expected: fn(&ChatError) -> bool, sources: &[&str]) {
    for source in sources {
        let refusal =
            render(source, &json!([{"role": "user", "content": "x"}])).map(|text| text.len());
        let refusal = refusal.expect_err(source);
        assert!(expected(&refusal), "{source}: {refusal}");
    }
}

fn too_deep(error: &ChatError) -> bool {
    matches!(error, ChatError::TooDeep(_)) && error.to_string().contains("deeper than 128")
}

fn too_much(error: &ChatError) -> bool {
    let (ChatError::TooMuch(limit) | ChatError::OutOfFuel(limit)) = error else { return false };
    error.to_string().contains(&limit.to_string())
}

fn no_data(error: &ChatError) -> bool {
    error.to_string().contains("only data can be put into")
}

#[test]
fn values_nested_in_themselves_are_refused_at_the_depth_that_is_allowed() {
    let loops = "{% set n = namespace(x=0, d={}) %}{% for i in range(50000) %}";
    for grown in [
        "{% set n.x = [n.x] %}",
        "{% set n.x = (n.x,) %}",
        "{% set n.x = {'a': n.x} %}",
        "{% set n.x = dict(a=n.x) %}",
        "{% set n.x = dict({'a': n.x}) %}",
        "{% set n.x = [n.x] + [1] %}",
        "{% set n.x = [[n.x], 2] | list %}",
        "{% set n.x = [n.x] | batch(1) %}",
        "{% set n.x = [n.x] | slice(1) %}",
        "{% set n.x = {'a': n.x} | items %}",
        "{% set n.x = {'a': n.x}.items() %}",
        "{% set n.x = {'a': n.x} | dictsort %}",
        "{% set n.x = [{'a': n.x}] | groupby('b') %}",
        "{% set n.x = [n.x] | map('default') | list %}",
    ] {
        for used in ["", "{{ n.x }}", "{{ n.x == [n.x] }}", "{{ n.x | tojson }}"] {
            refused(too_deep, &[&format!("{loops}{grown}{{% endfor %}}{used}")]);
        }
    }
}

#[test]
fn what_calls_itself_is_refused_at_minijinjas_own_limit() {
    refused(
        |error| error.to_string().contains("recursion limit exceeded"),
        &[
            "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}",
            "{% macro f(x) %}{{ x == x }}{{ f(x) ~ 'y' }}{% endmacro %}{{ f([[1]]) }}",
            "{% macro f() %}{% call f() %}{% endcall %}{{ caller() }}{% endmacro %}{{ f() }}",
            "{% for x in messages recursive %}{{ loop(messages) }}{{ loop([loop.index]) }}{% endfor %}",
        ],
    );
}

#[test]
fn lazy_lists_never_nest() {
    let loops = "{% set n = namespace(x=[1, 2]) %}{% for i in range(20000) %}";
    for grown in [
        "{% set n.x = n.x[0:] %}",
        "{% set n.x = n.x[::-1] %}",
        "{% set n.x = n.x * 1 %}",
        "{% set n.x = n.x | reverse %}",
        "{% set n.x = n.x + [] %}",
        "{% set n.x = n.x | map('int') %}",
        "{% set n.x = dict(a=1).keys() %}",
    ] {
        let source = format!("{loops}{grown}{{% endfor %}}{{{{ n.x | length }}}}");
        let rendered = render(&source, &json!([]));
        assert!(
            rendered.as_ref().is_ok_and(|text| !text.is_empty())
                || rendered.as_ref().is_err_and(too_much),
            "{source}: {rendered:?}"
        );
    }
}

#[test]
fn nothing_holds_itself() {
    refused(
        no_data,
        &[
            "{% set n = namespace() %}{% set n.x = n %}{{ n }}",
            "{% set n = namespace() %}{% set n.x = [n] %}{{ n }}",
            "{% set n = namespace() %}{% set n.x = {'a': n} %}{{ n == n.x }}",
            "{% set n = namespace() %}{% set m = namespace(n=n) %}{% set n.m = m %}{{ n }}",
            "{% set n = namespace() %}{% set m = namespace({'a': n}) %}",
            "{% set n = namespace() %}{% set n.x = dict(a=n) %}{{ n | tojson }}",
            "{% set n = namespace() %}{% for i in [1] %}{% set n.x = loop %}{% endfor %}{{ n.x }}",
            "{% for i in [1] %}{% set x = loop.changed(loop) %}{% endfor %}",
            "{% macro f() %}{% endmacro %}{{ [f] }}",
            "{% set n = namespace() %}{{ [1] | map('default', n) | map('upper') }}{{ [n] }}",
            "{% set n = namespace(a=[1]) %}{% set n.a = n.a + [n] %}{{ n }}",
            "{% set n = namespace() %}{% for x in [n] %}{% endfor %}",
        ],
    );
}

#[test]
fn what_doubles_is_refused_at_the_bytes_that_are_allowed() {
    let loops = "{% set n = namespace(x=START) %}{% for i in range(99) %}";
    for (start, grown) in [
        ("'ab'", "n.x + n.x"),
        ("'ab'", "n.x ~ n.x"),
        ("'ab'", "n.x * 2"),
        ("'ab'", "n.x.replace('a', n.x)"),
        ("'ab'", "n.x | replace('a', n.x)"),
        ("'ab'", "n.x.replace('', n.x)"),
        ("'ab'", "[n.x, n.x] | join"),
        ("'ab'", "n.x.join(n.x)"),
        ("'ab'", "[n.x, n.x] | join(n.x)"),
        ("'ab'", "[n.x, n.x] | string"),
        ("'ab'", "[n.x, n.x] | tojson"),
        ("'ab'", "[n.x, n.x, n.x] | upper"),
        ("'ab'", "'{}{}'.format(n.x, n.x)"),
        ("'ab'", "'%s%s' | format(n.x, n.x)"),
        ("'ab'", "[n.x, n.x] | sum(start='')"),
        ("'a\\nb'", "[n.x, n.x] | join('\\n') | indent(9)"),
        ("[1]", "n.x + n.x"),
        ("[1]", "n.x * 2"),
        ("(1, 2)", "n.x + n.x"),
        ("(1, 2)", "n.x * 2"),
        ("[1]", "[n.x, n.x] | sum(start=[])"),
        ("[1]", "(n.x ~ n.x) | list"),
        ("'a'", "(n.x ~ n.x).split('')[1:-1] | join"),
    ] {
        let source = format!(
            "{}{{% set n.x = {grown} %}}{{% endfor %}}{{{{ n.x | length }}}}",
            loops.replace("START", start)
        );
        refused(too_much, &[&source]);
    }
}

#[test]
fn what_is_small_and_unfolds_without_measure_is_refused() {
    let grown = "{% set n = namespace(x=['abc'], y=['abc']) %}{% for i in range(60) %}\
                 {% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}";
    refused(too_much, &[&format!("{grown}{{{{ n.x == n.y }}}}"), grown]);
    let grown = "{% set n = namespace(x=['abc'], y=['abc']) %}{% for i in range(18) %}\
                 {% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}\
                 {% for i in range(90000) %}";
    for used in [
        "{% if n.x == n.y %}{% endif %}",
        "{% if n.x < n.y %}{% endif %}",
        "{% if n.x is eq(n.y) %}{% endif %}",
        "{% if 1 < 2 and n.x == n.y == n.x %}{% endif %}",
        "{% if n.x in [n.y] %}{% endif %}",
        "{% if n.x in {1: 2} %}{% endif %}",
        "{% set z = {1: 2}[n.x] %}",
        "{% set z = {n.x: 2} %}",
        "{% set z = {1: 2}.get(n.x) %}",
        "{% if [n.x, n.y] | sort %}{% endif %}",
        "{% if [n.x, n.y] | unique %}{% endif %}",
        "{% if [n.x, n.y] | max %}{% endif %}",
        "{% if [{'a': n.x}, {'a': n.y}] | groupby('a') %}{% endif %}",
        "{% if {'a': n.x, 'b': n.y} | dictsort(by='value') %}{% endif %}",
        "{% if [n.x].count(n.y) %}{% endif %}",
        "{% if [n.x] | select('eq', n.y) | list %}{% endif %}",
        "{% if [n.x] | map('string') | list %}{% endif %}",
        "{% if loop.changed(n.x) %}{% endif %}",
        "{{ n.x }}",
        "{{ n.x | tojson }}",
        "{% if n.x ~ '' %}{% endif %}",
        "{% if n.x | join %}{% endif %}",
        "{% if n.x | string %}{% endif %}",
        "{% if '%s' | format(n.x) %}{% endif %}",
        "{% if '{}'.format(n.x) %}{% endif %}",
        "{% if n.x in 'abc' %}{% endif %}",
    ] {
        refused(too_much, &[&format!("{grown}{used}{{% endfor %}}")]);
    }
}

#[test]
fn sizes_that_a_template_names_are_refused_before_they_are_made() {
    refused(
        too_much,
        &[
            "{{ 'x' * 999999999 }}",
            "{{ 'x' * 99999999 }}",
            "{% set a = [0] %}{{ a * 99999999 }}",
            "{% set a = 99999999 %}{{ [0] * a }}",
            "{{ (0,) * 9999999 }}",
            "{{ 99999999 * 'x' }}",
            "{{ '%99999999999d' | format(1) }}",
            "{{ '%(a)999999999d' | format(a=1) }}",
            "{{ '%.999999999f' | format(1.5) }}",
            "{{ '{:>999999999}'.format(1) }}",
            "{{ '{:.999999999f}'.format(1.5) }}",
            "{{ 'a' | indent(999999999, true) }}",
            "{{ [1] | batch(999999999, 0) }}",
            "{{ [1] | slice(999999999) }}",
            "{{ [1] | slice(999999999, 0) }}",
            "{% set x = 'x' * 9999999 %}{{ range(99) | list | tojson(separators=[x, '']) }}",
            "{{ range(9999) | map('string') | join('x' * 99999) }}",
            "{{ ('x' * 99999).join(range(9999) | map('string')) }}",
            "{{ ('&' * 15000000) | escape }}",
        ],
    );
    refused(
        |error| too_much(error) || matches!(error, ChatError::Render(_)),
        &["{{ strftime_now('%999999999Y') }}", "{{ range(9999999999) }}", "{{ 2 ** 9999999999 }}"],
    );
}

#[test]
fn what_grows_step_by_step_is_refused_too() {
    refused(
        too_much,
        &[
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{% for i in range(9999) %}{% for j in range(9999) %}{% set x = 'y' * 999 %}{% endfor %}{% endfor %}",
            "{% set n = namespace(x=[]) %}{% for a in range(99999) %}{% set n.x = n.x + [a] %}{% endfor %}",
            "{% set n = namespace(x='') %}{% for a in range(99999) %}{% set n.x = n.x ~ 'abc' %}{% endfor %}",
            "{% set n = namespace(x=[]) %}{% for a in range(99999) %}{% set n.x = ([1] | batch(99999)) + n.x %}{% endfor %}",
            "{% for a in range(99999) %}{% macro f() %}{{ a }}{% endmacro %}{% for b in range(99) %}{% macro g() %}{{ a }}{{ b }}{% endmacro %}{% endfor %}{% endfor %}",
            "{% macro f() %}{% endmacro %}{% set l = range(99999) | list %}{% for i in range(9999) %}{{ f(*l, *l, *l, *l, *l, *l, *l, *l, *l) }}{% endfor %}",
            "{% macro f() %}{{ kwargs }}{% endmacro %}{% set n = namespace(d={}) %}{% for i in range(9999) %}{% set n.d = dict(n.d, **{('k' ~ i): i}) %}{% endfor %}",
            "{% set x %}{% for i in range(99999) %}0123456789012345678901234567890123456789012345678901234567890123456789{% for j in range(99) %}x{% endfor %}{% endfor %}{% endset %}",
            "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% for c in s %}{% break %}{% endfor %}{% endfor %}",
            "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% if s[5] == s %}{% endif %}{% endfor %}",
            "{% set s = 'x' * 9999999 %}{% set t = 'x' * 9999999 %}{% for i in range(99999) %}{% if s == t %}{% endif %}{% endfor %}",
            "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% if 'y' in s %}{% endif %}{% endfor %}",
            "{% set s = 'x' * 9999999 %}{% for x in [s] recursive %}{% set l = loop %}{% for i in range(99999) %}{% for j in range(99) %}{% set y = s | length %}{% endfor %}{% endfor %}{% endfor %}",
        ],
    );
}

#[test]
fn a_template_that_is_too_long_or_nested_too_deep_is_refused_before_it_is_run() {
    let chain = |first: &str, link: &str| format!("{{{{ {first}{} }}}}", link.repeat(60_000));
    let sources = [
        chain("a", " + a"),
        chain("a", ".b"),
        chain("a", "['b']"),
        chain("a", " | f"),
        chain("a", " ~ 'b'"),
        chain("a", " and b"),
        chain("a", " == b"),
        chain("a", "()"),
        chain("a", " if b"),
        chain("a", " is b"),
        chain("", "not ") + "a",
        chain("1", " ** 1"),
        format!("{{{{ {}1{} }}}}", "[".repeat(9000), "]".repeat(9000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(140), "]".repeat(140)),
        format!("{{{{ f({}) }}}}", "1,".repeat(66_000)),
        format!("{{{{ [{}] }}}}", "a,".repeat(66_000)),
        format!("{{% if a %}}{}{{% endif %}}", "{% elif b %}".repeat(9000)),
        "{% for a in b %}".repeat(9000),
        format!("{{% set x %}}{}", "{% filter f %}".repeat(9000)),
        "{% macro f() %}".repeat(9000),
        format!("{{% if a %}}{}{{% endif %}}", "{% else %}{% if a %}".repeat(9000)),
        "{{ 'a' * 1000 }}".repeat(50_000),
        "{{ [0] * 99999999 }}".to_owned(),
        "{{ ([0] * 99999 * 99999) == ([0] * 99999 * 99999) }}".to_owned(),
        "{{ ([0] * 10 ** 8) ~ 'a' }}".to_owned(),
        "{{ [[[0] * 999] * 999] * 999 ~ '' }}".to_owned(),
        "{{ [0] * 1e9 }}".to_owned(),
        "{% autoescape true %}{{ '<' }}{% endautoescape %}".to_owned(),
        "{% include 'x' %}".to_owned(),
        "{% extends messages %}".to_owned(),
    ];
    for source in sources {
        let refusal = render(&source, &json!([])).map(|text| text.len());
        assert!(
            matches!(refusal, Err(ChatError::Syntax(_) | ChatError::TemplateTooLong { .. })),
            "{}…: {refusal:?}",
            &source[..60.min(source.len())]
        );
    }
}

#[test]
fn the_longest_chains_that_are_taken_fit_the_stack() {
    for (first, link) in
        [("a", " + a"), ("1", " + 1"), ("a", ".b"), ("a", " | d"), ("a", " if b"), ("a", "()")]
    {
        let source = format!(
            "{{{{ {first}{} }}}}",
            link.repeat(2040 / link.split_whitespace().count().max(2))
        );
        let rendered = render(&source, &json!([]));
        assert!(
            !matches!(&rendered, Err(ChatError::Syntax(error)) if error.contains("tokens")),
            "{link}: {rendered:?}"
        );
    }
    let branches = format!("{{% if a %}}{}{{% endif %}}", "{% elif b %}x".repeat(500));
    assert_eq!(render(&branches, &json!([])).unwrap(), "");
}

#[test]
fn a_long_conversation_may_be_made_into_more_than_a_short_one() {
    let messages = json!([{"role": "user", "content": "0123456789".repeat(100_000)}]);
    let twice = "{% for i in range(60) %}{% set x = messages[0].content ~ messages[0].content %}{% endfor %}{{ messages[0].content }}";
    assert_eq!(render(twice, &messages).unwrap().len(), 1_000_000);
    let nested = "{% set n = namespace(l=[]) %}{% for m in messages %}{% set n.l = n.l + [m] %}{% endfor %}{{ n.l == messages }}";
    let messages = Json::Array(vec![json!({"role": "user", "content": "hello there"}); 1000]);
    assert_eq!(render(nested, &messages).unwrap(), "True");
}
