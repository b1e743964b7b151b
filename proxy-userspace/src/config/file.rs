//! KubeProxyConfiguration: the file as a table from field path (`iptables.syncPeriod`) to text, so that one set of
//! checks serves the file and the flags.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

use super::error::ConfigError;
use crate::status::first_line;

/// Field path to text; lists are joined by commas, `featureGates` reads `A=true,B=false`. A missing, null or empty
/// field is absent: kubeadm writes every field out and means "default" by it.
pub type Table = BTreeMap<String, String>;

/// Every scalar, list or free-form field of `kubeproxy.config.k8s.io/v1alpha1` (section 2.1).
const KNOWN: [&str; 63] = [
    "apiVersion",
    "kind",
    "featureGates",
    "clientConnection.kubeconfig",
    "clientConnection.acceptContentTypes",
    "clientConnection.contentType",
    "clientConnection.qps",
    "clientConnection.burst",
    "logging.format",
    "logging.flushFrequency",
    "logging.verbosity",
    "logging.vmodule",
    "logging.options",
    "hostnameOverride",
    "bindAddress",
    "healthzBindAddress",
    "metricsBindAddress",
    "bindAddressHardFail",
    "enableProfiling",
    "showHiddenMetricsForVersion",
    "mode",
    "iptables.masqueradeBit",
    "iptables.masqueradeAll",
    "iptables.localhostNodePorts",
    "iptables.syncPeriod",
    "iptables.minSyncPeriod",
    "ipvs.syncPeriod",
    "ipvs.minSyncPeriod",
    "ipvs.scheduler",
    "ipvs.excludeCIDRs",
    "ipvs.strictARP",
    "ipvs.tcpTimeout",
    "ipvs.tcpFinTimeout",
    "ipvs.udpTimeout",
    "nftables.masqueradeBit",
    "nftables.masqueradeAll",
    "nftables.syncPeriod",
    "nftables.minSyncPeriod",
    "winkernel.networkName",
    "winkernel.sourceVip",
    "winkernel.enableDSR",
    "winkernel.rootHnsEndpointName",
    "winkernel.forwardHealthCheckVip",
    "detectLocalMode",
    "detectLocal.bridgeInterface",
    "detectLocal.interfaceNamePrefix",
    "clusterCIDR",
    "nodePortAddresses",
    "oomScoreAdj",
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.tcpCloseWaitTimeout",
    "conntrack.tcpBeLiberal",
    "conntrack.udpTimeout",
    "conntrack.udpStreamTimeout",
    "configSyncPeriod",
    "portRange",
    "windowsRunAsService",
    // Written by older releases; upstream's lenient decoding skips them.
    "udpIdleTimeout",
    "resourceContainer",
    "conntrack.max",
    "logging.sanitization",
];

/// Reads and flattens the file.
///
/// # Errors
/// The file cannot be read, is not YAML, or is another kind of object.
pub fn read(path: &Path, warnings: &mut Vec<String>) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    decode(path, &text, warnings)
}

/// Strict first; a duplicate or unknown field is then a warning, as kube-proxy does it (I12).
pub fn decode(path: &Path, text: &str, warnings: &mut Vec<String>) -> Result<Table, ConfigError> {
    let decode = |cause| ConfigError::Decode { path: path.to_owned(), cause: Box::new(cause) };
    let text = first_document(text);
    let document: Value = match serde_saphyr::from_str(text) {
        Ok(document) => document,
        Err(strict) => {
            let lenient = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
            let document = serde_saphyr::from_str_with_options(text, lenient).map_err(decode)?;
            warnings.push(format!("{}: {}; the last one counts", path.display(), first_line(&strict)));
            document
        }
    };
    let mut table = Table::new();
    flatten(path, "", &document, &mut table, warnings)?;
    for (field, want) in
        [("apiVersion", "kubeproxy.config.k8s.io/v1alpha1"), ("kind", "KubeProxyConfiguration")]
    {
        let value = table.get(field).cloned().unwrap_or_default();
        if value != want {
            return Err(ConfigError::Value { name: named(path, field), value, allowed: want });
        }
    }
    Ok(table)
}

/// What kube-proxy reads of a file with several YAML documents.
fn first_document(text: &str) -> &str {
    let mut begun = false;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let ends = line.trim_end() == "---" || line.starts_with("--- ");
        if ends && begun {
            return &text[..at];
        }
        begun |= !ends && !line.trim().is_empty() && !line.starts_with('#');
        at += line.len();
    }
    text
}

/// `file: field`, the way every error about a field begins.
pub fn named(path: &Path, field: &str) -> String {
    let field = if field.is_empty() { "the document" } else { field };
    format!("{}: {field}", path.display())
}

fn flatten(
    path: &Path,
    field: &str,
    value: &Value,
    table: &mut Table,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigError> {
    let known = KNOWN.contains(&field);
    let section = field.is_empty()
        || KNOWN.iter().any(|name| name.strip_prefix(field).is_some_and(|r| r.starts_with('.')));
    let text = match value {
        Value::Null => return Ok(()),
        Value::Object(map) if section && !known => {
            for (key, value) in map {
                let inner = if field.is_empty() { key.clone() } else { format!("{field}.{key}") };
                flatten(path, &inner, value, table, warnings)?;
            }
            return Ok(());
        }
        _ if !known && !section => {
            warnings.push(format!("{}: unknown field, ignored", named(path, field)));
            return Ok(());
        }
        Value::Object(gates) if field == "featureGates" => {
            gates.iter().map(|(gate, on)| format!("{gate}={}", scalar(on))).collect::<Vec<_>>().join(",")
        }
        Value::Array(items) if ["nodePortAddresses", "ipvs.excludeCIDRs"].contains(&field) => {
            items.iter().map(scalar).collect::<Vec<_>>().join(",")
        }
        Value::Array(_) | Value::Object(_) if ["logging.vmodule", "logging.options"].contains(&field) => {
            return Ok(());
        }
        _ if section && !known => {
            return Err(ConfigError::Value {
                name: named(path, field),
                value: scalar(value),
                allowed: "a mapping",
            });
        }
        Value::Array(_) | Value::Object(_) => {
            let value = value.to_string();
            return Err(ConfigError::Value { name: named(path, field), value, allowed: "a single value" });
        }
        value => scalar(value),
    };
    if !text.is_empty() {
        table.insert(field.to_owned(), text);
    }
    Ok(())
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim().to_owned(),
        other => other.to_string(),
    }
}
