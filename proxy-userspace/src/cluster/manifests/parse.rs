//! One file's text → the objects in it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::Budget;

use crate::cluster::types::{Kind, Node, ObjectName, Problem, Service, ServiceCidr, Slice, Watched};
use crate::status::first_line;

/// An object of a kind that the agent reads.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Object {
    Service(Service),
    Slice(Slice),
    Node(Node),
    ServiceCidr(ServiceCidr),
}

/// What tells objects apart. Nodes and ServiceCIDRs have no namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub kind: &'static str,
    pub name: ObjectName,
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.name.namespace {
            "" => write!(f, "{} {}", self.kind, self.name.name),
            _ => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

impl Object {
    pub fn key(&self) -> ObjectKey {
        let apart = |name: &std::sync::Arc<str>| ObjectName { namespace: "".into(), name: name.clone() };
        let (kind, name) = match self {
            Self::Service(service) => (Service::KIND, service.name.clone()),
            Self::Slice(slice) => (Slice::KIND, slice.name.clone()),
            Self::Node(node) => (Node::KIND, apart(&node.name)),
            Self::ServiceCidr(ranges) => (ServiceCidr::KIND, apart(&ranges.name)),
        };
        ObjectKey { kind, name }
    }

    /// Differs where contents differ; of use to this process only.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// A file's content.
#[derive(Debug, Default)]
pub struct Parsed {
    pub objects: Vec<Object>,
    /// Documents that are no objects of ours.
    pub problems: Vec<Problem>,
    /// Some document could not be read at all: what stood in it before may still be meant.
    pub damaged: bool,
}

/// Every document of the file, each on its own: a bad one never stops the others (C-31, C-39).
pub fn parse(path: &Path, bytes: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.trim_start_matches('\u{feff}'),
        Err(error) => {
            parsed.damage(&path.display().to_string(), &format!("not UTF-8: {error}"));
            return parsed;
        }
    };
    if path.extension().is_some_and(|extension| extension == "json") {
        for (i, document) in serde_json::Deserializer::from_str(text).into_iter::<Value>().enumerate() {
            parsed.document(&format!("{} document {}", path.display(), i + 1), document);
        }
        return parsed;
    }
    for (i, document) in documents(text).into_iter().enumerate() {
        let place = format!("{} document {}", path.display(), i + 1);
        parsed.document(&place, from_yaml(&document));
    }
    parsed
}

/// Whoever writes manifests may be generous: text of any length is read, but it may not grow beyond that by references to itself.
fn from_yaml(text: &str) -> Result<Value, serde_saphyr::Error> {
    let most = Budget::default();
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: most.max_nodes.max(text.len()),
            max_events: most.max_events.max(text.len()),
            max_total_scalar_bytes: most.max_total_scalar_bytes.max(text.len()),
        },
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// Splits at `---` and `...`, which YAML allows at the beginning of a line for nothing else, so that the documents
/// after a broken one can be read. Documents without content are left out.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        let marker = ["---", "..."].iter().find_map(|marker| line.strip_prefix(marker));
        match marker.filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            Some(rest) => documents.push(format!("{rest}\n")),
            None => {
                if let Some(last) = documents.last_mut() {
                    last.push_str(line);
                    last.push('\n');
                }
            }
        }
    }
    let content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with(['#', '%']);
    documents.retain(|document| document.lines().any(content));
    documents
}

/// What is told of a folder, a file or a document that cannot be read.
pub fn unread(why: impl std::fmt::Display) -> String {
    format!("cannot be read: {why}; what this agent has read of it before is kept")
}

impl Parsed {
    fn damage(&mut self, place: &str, what: &str) {
        self.damaged = true;
        self.problems.push(Problem::new(place, unread(first_line(&what)), "correct the file"));
    }

    fn document<E: std::fmt::Display>(&mut self, place: &str, document: Result<Value, E>) {
        match document {
            Ok(Value::Null) => {}
            Ok(value) => self.object(place, value, None),
            Err(error) => self.damage(place, &error.to_string()),
        }
    }

    /// `listed` is the kind that a typed list gives to items which do not say it themselves.
    fn object(&mut self, place: &str, mut value: Value, listed: Option<(&str, &str)>) {
        let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        let kind = text(&value, "kind").or(listed.map(|(kind, _)| kind.to_owned())).unwrap_or_default();
        let version =
            text(&value, "apiVersion").or(listed.map(|(_, version)| version.to_owned())).unwrap_or_default();
        if let Some(item) = kind.strip_suffix("List") {
            let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else {
                let next = "write items: a list of objects";
                return self.problems.push(Problem::new(
                    place,
                    format_args!("{kind} has no items, ignored"),
                    next,
                ));
            };
            let listed = Some((item, version.as_str())).filter(|(item, _)| !item.is_empty());
            for (i, item) in items.into_iter().enumerate() {
                self.object(&format!("{place} item {}", i + 1), item, listed);
            }
            return;
        }
        match (version.as_str(), kind.as_str()) {
            ("v1", "Service") => self.typed(place, value, Object::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => self.typed(place, value, Object::Slice),
            ("v1", "Node") => self.typed(place, value, Object::Node),
            ("networking.k8s.io/v1" | "networking.k8s.io/v1beta1", "ServiceCIDR") => {
                self.typed(place, value, Object::ServiceCidr);
            }
            _ => {
                let what = format_args!("kind {kind:?} of apiVersion {version:?} is not read, ignored");
                let next = "write v1 Service, v1 Node, discovery.k8s.io/v1 EndpointSlice or networking.k8s.io/v1 ServiceCIDR";
                self.problems.push(Problem::new(place, what, next));
            }
        }
    }

    fn typed<T: Kind>(&mut self, place: &str, mut value: Value, wrap: fn(T) -> Object) {
        let namespace = value.pointer_mut("/metadata").and_then(Value::as_object_mut);
        let has_namespace = ![Node::KIND, ServiceCidr::KIND].contains(&T::KIND);
        if let Some(metadata) = namespace.filter(|_| has_namespace) {
            let unset = metadata.get("namespace").is_none_or(|n| n.is_null() || n.as_str() == Some(""));
            if unset {
                metadata.insert("namespace".to_owned(), "default".into());
            }
        }
        match Watched::<T>::deserialize(value) {
            Ok(watched) => {
                let object = wrap(watched.object);
                if object.key().name.name.is_empty() {
                    let what = format_args!("{} has no name, ignored", T::KIND);
                    return self.problems.push(Problem::new(place, what, "write metadata.name"));
                }
                self.objects.push(object);
            }
            Err(error) => self.damage(place, &error.to_string()),
        }
    }
}
