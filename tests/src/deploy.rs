//! What `deploy/` holds: the chart and the overlay describe the same objects, alerts and dashboard name metrics that exist.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use proxy_userspace::metrics::{Metrics, plain};
use proxy_userspace::status::Status;
use serde_json::{Value, json};

const NAMESPACE: &str = "kube-system";
const ADDRESS: &str = "https://API-SERVER-ADDRESS:6443";

fn deploy(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy")).join(path)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn yaml(path: &Path) -> Result<Value> {
    serde_saphyr::from_str(&read(path)?).with_context(|| path.display().to_string())
}

fn documents(text: &str) -> Result<Vec<Value>> {
    Ok(text.split("\n---\n").map(serde_saphyr::from_str).collect::<Result<_, _>>()?)
}

/// What kustomize makes of an overlay that uses resources, files for ConfigMaps, a namespace and images, and nothing else. Without
/// the suffix that it gives to generated names.
fn kustomize(dir: &Path) -> Result<Vec<Value>> {
    let file = yaml(&dir.join("kustomization.yaml"))?;
    let known = ["apiVersion", "kind", "namespace", "resources", "configMapGenerator", "images"];
    for key in file.as_object().context("a mapping")?.keys() {
        ensure!(known.contains(&key.as_str()), "{}: {key} is not known here", dir.display());
    }
    let list = |key: &str| file[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut objects = Vec::new();
    for resource in list("resources") {
        let path = dir.join(text(&resource));
        objects.extend(if path.is_dir() { kustomize(&path)? } else { documents(&read(&path)?)? });
    }
    for generator in list("configMapGenerator") {
        let mut data = BTreeMap::new();
        for name in generator["files"].as_array().context("files")? {
            data.insert(text(name), read(&dir.join(text(name)))?);
        }
        let metadata = json!({"name": generator["name"]});
        objects.push(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}));
    }
    for object in &mut objects {
        if object["kind"] != "ClusterRoleBinding" {
            object["metadata"]["namespace"] = file["namespace"].clone();
        }
        for image in list("images") {
            let new = format!("{}:{}", text(&image["newName"]), text(&image["newTag"]));
            replace_images(object, &text(&image["name"]), &new);
        }
    }
    Ok(objects)
}

fn replace_images(value: &mut Value, old: &str, new: &str) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if key == "image" && *value == old {
                    *value = new.into();
                }
                replace_images(value, old, new);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| replace_images(value, old, new)),
        _ => {}
    }
}

/// What helm makes of a chart whose templates have values in them and nothing that decides.
struct Chart {
    facts: Value,
    templates: Vec<String>,
}

impl Chart {
    fn read(dir: &Path, given: &[(&str, &str)]) -> Result<Self> {
        let mut values = yaml(&dir.join("values.yaml"))?;
        for (name, value) in given {
            ensure!(values.get(name).is_some(), "values.yaml has no {name}");
            values[name] = (*value).into();
        }
        let version = yaml(&dir.join("Chart.yaml"))?["appVersion"].clone();
        let facts =
            json!({"Values": values, "Release": {"Namespace": NAMESPACE}, "Chart": {"AppVersion": version}});
        let mut paths: Vec<_> =
            fs::read_dir(dir.join("templates"))?.flatten().map(|entry| entry.path()).collect();
        // Beside what helm tells the operator.
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        paths.sort();
        Ok(Self { facts, templates: paths.iter().map(|path| read(path)).collect::<Result<_>>()? })
    }

    fn objects(&self) -> Result<Vec<Value>> {
        let mut objects = Vec::new();
        for template in &self.templates {
            let mut text = String::new();
            let mut rest = template.as_str();
            while let Some((before, after)) = rest.split_once("{{") {
                let (expression, after) =
                    after.split_once("}}").context("an expression that does not end")?;
                let (before, expression) = match expression.strip_prefix('-') {
                    Some(expression) => (before.trim_end(), expression),
                    None => (before, expression),
                };
                text += before;
                text += &self.evaluate(expression.trim())?;
                rest = after;
            }
            objects.extend(documents(&(text + rest))?);
        }
        Ok(objects)
    }

    fn evaluate(&self, expression: &str) -> Result<String> {
        let mut parts = expression.split('|').map(str::trim);
        let first = parts.next().unwrap_or_default();
        let mut value = match first.split_once(' ') {
            Some(("empty", path)) => self.fact(path)?.is_empty().to_string(),
            // Of the configuration, for which only its changes matter.
            Some(("include", _)) => "text".to_owned(),
            _ => self.fact(first)?,
        };
        for part in parts {
            value = match part.split_once(' ') {
                None if part == "quote" => format!("{value:?}"),
                None if part == "sha256sum" => value,
                Some(("nindent", spaces)) => {
                    let indent = " ".repeat(spaces.parse()?);
                    value.lines().map(|line| format!("\n{indent}{line}")).collect()
                }
                Some(("default", path)) if value.is_empty() => self.fact(path)?,
                Some(("default", _)) => value,
                Some(("ternary", words)) => {
                    let of = usize::from(value != "true");
                    words.split(' ').nth(of).context("two words")?.trim_matches('"').to_owned()
                }
                _ => bail!("{part} is not known here"),
            };
        }
        Ok(value)
    }

