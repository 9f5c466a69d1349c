use std::process::ExitCode;
use vocoe::allocator::LargePages;

#[global_allocator]
static ALLOCATOR: LargePages = LargePages;

fn main() -> ExitCode {
    vocoe::main()
}
