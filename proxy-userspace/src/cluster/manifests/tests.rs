use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU32, Ordering};

use super::folder::Folder;
use super::parse::parse;
use super::*;
use crate::model::{Model, Settings};

/// A folder of its own for each test, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sluice-manifests-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn slice(name: &str, service: &str, address: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}}}\nports: [{{port: 80}}]\nendpoints: [{{addresses: [{address}]}}]\n"
    )
}

fn model() -> Model {
    Model::new(Settings::of_node("n1"))
}

fn state(model: &Model) -> Vec<String> {
    let line = |(id, state): (crate::model::PortId, crate::model::PortState)| {
        let endpoints: Vec<_> = state.internal.iter().map(SocketAddr::to_string).collect();
        format!("{id} {} -> {}", state.frontends[0].address, endpoints.join(","))
    };
    model.desired().into_iter().map(line).collect()
}

fn scan(folder: &mut Folder, model: &mut Model) -> usize {
    let events = folder.scan();
    let count = events.len();
    events.into_iter().for_each(|event| model.apply(event));
    count
}

/// Name, file, content, objects, number of problems, damaged.
type DocumentCase<'a> = (&'a str, &'a str, String, Vec<&'a str>, usize, bool);

#[test]
fn c39_documents() {
    let (a, b) = (service("a", "10.96.0.1"), service("b", "10.96.0.2"));
    let tabs = "kind: Service\n\tapiVersion: v1\n";
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a}}\n- {apiVersion: v1, kind: Node, metadata: {name: n1}}\n";
    let typed = "apiVersion: v1\nkind: ServiceList\nitems: [{metadata: {name: a}}, {metadata: {name: b, namespace: x}}]\n";
    let json = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}} {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b"}}"#;
    let doubled = "apiVersion: v1\nkind: Service\nkind: Service\nmetadata: {name: x}\n";
    let cases: Vec<DocumentCase<'_>> = vec![
        (
            "several documents",
            "f.yaml",
            format!("# head\n{a}...\n{b}---\n---\n# end\n"),
            vec!["Service default/a", "Service default/b"],
            0,
            false,
        ),
        (
            "a bad document between",
            "f.yaml",
            format!("{a}--- [\n{b}"),
            vec!["Service default/a", "Service default/b"],
            1,
            true,
        ),
        ("tabs", "f.yaml", format!("{a}---\n{tabs}"), vec!["Service default/a"], 1, true),
        ("duplicate keys", "f.yaml", format!("{a}---\n{doubled}"), vec!["Service default/a"], 1, true),
        ("List", "f.yaml", list.to_owned(), vec!["Service default/a", "Node n1"], 0, false),
        ("typed list", "f.yaml", typed.to_owned(), vec!["Service default/a", "Service x/b"], 0, false),
        ("list without items", "f.yaml", "apiVersion: v1\nkind: List\n".to_owned(), vec![], 1, false),
        ("JSON", "f.json", json.to_owned(), vec!["Service default/a", "Service default/b"], 0, false),
        ("half of JSON", "f.json", json[..json.len() - 5].to_owned(), vec!["Service default/a"], 1, true),
        (
            "other kinds and versions",
            "f.yaml",
            "apiVersion: v1\nkind: Pod\n---\napiVersion: v2\nkind: Service\n---\n7\n".to_owned(),
            vec![],
            3,
            false,
        ),
        (
            "no name",
            "f.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {}\n---\napiVersion: v1\nkind: Service\n".to_owned(),
            vec![],
            2,
            false,
        ),
        (
            "ServiceCIDR",
            "f.yaml",
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: c}\n".to_owned(),
            vec!["ServiceCIDR c"],
            0,
            false,
        ),
        (
            "byte order mark, CRLF",
            "f.yaml",
            format!("\u{feff}{a}").replace('\n', "\r\n"),
            vec!["Service default/a"],
            0,
            false,
        ),
        ("empty", "f.yaml", String::new(), vec![], 0, false),
    ];
    for (name, file, text, want, problems, damaged) in cases {
        let parsed = parse(Path::new(file), text.as_bytes());
        let keys: Vec<_> = parsed.objects.iter().map(|o| o.key().to_string()).collect();
        assert_eq!(keys, want, "{name}: {:?}", parsed.problems);
        assert_eq!(
            (parsed.problems.len(), parsed.damaged),
            (problems, damaged),
            "{name}: {:?}",
            parsed.problems
        );
    }
    let parsed = parse(Path::new("f.yaml"), b"kind: \xff\n");
    assert!(parsed.damaged && parsed.problems.len() == 1, "bad UTF-8");
}

#[test]
fn c33_a_list_may_be_long_but_not_grow_by_references() {
    let port = "{name: http, protocol: TCP, port: 80, targetPort: 80}";
    let item = |n| {
        format!(
            "- {{apiVersion: v1, kind: Service, metadata: {{name: s{n}}}, spec: {{type: ClusterIP, clusterIP: None, ports: [{port}]}}}}\n"
        )
    };
    let items: String = (0..9_000).map(item).collect();
    let parsed = parse(Path::new("f.yaml"), format!("kind: List\nitems:\n{items}").as_bytes());
    assert_eq!((parsed.objects.len(), parsed.problems.as_slice()), (9_000, [].as_slice()));

    let bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n";
    let bomb = format!("{bomb}c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: [{}]\n", "*c, ".repeat(999));
    assert!(parse(Path::new("f.yaml"), bomb.as_bytes()).damaged, "it would be a million of nodes");
}

