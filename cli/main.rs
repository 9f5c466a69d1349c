use std::process::ExitCode;

fn main() -> ExitCode {
    vocoe::main()
}
