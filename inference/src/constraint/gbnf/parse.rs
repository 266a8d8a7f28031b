//! Reading GBNF.

use super::{GbnfError, REPEAT_MAX};

/// Rules in the order of their definition.
#[derive(Debug)]
pub(super) struct Grammar {
    pub(super) rules: Vec<(String, Expr)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    Literal(String),
    /// No range at all: any character.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    Rule(String),
    Sequence(Vec<Expr>),
    Choice(Vec<Expr>),
    Repeat {
        inner: Box<Expr>,
        min: u32,
        max: Option<u32>,
    },
}

impl Expr {
    /// Names of the rules used.
    pub(super) fn names<'a>(&'a self, out: &mut Vec<&'a str>) {
        match self {
            Self::Literal(_) | Self::Class { .. } => {}
            Self::Rule(name) => out.push(name),
            Self::Sequence(items) | Self::Choice(items) => {
                items.iter().for_each(|e| e.names(out));
            }
            Self::Repeat { inner, .. } => inner.names(out),
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Grammar, GbnfError> {
    let mut p = Parser { text: text.chars().collect(), at: 0 };
    let mut rules: Vec<(String, Expr)> = Vec::new();
    p.space(Lines::Cross);
    while p.peek().is_some() {
        let name = p.name("a rule's name")?;
        p.space(Lines::Keep);
        for c in "::=".chars() {
            p.expect(c, "::=")?;
        }
        p.space(Lines::Cross);
        let body = p.choice(Lines::Keep)?;
        p.space(Lines::Keep);
        if !matches!(p.peek(), None | Some('\n' | '\r')) {
            return Err(p.error("the end of the rule"));
        }
        p.space(Lines::Cross);
        match rules.iter_mut().find(|(n, _)| *n == name) {
            Some(rule) => rule.1 = body,
            None => rules.push((name, body)),
        }
    }
    Ok(Grammar { rules })
}

/// Whether a line's end is white space here.
#[derive(Clone, Copy, PartialEq)]
enum Lines {
    Keep,
    Cross,
}

struct Parser {
    text: Vec<char>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    fn error(&self, expected: &'static str) -> GbnfError {
        let line =
            1 + self.text[..self.at.min(self.text.len())].iter().filter(|c| **c == '\n').count();
        let found = self.peek().map_or("the end".to_owned(), |c| format!("{c:?}"));
        GbnfError::Syntax { line, found, expected }
    }

    fn expect(&mut self, wanted: char, expected: &'static str) -> Result<(), GbnfError> {
        if self.peek() != Some(wanted) {
            return Err(self.error(expected));
        }
        self.at += 1;
        Ok(())
    }

    fn space(&mut self, lines: Lines) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\n' | '\r' if lines == Lines::Cross => self.at += 1,
                '#' => {
                    while !matches!(self.peek(), None | Some('\n' | '\r')) {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    fn name(&mut self, expected: &'static str) -> Result<String, GbnfError> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.error(expected));
        }
        Ok(self.text[start..self.at].iter().collect())
    }

    fn choice(&mut self, lines: Lines) -> Result<Expr, GbnfError> {
        let mut items = vec![self.sequence(lines)?];
        loop {
            self.space(lines);
            if self.peek() != Some('|') {
                break;
            }
            self.at += 1;
            self.space(Lines::Cross);
            items.push(self.sequence(lines)?);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Expr::Choice(items) })
    }

    fn sequence(&mut self, lines: Lines) -> Result<Expr, GbnfError> {
        let mut items = Vec::new();
        loop {
            self.space(lines);
            let item = match self.peek() {
                Some('"') => self.literal()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.at += 1;
                    Expr::Class { negated: false, ranges: Vec::new() }
                }
                Some('(') => {
                    self.at += 1;
                    self.space(Lines::Cross);
                    let inner = self.choice(Lines::Cross)?;
                    self.space(Lines::Cross);
                    self.expect(')', "\")\"")?;
                    inner
                }
                Some(c) if c.is_ascii_alphanumeric() || c == '-' || c == '_' => {
                    Expr::Rule(self.name("a rule's name")?)
                }
                _ => break,
            };
            let item = self.repeats(item)?;
            items.push(item);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Expr::Sequence(items) })
    }

