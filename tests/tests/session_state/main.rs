//! What the lexer and the model of a session say beside what real servers answer.

mod functions;
mod lexer;
mod settings;
mod wire;
