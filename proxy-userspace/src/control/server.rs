use std::fs::Permissions;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::{Answer, Lock, Request, RunDir};
use crate::status::Trouble;

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Question {
    pub request: Request,
    pub answer: oneshot::Sender<Answer>,
}

/// Longest time a client may take for its request, and requests' longest length in bytes: an open connection costs
/// the agent memory.
const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST: u64 = 4096;
/// Connections at a time; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 16;

/// The bound control socket.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Binds the socket, mode 0600. The lock proves that a socket file that is already there belongs to nobody.
    ///
    /// # Errors
    /// The file cannot be replaced or bound.
    pub fn bind(dir: &RunDir, _lock: &Lock) -> Result<Self, Trouble> {
        let path = dir.socket();
        let failed = |error: io::Error| {
            let next = "--run-dir must name a directory that root can write, with a short path";
            Trouble::new(format_args!("control socket {}", path.display()), error, next)
        };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let socket = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { socket, path })
    }

    /// Serves until dropped. Questions go to the agent's loop.
    pub async fn serve(self, questions: mpsc::Sender<Question>) {
        let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            match self.socket.accept().await {
                Ok((stream, _)) => {
                    let questions = questions.clone();
                    tokio::spawn(async move {
                        converse(stream, |request| forward(&questions, request)).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    warn!(socket = %self.path.display(), %error, "cannot accept a control connection");
                    // Out of file descriptors, most likely: without a pause this loop would eat a CPU.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

async fn forward(questions: &mpsc::Sender<Question>, request: Request) -> Answer {
    let (answer, wait) = oneshot::channel();
    let gone = || Trouble::new("the agent", "it is about to end", "ask again when it has started anew");
    if questions.send(Question { request, answer }).await.is_err() {
        return Answer::Error(gone());
    }
    wait.await.unwrap_or_else(|_| Answer::Error(gone()))
}

/// One connection: a line in, a line out. Errors of the connection concern nobody but the client.
async fn converse<F: Future<Output = Answer>>(stream: UnixStream, answer: impl FnOnce(Request) -> F) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(LONGEST));
    let answer = match tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await {
        Err(_) | Ok(Ok(0)) => return,
        Ok(Err(error)) => Answer::Error(Trouble::new("the request", error, "send one line of JSON")),
        Ok(Ok(_)) => match Request::parse(line.trim_end()) {
            Ok(request) => answer(request).await,
            Err(trouble) => Answer::Error(trouble),
        },
    };
    // A client that does not read must not hold its slot for ever.
    drop(tokio::time::timeout(PATIENCE, write.write_all(answer.line().as_bytes())).await);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::{ClientError, ask};
    use super::*;

    struct Bed {
        dir: RunDir,
        lock: Lock,
    }

    /// An agent that answers every request with an empty list of Services, until it is told to stop.
    fn bed(name: &str) -> Bed {
        let dir =
            RunDir::new(&std::env::temp_dir().join(format!("sluice-control-{}-{name}", std::process::id())));
        let lock = dir.lock().unwrap();
        // What a killed agent leaves behind.
        drop(std::os::unix::net::UnixListener::bind(dir.socket()).unwrap());
        let listener = Listener::bind(&dir, &lock).unwrap();
        let (questions, mut asked) = mpsc::channel::<Question>(4);
        tokio::spawn(listener.serve(questions));
        tokio::spawn(async move {
            while let Some(question) = asked.recv().await {
                if matches!(question.request, Request::Stop { .. }) {
                    return;
                }
                question.answer.send(Answer::Services(Vec::new())).unwrap();
            }
        });
        Bed { dir, lock }
    }

    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[tokio::test]
    async fn questions_are_answered_and_nonsense_does_no_harm() {
        let Bed { dir, lock } = bed("answers");
        let mode = std::fs::metadata(dir.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "only root may command the node's Services");
        let clients = dir.clone();
        blocking(move || {
            let talk = |bytes: &[u8]| {
                let mut stream = std::os::unix::net::UnixStream::connect(clients.socket()).unwrap();
                stream.write_all(bytes).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut answer = String::new();
                // The agent may hang up on an endless line while it is still being sent.
                drop(stream.read_to_string(&mut answer));
                answer
            };
            for nonsense in ["reboot\n", "{}\n", "\u{1}\n", "{\"command\":\"status\"", "\n"] {
                let answer = talk(nonsense.as_bytes());
                assert!(answer.starts_with("{\"error\":"), "{nonsense:?}: {answer}");
            }
            assert_eq!(talk(b""), "", "a client that says nothing gets nothing");
            assert!(talk(&[b'x'; 3 * LONGEST as usize / 2]).starts_with("{\"error\":"));
            assert_eq!(ask(&clients, &Request::Status).unwrap(), Answer::Services(Vec::new()));
            assert!(
                matches!(ask(&clients, &Request::Stop { netns: None }), Err(ClientError::Refused(_))),
                "nobody is left"
            );
        })
        .await;
        dir.remove(lock).unwrap();
        let gone = blocking(move || ask(&dir, &Request::Status)).await.unwrap_err().to_string();
        assert!(gone.contains("no agent answers") && gone.contains("control.sock"), "{gone}");
    }
}
