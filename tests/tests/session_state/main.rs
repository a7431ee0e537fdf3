//! What the lexer, the model of a session and the classes of statements say beside what real servers answer.

mod functions;
mod lexer;
mod regress;
mod settings;
mod statements;
mod wire;
