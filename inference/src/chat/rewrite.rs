//! A template's instructions, rewritten so that whatever makes or walks values pays for it first.
//!
//! minijinja compiles a template into instructions for a stack machine. Those that only move values
//! stay. Those that make a value out of others, compare values or look into text become calls of
//! this rendering's own filters ([`super::operators`]), which weigh their operands, do the same and
//! pay for the result ([`super::meter`]). Their names begin with a zero byte: no template can write
//! one.
//!
//! That is minijinja's inner machinery, with no promise of stability: the version is pinned
//! exactly, an instruction that is not named here does not compile, and tests hold what templates
//! print.
//!
//! Before that, what minijinja's parser reads by recursion without a bound of its own is bounded:
//! how much stands in one tag, how many branches a condition has, and what it would calculate while
//! it compiles.

use std::collections::BTreeSet;

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, Value};

use super::library;
use super::meter::{Meter, Weight};
use super::operators::*;

/// Tokens in one tag: chains (`a + b + c`, `a.b.c`, `a | b | c`) nest as deep as they are long.
/// Models' templates have some hundreds.
const TAG_TOKENS_MAX: usize = 2048;
/// `elif` in a template: each lies in the one before.
const BRANCHES_MAX: usize = 512;
/// How often a list that is written out may be repeated where it is: minijinja calculates with
/// what is written out while it compiles, and bounds texts then, but not lists.
const REPEATS_MAX: u64 = 1024;
/// Filters that minijinja remembers while instructions run; every other one is looked up by name.
const FILTERS_CACHED: u8 = 50;

/// Why a template is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadTemplate {
    /// Not valid Jinja.
    #[error(transparent)]
    Syntax(#[from] Error),
    /// A tag is longer than [`TAG_TOKENS_MAX`].
    #[error("a tag has more than {TAG_TOKENS_MAX} tokens (line {line} of the template)")]
    TagTooLong {
        /// Where it starts.
        line: usize,
    },
    /// More than [`BRANCHES_MAX`].
    #[error("more than {BRANCHES_MAX} times `elif`")]
    TooManyBranches,
    /// What is written out in one expression or call is too much or too deep.
    #[error("a value that is too large or nested too deep is written out (line {line})")]
    ConstantTooLarge {
        /// Where it ends.
        line: usize,
    },
    /// Something that this program does not offer.
    #[error("{what} is not supported (line {line} of the template)")]
    Unsupported {
        /// What.
        what: &'static str,
        /// Where.
        line: usize,
    },
}

/// Whether minijinja's parser may read a template.
fn check_shape(source: &str, syntax: &SyntaxConfig) -> Result<(), BadTemplate> {
    let (mut tag, mut branches) = (Tag::default(), 0);
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token?;
        let line = span.start_line.into();
        branches += usize::from(matches!(token, Token::Ident("elif")));
        if branches > BRANCHES_MAX {
            return Err(BadTemplate::TooManyBranches);
        }
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => {
                tag = Tag::default();
            }
            token => tag.token(&token),
        }
        if tag.tokens > TAG_TOKENS_MAX {
            return Err(BadTemplate::TagTooLong { line });
        }
        if tag.has_list && tag.multiplies && tag.repeats > REPEATS_MAX {
            return Err(BadTemplate::ConstantTooLarge { line });
        }
    }
    Ok(())
}

/// What stands in one tag.
struct Tag {
    tokens: usize,
    /// Whether the last token ends an operand, so that a bracket after it is an index.
    after_operand: bool,
    has_list: bool,
    multiplies: bool,
    /// What its numbers make at most when minijinja calculates with them while it compiles.
    repeats: u64,
}

impl Default for Tag {
    fn default() -> Self {
        let (after_operand, has_list, multiplies) = (false, false, false);
        Self { tokens: 0, after_operand, has_list, multiplies, repeats: 1 }
    }
}

