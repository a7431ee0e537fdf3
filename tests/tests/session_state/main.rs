//! What the lexer, the model of a session and the classes of statements say beside what real servers answer.

mod functions;
mod lexer;
mod settings;
mod statements;
mod wire;
