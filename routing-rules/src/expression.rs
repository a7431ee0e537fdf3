//! Key expressions: integer arithmetic over one column, `(tid - 1) / 10 + 1`.
//!
//! Evaluated as PostgreSQL evaluates bigint: division truncates toward zero, `%` takes the sign of the dividend,
//! overflow and division by zero are errors (<https://www.postgresql.org/docs/current/functions-math.html>).

use core::fmt;

/// Deepest nesting of parentheses and signs.
const DEPTH_MAX: usize = 32;
/// Longest expression in bytes.
const LENGTH_MAX: usize = 1_000;

/// A checked key expression. Displays with full parentheses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// The value of the rule's column.
    Column,
    /// A literal.
    Integer(i64),
    /// Unary minus.
    Negated(Box<Self>),
    /// Two operands.
    Binary(Box<Self>, Operator, Box<Self>),
}

/// A binary operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`, truncating
    Divide,
    /// `%`
    Remainder,
}

/// Why an expression has no value for a column's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    /// PostgreSQL would answer 22003.
    #[error("bigint out of range")]
    OutOfRange,
    /// PostgreSQL would answer 22012.
    #[error("division by zero")]
    DivisionByZero,
}

/// Why a text is no key expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// Byte range inside the expression's text.
    pub span: core::ops::Range<usize>,
    /// What is wrong.
    pub message: String,
}

impl Expression {
    /// Parses `text`, in which only the column `column` may be named (compared without regard to case, as
    /// PostgreSQL folds names).
    pub fn parse(text: &str, column: &str) -> Result<Self, SyntaxError> {
        if text.len() > LENGTH_MAX {
            let message = format!("the expression is longer than {LENGTH_MAX} bytes");
            return Err(SyntaxError {
                span: 0..text.len(),
                message,
            });
        }
        let mut parser = Parser {
            text,
            at: 0,
            column,
        };
        let expression = parser.sum(0)?;
        match parser.token()? {
            (Token::End, _) => Ok(expression),
            (token, span) => Err(SyntaxError {
                span,
                message: format!("unexpected {token}"),
            }),
        }
    }

    /// The expression's value for one value of the column.
    pub fn evaluate(&self, column: i64) -> Result<i64, EvaluationError> {
        match self {
            Self::Column => Ok(column),
            Self::Integer(value) => Ok(*value),
            Self::Negated(inner) => inner
                .evaluate(column)?
                .checked_neg()
                .ok_or(EvaluationError::OutOfRange),
            Self::Binary(left, operator, right) => {
                operator.apply(left.evaluate(column)?, right.evaluate(column)?)
            }
        }
    }
}

impl Operator {
    fn apply(self, left: i64, right: i64) -> Result<i64, EvaluationError> {
        let value = match self {
            Self::Add => left.checked_add(right),
            Self::Subtract => left.checked_sub(right),
            Self::Multiply => left.checked_mul(right),
            Self::Divide | Self::Remainder if right == 0 => {
                return Err(EvaluationError::DivisionByZero);
            }
            Self::Divide => left.checked_div(right),
            // PostgreSQL answers 0 for the smallest bigint % -1, where the processor would trap (int8mod in int8.c).
            Self::Remainder => Some(left.wrapping_rem(right)),
        };
        value.ok_or(EvaluationError::OutOfRange)
    }