impl Tag {
    fn token(&mut self, token: &Token<'_>) {
        self.tokens += 1;
        match token {
            Token::BracketOpen => self.has_list |= !self.after_operand,
            // Elsewhere, a star unpacks the arguments of a call.
            Token::Mul if self.after_operand => self.multiplies = true,
            Token::Pow if self.after_operand => self.repeats = u64::MAX,
            Token::Int(number) => {
                self.repeats = self.repeats.saturating_mul(number.saturating_add(1));
            }
            Token::Int128(_) | Token::Float(_) => self.repeats = u64::MAX,
            _ => {}
        }
        self.after_operand =
            matches!(
                token,
                Token::Ident(_)
                    | Token::Str(_)
                    | Token::String(_)
                    | Token::Int(_)
                    | Token::Int128(_)
                    | Token::Float(_)
                    | Token::BracketClose
                    | Token::ParenClose
                    | Token::BraceClose
            ) && !matches!(token, Token::Ident("in" | "is" | "not" | "and" | "or" | "if" | "else"));
    }
}

/// Instructions that borrow from the text beside them.
#[allow(clippy::mem_forget, reason = "the macro takes its own apart that way")]
mod owned {
    use minijinja::machinery::Instructions;

    self_cell::self_cell! {
        /// A template's metered instructions, which borrow from its text.
        pub(in crate::chat) struct Program {
            owner: String,
            #[covariant]
            dependent: Instructions,
        }
    }
}

pub(super) use owned::Program;

/// Compiles a template, on a stack that is large enough for what [`check_shape`] lets pass.
pub(super) fn program(
    name: &'static str,
    source: String,
    syntax: &SyntaxConfig,
) -> Result<Program, BadTemplate> {
    check_shape(&source, syntax)?;
    Program::try_new(source, |source| compile(name, source, syntax))
}

/// The metered instructions of a template whose shape was checked.
fn compile<'source>(
    name: &'source str,
    source: &'source str,
    syntax: &SyntaxConfig,
) -> Result<Instructions<'source>, BadTemplate> {
    let parsed = parse(source, name, syntax.clone())?;
    let mut generator = CodeGenerator::new(name, source);
    generator.compile_stmt(&parsed);
    let (plain, _blocks) = generator.finish();
    rewrite(name, source, &plain)
}

fn rewrite<'source>(
    name: &'source str,
    source: &'source str,
    plain: &Instructions<'source>,
) -> Result<Instructions<'source>, BadTemplate> {
    let (targets, filters) = survey(plain);
    let out = Instructions::new(name, source);
    let mut rewriter = Rewriter { out, line: 0, filters, beside_scalar: false };
    // Where each old instruction went, and one more for the end.
    let mut moved = Vec::new();
    let mut at = 0;
    let mut next = 0;
    while let Some(instruction) = plain.get(at) {
        rewriter.line = plain.get_line(at).unwrap_or(0);
        moved.push(next);
        next = rewriter.instruction(instruction)?;
        at += 1;
        rewriter.beside_scalar = !targets.contains(&at)
            && matches!(instruction, Instruction::LoadConst(value) if value.as_object().is_none());
    }
    moved.push(next);
    let mut metered = rewriter.out;
    for at in 0..next {
        if let Some(
            Instruction::Jump(target)
            | Instruction::JumpIfFalse(target)
            | Instruction::JumpIfFalseOrPop(target)
            | Instruction::JumpIfTrueOrPop(target)
            | Instruction::Iterate(target)
            | Instruction::BuildMacro(_, target, _),
        ) = metered.get_mut(at)
        {
            *target = moved[*target as usize];
        }
    }
    Ok(metered)
}

