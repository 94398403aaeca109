//! Which containers a policy is for, and which of several policies is the more specific.
//!
//! The same type stands in the operator's YAML (`spec.select`) and in the policy set that shims read.

use std::{cmp::Reverse, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use crate::{glob::Glob, record::ContainerRecord};

/// How many globs a list may have, and how many annotations may be named.
pub const GLOBS_MAX: usize = 64;
/// The longest key of an annotation, in bytes: Kubernetes allows 253 for its prefix, a slash, and 63 for its name.
pub const KEY_MAX: usize = 317;

const POD_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const POD_NAME: &str = "io.kubernetes.cri.sandbox-name";
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
/// CRI's annotation of the image's name.
pub const IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

/// Which containers a policy selects: those for which all given fields hold; without any, every container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Select {
    /// The pod's namespace; where there is no CRI, containerd's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Globs>,
    /// The pod's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<Globs>,
    /// The container's name in its pod; where it has none, containerd's id of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub containers: Option<Globs>,
    /// The image's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<Globs>,
    /// Annotations of the container: what its author says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<AnnotationGlobs>,
}

/// Globs of which one must match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("minItems" = 1, "maxItems" = GLOBS_MAX)))]
#[serde(try_from = "Vec<Glob>")]
pub struct Globs(Vec<Glob>);

/// Annotations that must all be there and match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(extend("minProperties" = 1, "maxProperties" = GLOBS_MAX, "propertyNames" = {"minLength": 1, "maxLength": KEY_MAX}))
)]
#[serde(try_from = "BTreeMap<String, Glob>")]
pub struct AnnotationGlobs(BTreeMap<String, Glob>);

/// A field of a selection that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// It could mean every container or none.
    #[error("nothing is named here: leave the field out if it does not matter")]
    Empty,
    /// Too much.
    #[error("{count} are named here, there may be {GLOBS_MAX}")]
    Many {
        /// How many there are.
        count: usize,
    },
    /// No annotation can have this key.
    #[error("{key:?} can't be an annotation's key: it must have 1 to {KEY_MAX} bytes")]
    Key {
        /// The key.
        key: String,
    },
}

fn check_count(count: usize) -> Result<(), SelectError> {
    match count {
        0 => Err(SelectError::Empty),
        1..=GLOBS_MAX => Ok(()),
        count => Err(SelectError::Many { count }),
    }
}

impl TryFrom<Vec<Glob>> for Globs {
    type Error = SelectError;

    fn try_from(globs: Vec<Glob>) -> Result<Self, SelectError> {
        check_count(globs.len()).map(|()| Self(globs))
    }
}

impl Globs {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Glob> {
        self.0.iter()
    }

    fn find(&self, text: &str) -> Option<&Glob> {
        self.0.iter().find(|glob| glob.matches(text))
    }

    fn is_literal(&self) -> bool {
        self.0.iter().all(Glob::is_literal)
    }
}

impl TryFrom<BTreeMap<String, Glob>> for AnnotationGlobs {
    type Error = SelectError;

    fn try_from(globs: BTreeMap<String, Glob>) -> Result<Self, SelectError> {
        check_count(globs.len())?;
        match globs.keys().find(|key| key.is_empty() || key.len() > KEY_MAX) {
            Some(key) => Err(SelectError::Key { key: key.clone() }),
            None => Ok(Self(globs)),
        }
    }
}

impl AnnotationGlobs {
    /// Each key with its glob.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Glob)> {
        self.0.iter()
    }

    fn is_literal(&self) -> bool {
        self.0.values().all(Glob::is_literal)
    }
}

/// What is known about a container. What is not known matches no glob, not even `*`.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its pod's namespace, or containerd's.
    pub namespace: Option<&'a str>,
    /// Its pod's name.
    pub pod: Option<&'a str>,
    /// Its name in the pod, or containerd's id of it.
    pub container: Option<&'a str>,
    /// Its image's name.
    pub image: Option<&'a str>,
    /// The annotations of its OCI spec.
    pub annotations: &'a BTreeMap<String, String>,
}

impl<'a> Facts<'a> {
    /// What a container's record says. `image` is what was learnt elsewhere about it; CRI's word comes first.
    pub fn of(record: &'a ContainerRecord, image: Option<&'a str>) -> Self {
        let annotation = |key: &str| record.annotations.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let known = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        Self {
            namespace: annotation(POD_NAMESPACE).or_else(|| known(&record.containerd_namespace)),
            pod: annotation(POD_NAME),
            container: annotation(CONTAINER_NAME).or_else(|| known(&record.container_id)),
            image: annotation(IMAGE_NAME).or(image),
            annotations: &record.annotations,
        }
    }
}

