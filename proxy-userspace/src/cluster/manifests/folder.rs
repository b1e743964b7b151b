//! The folder's state: which files hold what, and how that differs from what was told before. Objects themselves are not
//! kept, only who they are and what tells one content from another: the model has them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::parse::{Object, ObjectKey, Parsed, parse, unread};
use crate::cluster::types::{Kind, Node, Problem, Service, ServiceCidr, Slice};
use crate::cluster::{Change, Event};
use crate::sorted::Sorted;

/// A file that changed this recently may change again without a trace in its metadata.
const SETTLED: Duration = Duration::from_secs(2);

/// Follows one folder; [`Folder::scan`] reads what changed since the last time.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    told: Sorted<ObjectKey, Digest>,
    problems: Option<Vec<Problem>>,
    connected: Option<bool>,
    listed: bool,
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    objects: Vec<(ObjectKey, Digest)>,
    problems: Vec<Problem>,
}

/// Of an object's content.
type Digest = u64;

/// The objects of files that were read in this scan.
type Fresh = HashMap<PathBuf, HashMap<ObjectKey, Object>>;

/// Where each object stands that is to be told of, and its content's digest.
type Wanted<'a> = HashMap<ObjectKey, (&'a Path, Digest)>;

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
            told: Sorted::default(),
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
            Ok(None) if self.connected == Some(true) => return events,
            Ok(fresh) => {
                self.tell(fresh.unwrap_or_default(), &mut problems, &mut events);
                true
            }
            Err(error) => {
                let object = format_args!("folder {}", self.path.display());
                let next = match error.kind() {
                    io::ErrorKind::PermissionDenied => "make the folder readable for the agent",
                    _ => "create the folder that --manifests names",
                };
                problems.push(Problem::new(object, unread(error), next));
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

    /// What was read; `None`: every file is as it was.
    fn read_files(&mut self) -> io::Result<Option<Fresh>> {
        let mut files = BTreeMap::new();
        let mut fresh = Fresh::new();
        let mut changed = false;
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if !is_manifest(&path) {
                continue;
            }
            let before = self.files.remove(&path);
            // A file that is not there any more, or is no file, is no longer ours; one that cannot be read is.
            match read_file(&path, before) {
                Some(Read::Same(file)) => drop(files.insert(path, file)),
                Some(Read::New(file, objects)) => {
                    changed = true;
                    fresh.insert(path.clone(), objects);
                    files.insert(path, file);
                }
                None => changed = true,
            }
        }
        // Those that are not listed any more.
        changed |= !self.files.is_empty();
        self.files = files;
        Ok(changed.then_some(fresh))
    }

    /// Each object once: the first file by name, and in it the first document, counts.
    fn merge(files: &BTreeMap<PathBuf, File>) -> (Wanted<'_>, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut wanted = Wanted::new();
        for (path, file) in files {
            problems.extend(file.problems.iter().cloned());
            for (key, digest) in &file.objects {
                if let Some((first, _)) = wanted.get(key) {
                    let what = format_args!(
                        "stands in {} and again in {}, the first counts",
                        first.display(),
                        path.display()
                    );
                    problems.push(Problem::new(key, what, "remove one of them"));
                } else {
                    wanted.insert(key.clone(), (path, *digest));
                }
            }
        }
        (wanted, problems)
    }

    fn tell(&mut self, mut fresh: Fresh, problems: &mut Vec<Problem>, events: &mut Vec<Event>) {
        let (wanted, found) = Self::merge(&self.files);
        problems.extend(found);
        let gone: BTreeSet<_> = self.told.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        let mut new = Vec::new();
        for (key, (path, digest)) in wanted {
            if self.told.get(&key) == Some(&digest) {
                continue;
            }
            // What stood in another file until now is in one that has not been read again. If that has changed meanwhile,
            // it is the next scan's.
            let objects = fresh.entry(path.to_owned()).or_insert_with(|| reread(path));
            if let Some(object) = objects.remove(&key).filter(|object| object.digest() == digest) {
                new.push((key, digest, object));
            }
        }
        new.sort_unstable_by(|(a, ..), (b, ..)| a.cmp(b));
        let is_new = |key: &ObjectKey| new.binary_search_by(|(known, ..)| known.cmp(key)).is_ok();
        self.told.extract(|key, _| gone.contains(key) || is_new(key));
        self.told.extend(new.iter().map(|(key, digest, _)| (key.clone(), *digest)));
        let new = new.into_iter().map(|(.., object)| object);
        if self.listed {
            // Additions first: an endpoint that moves between slices is never gone in between (C-16).
            events.extend(new.map(Event::from));
            events.extend(gone.iter().map(delete));
        } else {
            self.listed = true;
            events.extend(snapshots(new));
        }
    }
}

fn reread(path: &Path) -> HashMap<ObjectKey, Object> {
    fs::read(path).map(|bytes| by_key(parse(path, &bytes).objects)).unwrap_or_default()
}

/// The first of each counts.
fn by_key(objects: Vec<Object>) -> HashMap<ObjectKey, Object> {
    objects.into_iter().rev().map(|object| (object.key(), object)).collect()
}

enum Read {
    Same(File),
    New(File, HashMap<ObjectKey, Object>),
}

/// Hidden files are editors' and kubelet's own.
fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

fn read_file(path: &Path, before: Option<File>) -> Option<Read> {
    let stamp = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Stamp::of(&metadata),
        Ok(_) => return None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(_) => None,
    };
    let before = before.unwrap_or_default();
    if stamp.is_some() && before.stamp == stamp {
        return Some(Read::Same(before));
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            let problem = Problem::new(path.display(), unread(error), "make the file readable for the agent");
            let file = File { stamp: None, problems: vec![problem], ..before };
            return Some(Read::New(file, HashMap::new()));
        }
    };
    let Parsed { objects: found, problems, damaged } = parse(path, &bytes);
    let mut objects: Vec<_> = found.iter().map(|object| (object.key(), object.digest())).collect();
    let found = by_key(found);
    if damaged {
        // The broken document may be the one that these stood in.
        objects.extend(before.objects.into_iter().filter(|(key, _)| !found.contains_key(key)));
    }
    Some(Read::New(File { stamp, objects, problems }, found))
}

fn snapshots(objects: impl Iterator<Item = Object>) -> [Event; 4] {
    let (mut services, mut slices, mut nodes, mut ranges) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for object in objects {
        match object {
            Object::Service(service) => services.push(service),
            Object::Slice(slice) => slices.push(slice),
            Object::Node(node) => nodes.push(node),
            Object::ServiceCidr(range) => ranges.push(range),
        }
    }
    [
        Event::Nodes(Change::Snapshot(nodes)),
        Event::ServiceCidrs(Change::Snapshot(ranges)),
        Event::Services(Change::Snapshot(services)),
        Event::Slices(Change::Snapshot(slices)),
    ]
}

impl From<Object> for Event {
    fn from(object: Object) -> Self {
        match object {
            Object::Service(service) => Self::Services(Change::Apply(service)),
            Object::Slice(slice) => Self::Slices(Change::Apply(slice)),
            Object::Node(node) => Self::Nodes(Change::Apply(node)),
            Object::ServiceCidr(ranges) => Self::ServiceCidrs(Change::Apply(ranges)),
        }
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