/// Where a template's jumps lead, and how many places it takes in minijinja's cache of filters.
fn survey(plain: &Instructions<'_>) -> (BTreeSet<u32>, u8) {
    let (mut targets, mut filters) = (BTreeSet::new(), 0);
    for instruction in (0..).map_while(|at| plain.get(at)) {
        match instruction {
            Instruction::Jump(target)
            | Instruction::JumpIfFalse(target)
            | Instruction::JumpIfFalseOrPop(target)
            | Instruction::JumpIfTrueOrPop(target)
            | Instruction::Iterate(target) => drop(targets.insert(*target)),
            Instruction::ApplyFilter(_, _, place) if *place < FILTERS_CACHED => {
                filters = filters.max(place + 1);
            }
            _ => {}
        }
    }
    (targets, filters)
}

struct Rewriter<'source> {
    out: Instructions<'source>,
    line: usize,
    /// Places in the cache of filters that the template itself takes.
    filters: u8,
    /// Whether the instruction before put a scalar that is written out in the template on top of
    /// the stack, and no jump leads here: comparing with it, or looking it up, costs next to
    /// nothing.
    beside_scalar: bool,
}

impl<'source> Rewriter<'source> {
    fn put(&mut self, instruction: Instruction<'source>) -> u32 {
        // Lines are counted in 16 bits, by minijinja as well.
        let line = u16::try_from(self.line).unwrap_or(u16::MAX);
        self.out.add_with_line(instruction, line) + 1
    }

    /// A call of an operator: so many operands are taken from the stack, one result is put there.
    fn call(&mut self, operator: &'static str, operands: usize) -> Result<u32, BadTemplate> {
        let line = self.line;
        let operands =
            u16::try_from(operands).map_err(|_| BadTemplate::ConstantTooLarge { line })?;
        let place = self.place(operator);
        Ok(self.put(Instruction::ApplyFilter(operator, Some(operands), place)))
    }

    /// Where minijinja remembers an operator once it was looked up: behind the template's filters,
    /// as long as there is room.
    fn place(&self, operator: &'static str) -> u8 {
        let index = OPERATORS.iter().position(|known| *known == operator).unwrap_or(usize::MAX);
        match u8::try_from(index.saturating_add(self.filters.into())) {
            Ok(place) if place < FILTERS_CACHED => place,
            _ => u8::MAX,
        }
    }

    fn unsupported(&self, what: &'static str) -> BadTemplate {
        BadTemplate::Unsupported { what, line: self.line }
    }

    /// Puts what stands for an instruction; returns the place of the next one.
    fn instruction(&mut self, old: &Instruction<'source>) -> Result<u32, BadTemplate> {
        use Instruction as I;
        match old {
            I::Eq | I::Ne | I::Lt | I::Lte | I::Gt | I::Gte | I::GetItem if self.beside_scalar => {
                Ok(self.put(old.clone()))
            }
            I::Add | I::Mul | I::StringConcat => self.operation(old),
            I::Eq | I::Ne | I::Lt | I::Lte | I::Gt | I::Gte | I::In => self.operation(old),
            I::GetItem | I::Slice | I::MergeKwargs(_) => self.operation(old),
            I::BuildList(Some(_)) | I::BuildTuple(Some(_)) | I::BuildMap(_) => self.operation(old),
            I::CompareAndPreserve(_) => {
                self.call(COMPARED, 2)?;
                self.put(I::UnpackList(2));
                Ok(self.put(old.clone()))
            }
            // The count lies on the stack, for both.
            I::BuildList(None) => Ok(self.put(I::ApplyFilter(LIST, None, self.place(LIST)))),
            I::BuildTuple(None) => Ok(self.put(I::ApplyFilter(TUPLE, None, self.place(TUPLE)))),
            I::UnpackLists(count) => {
                self.call(UNPACKED, *count)?;
                Ok(self.put(I::UnpackLists(1)))
            }
            I::SetAttr(_) => {
                self.put(I::Swap);
                self.call(STORED, 1)?;
                self.put(I::Swap);
                Ok(self.put(old.clone()))
            }
            I::EmitRaw(text) => {
                // Raw text passes the formatter, too.
                self.put(I::LoadConst(Value::from(*text)));
                Ok(self.put(I::Emit))
            }
            I::PushLoop(_) | I::FastRecurse => {
                self.call(ITERATED, 1)?;
                Ok(self.put(old.clone()))
            }
            I::CallFunction(name, operands) => self.function(name, *operands),
            I::CallMethod(name, operands) => self.method(name, *operands),
            I::BuildMacro(name, start, flags) => {
                self.put(I::BuildMacro(name, *start, *flags));
                self.call(MACRO, 1)
            }
            I::LoadConst(value) => {
                self.check_constant(value)?;
                Ok(self.put(old.clone()))
            }
            I::PushAutoEscape | I::PopAutoEscape => Err(self.unsupported("`autoescape`")),
            I::StoreLocal(_)
            | I::Lookup(_)
            | I::GetAttr(_)
            | I::BuildKwargs(_)
            | I::UnpackList(_)
            | I::Sub
            | I::Div
            | I::IntDiv
            | I::Rem
            | I::Pow
            | I::Neg
            | I::Not
            | I::ApplyFilter(..)
            | I::PerformTest(..)
            | I::Emit
            | I::PushWith
            | I::Iterate(_)
            | I::PushDidNotIterate
            | I::PopFrame
            | I::PopLoopFrame
            | I::Jump(_)
            | I::JumpIfFalse(_)
            | I::JumpIfFalseOrPop(_)
            | I::JumpIfTrueOrPop(_)
            | I::BeginCapture(_)
            | I::EndCapture
            | I::CallObject(_)
            | I::DupTop
            | I::DiscardTop
            | I::Swap
            | I::Return
            | I::IsUndefined
            | I::Enclose(_)
            | I::GetClosure => Ok(self.put(old.clone())),
        }
    }

