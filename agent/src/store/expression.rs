//! A filter's CEL expression over a signal.
//!
//! It comes from a client, and the signals from attackers. What it may cost is bounded by its length, by how deep it is
//! nested (a parser and an interpreter that call themselves have a stack), by leaving out macros within macros (`a.all(x, b.all(y, …))`
//! multiplies lists), and, in the reader, by rows and time. Regular expressions are linear in their text.

use std::{collections::HashMap, sync::Arc, sync::LazyLock};

use cel::{
    Context, Program, Value,
    common::ast::{EntryExpr, Expr, IdedExpr},
    objects::Key,
};
use chrono::DateTime;
use portcullis_proto::v1::Signal;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage,
    Value as Field,
};

/// The longest expression, bytes.
pub const MAX_BYTES: usize = 1024;
/// The deepest nesting: of brackets, unary operators and conditions before it is parsed, of everything afterwards. A level of
/// brackets takes 8 kB of the parser's stack (in a debug build 170 kB), and threads have 2 MB.
const MAX_DEPTH: usize = 40;
const VARIABLE: &str = "signal";

/// An expression that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// Too much to look at.
    #[error("filter.expression is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// Too much for a stack.
    #[error("filter.expression is nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// Too much to do.
    #[error("filter.expression has one of all, exists, exists_one, filter and map within another")]
    Nested,
    /// No CEL.
    #[error("filter.expression: {0}")]
    Syntax(String),
    /// There is one variable.
    #[error("filter.expression: there is no {0}; the only variable is signal")]
    Variable(String),
    /// No field of the message.
    #[error("filter.expression: {message} has no field {field}; it has {fields}")]
    Field {
        /// Its name, as in the API.
        message: String,
        /// What was asked for.
        field: String,
        /// What it has.
        fields: String,
    },
}

static SIGNAL: LazyLock<Option<MessageDescriptor>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(portcullis_proto::FILE_DESCRIPTOR_SET).ok()?;
    pool.get_message_by_name("portcullis.v1.Signal")
});

/// An expression that was checked.
#[derive(Debug, Clone)]
pub struct Expression(Arc<Program>);

impl Expression {
    /// Checks and prepares it.
    pub fn new(text: &str) -> Result<Self, ExpressionError> {
        if text.len() > MAX_BYTES {
            return Err(ExpressionError::TooLong);
        }
        if depth(text) > MAX_DEPTH {
            return Err(ExpressionError::TooDeep);
        }
        let program = Program::compile(text).map_err(|error| {
            let text: String = error.to_string().chars().take(MAX_BYTES).collect();
            ExpressionError::Syntax(text)
        })?;
        check(program.expression(), SIGNAL.as_ref(), &mut Vec::new(), MAX_DEPTH)?;
        Ok(Self(Arc::new(program)))
    }

    /// Whether it is true of a signal. What can't be evaluated is not.
    pub fn matches(&self, signal: &Signal) -> bool {
        let Some(descriptor) = SIGNAL.as_ref() else { return false };
        let mut message = DynamicMessage::new(descriptor.clone());
        if message.transcode_from(signal).is_err() {
            return false;
        }
        let mut context = Context::default();
        context.add_variable_from_value(VARIABLE, of_message(&message));
        matches!(self.0.execute(&context), Ok(Value::Bool(true)))
    }
}

/// How deep brackets, unary operators and conditions are nested, outside of strings. Raw strings and comments can hide some from it:
/// beyond 96 levels of brackets the parser itself gives up.
fn depth(text: &str) -> usize {
    let (mut brackets, mut row, mut conditions, mut deepest) = (0_usize, 0_usize, 0_usize, 0);
    let mut quote = None;
    let mut escaped = false;
    for c in text.chars() {
        if let Some(end) = quote {
            if !escaped && c == end {
                quote = None;
            }
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '"' | '\'' => quote = Some(c),
            '(' | '[' | '{' => brackets += 1,
            ')' | ']' | '}' => brackets = brackets.saturating_sub(1),
            '?' => conditions += 1,
            _ => {}
        }
        row = match c {
            '!' | '-' => row + 1,
            c if c.is_whitespace() => row,
            _ => 0,
        };
        deepest = deepest.max(brackets + row + conditions);
    }
    deepest
}

