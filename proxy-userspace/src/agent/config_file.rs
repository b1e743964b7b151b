//! The configuration file is read once. When it changes, the agent ends, and whoever has started it starts it again (I11).

use std::path::PathBuf;

use notify::event::ModifyKind;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::warn;

use crate::status::Trouble;

/// Returns once the file at `path` has been written or renamed. What takes its place by a link's change, as a ConfigMap's new
/// content does, goes unnoticed, as with kube-proxy.
///
/// # Errors
/// Always: the agent is to end.
pub async fn follow(path: PathBuf) -> Result<(), Trouble> {
    let what = format!("the configuration file {}", path.display());
    match watch(&path) {
        Ok((watcher, mut changes)) => {
            changes.recv().await;
            drop(watcher);
            Err(Trouble::new(what, "it has changed", "the agent has to be started again"))
        }
        Err(error) => {
            warn!("{what}: changes to it will not be noticed: {error}");
            std::future::pending().await
        }
    }
}

fn watch(path: &std::path::Path) -> notify::Result<(RecommendedWatcher, mpsc::Receiver<()>)> {
    let (tell, changes) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| is_change(event.kind)) {
            // One is enough.
            tell.try_send(()).ok();
        }
    })?;
    watcher.watch(path, RecursiveMode::NonRecursive)?;
    Ok((watcher, changes))
}

const fn is_change(kind: EventKind) -> bool {
    matches!(kind, EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Name(_)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use notify::event::{AccessKind, DataChange, MetadataKind, RemoveKind, RenameMode};

    use super::*;

    #[test]
    fn i11_written_or_renamed_and_nothing_else() {
        let cases = [
            (EventKind::Modify(ModifyKind::Data(DataChange::Any)), true),
            (EventKind::Modify(ModifyKind::Name(RenameMode::From)), true),
            (EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)), false),
            (EventKind::Access(AccessKind::Read), false),
            (EventKind::Remove(RemoveKind::File), false),
        ];
        for (kind, want) in cases {
            assert_eq!(is_change(kind), want, "{kind:?}");
        }
    }

    #[tokio::test]
    async fn i11_the_agent_ends_when_its_file_changes() {
        let path = std::env::temp_dir().join(format!("sluice-config-followed-{}", std::process::id()));
        std::fs::write(&path, "mode: iptables\n").unwrap();
        let mut followed = tokio::spawn(follow(path.clone()));
        let ended = loop {
            // It may not have begun to look.
            std::fs::write(&path, "mode: nftables\n").unwrap();
            if let Ok(ended) = tokio::time::timeout(Duration::from_millis(20), &mut followed).await {
                break ended.unwrap();
            }
        };
        std::fs::remove_file(&path).unwrap();
        let told = ended.unwrap_err().to_string();
        assert!(told.contains(&path.display().to_string()) && told.contains("has changed"), "{told}");
    }
}