    fn repeats(&mut self, mut item: Expr) -> Result<Expr, GbnfError> {
        loop {
            let (min, max) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.at += 1;
                    let bounds = self.bounds()?;
                    if self.peek() != Some('}') {
                        return Err(self.error("\"}\""));
                    }
                    bounds
                }
                _ => return Ok(item),
            };
            self.at += 1;
            item = Expr::Repeat { inner: Box::new(item), min, max };
        }
    }

    fn bounds(&mut self) -> Result<(u32, Option<u32>), GbnfError> {
        self.space(Lines::Keep);
        let min = self.number()?;
        self.space(Lines::Keep);
        if self.peek() != Some(',') {
            let min = min.ok_or_else(|| self.error("a number"))?;
            return Ok((min, Some(min)));
        }
        self.at += 1;
        self.space(Lines::Keep);
        let max = self.number()?;
        self.space(Lines::Keep);
        if max.is_some_and(|max| max < min.unwrap_or(0)) {
            return Err(self.error("a second number not below the first"));
        }
        Ok((min.unwrap_or(0), max))
    }

    fn number(&mut self) -> Result<Option<u32>, GbnfError> {
        let mut value: Option<u32> = None;
        while let Some(digit) = self.peek().and_then(|c| c.to_digit(10)) {
            let next = value.unwrap_or(0).saturating_mul(10).saturating_add(digit);
            if next > REPEAT_MAX {
                return Err(GbnfError::Repetition { found: next, max: REPEAT_MAX });
            }
            value = Some(next);
            self.at += 1;
        }
        Ok(value)
    }

    fn literal(&mut self) -> Result<Expr, GbnfError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.peek() {
                None | Some('\n') => return Err(self.error("the end of the string")),
                Some('"') => {
                    self.at += 1;
                    return Ok(Expr::Literal(text));
                }
                Some(_) => text.push(self.character()?),
            }
        }
    }

    fn class(&mut self) -> Result<Expr, GbnfError> {
        self.at += 1;
        let negated = self.peek() == Some('^');
        self.at += usize::from(negated);
        let mut ranges = Vec::new();
        while self.peek() != Some(']') {
            if self.peek().is_none() {
                return Err(self.error("\"]\""));
            }
            let from = self.character()?;
            let is_range = self.peek() == Some('-') && self.text.get(self.at + 1) != Some(&']');
            let to = if is_range {
                self.at += 1;
                self.character()?
            } else {
                from
            };
            if to < from {
                return Err(self.error("a range that rises"));
            }
            ranges.push((from, to));
        }
        self.at += 1;
        if ranges.is_empty() {
            return Err(self.error("a class that is not empty"));
        }
        Ok(Expr::Class { negated, ranges })
    }

    fn character(&mut self) -> Result<char, GbnfError> {
        let c = self.next().ok_or_else(|| self.error("a character"))?;
        if c != '\\' {
            return Ok(c);
        }
        let escaped = self.next().ok_or_else(|| self.error("an escape"))?;
        let digits = match escaped {
            'n' => return Ok('\n'),
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            '"' | '\\' | '[' | ']' | '-' | '^' | '/' | '\'' => return Ok(escaped),
            _ => {
                self.at -= 1;
                return Err(self.error("an escape such as \\n, \\\", \\x41 or \\u00e9"));
            }
        };
        let mut code = 0;
        for _ in 0..digits {
            let digit = self.peek().and_then(|c| c.to_digit(16));
            code = code * 16 + digit.ok_or_else(|| self.error("a hexadecimal digit"))?;
            self.at += 1;
        }
        char::from_u32(code).ok_or_else(|| self.error("a character's number"))
    }
}
