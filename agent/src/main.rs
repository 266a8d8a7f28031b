//! The program `fulmar`.

fn main() -> std::process::ExitCode {
    fulmar::main()
}