    fn fact(&self, path: &str) -> Result<String> {
        let found = self.facts.pointer(&path.replace('.', "/"));
        Ok(found.and_then(Value::as_str).with_context(|| format!("no {path}"))?.to_owned())
    }
}

/// By kind and name; files within ConfigMaps by what they say.
fn told(objects: Vec<Value>) -> Result<BTreeMap<String, Value>> {
    let mut told = BTreeMap::new();
    for mut object in objects {
        if let Some(data) = object.get_mut("data").and_then(Value::as_object_mut) {
            for text in data.values_mut() {
                *text = serde_saphyr::from_str(text.as_str().context("text")?)?;
            }
        }
        if let Some(metadata) = object.pointer_mut("/spec/template/metadata").and_then(Value::as_object_mut) {
            metadata.remove("annotations");
        }
        told.insert(format!("{} {}", object["kind"], object["metadata"]["name"]), object);
    }
    Ok(told)
}

/// With the real one, if it is there.
fn helm(dir: &Path) -> Option<Result<Vec<Value>>> {
    let mut helm = Command::new("helm");
    helm.args(["template", "sluice"]).arg(dir).args(["--namespace", NAMESPACE]);
    helm.arg("--set").arg(format!("apiServer={ADDRESS}"));
    let output = helm.output().ok()?;
    Some(if output.status.success() {
        documents(String::from_utf8_lossy(&output.stdout).trim_start_matches("---\n"))
    } else {
        Err(anyhow::anyhow!("{}", String::from_utf8_lossy(&output.stderr)))
    })
}

#[test]
fn the_chart_and_the_overlay_describe_the_same_objects() {
    let overlay = told(kustomize(&deploy("kustomize/own")).unwrap()).unwrap();
    let dir = deploy("helm/sluice");
    let chart = Chart::read(&dir, &[("apiServer", ADDRESS)]).unwrap();
    assert_eq!(overlay.len(), 4, "{:?}", overlay.keys());
    assert_eq!(told(chart.objects().unwrap()).unwrap(), overlay);
    match helm(&dir) {
        Some(objects) => assert_eq!(told(objects.unwrap()).unwrap(), overlay),
        None => println!("not with helm itself, which is not in PATH"),
    }
    let config = |given: &[(&str, &str)]| {
        let chart = Chart::read(&dir, given).unwrap();
        told(chart.objects().unwrap()).unwrap()["\"ConfigMap\" \"sluice\""]["data"]["config.conf"].clone()
    };
    let more = "mode: nftables\nnftables:\n  masqueradeAll: true\n";
    let with_more = config(&[("apiServer", ADDRESS), ("config", more)]);
    assert_eq!(with_more["mode"], "nftables");
    assert_eq!(with_more["nftables"]["masqueradeAll"], true, "{with_more}");
    let without = config(&[]);
    assert_eq!(without["clientConnection"]["kubeconfig"], "", "the pod's ServiceAccount and environment");
}

#[test]
fn alerts_and_dashboard_name_metrics_that_exist() {
    let page = plain(&Metrics::new().encode(Some(Status::default())).unwrap());
    let types: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    for file in ["prometheus/rules.yaml", "grafana/sluice.json"] {
        let text = read(&deploy(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let metrics: Vec<_> =
            words.filter(|word| word.starts_with("sluice_") || word.starts_with("kubeproxy_")).collect();
        assert!(metrics.len() > 5, "{file} names {metrics:?}");
        for metric in metrics {
            let known = types.iter().any(|(name, kind)| {
                *name == metric || (*kind == "histogram" && metric.strip_suffix("_bucket") == Some(name))
            });
            assert!(known, "{file} names {metric}, which is not among {types:?}");
        }
    }
}

/// `promtool` with this input; `None` where it is not installed.
fn promtool(arguments: &[&str], input: &str) -> Option<String> {
    let mut promtool = Command::new("promtool");
    promtool.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().ok()?;
    child.stdin.take()?.write_all(input.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    Some([output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat())
}

#[test]
fn promtool_finds_nothing_in_rules_and_metrics() {
    let rules = deploy("prometheus/rules.yaml").display().to_string();
    let Some(said) = promtool(&["check", "rules", &rules], "") else {
        println!("skipped: needs promtool, of Debian's package prometheus");
        return;
    };
    assert!(said.contains("SUCCESS") && !said.contains("FAILED"), "{said}");
    let page = plain(&Metrics::new().encode(Some(Status::default())).unwrap());
    let said = promtool(&["check", "metrics"], &page).unwrap();
    // kube-proxy's own name for a gauge.
    let expected = "kubeproxy_sync_proxy_rules_no_local_endpoints_total ";
    let found: Vec<_> = said.lines().filter(|line| !line.starts_with(expected)).collect();
    assert_eq!(found, [""; 0]);
}
