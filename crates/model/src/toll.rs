//! What a chat template pays for the values that it makes, and how long and how deep they may be.
//!
//! minijinja takes fuel for instructions, for texts and for the slots of lists. It takes none for lists that share what
//! they hold: after forty times `[x, x]` or `x + x`, to print, compare, copy or drop what came of it takes memory, stack
//! or time without end. So after each instruction that makes a value one is put in that walks through it: every text and
//! every value in it costs fuel, as often as it occurs, and what is too long or too deep ends the rendering.
//!
//! This reaches into minijinja's machinery, which has no promise of stability: the workspace names one version of it.

use minijinja::machinery::{Instruction, Instructions, Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use crate::python::MOST_DEPTH;

/// Bytes that a unit of minijinja's fuel pays for.
const BYTES_PER_FUEL: usize = 64;
/// Bytes that a value counts for, beside its text.
const VALUE: usize = 8;

/// Most slots of a list that is a constant.
const MOST_SLOTS: u64 = 1 << 20;
/// Words that a value follows; a bracket after any other takes something out of what the word names.
const BEFORE_VALUES: [&str; 14] = [
    "and",
    "autoescape",
    "call",
    "do",
    "elif",
    "else",
    "extends",
    "from",
    "if",
    "import",
    "in",
    "include",
    "not",
    "or",
];
/// Where weighing ends.
const MOST_WEIGHED: usize = 1 << 30;

/// Names that no template can spell, of the filters that let a value pass.
const MADE: &str = "=made";
const KEPT: &str = "=kept";

/// Adds the filters that [`charge`] has called. No value may be of more than `most` bytes, all that it holds counted as often
/// as it occurs. Arguments by name, which may be constants, pass through them like other values.
pub(crate) fn add_filters(environment: &mut Environment, most: usize) {
    environment.add_filter(MADE, move |state: &State, value: ValueOrKwargs| {
        pay(state, value.into_value(), most, false)
    });
    environment.add_filter(KEPT, move |state: &State, value: ValueOrKwargs| {
        pay(state, value.into_value(), most, true)
    });
}

/// The same instructions, with one after each that makes a value, and some around each that puts one into a namespace.
pub(crate) fn charge<'source>(plain: &Instructions<'source>) -> Instructions<'source> {
    let all: Vec<&Instruction> = (0..).map_while(|index| plain.get(index)).collect();
    let mut places = Vec::with_capacity(all.len() + 1);
    let mut place = 0;
    for instruction in &all {
        places.push(place);
        let (before, after) = tolls(instruction);
        place += before.len() as u32 + 1 + after.len() as u32;
    }
    places.push(place);
    let moved = |target: u32| places.get(target as usize).copied().unwrap_or(place);

    let mut charged = Instructions::new(plain.name(), plain.source());
    for (index, instruction) in (0..).zip(all) {
        let (before, after) = tolls(instruction);
        let moved = match instruction {
            Instruction::Jump(target) => Instruction::Jump(moved(*target)),
            Instruction::JumpIfFalse(target) => Instruction::JumpIfFalse(moved(*target)),
            Instruction::JumpIfFalseOrPop(target) => Instruction::JumpIfFalseOrPop(moved(*target)),
            Instruction::JumpIfTrueOrPop(target) => Instruction::JumpIfTrueOrPop(moved(*target)),
            Instruction::Iterate(target) => Instruction::Iterate(moved(*target)),
            Instruction::BuildMacro(name, target, flags) => {
                Instruction::BuildMacro(name, moved(*target), *flags)
            }
            other => other.clone(),
        };
        let (line, span) = (plain.get_line(index), plain.get_span(index));
        for instruction in before.iter().cloned().chain([moved]).chain(after.iter().cloned()) {
            match (span, line.and_then(|line| u16::try_from(line).ok())) {
                (Some(span), _) => charged.add_with_span(instruction, span),
                (None, Some(line)) => charged.add_with_line(instruction, line),
                (None, None) => charged.add(instruction),
            };
        }
    }
    charged
}

