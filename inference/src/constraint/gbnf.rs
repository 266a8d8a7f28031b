//! From GBNF, llama.cpp's grammar notation, to llguidance's Lark.
//!
//! A rule that reaches no recursion is a regular expression and becomes one terminal, exactly. In
//! recursive rules, neighbours that are regular are put together into terminals, which then match
//! as much as they can: of an ambiguous recursive grammar some texts are therefore not generated;
//! what is generated always follows the grammar.

mod parse;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use parse::{Expr, Grammar};

/// Why a text is not a GBNF grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum GbnfError {
    #[error("line {line}: found {found}, expected {expected}")]
    Syntax { line: usize, found: String, expected: &'static str },
    #[error("rule \"{name}\" is used but not defined")]
    Undefined { name: String },
    #[error("there is no rule \"root\"")]
    NoRoot,
    #[error("repetition of {found} is more than {max}")]
    Repetition { found: u32, max: u32 },
}

/// Repetitions `{m,n}` at most.
const REPEAT_MAX: u32 = 10_000;

/// Converts a grammar.
pub(super) fn to_lark(text: &str) -> Result<String, GbnfError> {
    let grammar = parse::parse(text)?;
    let writer = Writer::new(&grammar)?;
    Ok(writer.write())
}

struct Writer<'a> {
    grammar: &'a Grammar,
    index: BTreeMap<&'a str, usize>,
    /// Whether a rule reaches no recursion.
    regular: Vec<bool>,
    /// Whether a rule matches the empty text.
    nullable: Vec<bool>,
    terminals: Vec<String>,
}

impl<'a> Writer<'a> {
    fn new(grammar: &'a Grammar) -> Result<Self, GbnfError> {
        let index: BTreeMap<&str, usize> =
            grammar.rules.iter().enumerate().map(|(i, (name, _))| (name.as_str(), i)).collect();
        if !index.contains_key("root") {
            return Err(GbnfError::NoRoot);
        }
        let mut uses: Vec<Vec<usize>> = Vec::new();
        for (_, body) in &grammar.rules {
            let mut names = Vec::new();
            body.names(&mut names);
            let ids = names.into_iter().map(|name| {
                index.get(name).copied().ok_or(GbnfError::Undefined { name: name.to_owned() })
            });
            uses.push(ids.collect::<Result<_, _>>()?);
        }
        let regular = regular(&uses);
        let mut writer = Self {
            grammar,
            index,
            nullable: vec![false; regular.len()],
            regular,
            terminals: vec![],
        };
        writer.find_nullable();
        Ok(writer)
    }

    fn find_nullable(&mut self) {
        loop {
            let next: Vec<bool> =
                self.grammar.rules.iter().map(|(_, body)| self.is_nullable(body)).collect();
            if next == self.nullable {
                return;
            }
            self.nullable = next;
        }
    }

