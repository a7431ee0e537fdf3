//! The daemon and command line that the scenarios run: the `tandem` program, built together with the tests.

fn main() -> std::process::ExitCode {
    tandem::cli::main()
}