/// Looks at every part, `levels` deep at most. Names that a macro has made stand in `names`.
fn check(
    expression: &IdedExpr,
    signal: Option<&MessageDescriptor>,
    names: &mut Vec<String>,
    levels: usize,
) -> Result<(), ExpressionError> {
    let levels = levels.checked_sub(1).ok_or(ExpressionError::TooDeep)?;
    match &expression.expr {
        Expr::Unspecified | Expr::Literal(_) => Ok(()),
        Expr::Ident(name) if name == VARIABLE || names.contains(name) => Ok(()),
        Expr::Ident(name) => Err(ExpressionError::Variable(name.clone())),
        Expr::Select(select) => {
            check(&select.operand, signal, names, levels)?;
            let known = signal.and_then(|signal| message_of(&select.operand, signal));
            match known {
                Some(message) if message.get_field_by_name(&select.field).is_none() => {
                    let fields: Vec<_> = message.fields().map(|field| field.name().to_owned()).collect();
                    Err(ExpressionError::Field {
                        message: message.name().to_owned(),
                        field: select.field.clone(),
                        fields: fields.join(", "),
                    })
                }
                _ => Ok(()),
            }
        }
        Expr::Call(call) => {
            let target = call.target.as_deref();
            target.into_iter().chain(&call.args).try_for_each(|part| check(part, signal, names, levels))
        }
        Expr::List(list) => list.elements.iter().try_for_each(|part| check(part, signal, names, levels)),
        Expr::Map(map) => entries(map.entries.iter().map(|entry| &entry.expr), signal, names, levels),
        Expr::Struct(made) => entries(made.entries.iter().map(|entry| &entry.expr), signal, names, levels),
        Expr::Comprehension(made) => {
            if !names.is_empty() {
                return Err(ExpressionError::Nested);
            }
            check(&made.iter_range, signal, names, levels)?;
            names.extend([made.iter_var.clone(), made.accu_var.clone()]);
            names.extend(made.iter_var2.clone());
            let parts = [&made.accu_init, &made.loop_cond, &made.loop_step, &made.result];
            let result = parts.into_iter().try_for_each(|part| check(part, signal, names, levels));
            names.clear();
            result
        }
    }
}

fn entries<'a>(
    mut entries: impl Iterator<Item = &'a EntryExpr>,
    signal: Option<&MessageDescriptor>,
    names: &mut Vec<String>,
    levels: usize,
) -> Result<(), ExpressionError> {
    entries.try_for_each(|entry| match entry {
        EntryExpr::StructField(field) => check(&field.value, signal, names, levels),
        EntryExpr::MapEntry(entry) => {
            check(&entry.key, signal, names, levels)?;
            check(&entry.value, signal, names, levels)
        }
    })
}

