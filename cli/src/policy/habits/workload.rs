//! What belongs together: containers that run the same, and the images that they run.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::view::{Container, Signal};

/// A workload: the containers of one name, in pods of one namespace, from images of one repository. Outside Kubernetes, those
/// of one of containerd's namespaces from images of one repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Kubernetes's, or containerd's.
    pub namespace: String,
    /// The container's name in its pod; empty outside Kubernetes. Where the image is not known either, its id.
    pub container: String,
    /// Without tag and digest.
    pub repository: String,
}

impl Workload {
    /// That of a signal.
    pub fn of(signal: &Signal) -> Self {
        let Some(container) = &signal.container else { return Self::default() };
        let repository = repository(&container.image).0.to_owned();
        let name = match &container.pod {
            Some(pod) => pod.container_name.clone(),
            None if repository.is_empty() => container.id.clone(),
            None => String::new(),
        };
        Self { namespace: namespace(container).to_owned(), container: name, repository }
    }
}

/// Kubernetes's namespace of a container, or, outside of it, containerd's.
pub fn namespace(container: &Container) -> &str {
    container.pod.as_ref().map_or(&container.containerd_namespace, |pod| &pod.namespace)
}

/// An image's repository, and what follows: nothing, `:tag`, `@digest`, or both.
fn repository(image: &str) -> (&str, &str) {
    let name = image.find('@').unwrap_or(image.len());
    let path = image.get(..name).and_then(|image| image.rfind('/')).map_or(0, |slash| slash + 1);
    let tag = image.get(path..name).and_then(|last| last.find(':')).map_or(name, |colon| path + colon);
    image.split_at_checked(tag).unwrap_or((image, ""))
}

/// The globs that stand for these images of one repository: the image itself, or, once two are seen, all tags or all digests.
/// `None` if a name can't be said by a glob.
pub fn image_globs(images: &BTreeSet<String>) -> Option<BTreeSet<String>> {
    let mut globs = BTreeSet::new();
    for mark in ["", ":", "@"] {
        let mut alike = images.iter().filter(|image| first(repository(image).1) == mark);
        match (alike.next(), alike.next()) {
            (Some(one), None) => {
                globs.insert(one.clone());
            }
            (Some(one), Some(_)) => {
                globs.insert(format!("{}{mark}*", repository(one).0));
            }
            (None, _) => {}
        }
    }
    let odd =
        images.iter().any(|image| image.is_empty() || image.len() > 253 || image.contains(['*', '?', '\u{fffd}']));
    (!odd && !globs.is_empty()).then_some(globs)
}

fn first(text: &str) -> &str {
    text.get(..1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_what_is_before_tag_and_digest() {
        for (image, expected) in [
            ("nginx", ("nginx", "")),
            ("nginx:1.27", ("nginx", ":1.27")),
            ("registry:5000/app", ("registry:5000/app", "")),
            ("registry:5000/app:1", ("registry:5000/app", ":1")),
            ("registry:5000/team/app@sha256:00", ("registry:5000/team/app", "@sha256:00")),
            ("app:1@sha256:00", ("app", ":1@sha256:00")),
            ("", ("", "")),
            ("é:é", ("é", ":é")),
            ("@", ("", "@")),
        ] {
            assert_eq!(repository(image), expected, "{image}");
        }
    }

    #[test]
    fn two_tags_are_any_tag_and_one_is_itself() {
        let globs = |images: &[&str]| {
            let globs = image_globs(&images.iter().map(|&image| image.to_owned()).collect())?;
            Some(globs.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(globs(&["r/app:1"]).unwrap(), ["r/app:1"]);
        assert_eq!(globs(&["r/app:1", "r/app:2"]).unwrap(), ["r/app:*"]);
        assert_eq!(globs(&["r/app@sha256:1", "r/app@sha256:2"]).unwrap(), ["r/app@*"]);
        assert_eq!(globs(&["r/app", "r/app:1", "r/app:2"]).unwrap(), ["r/app", "r/app:*"]);
        for odd in [&[][..], &[""], &["r/*"], &["r/a?p:1"], &["r/\u{fffd}"]] {
            assert_eq!(globs(odd), None, "{odd:?}");
        }
    }
}