#[test]
fn c39_a_bad_file_keeps_its_good_content() {
    let place = Place::new();
    let (mut folder, mut model) = (Folder::new(place.0.clone()), model());
    place.write("a.yaml", &(service("a", "10.96.0.1") + &slice("a-1", "a", "10.0.0.1")));
    place.write("b.yaml", &service("b", "10.96.0.2"));
    scan(&mut folder, &mut model);
    let before = ["default/a 10.96.0.1 -> 10.0.0.1:80", "default/b 10.96.0.2 -> "];
    assert!(model.is_complete());
    assert_eq!(state(&model), before);

    place.write("a.yaml", &(service("a", "10.96.0.7") + "---\nkind: [\n"));
    scan(&mut folder, &mut model);
    assert_eq!(state(&model), ["default/a 10.96.0.7 -> 10.0.0.1:80", "default/b 10.96.0.2 -> "]);
    assert_eq!(model.problems().len(), 1);
    assert!(model.problems()[0].object.ends_with("a.yaml document 2"), "{:?}", model.problems());

    fs::write(place.0.join("b.yaml"), b"\xff\xfe").unwrap();
    scan(&mut folder, &mut model);
    assert_eq!((state(&model).len(), model.problems().len()), (2, 2));

    place.write("a.yaml", &(service("a", "10.96.0.1") + &slice("a-1", "a", "10.0.0.1")));
    place.write("b.yaml", &service("b", "10.96.0.2"));
    scan(&mut folder, &mut model);
    assert_eq!(state(&model), before);
    assert!(model.problems().is_empty());
    assert_eq!(scan(&mut folder, &mut model), 0, "nothing changed, nothing is told");

    fs::remove_file(place.0.join("b.yaml")).unwrap();
    scan(&mut folder, &mut model);
    assert_eq!(state(&model), before[..1]);
}

#[test]
fn c39_duplicates_have_one_winner_whatever_the_order() {
    for order in [["a.yaml", "b.yaml"], ["b.yaml", "a.yaml"]] {
        let place = Place::new();
        let (mut folder, mut model) = (Folder::new(place.0.clone()), model());
        for file in order {
            place.write(file, &service("x", if file == "a.yaml" { "10.96.0.1" } else { "10.96.0.2" }));
            scan(&mut folder, &mut model);
        }
        assert_eq!(state(&model), ["default/x 10.96.0.1 -> "]);
        let problems = model.problems();
        assert!(problems.len() == 1 && problems[0].what.contains("b.yaml, the first counts"), "{problems:?}");
        fs::remove_file(place.0.join("a.yaml")).unwrap();
        scan(&mut folder, &mut model);
        assert_eq!(state(&model), ["default/x 10.96.0.2 -> "], "the other one takes over");
    }
}

#[test]
fn c39_folder_missing_and_back() {
    let place = Place::new();
    let path = place.0.join("folder");
    let (mut folder, mut model) = (Folder::new(path.clone()), model());
    scan(&mut folder, &mut model);
    assert!(!model.is_complete() && !model.connected());
    assert!(model.problems()[0].what.starts_with("cannot be read"));
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), service("a", "10.96.0.1")).unwrap();
    scan(&mut folder, &mut model);
    assert!(model.is_complete() && model.connected() && model.problems().is_empty());
    fs::remove_dir_all(&path).unwrap();
    scan(&mut folder, &mut model);
    assert_eq!((state(&model).len(), model.connected()), (1, false), "state is kept");
    fs::create_dir(&path).unwrap();
    scan(&mut folder, &mut model);
    assert_eq!((state(&model).len(), model.connected()), (0, true));
}

/// Applies events until the state is as wanted.
async fn until(events: &mut mpsc::Receiver<Event>, model: &mut Model, what: &str, want: &[&str]) {
    let reached = async {
        while state(model) != want {
            model.apply(events.recv().await.unwrap());
        }
    };
    if tokio::time::timeout(Duration::from_secs(30), reached).await.is_err() {
        panic!("{what}: {:?} instead of {want:?}", state(model));
    }
}

#[tokio::test]
async fn c39_followed_live() {
    let place = Place::new();
    // As kubelet mounts a ConfigMap: files are links into a folder that is itself a link, swapped as a whole.
    for version in ["v1", "v2"] {
        fs::create_dir(place.0.join(version)).unwrap();
    }
    place.write("v1/a.yaml", &service("a", "10.96.0.1"));
    place.write("v2/a.yaml", &service("a", "10.96.0.2"));
    let path = place.0.join("mount");
    fs::create_dir(&path).unwrap();
    symlink("../v1", path.join("..data")).unwrap();
    symlink("..data/a.yaml", path.join("a.yaml")).unwrap();
    let (sender, mut events) = mpsc::channel(16);
    let following = tokio::spawn(follow(path.clone(), sender));
    let mut model = model();
    until(&mut events, &mut model, "start", &["default/a 10.96.0.1 -> "]).await;

    symlink("../v2", path.join("..tmp")).unwrap();
    fs::rename(path.join("..tmp"), path.join("..data")).unwrap();
    until(&mut events, &mut model, "swapped link", &["default/a 10.96.0.2 -> "]).await;

    fs::write(path.join(".new"), service("b", "10.96.0.3")).unwrap();
    fs::rename(path.join(".new"), path.join("b.yaml")).unwrap();
    let both = ["default/a 10.96.0.2 -> ", "default/b 10.96.0.3 -> "];
    until(&mut events, &mut model, "atomic rename", &both).await;

    fs::rename(&path, place.0.join("gone")).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("c.json"), r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"},"spec":{"clusterIP":"10.96.0.4","ports":[{"port":80}]}}"#).unwrap();
    until(&mut events, &mut model, "folder replaced", &["default/c 10.96.0.4 -> "]).await;

    fs::remove_file(path.join("c.json")).unwrap();
    until(&mut events, &mut model, "file removed", &[]).await;
    drop(events);
    tokio::time::timeout(Duration::from_secs(30), following).await.unwrap().unwrap();
}
