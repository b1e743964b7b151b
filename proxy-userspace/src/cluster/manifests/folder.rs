//! The folder's state: which files hold what, and how that differs from what was told before.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::parse::{Object, ObjectKey, Parsed, parse};
use crate::cluster::types::{Kind, Node, Problem, Service, ServiceCidr, Slice};
use crate::cluster::{Change, Event};

/// A file that changed this recently may change again without a trace in its metadata.
const SETTLED: Duration = Duration::from_secs(2);

/// Follows one folder; [`Folder::scan`] reads what changed since the last time.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    told: BTreeMap<ObjectKey, Arc<Object>>,
    problems: Option<Vec<Problem>>,
    connected: Option<bool>,
    listed: bool,
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    objects: Vec<Arc<Object>>,
    problems: Vec<Problem>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None` for a file that may still be in the middle of a change.
    fn of(metadata: &Metadata) -> Option<Self> {
        let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        age.filter(|age| *age > SETTLED)?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

impl Folder {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            files: BTreeMap::new(),
            told: BTreeMap::new(),
            problems: None,
            connected: None,
            listed: false,
        }
    }

    /// Reads what changed and returns the events that follow from it; none if nothing did. A folder that cannot be
    /// read leaves everything as it was.
    pub fn scan(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut problems = Vec::new();
        let connected = match self.read_files() {
            Ok(()) => {
                let wanted = self.merge(&mut problems);
                self.tell(wanted, &mut events);
                true
            }
            Err(error) => {
                let object = format_args!("folder {}", self.path.display());
                let what = format_args!("cannot be read: {error}; what stood in it before is kept");
                problems.push(Problem::new(object, what, "create the folder that --manifests names"));
                problems.extend(self.files.values().flat_map(|file| file.problems.iter().cloned()));
                false
            }
        };
        if self.problems.as_ref() != Some(&problems) {
            self.problems = Some(problems.clone());
            events.push(Event::Problems(problems));
        }
        if self.connected.replace(connected) != Some(connected) {
            events.push(Event::Connection { connected });
        }
        events
    }

    fn read_files(&mut self) -> io::Result<()> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if !is_manifest(&path) {
                continue;
            }
            let before = self.files.remove(&path);
            // A file that is not there any more, or is no file, is no longer ours; one that cannot be read is.
            if let Some(file) = read_file(&path, before) {
                files.insert(path, file);
            }
        }
        self.files = files;
        Ok(())
    }

    /// Each object once: the first file by name, and in it the first document, counts.
    fn merge(&self, problems: &mut Vec<Problem>) -> BTreeMap<ObjectKey, Arc<Object>> {
        let mut merged: BTreeMap<ObjectKey, (&Path, Arc<Object>)> = BTreeMap::new();
        for (path, file) in &self.files {
            problems.extend(file.problems.iter().cloned());
            for object in &file.objects {
                let key = object.key();
                if let Some((first, _)) = merged.get(&key) {
                    let what = format_args!(
                        "stands in {} and again in {}, the first counts",
                        first.display(),
                        path.display()
                    );
                    problems.push(Problem::new(&key, what, "remove one of them"));
                } else {
                    merged.insert(key, (path, object.clone()));
                }
            }
        }
        merged.into_iter().map(|(key, (_, object))| (key, object)).collect()
    }

    fn tell(&mut self, wanted: BTreeMap<ObjectKey, Arc<Object>>, events: &mut Vec<Event>) {
        if self.listed {
            let gone = self.told.keys().filter(|key| !wanted.contains_key(*key));
            let new = wanted.iter().filter(|(key, object)| {
                self.told.get(*key).is_none_or(|before| !Arc::ptr_eq(before, object) && before != *object)
            });
            // Additions first: an endpoint that moves between slices is never gone in between (C-16).
            events.extend(new.map(|(_, object)| apply(object)));
            events.extend(gone.map(delete));
        } else {
            self.listed = true;
            events.extend(snapshots(wanted.values()));
        }
        self.told = wanted;
    }
}

/// Hidden files are editors' and kubelet's own.
fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

fn read_file(path: &Path, before: Option<File>) -> Option<File> {
    let stamp = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Stamp::of(&metadata),
        Ok(_) => return None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(_) => None,
    };
    let before = before.unwrap_or_default();
    if stamp.is_some() && before.stamp == stamp {
        return Some(before);
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            let what = format_args!("cannot be read: {error}; what stood here before is kept");
            let problem = Problem::new(path.display(), what, "make the file readable for the agent");
            return Some(File { stamp: None, problems: vec![problem], ..before });
        }
    };
    let Parsed { objects, problems, damaged } = parse(path, &bytes);
    let mut objects: Vec<_> = objects.into_iter().map(Arc::new).collect();
    if damaged {
        // The broken document may be the one that these stood in.
        let kept: Vec<_> =
            before.objects.into_iter().filter(|o| !objects.iter().any(|n| n.key() == o.key())).collect();
        objects.extend(kept);
    }
    Some(File { stamp, objects, problems })
}

fn snapshots<'a>(objects: impl Iterator<Item = &'a Arc<Object>>) -> [Event; 4] {
    let (mut services, mut slices, mut nodes, mut ranges) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for object in objects {
        match &**object {
            Object::Service(service) => services.push(service.clone()),
            Object::Slice(slice) => slices.push(slice.clone()),
            Object::Node(node) => nodes.push(node.clone()),
            Object::ServiceCidr(range) => ranges.push(range.clone()),
        }
    }
    [
        Event::Nodes(Change::Snapshot(nodes)),
        Event::ServiceCidrs(Change::Snapshot(ranges)),
        Event::Services(Change::Snapshot(services)),
        Event::Slices(Change::Snapshot(slices)),
    ]
}

fn apply(object: &Arc<Object>) -> Event {
    match &**object {
        Object::Service(service) => Event::Services(Change::Apply(service.clone())),
        Object::Slice(slice) => Event::Slices(Change::Apply(slice.clone())),
        Object::Node(node) => Event::Nodes(Change::Apply(node.clone())),
        Object::ServiceCidr(ranges) => Event::ServiceCidrs(Change::Apply(ranges.clone())),
    }
}

fn delete(key: &ObjectKey) -> Event {
    match key.kind {
        Service::KIND => Event::Services(Change::Delete(key.name.clone())),
        Slice::KIND => Event::Slices(Change::Delete(key.name.clone())),
        ServiceCidr::KIND => Event::ServiceCidrs(Change::Delete(key.name.name.clone())),
        kind => {
            debug_assert_eq!(kind, Node::KIND);
            Event::Nodes(Change::Delete(key.name.name.clone()))
        }
    }
}
