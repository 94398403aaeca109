//! What the shim reads of a container's OCI spec: its annotations.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;

/// Annotations that put several containers under one shim, the stock shim's own order: the first one present counts.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// The annotations.
pub type Annotations = BTreeMap<String, String>;

/// The annotations in the spec of the container in this bundle.
pub fn annotations(bundle: &Path) -> Result<Annotations> {
    #[derive(Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: Option<Annotations>,
    }
    let path = bundle.join("config.json");
    let bytes = fs::read(&path).with_context(|| format!("reading the OCI spec {}", path.display()))?;
    let spec: Spec =
        serde_json::from_slice(&bytes).with_context(|| format!("the OCI spec {} is not valid", path.display()))?;
    Ok(spec.annotations.unwrap_or_default())
}

/// The name of the group of containers that share a shim.
pub fn group<'a>(annotations: &'a Annotations, id: &'a str) -> &'a str {
    GROUPS.iter().find_map(|name| annotations.get(*name)).map_or(id, String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_as_the_stock_shim_does() {
        let mut annotations = Annotations::new();
        assert_eq!(group(&annotations, "c1"), "c1");
        annotations.insert(GROUPS[1].into(), "pod".into());
        assert_eq!(group(&annotations, "c1"), "pod");
        annotations.insert(GROUPS[0].into(), "named".into());
        assert_eq!(group(&annotations, "c1"), "named");
    }

    #[test]
    fn reads_only_annotations() {
        let bundle = tempfile::tempdir().unwrap();
        let spec = |text: &str| {
            fs::write(bundle.path().join("config.json"), text).unwrap();
            annotations(bundle.path())
        };
        assert!(spec(r#"{"process":{}}"#).unwrap().is_empty());
        assert!(spec(r#"{"annotations":null}"#).unwrap().is_empty());
        assert_eq!(spec(r#"{"annotations":{"a":"b"}}"#).unwrap().get("a").map(String::as_str), Some("b"));
        assert!(spec("{").is_err());
    }
}