/// Refuses a written list that is multiplied by what may be a great number: minijinja works constants out as it compiles, where
/// nothing is charged.
pub(crate) fn check_constants(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let (mut start, mut lists, mut products, mut others, mut numbers) = (0, false, 0_u32, false, 0_u64);
    let mut subscript = false;
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token?;
        match &token {
            Token::VariableStart | Token::BlockStart => {
                (start, lists, products, others, numbers) = (span.start_offset, false, 0, false, 0);
            }
            Token::BracketOpen => lists |= !subscript,
            Token::Mul => products += 1,
            Token::Pow | Token::Div | Token::FloorDiv | Token::Int128(_) | Token::Float(_) => others = true,
            Token::Int(number) => numbers = numbers.saturating_add(*number),
            Token::VariableEnd | Token::BlockEnd if lists && products > 0 => {
                let slots =
                    u64::from(span.end_offset - start).saturating_mul(numbers.saturating_pow(products));
                if others || slots > MOST_SLOTS {
                    let what = "a list that is written out and multiplied: expected small whole numbers";
                    return Err(refused(&format!("{what} (line {})", span.start_line)));
                }
            }
            _ => {}
        }
        subscript = match token {
            Token::Ident(name) => !BEFORE_VALUES.contains(&name),
            Token::Str(_) | Token::String(_) | Token::BracketClose | Token::ParenClose => true,
            _ => false,
        };
    }
    Ok(())
}

/// What is put before and after an instruction.
fn tolls(instruction: &Instruction) -> (&'static [Instruction<'static>], &'static [Instruction<'static>]) {
    /// Any filter but those that are looked up once and remembered.
    const NOT_REMEMBERED: u8 = !0;
    const AFTER: &[Instruction] = &[Instruction::ApplyFilter(MADE, Some(1), NOT_REMEMBERED)];
    // The namespace lies above the value.
    const AROUND: &[Instruction] = &[
        Instruction::Swap,
        Instruction::ApplyFilter(KEPT, Some(1), NOT_REMEMBERED),
        Instruction::Swap,
    ];
    match instruction {
        Instruction::SetAttr(_) => (AROUND, &[]),
        Instruction::LoadConst(value) if value.as_object().is_some() => (&[], AFTER),
        Instruction::BuildMap(_)
        | Instruction::BuildList(_)
        | Instruction::BuildTuple(_)
        | Instruction::Add
        | Instruction::Mul
        | Instruction::Slice
        | Instruction::ApplyFilter(..)
        | Instruction::CallFunction(..)
        | Instruction::CallMethod(..)
        | Instruction::CallObject(_) => (&[], AFTER),
        _ => (&[], &[]),
    }
}

/// Takes the fuel for a value and gives it back. Where it is `kept` within another, it may be no namespace, which could
/// come to hold itself.
fn pay(state: &State, value: Value, most: usize, kept: bool) -> Result<Value, Error> {
    let mut left = most;
    weigh(&value, &mut left, usize::from(kept))?;
    let weight = most - left;
    if weight > VALUE {
        state.consume_fuel((weight / BYTES_PER_FUEL) as u64)?;
    }
    Ok(value)
}

/// What a value and all that it holds count for, in bytes; where it is too deep, as many as weighing goes to.
pub(crate) fn weight(value: &Value) -> usize {
    let mut left = MOST_WEIGHED;
    match weigh(value, &mut left, 0) {
        Ok(()) => MOST_WEIGHED - left,
        Err(_) => MOST_WEIGHED,
    }
}

/// Takes what a value and all that it holds count for from what is left.
fn weigh(value: &Value, left: &mut usize, depth: usize) -> Result<(), Error> {
    let bytes = VALUE + value.as_bytes().map_or(0, <[u8]>::len);
    *left = left
        .checked_sub(bytes)
        .ok_or_else(|| Error::new(ErrorKind::OutOfFuel, "a value without end"))?;
    if depth > MOST_DEPTH {
        return Err(refused(&format!(
            "expected at most {MOST_DEPTH} values within each other"
        )));
    }
    if depth > 0 && is_namespace(value) {
        return Err(refused("a namespace within another value is not supported"));
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                weigh(&item, left, depth + 1)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                weigh(&key, left, depth + 1)?;
                weigh(&value.get_item(&key)?, left, depth + 1)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.to_owned())
}

/// minijinja's type has no public name.
fn is_namespace(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|object| object.type_name().ends_with("::Namespace"))
}
