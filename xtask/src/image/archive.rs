//! One layer, one image: `blobs/sha256/…`, `index.json` and `oci-layout` in a tar archive.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What the image says about itself. None of these needs escaping in JSON.
#[derive(Debug)]
pub struct Image<'a> {
    /// `REGISTRY/REPOSITORY:TAG`.
    pub name: &'a str,
    pub version: &'a str,
    pub source: &'a str,
    /// As Go names it.
    pub architecture: &'a str,
}

/// A stored part of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Blob {
    /// Of SHA-256, in hexadecimal.
    digest: String,
    size: u64,
}

impl Blob {
    fn descriptor(&self, kind: &str) -> String {
        let Self { digest, size } = self;
        format!(r#"{{"mediaType":"{kind}","digest":"sha256:{digest}","size":{size}}}"#)
    }
}

/// Writes `output` from the tree at `root`. The same tree gives the same bytes. `layout` is emptied and used for what
/// becomes the archive's content.
pub fn write(image: &Image<'_>, root: &Path, layout: &Path, output: &Path) -> Result<()> {
    if layout.exists() {
        std::fs::remove_dir_all(layout).with_context(|| format!("cannot empty {}", layout.display()))?;
    }
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
    let tar = layout.with_extension("layer.tar");
    pack(root, &tar)?;
    let plain = digest(&tar)?;
    shell::run(Command::new("gzip").args(["--force", "--no-name"]).arg(&tar))?;
    let layer = store(&blobs, &tar.with_extension("tar.gz"))?;
    let config = put(&blobs, &config(image, &plain))?;
    let manifest = put(&blobs, &manifest(&config, &layer))?;
    text(&layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    text(&layout.join("index.json"), &index(image, &manifest))?;
    pack(layout, output)
}

/// A tar archive that does not tell when, by whom and in which order of the file system it was made.
fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=ustar", "--sort=name", "--mtime=@0"])
        .args(["--owner=0", "--group=0", "--numeric-owner", "--mode=u=rwX,go=rX"])
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(folder);
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    shell::run(tar.args(names))
}

fn digest(file: &Path) -> Result<String> {
    let told = shell::output(Command::new("sha256sum").arg("--binary").arg(file))?;
    let digest = told.split_whitespace().next().context("sha256sum printed nothing")?;
    Ok(digest.trim_start_matches('\\').to_owned())
}

/// Moves a file to where its digest says.
fn store(blobs: &Path, file: &Path) -> Result<Blob> {
    let digest = digest(file)?;
    let size = std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len();
    let place = blobs.join(&digest);
    std::fs::rename(file, &place).with_context(|| format!("cannot move to {}", place.display()))?;
    Ok(Blob { digest, size })
}

fn put(blobs: &Path, content: &str) -> Result<Blob> {
    let file: PathBuf = blobs.join("new");
    text(&file, content)?;
    store(blobs, &file)
}

fn text(file: &Path, content: &str) -> Result<()> {
    std::fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))
}

fn config(image: &Image<'_>, layer: &str) -> String {
    let Image { version, source, architecture, .. } = image;
    format!(
        concat!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{"#,
            r#""Entrypoint":["/usr/local/bin/kube-proxy"],"WorkingDir":"/","#,
            r#""Env":["PATH=/usr/local/bin"],"Labels":{{"#,
            r#""org.opencontainers.image.title":"Sluice","#,
            r#""org.opencontainers.image.version":"{version}","#,
            r#""org.opencontainers.image.source":"{source}","#,
            r#""org.opencontainers.image.licenses":"(Apache-2.0 OR MIT) AND GPL-2.0-only"}}}},"#,
            r#""rootfs":{{"type":"layers","diff_ids":["sha256:{layer}"]}},"#,
            r#""history":[{{"created":"1970-01-01T00:00:00Z","created_by":"cargo xtask image"}}]}}"#
        ),
        architecture = architecture,
        version = version,
        source = source,
        layer = layer,
    )
}

fn manifest(config: &Blob, layer: &Blob) -> String {
    let (config, layer) = (config.descriptor(CONFIG), layer.descriptor(LAYER));
    format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[{layer}]}}"#)
}

/// containerd takes the name from its own annotation, others from the specification's.
fn index(image: &Image<'_>, manifest: &Blob) -> String {
    let Blob { digest, size } = manifest;
    let Image { name, architecture, .. } = image;
    let tag = name.rsplit_once(':').map_or(*name, |(_, tag)| tag);
    format!(
        concat!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{kind}","digest":"sha256:{digest}","size":{size},"#,
            r#""platform":{{"architecture":"{architecture}","os":"linux"}},"#,
            r#""annotations":{{"io.containerd.image.name":"{name}","org.opencontainers.image.ref.name":"{tag}"}}}}]}}"#
        ),
        kind = MANIFEST,
        digest = digest,
        size = size,
        architecture = architecture,
        name = name,
        tag = tag,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: Image<'_> =
        Image { name: "r.example/a/b:1", version: "1.2.3", source: "https://s", architecture: "amd64" };

    #[test]
    fn the_index_names_image_and_tag() {
        let manifest = Blob { digest: "ab".into(), size: 7 };
        let index = index(&IMAGE, &manifest);
        assert_eq!(shell::json_field(&index, "io.containerd.image.name"), Some("r.example/a/b:1"));
        assert_eq!(shell::json_field(&index, "org.opencontainers.image.ref.name"), Some("1"));
        assert_eq!(shell::json_field(&index, "digest"), Some("sha256:ab"));
    }

    #[test]
    fn an_archive_is_whole_and_the_same_every_time() {
        let folder = std::env::temp_dir().join(format!("sluice-image-{}", std::process::id()));
        let (root, layout) = (folder.join("root"), folder.join("layout"));
        std::fs::create_dir_all(root.join("usr/local/bin")).unwrap();
        std::fs::write(root.join("usr/local/bin/sluice"), "program").unwrap();
        let archives = [folder.join("1.tar"), folder.join("2.tar")];
        for archive in &archives {
            write(&IMAGE, &root, &layout, archive).unwrap();
        }
        let [first, second] = archives.map(|archive| std::fs::read(archive).unwrap());
        assert!(first == second, "the same bytes");
        // Every digest that is named is the digest of a file that is there.
        let digests = |json: &str| -> Vec<String> {
            json.split("\"digest\":\"sha256:").skip(1).map(|rest| rest[..64].to_owned()).collect()
        };
        let index = std::fs::read_to_string(layout.join("index.json")).unwrap();
        let blobs = layout.join("blobs/sha256");
        let [manifest] = &digests(&index)[..] else { panic!("{index}") };
        let named = digests(&std::fs::read_to_string(blobs.join(manifest)).unwrap());
        assert_eq!(named.len(), 2, "config and layer");
        for name in named.iter().chain([manifest]) {
            assert_eq!(digest(&blobs.join(name)).unwrap(), *name);
        }
        assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 3);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
