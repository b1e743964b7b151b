//! A file in the manifest folder.
//!
//! Input: the file. It is read as YAML and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use proxy_userspace::cluster::Event;
use proxy_userspace::cluster::manifests::parse;

use super::settled;

/// What stands behind the input in the same file: it is served whatever stands before it (C-31).
const NEIGHBOUR: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: neighbour, namespace: a-namespace-of-its-own}
spec: {clusterIP: 10.96.255.254, ports: [{port: 65001}]}
";

/// Every problem says where, what, and what to do; the objects make one plan in whatever order they come.
pub fn run(data: &[u8]) {
    for name in ["input.yaml", "input.json"] {
        let parsed = parse(Path::new(name), data);
        for problem in &parsed.problems {
            assert!(problem.object.starts_with(name), "{problem}: names no place");
            assert!(!problem.what.is_empty() && !problem.next.is_empty(), "{problem}: says too little");
        }
        assert!(!parsed.damaged || !parsed.problems.is_empty(), "damaged, and nobody is told");
        let objects: BTreeMap<_, _> =
            parsed.objects.into_iter().map(|object| (object.key(), object)).collect();
        let events: Vec<Event> = objects.into_values().map(Event::from).collect();
        settled::whatever_the_order(&events);
    }
    if std::str::from_utf8(data).is_ok() {
        let file = [data, NEIGHBOUR.as_bytes()].concat();
        let found = parse(Path::new("input.yaml"), &file).objects;
        let is_there = found.iter().any(|object| &*object.key().name.name == "neighbour");
        assert!(is_there, "the document behind it is not read");
    }
}

/// A Service of every kind with its slices, in both notations.
pub fn seeds() -> Vec<Vec<u8>> {
    let objects = settled::example();
    let yaml = |value: &serde_json::Value| format!("---\n{value:#}\n");
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let plain = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.96.0.9\n  ports:\n  - port: 80\n    targetPort: http\n    protocol: TCP\n";
    let mut seeds = vec![
        plain.as_bytes().to_vec(),
        objects.iter().map(yaml).collect::<String>().into_bytes(),
        list.to_string().into_bytes(),
    ];
    seeds.extend(objects.iter().map(|object| object.to_string().into_bytes()));
    seeds
}
