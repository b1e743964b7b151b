//! The folder that the agent reads when no API server is there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::app::{App, Objects, node};

/// A folder of manifests, one file an application.
#[derive(Clone, Debug)]
pub struct Manifests(PathBuf);

impl Manifests {
    /// Makes the folder with the two Node objects in it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn create(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let manifests = Self(directory);
        manifests.write("nodes.json", &list(vec![node("n1"), node("n2")]).to_string())?;
        Ok(manifests)
    }

    /// Writes one file so that readers see either the old or the new content.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let (half, whole) = (self.0.join(format!(".{name}.part")), self.0.join(name));
        fs::write(&half, text).with_context(|| format!("cannot write {}", half.display()))?;
        fs::rename(&half, &whole).with_context(|| format!("cannot write {}", whole.display()))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// As the file system says.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.0.join(name);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0
    }
}

fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

impl Objects for Manifests {
    fn apply(&self, app: &App) -> Result<()> {
        let text = serde_json::to_string_pretty(&list(app.objects()))?;
        self.write(&format!("{}.json", app.name), &text)
    }

    fn delete(&self, app: &App) -> Result<()> {
        self.remove(&format!("{}.json", app.name))
    }

    fn flags(&self) -> Vec<String> {
        vec!["--manifests".into(), self.0.display().to_string()]
    }

    fn name(&self) -> &'static str {
        "a folder of manifests"
    }
}

#[cfg(test)]
mod tests {
    use proxy_userspace::cluster::{Change, Event};

    use super::*;
    use crate::lab::{Backend, Who};

    /// What the laboratory writes is what the agent's own reader understands: a red test elsewhere is no typing error
    /// here.
    #[tokio::test]
    async fn the_agents_reader_understands_the_folder() {
        let directory = std::env::temp_dir().join(format!("sl-{}-manifests", std::process::id()));
        let manifests = Manifests::create(directory.clone()).unwrap();
        manifests
            .apply(&App::new("one", 1, [Backend::new(Who::Pa, 8_080), Backend::new(Who::Pd, 8_081)]))
            .unwrap();
        let (sender, mut events) = tokio::sync::mpsc::channel(64);
        let following = tokio::spawn(proxy_userspace::cluster::manifests::follow(directory.clone(), sender));
        let (mut services, mut slices, mut nodes) = (None, None, None);
        while services.is_none() || slices.is_none() || nodes.is_none() {
            match events.recv().await.unwrap() {
                Event::Services(Change::Snapshot(list)) => services = Some(list.len()),
                Event::Slices(Change::Snapshot(list)) => slices = Some(list.len()),
                Event::Nodes(Change::Snapshot(list)) => nodes = Some(list.len()),
                Event::Problems(list) => assert!(list.is_empty(), "{list:?}"),
                _ => {}
            }
        }
        following.abort();
        fs::remove_dir_all(directory).unwrap();
        // One slice for each family and port.
        assert_eq!((services, slices, nodes), (Some(1), Some(4), Some(2)));
    }
}
