use std::borrow::Cow;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::core::ClusterResourceScope;
use serde::{Deserialize, Deserializer};

use super::ObjectName;
use super::loose::{Defects, Loose, Nested};

/// One kind of object that the agent reads.
pub trait Kind: Sized + Clone + std::fmt::Debug + Send + 'static {
    const KIND: &'static str;
    /// Empty for the core group.
    const GROUP: &'static str;
    const PLURAL: &'static str;
    /// The kind's fields as decoded.
    type Raw: for<'de> Deserialize<'de>;

    /// The place of `metadata` in them.
    fn metadata(raw: &mut Self::Raw) -> &mut Metadata;

    /// The compact object; whatever cannot be used is among its defects.
    fn from_raw(raw: Self::Raw, meta: &Meta, defects: Defects) -> Self;
}

/// What the agent keeps of `metadata`.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    pub name: String,
    /// Empty for kinds without namespace.
    pub namespace: String,
    /// Seconds since 1970; `i64::MAX` if missing, as in manifests: such an object is the youngest.
    pub created: i64,
    /// `deletionTimestamp` is set.
    pub deleted: bool,
    pub labels: Labels,
    /// When the change behind this version of a slice happened, since 1970.
    pub triggered: Option<Duration>,
}

impl Meta {
    pub fn object_name(&self) -> ObjectName {
        ObjectName::new(&self.namespace, &self.name)
    }
}

/// The labels that change what is served. By existence: the value matters only where it is used (A3).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Labels {
    #[serde(rename = "kubernetes.io/service-name")]
    pub service_name: Loose<String>,
    #[serde(rename = "service.kubernetes.io/service-proxy-name")]
    pub service_proxy_name: Loose<String>,
    #[serde(rename = "service.kubernetes.io/headless")]
    pub headless: Loose<String>,
    #[serde(rename = "topology.kubernetes.io/zone")]
    pub zone: Loose<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    triggered: Loose<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RawMeta {
    name: Loose<String>,
    namespace: Loose<String>,
    resource_version: Loose<String>,
    creation_timestamp: Loose<String>,
    deletion_timestamp: Loose<String>,
    labels: Loose<Nested<Labels>>,
    annotations: Loose<Nested<Annotations>>,
}

/// `metadata` as decoded.
pub type Metadata = Loose<Nested<RawMeta>>;

/// An object with the metadata that `kube::runtime::watcher` asks for; it lives only between the wire and the event.
#[derive(Clone, Debug)]
pub struct Watched<T> {
    meta: ObjectMeta,
    pub object: T,
}

impl<'de, T: Kind> Deserialize<'de> for Watched<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut raw = T::Raw::deserialize(deserializer)?;
        let mut defects = Defects::default();
        let meta = defects.nested(std::mem::take(T::metadata(&mut raw)), "metadata");
        let version = defects.take(meta.resource_version, "metadata.resourceVersion");
        let meta = Meta {
            name: defects.take(meta.name, "metadata.name").unwrap_or_default(),
            namespace: defects.take(meta.namespace, "metadata.namespace").unwrap_or_default(),
            created: created(meta.creation_timestamp, &mut defects),
            deleted: defects.take(meta.deletion_timestamp, "metadata.deletionTimestamp").is_some(),
            labels: defects.nested(meta.labels, "metadata.labels"),
            triggered: triggered(meta.annotations),
        };
        let object = T::from_raw(raw, &meta, defects);
        let meta = ObjectMeta {
            name: Some(meta.name),
            namespace: Some(meta.namespace).filter(|namespace| !namespace.is_empty()),
            resource_version: version,
            ..ObjectMeta::default()
        };
        Ok(Self { meta, object })
    }
}

/// It serves a metric only: one that cannot be read is none.
fn triggered(annotations: Loose<Nested<Annotations>>) -> Option<Duration> {
    let annotations = Defects::default().nested(annotations, "metadata.annotations");
    let text = Defects::default().take(annotations.triggered, "")?;
    let at = text.parse::<Timestamp>().ok()?;
    Duration::try_from(at.duration_since(Timestamp::UNIX_EPOCH)).ok()
}

fn created(field: Loose<String>, defects: &mut Defects) -> i64 {
    let Some(text) = defects.take(field, "metadata.creationTimestamp") else { return i64::MAX };
    text.parse::<Timestamp>().map_or_else(
        |_| {
            defects.add(
                format_args!(
                    "metadata.creationTimestamp {text:?} is no time, the object counts as the youngest"
                ),
                "write a time such as 2026-01-31T12:00:00Z",
            );
            i64::MAX
        },
        Timestamp::as_second,
    )
}

impl<T: Kind> Resource for Watched<T> {
    type DynamicType = ();
    // Lists and watches span all namespaces: none of the calls made here names one.
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        T::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        T::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        T::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
