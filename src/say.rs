//! What a command says. Whoever reads may have had enough (`safelight queues | head`): the command goes on
//! with its work all the same, and says the rest to nobody.

use std::{
    fmt::Arguments,
    io::{ErrorKind, Result, Write},
};

/// Says a line on standard output, as `println!` does.
macro_rules! say {
    ($($text:tt)*) => { $crate::say::on_stdout(format_args!($($text)*)) };
}

/// Says a line on standard error, as `eprintln!` does.
macro_rules! tell {
    ($($text:tt)*) => { $crate::say::on_stderr(format_args!($($text)*)) };
}

pub(crate) use {say, tell};

/// Says a line on standard output. If it cannot be written the command has failed: a script must not take
/// half an answer for a whole one.
pub fn on_stdout(line: Arguments<'_>) {
    if let Err(error) = written(&mut std::io::stdout().lock(), line) {
        tell!("error: cannot write to standard output: {error}");
        std::process::exit(1);
    }
}

/// Says a line on standard error, if that can be done.
pub fn on_stderr(line: Arguments<'_>) {
    // There is nowhere left to complain.
    let _ = written(&mut std::io::stderr().lock(), line);
}

fn written(out: &mut impl Write, line: Arguments<'_>) -> Result<()> {
    match writeln!(out, "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