    fn is_nullable(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Literal(text) => text.is_empty(),
            Expr::Class { .. } => false,
            Expr::Rule(name) => self.nullable[self.index[name.as_str()]],
            Expr::Sequence(items) => items.iter().all(|e| self.is_nullable(e)),
            Expr::Choice(items) => items.iter().any(|e| self.is_nullable(e)),
            Expr::Repeat { inner, min, .. } => *min == 0 || self.is_nullable(inner),
        }
    }

    fn is_regular(&self, expr: &Expr) -> bool {
        let mut names = Vec::new();
        expr.names(&mut names);
        names.iter().all(|name| self.regular[self.index[*name]])
    }

    fn write(mut self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "start: {}", self.rule_use("root"));
        for (i, (_, body)) in self.grammar.rules.iter().enumerate() {
            if self.regular[i] {
                let body = self.terminal(body);
                self.terminals.push(format!("R{i}: {body}"));
            } else {
                let body = self.rule(body);
                let _ = writeln!(out, "r{i}: {body}");
            }
        }
        for terminal in &self.terminals {
            let _ = writeln!(out, "{terminal}");
        }
        out
    }

    /// A rule's name where a rule is expected.
    fn rule_use(&mut self, name: &str) -> String {
        let i = self.index[name];
        if !self.regular[i] {
            return format!("r{i}");
        }
        self.regular_use(&Expr::Rule(name.to_owned()))
    }

    /// A regular expression where a rule is expected: a terminal, which must not match nothing.
    fn regular_use(&mut self, expr: &Expr) -> String {
        let body = self.terminal(expr);
        let name = format!("T{}", self.terminals.len());
        if self.is_nullable(expr) {
            self.terminals.push(format!("{name}: ({body}) & /(?s:.+)/"));
            format!("{name}?")
        } else {
            self.terminals.push(format!("{name}: {body}"));
            name
        }
    }

    fn rule(&mut self, expr: &Expr) -> String {
        if self.is_regular(expr) {
            return self.regular_use(expr);
        }
        match expr {
            Expr::Rule(name) => self.rule_use(name),
            Expr::Choice(items) => {
                let items: Vec<String> = items.iter().map(|e| self.rule(e)).collect();
                format!("({})", items.join(" | "))
            }
            Expr::Sequence(items) => self.sequence(items),
            Expr::Repeat { inner, min, max } => {
                format!("({}){}", self.rule(inner), times(*min, *max))
            }
            Expr::Literal(_) | Expr::Class { .. } => self.regular_use(expr),
        }
    }

    /// Neighbours that are regular become one terminal.
    fn sequence(&mut self, items: &[Expr]) -> String {
        let mut parts = Vec::new();
        let mut run: Vec<Expr> = Vec::new();
        for item in items {
            if self.is_regular(item) {
                run.push(item.clone());
                continue;
            }
            if !run.is_empty() {
                parts.push(self.regular_use(&Expr::Sequence(std::mem::take(&mut run))));
            }
            parts.push(self.rule(item));
        }
        if !run.is_empty() {
            parts.push(self.regular_use(&Expr::Sequence(run)));
        }
        parts.join(" ")
    }

    /// The body of a terminal.
    fn terminal(&self, expr: &Expr) -> String {
        match expr {
            Expr::Literal(text) if text.is_empty() => "\"\"".to_owned(),
            Expr::Literal(text) => format!("/{}/", text.chars().map(escape).collect::<String>()),
            Expr::Class { negated, ranges } => {
                let mut class = String::from(if *negated { "/[^" } else { "/[" });
                for (from, to) in ranges {
                    class.push_str(&escape(*from));
                    if to != from {
                        class.push('-');
                        class.push_str(&escape(*to));
                    }
                }
                class.push_str("]/");
                if ranges.is_empty() { "/(?s:.)/".to_owned() } else { class }
            }
            Expr::Rule(name) => format!("R{}", self.index[name.as_str()]),
            Expr::Sequence(items) if items.is_empty() => "\"\"".to_owned(),
            Expr::Sequence(items) => {
                let items: Vec<String> = items.iter().map(|e| self.terminal(e)).collect();
                format!("({})", items.join(" "))
            }
            Expr::Choice(items) => {
                let items: Vec<String> = items.iter().map(|e| self.terminal(e)).collect();
                format!("({})", items.join(" | "))
            }
            Expr::Repeat { inner, min, max } => {
                format!("({}){}", self.terminal(inner), times(*min, *max))
            }
        }
    }
}

/// Rules that reach no rule which reaches itself.
fn regular(uses: &[Vec<usize>]) -> Vec<bool> {
    let reach = |from: usize| {
        let (mut seen, mut todo) = (vec![false; uses.len()], uses[from].clone());
        while let Some(i) = todo.pop() {
            if !seen[i] {
                seen[i] = true;
                todo.extend(&uses[i]);
            }
        }
        seen
    };
    let reached: Vec<Vec<bool>> = (0..uses.len()).map(reach).collect();
    let recursive: Vec<bool> = (0..uses.len()).map(|i| reached[i][i]).collect();
    (0..uses.len())
        .map(|i| !recursive[i] && !(0..uses.len()).any(|j| reached[i][j] && recursive[j]))
        .collect()
}

fn times(min: u32, max: Option<u32>) -> String {
    match (min, max) {
        (0, None) => "*".to_owned(),
        (1, None) => "+".to_owned(),
        (0, Some(1)) => "?".to_owned(),
        (min, None) => format!("{{{min},}}"),
        (min, Some(max)) => format!("{{{min},{max}}}"),
    }
}

/// A character in a regular expression, whatever it is.
fn escape(c: char) -> String {
    if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\x{{{:X}}}", u32::from(c)) }
}