    /// Puts the call that stands for an instruction that does one thing with its operands.
    fn operation(&mut self, old: &Instruction<'source>) -> Result<u32, BadTemplate> {
        use Instruction as I;
        let (operator, operands) = match old {
            I::Add => (ADD, 2),
            I::Mul => (MULTIPLY, 2),
            I::StringConcat => (JOIN_TEXTS, 2),
            I::Eq => (EQUAL, 2),
            I::Ne => (NOT_EQUAL, 2),
            I::Lt => (LESS, 2),
            I::Lte => (LESS_OR_EQUAL, 2),
            I::Gt => (GREATER, 2),
            I::Gte => (GREATER_OR_EQUAL, 2),
            I::In => (IN, 2),
            I::GetItem => (ITEM, 2),
            I::Slice => (SLICE, 4),
            I::BuildList(Some(len)) => (LIST, *len),
            I::BuildTuple(Some(len)) => (TUPLE, *len),
            I::BuildMap(pairs) => (OBJECT, 2 * pairs),
            I::MergeKwargs(count) => (KEYWORDS, *count),
            // `instruction` gives no other, and none may pass unpaid.
            _ => return Err(self.unsupported("an operation of another kind")),
        };
        self.call(operator, operands)
    }

    fn function(&mut self, name: &'source str, operands: Option<u16>) -> Result<u32, BadTemplate> {
        // It may be a loop that recurs over what it is given.
        if operands == Some(1) && !library::is_function(name) {
            self.call(ITERATED, 1)?;
        }
        Ok(self.put(Instruction::CallFunction(name, operands)))
    }

    fn method(&mut self, name: &'source str, operands: Option<u16>) -> Result<u32, BadTemplate> {
        // `loop.changed` keeps what it is given.
        if name == "changed" {
            let kept = operands.ok_or_else(|| self.unsupported("`changed` with unpacked lists"))?;
            self.call(KEPT, kept.into())?;
            self.put(Instruction::UnpackList(kept.into()));
        }
        Ok(self.put(Instruction::CallMethod(name, operands)))
    }

    fn check_constant(&self, value: &Value) -> Result<(), BadTemplate> {
        let weight: Result<Weight, _> = Meter::new(u64::MAX).weigh(value, false);
        weight.map(drop).map_err(|_| BadTemplate::ConstantTooLarge { line: self.line })
    }
}