/// Whether a policy is for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// It is. For people: what matched, such as `namespaces "shop-*"`; empty if the policy selects every container.
    Selected(String),
    /// It would be if the container's image were known and matched.
    ImageUnknown,
    /// It is not.
    Other,
}

/// Orders policies: the smaller is tried first. The fields given, those of them without wildcards, priority, name.
pub type Rank<'a> = (Reverse<usize>, Reverse<usize>, Reverse<i32>, &'a str);

impl Select {
    /// Whether every container is selected.
    pub fn is_everything(&self) -> bool {
        self.fields() == 0
    }

    /// Whether it goes by what the container's author says.
    pub fn by_annotations(&self) -> bool {
        self.annotations.is_some()
    }

    fn lists(&self) -> [Option<&Globs>; 4] {
        [&self.namespaces, &self.pods, &self.containers, &self.images].map(Option::as_ref)
    }

    fn fields(&self) -> usize {
        self.lists().into_iter().flatten().count() + usize::from(self.by_annotations())
    }

    fn literal_fields(&self) -> usize {
        let lists = self.lists().into_iter().flatten().filter(|globs| globs.is_literal()).count();
        lists + usize::from(self.annotations.as_ref().is_some_and(AnnotationGlobs::is_literal))
    }

    /// Where a policy that selects by this stands among others. Total, as no two policies in force share a name.
    pub fn rank<'a>(&self, priority: i32, name: &'a str) -> Rank<'a> {
        (Reverse(self.fields()), Reverse(self.literal_fields()), Reverse(priority), name)
    }

    /// What keeps a container from being selected: the first field that does not match. `None` if none is to blame.
    pub fn mismatch(&self, facts: &Facts<'_>) -> Option<String> {
        let quoted =
            |globs: &Globs| globs.iter().map(|glob| format!("{:?}", glob.to_string())).collect::<Vec<_>>().join(", ");
        let fields = [
            ("namespaces", &self.namespaces, facts.namespace),
            ("pods", &self.pods, facts.pod),
            ("containers", &self.containers, facts.container),
            ("images", &self.images, facts.image),
        ];
        for (name, globs, fact) in fields {
            match (globs, fact) {
                (Some(globs), Some(fact)) if globs.find(fact).is_none() => {
                    return Some(format!("{name} {fact:?} is none of {}", quoted(globs)));
                }
                (Some(_), None) if name != "images" => return Some(format!("it goes by {name}, which is not known")),
                _ => {}
            }
        }
        self.annotations.iter().flat_map(AnnotationGlobs::iter).find_map(|(key, glob)| {
            match facts.annotations.get(key) {
                None => Some(format!("there is no annotation {key}")),
                Some(value) if !glob.matches(value) => {
                    Some(format!("annotation {key} {value:?} is not {:?}", glob.to_string()))
                }
                Some(_) => None,
            }
        })
    }

    /// Whether a container is selected.
    pub fn selection(&self, facts: &Facts<'_>) -> Selection {
        let mut matched = Vec::new();
        let mut image_unknown = false;
        let fields = [
            ("namespaces", &self.namespaces, facts.namespace),
            ("pods", &self.pods, facts.pod),
            ("containers", &self.containers, facts.container),
            ("images", &self.images, facts.image),
        ];
        for (name, globs, fact) in fields {
            let Some(globs) = globs else { continue };
            match fact.map(|fact| globs.find(fact)) {
                Some(Some(glob)) => matched.push(format!("{name} {:?}", glob.to_string())),
                None if name == "images" => image_unknown = true,
                _ => return Selection::Other,
            }
        }
        for (key, glob) in self.annotations.iter().flat_map(AnnotationGlobs::iter) {
            if !facts.annotations.get(key).is_some_and(|value| glob.matches(value)) {
                return Selection::Other;
            }
            matched.push(format!("annotation {key} {:?}", glob.to_string()));
        }
        if image_unknown { Selection::ImageUnknown } else { Selection::Selected(matched.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globs(texts: &[&str]) -> Option<Globs> {
        texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Glob>>().try_into().ok()
    }

    fn annotations(pairs: &[(&str, &str)]) -> Option<AnnotationGlobs> {
        let globs = pairs.iter().map(|(key, glob)| ((*key).to_owned(), glob.parse().unwrap()));
        globs.collect::<BTreeMap<String, Glob>>().try_into().ok()
    }

    const NONE: &BTreeMap<String, String> = &BTreeMap::new();

    fn facts<'a>() -> Facts<'a> {
        Facts {
            namespace: Some("shop"),
            pod: Some("web-1"),
            container: Some("main"),
            image: Some("nginx:1"),
            annotations: NONE,
        }
    }

    fn is_selected(select: &Select, facts: &Facts<'_>) -> bool {
        matches!(select.selection(facts), Selection::Selected(_))
    }

    #[test]
    fn all_fields_must_hold_and_one_glob_of_each() {
        let select = Select { namespaces: globs(&["x", "sh*"]), pods: globs(&["web-?"]), ..Select::default() };
        let Selection::Selected(matched) = select.selection(&facts()) else { panic!("not selected") };
        assert_eq!(matched, "namespaces \"sh*\", pods \"web-?\"");
        assert!(!is_selected(&select, &Facts { namespace: Some("bank"), ..facts() }));
        assert!(!is_selected(&select, &Facts { pod: Some("db-1"), ..facts() }));
        assert!(is_selected(&Select::default(), &facts()) && Select::default().is_everything());
    }

    #[test]
    fn what_is_not_known_matches_nothing() {
        for select in [
            Select { namespaces: globs(&["*"]), ..Select::default() },
            Select { pods: globs(&["*"]), ..Select::default() },
            Select { containers: globs(&["*"]), ..Select::default() },
            Select { images: globs(&["*"]), ..Select::default() },
            Select { annotations: annotations(&[("tier", "*")]), ..Select::default() },
        ] {
            let unknown = Facts { namespace: None, pod: None, container: None, image: None, annotations: NONE };
            assert!(!is_selected(&select, &unknown), "{select:?}");
        }
        let select = Select { images: globs(&["nginx*"]), namespaces: globs(&["shop"]), ..Select::default() };
        assert_eq!(select.selection(&Facts { image: None, ..facts() }), Selection::ImageUnknown);
        let elsewhere = Facts { image: None, namespace: Some("bank"), ..facts() };
        assert_eq!(select.selection(&elsewhere), Selection::Other, "whatever its image is");
    }

    #[test]
    fn every_annotation_must_match() {
        let select = Select { annotations: annotations(&[("tier", "web*"), ("team", "a")]), ..Select::default() };
        let with = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let both = with(&[("tier", "web-x"), ("team", "a")]);
        let one = with(&[("tier", "web-x")]);
        assert!(is_selected(&select, &Facts { annotations: &both, ..facts() }));
        assert!(!is_selected(&select, &Facts { annotations: &one, ..facts() }));
    }

    #[test]
    fn the_order_is_fields_then_literals_then_priority_then_name() {
        let everything = Select::default();
        let glob = Select { namespaces: globs(&["shop-*"]), ..Select::default() };
        let mixed = Select { namespaces: globs(&["shop", "x*"]), ..Select::default() };
        let literal = Select { namespaces: globs(&["shop", "x"]), ..Select::default() };
        let two = Select { namespaces: globs(&["*"]), annotations: annotations(&[("a", "*")]), ..Select::default() };
        let ordered = [
            two.rank(0, "z"),
            literal.rank(0, "z"),
            glob.rank(5, "z"),
            glob.rank(0, "a"),
            mixed.rank(0, "b"),
            glob.rank(-1, "a"),
            everything.rank(i32::MAX, "a"),
        ];
        assert!(ordered.is_sorted(), "{ordered:?}");
    }

    #[test]
    fn fields_are_bounded() {
        let parse = |text: &str| serde_json::from_str::<Select>(text).map_err(|error| error.to_string());
        assert!(parse("{}").unwrap().is_everything());
        for (text, reason) in [
            (r#"{"pods": []}"#.to_owned(), "nothing is named"),
            (r#"{"annotations": {}}"#.to_owned(), "nothing is named"),
            (format!(r#"{{"pods": [{}]}}"#, vec!["\"x\""; 65].join(",")), "there may be 64"),
            (r#"{"pods": [""]}"#.to_owned(), "1 to 253 bytes"),
            (r#"{"annotations": {"": "x"}}"#.to_owned(), "annotation's key"),
            (r#"{"labels": {}}"#.to_owned(), "unknown field"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let select =
            Select { images: globs(&["a*", "b"]), annotations: annotations(&[("k", "v")]), ..Select::default() };
        assert_eq!(serde_json::from_str::<Select>(&serde_json::to_string(&select).unwrap()).unwrap(), select);
    }
}