    fn symbol(self) -> char {
        match self {
            Self::Add => '+',
            Self::Subtract => '-',
            Self::Multiply => '*',
            Self::Divide => '/',
            Self::Remainder => '%',
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Column => f.write_str("column"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Negated(inner) => write!(f, "-({inner})"),
            Self::Binary(left, operator, right) => {
                write!(f, "({left} {} {right})", operator.symbol())
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Integer(i64),
    Name(&'a str),
    Operator(Operator),
    Open,
    Close,
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "number {value}"),
            Self::Name(name) => write!(f, "name `{name}`"),
            Self::Operator(operator) => write!(f, "`{}`", operator.symbol()),
            Self::Open => f.write_str("`(`"),
            Self::Close => f.write_str("`)`"),
            Self::End => f.write_str("end of the expression"),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    column: &'a str,
}

type Spanned<'a> = (Token<'a>, core::ops::Range<usize>);

impl<'a> Parser<'a> {
    fn sum(&mut self, depth: usize) -> Result<Expression, SyntaxError> {
        let mut left = self.product(depth)?;
        while let Some(operator) = self.operator_of(&[Operator::Add, Operator::Subtract])? {
            left = Expression::Binary(Box::new(left), operator, Box::new(self.product(depth)?));
        }
        Ok(left)
    }

    fn product(&mut self, depth: usize) -> Result<Expression, SyntaxError> {
        let mut left = self.operand(depth)?;
        while let Some(operator) =
            self.operator_of(&[Operator::Multiply, Operator::Divide, Operator::Remainder])?
        {
            left = Expression::Binary(Box::new(left), operator, Box::new(self.operand(depth)?));
        }
        Ok(left)
    }

    fn operand(&mut self, depth: usize) -> Result<Expression, SyntaxError> {
        let (token, span) = self.token()?;
        if depth >= DEPTH_MAX {
            return Err(SyntaxError {
                span,
                message: format!("nested deeper than {DEPTH_MAX} levels"),
            });
        }
        match token {
            Token::Integer(value) => Ok(Expression::Integer(value)),
            Token::Name(name) if name.eq_ignore_ascii_case(self.column) => Ok(Expression::Column),
            Token::Name(name) => {
                let message = format!("`{name}` is not the rule's column `{}`", self.column);
                Err(SyntaxError { span, message })
            }
            Token::Operator(Operator::Subtract) => {
                Ok(Expression::Negated(Box::new(self.operand(depth + 1)?)))
            }
            Token::Open => {
                let inner = self.sum(depth + 1)?;
                match self.token()? {
                    (Token::Close, _) => Ok(inner),
                    (token, span) => Err(SyntaxError {
                        span,
                        message: format!("expected `)`, found {token}"),
                    }),
                }
            }
            token => {
                let message = format!("expected a number, `{}` or `(`, found {token}", self.column);
                Err(SyntaxError { span, message })
            }
        }
    }

    /// Takes the next token only when it is one of `wanted`.
    fn operator_of(&mut self, wanted: &[Operator]) -> Result<Option<Operator>, SyntaxError> {
        let before = self.at;
        match self.token()? {
            (Token::Operator(operator), _) if wanted.contains(&operator) => Ok(Some(operator)),
            _ => {
                self.at = before;
                Ok(None)
            }
        }
    }

    fn token(&mut self) -> Result<Spanned<'a>, SyntaxError> {
        let rest = self.text.get(self.at..).unwrap_or("");
        let trimmed = rest.trim_start();
        let start = self.at + (rest.len() - trimmed.len());
        let Some(first) = trimmed.chars().next() else {
            self.at = start;
            return Ok((Token::End, start..start));
        };
        let length = match first {
            '0'..='9' => leading(trimmed, |c| {
                c.is_ascii_alphanumeric() || c == '.' || c == '_'
            }),
            c if c.is_alphabetic() || c == '_' => {
                leading(trimmed, |c| c.is_alphanumeric() || c == '_' || c == '$')
            }
            other => other.len_utf8(),
        };
        let span = start..start + length;
        let word = trimmed.get(..length).unwrap_or("");
        let token = match first {
            '0'..='9' => match word.parse() {
                Ok(value) => Token::Integer(value),
                Err(_) => {
                    return Err(SyntaxError {
                        span,
                        message: format!("`{word}` is not a bigint"),
                    });
                }
            },
            c if c.is_alphabetic() || c == '_' => Token::Name(word),
            '+' => Token::Operator(Operator::Add),
            '-' => Token::Operator(Operator::Subtract),
            '*' => Token::Operator(Operator::Multiply),
            '/' => Token::Operator(Operator::Divide),
            '%' => Token::Operator(Operator::Remainder),
            '(' => Token::Open,
            ')' => Token::Close,
            other => {
                return Err(SyntaxError {
                    span,
                    message: format!("unexpected character `{other}`"),
                });
            }
        };
        self.at = span.end;
        Ok((token, span))
    }
}

/// Length in bytes of the longest prefix whose characters all satisfy `belongs`.
fn leading(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str, column: i64) -> Result<i64, EvaluationError> {
        Expression::parse(text, "tid").unwrap().evaluate(column)
    }

    #[test]
    fn the_design_page_s_expression_maps_tellers_to_branches() {
        let branch = |tid| value("(tid - 1) / 10 + 1", tid).unwrap();
        assert_eq!(
            [branch(1), branch(10), branch(11), branch(50)],
            [1, 1, 2, 5]
        );
    }

    #[test]
    fn arithmetic_is_postgresql_s() {
        assert_eq!(value("2 + 3 * tid", 4), Ok(14));
        assert_eq!(value("10 - 3 - 2", 0), Ok(5));
        assert_eq!(value("-7 / 2", 0), Ok(-3));
        assert_eq!(value("-7 % 3", 0), Ok(-1));
        assert_eq!(value("TID % 4", 7), Ok(3));
        assert_eq!(value("- - tid", 7), Ok(7));
        assert_eq!(value("tid % -1", i64::MIN), Ok(0));
    }

    #[test]
    fn overflow_and_division_by_zero_are_errors() {
        assert_eq!(value("tid + 1", i64::MAX), Err(EvaluationError::OutOfRange));
        assert_eq!(
            value("tid / -1", i64::MIN),
            Err(EvaluationError::OutOfRange)
        );
        assert_eq!(value("-tid", i64::MIN), Err(EvaluationError::OutOfRange));
        assert_eq!(value("1 / tid", 0), Err(EvaluationError::DivisionByZero));
        assert_eq!(value("1 % tid", 0), Err(EvaluationError::DivisionByZero));
    }

    #[test]
    fn bad_expressions_say_where_and_what() {
        let refused = |text: &str| {
            let error = Expression::parse(text, "tid").unwrap_err();
            (error.span, error.message)
        };
        assert_eq!(
            refused("(tid - 1"),
            (8..8, "expected `)`, found end of the expression".to_owned())
        );
        assert_eq!(
            refused("bid + 1"),
            (0..3, "`bid` is not the rule's column `tid`".to_owned())
        );
        assert_eq!(
            refused("tid +"),
            (
                5..5,
                "expected a number, `tid` or `(`, found end of the expression".to_owned()
            )
        );
        assert_eq!(
            refused("tid ; 1"),
            (4..5, "unexpected character `;`".to_owned())
        );
        assert_eq!(refused("tid 1"), (4..5, "unexpected number 1".to_owned()));
        assert_eq!(
            refused("tid * 1.5"),
            (6..9, "`1.5` is not a bigint".to_owned())
        );
        assert!(refused(&"(".repeat(40)).1.contains("nested deeper"));
        assert!(refused(&"1".repeat(2_000)).1.contains("longer than"));
    }

    fn any_expression() -> impl Strategy<Value = Expression> {
        let leaf = prop_oneof![
            Just(Expression::Column),
            (0..i64::MAX).prop_map(Expression::Integer)
        ];
        leaf.prop_recursive(5, 32, 2, |inner| {
            let operator = prop_oneof![
                Just(Operator::Add),
                Just(Operator::Subtract),
                Just(Operator::Multiply),
                Just(Operator::Divide),
                Just(Operator::Remainder)
            ];
            prop_oneof![
                inner.clone().prop_map(|e| Expression::Negated(Box::new(e))),
                (inner.clone(), operator, inner).prop_map(|(l, o, r)| Expression::Binary(
                    Box::new(l),
                    o,
                    Box::new(r)
                ))
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_displayed_parses_back_to_the_same(expression in any_expression(), column: i64) {
            let again = Expression::parse(&expression.to_string(), "column").unwrap();
            prop_assert_eq!(&again, &expression);
            prop_assert_eq!(again.evaluate(column), expression.evaluate(column));
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in "[-+*/%() a-z0-9.é]{0,60}") {
            if let Err(error) = Expression::parse(&text, "a") {
                prop_assert!(text.get(error.span).is_some());
            }
        }
    }
}
