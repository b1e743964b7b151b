use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::{Answer, Request, RunDir};
use crate::status::Trouble;

/// Longest wait for an answer: a table of millions of flows takes seconds to read, stopping takes nothing.
const fn patience(request: &Request) -> Duration {
    Duration::from_secs(if matches!(request, Request::Stop { .. }) { 5 } else { 30 })
}

/// Asks the agent of this run directory.
///
/// # Errors
/// See [`ClientError`].
pub fn ask(dir: &RunDir, request: &Request) -> Result<Answer, ClientError> {
    let socket = dir.socket();
    let stream = UnixStream::connect(&socket).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::NotPermitted { socket: socket.clone(), source },
        _ => ClientError::NoAgent { socket: socket.clone(), source },
    })?;
    let lost = |source| ClientError::Lost { socket: socket.clone(), source };
    let answer = exchange(stream, request).map_err(lost)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Error(trouble)) => Err(ClientError::Refused(trouble)),
        Ok(answer) => Ok(answer),
        Err(source) => Err(ClientError::Foreign { socket, source }),
    }
}

fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<String> {
    let patience = Some(patience(request));
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{}: {source}; ask as root, or as the user that the agent runs as", socket.display())]
    NotPermitted { socket: PathBuf, source: io::Error },
    #[error(
        "{}: no agent answers ({source}); start one with `sluice run`, or name its directory with --run-dir",
        socket.display()
    )]
    NoAgent { socket: PathBuf, source: io::Error },
    #[error("{}: the agent did not answer ({source}); see its log", socket.display())]
    Lost { socket: PathBuf, source: io::Error },
    #[error(
        "{}: answer not understood ({source}); client and agent should be of the same version",
        socket.display()
    )]
    Foreign { socket: PathBuf, source: serde_json::Error },
    #[error("{0}")]
    Refused(Trouble),
}
