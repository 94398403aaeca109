//! What a policy lets pass although a rule names it, in both modes: judged by the kernel programs, so that an excepted
//! execution runs and any other is stopped.

use serde_saphyr::{Location, Spanned};

use crate::{
    catalog::{Catalog, Tool},
    compile::check_ids,
    glob::Glob,
    source::{self, SourceError},
    text::Pattern,
    users::Users,
};

/// Exceptions of a policy at most: there is a bit for each in the kernel's tables.
pub const EXCEPTIONS_MAX: usize = 32;
/// Arguments of an exception at most.
pub const ARGUMENTS_MAX: usize = 16;
/// Executables in one list of an exception at most.
pub const EXES_MAX: usize = 4;
/// Users of an exception at most.
pub const USERS_MAX: usize = 4;
/// Globs for images of an exception at most.
pub const IMAGES_MAX: usize = 64;
/// Stands last among arguments for any further ones.
pub const MORE: &str = "...";

/// Arguments that an exception is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Arguments {
    /// One for each argument.
    pub patterns: Vec<Pattern>,
    /// There may be more.
    pub more: bool,
}

impl Arguments {
    /// Whether these arguments, without argv[0], are such.
    pub fn fit(&self, arguments: &[&[u8]]) -> bool {
        let enough =
            if self.more { arguments.len() >= self.patterns.len() } else { arguments.len() == self.patterns.len() };
        enough && self.patterns.iter().zip(arguments).all(|(pattern, argument)| pattern.fits(argument))
    }
}

/// One exception, compiled. It holds if all that it has holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Exception {
    categories: Vec<String>,
    tools: Vec<String>,
    /// `None`: whatever they are.
    pub arguments: Option<Arguments>,
    /// One must be the executable of the nearest image before this one. Empty: whatever it is.
    pub parents: Vec<Pattern>,
    /// One must be the executable of any image before this one.
    pub ancestors: Vec<Pattern>,
    /// Globs, one of which must match the container's image. Empty: whatever it is.
    pub images: Vec<Glob>,
    /// Empty: everybody.
    pub users: Vec<Users>,
}

impl Exception {
    pub(crate) fn compile(
        catalog: &Catalog,
        file: &str,
        given: &Spanned<source::Exception>,
    ) -> Result<Self, SourceError> {
        let source = &given.value;
        check_ids(catalog, file, &source.categories, &source.tools)?;
        at_most(file, "images", &source.images, IMAGES_MAX)?;
        let glob = |text: &Spanned<String>| {
            text.value.parse().map_err(|reason| SourceError::at(file, text.referenced, format!("{reason}")))
        };
        let images: Vec<Glob> = source.images.iter().map(glob).collect::<Result<_, SourceError>>()?;
        if source.arguments.is_none()
            && source.parents.is_empty()
            && source.ancestors.is_empty()
            && images.is_empty()
            && source.users.is_empty()
        {
            let reason = "an exception needs at least one of arguments, parents, ancestors, images and users; what is always \
                          let pass is a rule with `action: ignore`";
            return Err(SourceError::at(file, given.referenced, reason));
        }
        Ok(Self {
            categories: values(&source.categories),
            tools: values(&source.tools),
            arguments: source.arguments.as_ref().map(|given| arguments(file, given)).transpose()?,
            parents: exes(file, "parents", &source.parents)?,
            ancestors: exes(file, "ancestors", &source.ancestors)?,
            images,
            users: users(file, &source.users, USERS_MAX)?,
        })
    }

    /// Whether it is for this tool, by its id or its category. One that names neither is for all.
    pub fn is_for(&self, tool: &Tool) -> bool {
        self.is_for_all() || self.tools.contains(&tool.id) || self.categories.contains(&tool.category)
    }

    /// Whether it needs the same, whatever tools it is for.
    pub fn has_the_conditions_of(&self, other: &Self) -> bool {
        let Self { categories: _, tools: _, arguments, parents, ancestors, images, users } = self;
        (arguments, parents, ancestors, images, users)
            == (&other.arguments, &other.parents, &other.ancestors, &other.images, &other.users)
    }

    /// Whether it is for containers of this image. One that is not known is none.
    pub fn is_for_image(&self, image: Option<&str>) -> bool {
        self.images.is_empty() || image.is_some_and(|image| self.images.iter().any(|glob| glob.matches(image)))
    }

    /// Whether it is for whatever a rule names, patterns of comm included.
    pub fn is_for_all(&self) -> bool {
        self.tools.is_empty() && self.categories.is_empty()
    }
}

fn values(given: &[Spanned<String>]) -> Vec<String> {
    given.iter().map(|given| given.value.clone()).collect()
}

fn at_most<T>(file: &str, what: &str, given: &[Spanned<T>], most: usize) -> Result<(), SourceError> {
    match given.get(most) {
        Some(more) => Err(SourceError::at(file, more.referenced, format!("there may be {most} {what}"))),
        None => Ok(()),
    }
}

fn pattern(file: &str, at: Location, text: &str) -> Result<Pattern, SourceError> {
    text.parse().map_err(|reason| SourceError::at(file, at, format!("{reason}")))
}

fn arguments(file: &str, given: &[Spanned<String>]) -> Result<Arguments, SourceError> {
    let (given, more) = match given.split_last() {
        Some((last, others)) if last.value == MORE => (others, true),
        _ => (given, false),
    };
    at_most(file, "patterns of arguments", given, ARGUMENTS_MAX)?;
    if let Some(odd) = given.iter().find(|text| text.value == MORE) {
        let reason = format!("{MORE:?} stands for any further arguments, so it must be the last");
        return Err(SourceError::at(file, odd.referenced, reason));
    }
    let patterns =
        given.iter().map(|text| pattern(file, text.referenced, &text.value)).collect::<Result<_, SourceError>>()?;
    Ok(Arguments { patterns, more })
}

fn exes(file: &str, key: &str, given: &[Spanned<String>]) -> Result<Vec<Pattern>, SourceError> {
    at_most(file, &format!("executables in `{key}`"), given, EXES_MAX)?;
    let exe = |text: &Spanned<String>| {
        if !text.value.starts_with('/') {
            let reason = format!("{:?} is no path from the container's root: it must begin with a slash", text.value);
            return Err(SourceError::at(file, text.referenced, reason));
        }
        pattern(file, text.referenced, &text.value)
    };
    given.iter().map(exe).collect()
}

pub(crate) fn users(file: &str, given: &[Spanned<String>], most: usize) -> Result<Vec<Users>, SourceError> {
    at_most(file, "users or ranges of users", given, most)?;
    let users = |text: &Spanned<String>| {
        text.value.parse().map_err(|reason| SourceError::at(file, text.referenced, format!("{reason}")))
    };
    given.iter().map(users).collect()
}