/// What message a path of fields leads to, where it does.
fn message_of(expression: &IdedExpr, signal: &MessageDescriptor) -> Option<MessageDescriptor> {
    match &expression.expr {
        Expr::Ident(name) if name == VARIABLE => Some(signal.clone()),
        Expr::Select(select) => {
            let field = message_of(&select.operand, signal)?.get_field_by_name(&select.field)?;
            match field.kind() {
                Kind::Message(message) if !field.is_list() && !message.full_name().starts_with("google.") => {
                    Some(message)
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn of_message(message: &DynamicMessage) -> Value {
    let field = |field: FieldDescriptor| {
        let set = !field.supports_presence() || message.has_field(&field);
        set.then(|| (Key::from(field.name()), of_field(&message.get_field(&field), &field)))
    };
    let fields: HashMap<Key, Value> = message.descriptor().fields().filter_map(field).collect();
    Value::from(fields)
}

fn of_field(value: &Field, field: &FieldDescriptor) -> Value {
    match value {
        Field::Bool(value) => Value::Bool(*value),
        Field::I32(value) => Value::Int((*value).into()),
        Field::I64(value) => Value::Int(*value),
        Field::U32(value) => Value::UInt((*value).into()),
        Field::U64(value) => Value::UInt(*value),
        Field::F32(value) => Value::Float((*value).into()),
        Field::F64(value) => Value::Float(*value),
        Field::String(value) => Value::String(Arc::new(value.clone())),
        Field::Bytes(value) => Value::Bytes(Arc::new(value.to_vec())),
        Field::EnumNumber(number) => match field.kind() {
            Kind::Enum(descriptor) => Value::String(Arc::new(word(&descriptor, *number))),
            _ => Value::Int((*number).into()),
        },
        Field::Message(message) => match message.descriptor().full_name() {
            "google.protobuf.Timestamp" => of_time(message),
            _ => of_message(message),
        },
        Field::List(list) => Value::List(Arc::new(list.iter().map(|value| of_field(value, field)).collect())),
        // No signal has any.
        Field::Map(_) => Value::Null,
    }
}

fn of_time(message: &DynamicMessage) -> Value {
    let number =
        |name: &str| message.get_field_by_name(name).and_then(|value| value.as_i64().or(value.as_i32().map(i64::from)));
    let (seconds, nanoseconds) = (number("seconds").unwrap_or_default(), number("nanos").unwrap_or_default());
    let time = DateTime::from_timestamp(seconds, u32::try_from(nanoseconds).unwrap_or_default());
    time.map_or(Value::Null, |time| Value::Timestamp(time.fixed_offset()))
}

/// `VERDICT_WOULD_BLOCK` is `would_block`; what is not said is empty.
fn word(descriptor: &EnumDescriptor, number: i32) -> String {
    let Some(value) = descriptor.get_value(number).filter(|_| number != 0) else { return String::new() };
    let mut prefix = String::new();
    for c in descriptor.name().chars() {
        if c.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(c.to_ascii_uppercase());
    }
    prefix.push('_');
    value.name().strip_prefix(&prefix).unwrap_or(value.name()).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use portcullis_proto::v1::{Identification, Process, Tool, Verdict};

    use super::*;
    use crate::clock::timestamp;

    fn signal() -> Signal {
        Signal {
            id: 7,
            rule: "net_util_in_container".into(),
            verdict: Verdict::WouldBlock.into(),
            tool: Some(Tool { id: "nc".into(), category: "netcat".into(), ..Tool::default() }),
            identified_by: vec![Identification::ResolvedName.into(), Identification::Fingerprint.into()],
            time: Some(timestamp(1_700_000_000_000_000_000)),
            process: Some(Process {
                uid: 0,
                argv: ["nc", "-e", "/bin/sh"].map(Into::into).to_vec(),
                ..Process::default()
            }),
            count: 3,
            ..Signal::default()
        }
    }

    fn matches(text: &str) -> bool {
        Expression::new(text).unwrap_or_else(|error| panic!("{text}: {error}")).matches(&signal())
    }

    #[test]
    fn fields_have_their_values() {
        for text in [
            "signal.id == 7u && signal.count > 2u",
            r#"signal.tool.id == "nc" && signal.process.uid == 0u && "-e" in signal.process.argv"#,
            r#"signal.verdict == "would_block" && "fingerprint" in signal.identified_by"#,
            r#"signal.process.argv.exists(a, a.startsWith("/bin/"))"#,
            r#"signal.time > timestamp("2023-01-01T00:00:00Z")"#,
            "has(signal.process) && !has(signal.container)",
            r#"signal.rule.matches("^net_.*")"#,
        ] {
            assert!(matches(text), "{text}");
        }
        for text in [
            "false",
            "signal.container.id == \"\"",
            "signal.process.argv[9] == \"x\"",
            "signal.id",
            r#"signal.tool.category == "dns""#,
        ] {
            assert!(!matches(text), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let error = |text: &str| Expression::new(text).unwrap_err();
        assert!(matches!(error("signal.id =="), ExpressionError::Syntax(_)));
        assert_eq!(error("process.uid == 0u"), ExpressionError::Variable("process".into()));
        assert!(
            error("signal.tool.name == \"nc\"").to_string().contains("Tool has no field name; it has id, category")
        );
        assert!(error("has(signal.proces)").to_string().contains("Signal has no field proces"));
        let nested = "signal.process.argv.all(a, signal.process.argv.all(b, a != b))";
        assert_eq!(error(nested), ExpressionError::Nested);
        assert_eq!(error(&"x".repeat(MAX_BYTES + 1)), ExpressionError::TooLong);
    }

    #[test]
    fn whatever_it_says_it_has_a_bound() {
        let argv = (0..2048).map(|_| "a".to_owned()).collect();
        let signal = Signal { process: Some(Process { argv, ..Process::default() }), ..signal() };
        let whole = |begin: &str, part: &str, end: &str| {
            let room = MAX_BYTES - begin.len() - end.len() - 8;
            format!("{begin}{}{end}", part.repeat(room / part.len()))
        };
        let long = [
            whole("", "!", "true"),
            whole("", "-", "1 == 1"),
            whole("", "(", ""),
            whole("", "[", ""),
            whole("true", "&&true", ""),
            whole("1", "+1", " == 1"),
            whole("true", "?true:true", ""),
            whole("signal", ".process", ""),
            whole("[", "signal.process.argv,", "1].size() > 0"),
            whole("signal.process.argv.all(a, a.matches(\"", "(a*)*", "\"))"),
            whole("\"", "\\\"", "\" == \"\""),
            whole("{", "\"a\": {", ""),
            whole("signal.rule.matches(\"", "a{99}", "\")"),
        ];
        for text in &long {
            let started = Instant::now();
            let compiled = Expression::new(text);
            if let Ok(expression) = &compiled {
                expression.matches(&signal);
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{text}");
        }
        assert_eq!(Expression::new(&long[0]).unwrap_err(), ExpressionError::TooDeep);
        assert_eq!(Expression::new(&long[2]).unwrap_err(), ExpressionError::TooDeep);
        assert_eq!(
            Expression::new(&long[5]).unwrap_err(),
            ExpressionError::TooDeep,
            "what is evaluated has a stack as well"
        );
    }
}
