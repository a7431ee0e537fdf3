//! Proxy scenarios: what a client of PostgreSQL may expect, it gets through the proxy too.

mod admin;
mod cancel;
mod console;
mod first_start;
mod flows;
mod fuzz;
mod host_rules;
mod hostile;
mod large;
mod latency;
mod login;
mod loss;
mod pause;
mod pooling;
mod ready;
mod reload;
mod rolling;
mod security;
mod sequences;
mod sessions;
mod settings;
mod shapes;
mod storms;
mod tls;
