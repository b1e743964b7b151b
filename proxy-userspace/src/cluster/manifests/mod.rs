//! A folder of manifests as the source: read once, then followed live.
//!
//! Every notice from the kernel leads to one look at the whole folder, in which only files that changed are read. So
//! lost notices, renames, swapped symbolic links and a folder that goes and comes back need no handling of their own.

mod folder;
mod parse;
#[cfg(test)]
mod tests;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::Event;
use folder::Folder;
pub use parse::{Object, ObjectKey, Parsed, parse};

/// Writers often write a file in several steps: this long after a notice the folder is looked at.
const SETTLE: Duration = Duration::from_millis(20);

/// Catches what the kernel cannot tell: files behind links to elsewhere, and folders that appear later.
const LOOK_ANYWAY: Duration = Duration::from_secs(2);

/// Delivers the folder's objects until the receiver is gone.
pub async fn follow(path: PathBuf, events: mpsc::Sender<Event>) {
    let (notice, mut notices) = mpsc::channel::<()>(1);
    let mut folder = Folder::new(path.clone());
    let mut eyes = Eyes::default();
    loop {
        // Watch first, look second: nothing that happens in between is missed.
        eyes.open(&path, &notice);
        let scanned = tokio::task::spawn_blocking(move || {
            let events = folder.scan();
            (folder, events)
        });
        let Ok((next, found)) = scanned.await else { return };
        folder = next;
        for event in found {
            if events.send(event).await.is_err() {
                return;
            }
        }
        tokio::select! {
            _ = notices.recv() => {
                tokio::time::sleep(SETTLE).await;
                while notices.try_recv().is_ok() {}
            }
            () = tokio::time::sleep(LOOK_ANYWAY) => {}
            () = events.closed() => return,
        }
    }
}

/// The kernel's notices about the folder as it is now and about the place where its name stands.
#[derive(Default)]
struct Eyes {
    watcher: Option<RecommendedWatcher>,
    /// Where the path led to, and the folder's inode there.
    on: Option<(PathBuf, u64)>,
}

impl Eyes {
    /// Looks at the folder that the path leads to at present. Without notices [`LOOK_ANYWAY`] still works.
    fn open(&mut self, path: &Path, notice: &mpsc::Sender<()>) {
        let target = std::fs::canonicalize(path).ok().and_then(|target| {
            let inode = std::fs::metadata(&target).ok()?.ino();
            Some((target, inode))
        });
        if self.watcher.is_some() && self.on == target {
            return;
        }
        let (notice, folder) = (notice.clone(), path.to_owned());
        let watcher = notify::recommended_watcher(move |event| {
            // A full channel already holds a notice.
            if concerns(&event, &folder) {
                let _ = notice.try_send(());
            }
        });
        let Ok(mut watcher) =
            watcher.inspect_err(|error| tracing::debug!(%error, "no notices about manifests"))
        else {
            return;
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        for place in [path, parent] {
            if let Err(error) = watcher.watch(place, RecursiveMode::NonRecursive) {
                tracing::debug!(%error, place = %place.display(), "no notices");
            }
        }
        (self.watcher, self.on) = (Some(watcher), target);
    }
}

/// Our own reading is noticed as well and must not lead to more of it; neither must the folder's siblings. Lost
/// notices come as an event without a path.
fn concerns(event: &notify::Result<notify::Event>, folder: &Path) -> bool {
    let Ok(event) = event else { return true };
    let written = event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write));
    let about = event.paths.is_empty() || event.paths.iter().any(|path| path.starts_with(folder));
    about && (written || !event.kind.is_access())
}
