//! The shape of arguments: what stays the same from one execution to the next, and what may differ.
//!
//! An exception is a hole, and whoever is in the container chooses arguments that fit through it. So an argument is taken
//! whole unless it is of a kind whose beginning says what it is about: the rest of a URL behind its host, of a path behind
//! its directory, of a header behind its name. Even of these the rest is left open only once two different ones were seen.

use portcullis_policy::{
    exceptions::{ARGUMENTS_MAX, MORE},
    text::PATTERN_MAX,
};

/// The shortest beginning of a path that says enough: `/srv/x/`.
const DIRECTORY_MIN: usize = 7;

/// One argument's place in a shape. Those of one shape have equal places.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// This very argument.
    Whole(String),
    /// Arguments that begin like this.
    Begins(String),
}

impl Place {
    fn of(argument: &str) -> Self {
        match open_from(argument) {
            Some(open) => Self::Begins(argument.get(..open).unwrap_or_default().to_owned()),
            None => Self::Whole(argument.to_owned()),
        }
    }
}

/// The places of some arguments, without argv[0]. `None` if no exception can say it: too many, too long, or not what the
/// program got.
pub fn places(arguments: &[String]) -> Option<Vec<Place>> {
    let expressible = |place: &Place| match place {
        Place::Whole(text) => is_known(text) && text != MORE,
        Place::Begins(text) => is_known(text),
    };
    let places: Vec<Place> = arguments.iter().map(|argument| Place::of(argument)).collect();
    (places.len() <= ARGUMENTS_MAX && places.iter().all(expressible)).then_some(places)
}

/// Whether a pattern can say it. What is not UTF-8 comes as U+FFFD, which is not what the kernel compares.
fn is_known(text: &str) -> bool {
    text.len() <= PATTERN_MAX && !text.contains('\u{fffd}')
}

/// Where the part begins that may differ; `None` if none may.
fn open_from(argument: &str) -> Option<usize> {
    if let Some((name, value)) = argument.split_once('=').filter(|(name, _)| is_long_option(name)) {
        let open = url(value).or_else(|| directory(value))?;
        return Some(name.len() + 1 + open);
    }
    url(argument).or_else(|| directory(argument)).or_else(|| header(argument))
}

fn is_long_option(name: &str) -> bool {
    name.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// Behind scheme, host and port, and the slash that ends them: without it, `http://host*` would be any host that begins so.
fn url(text: &str) -> Option<usize> {
    let (scheme, rest) = text.split_once("://")?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let host = rest.find(['/', '?', '#'])?;
    (is_scheme && host > 0).then_some(scheme.len() + 3 + host + 1)
}

/// Behind the last slash of an absolute path.
fn directory(text: &str) -> Option<usize> {
    let end = text.starts_with('/').then(|| text.rfind('/')).flatten()? + 1;
    (end >= DIRECTORY_MIN).then_some(end)
}

/// Behind an HTTP header's name.
fn header(text: &str) -> Option<usize> {
    let (name, _) = text.split_once(": ")?;
    let is_name =
        name.len() > 1 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') && !name.starts_with('-');
    is_name.then_some(name.len() + 2)
}

/// What was seen at one place.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Up to the first place where two of them differ.
    common: String,
    differ: bool,
}

impl Seen {
    /// The first.
    pub fn new(argument: &str) -> Self {
        Self { common: argument.to_owned(), differ: false }
    }

    /// Another.
    pub fn add(&mut self, argument: &str) {
        let same = self.common.char_indices().zip(argument.chars()).take_while(|((_, a), b)| a == b);
        let same = same.last().map_or(0, |((at, c), _)| at + c.len_utf8());
        if same < self.common.len() || (same < argument.len() && !self.differ) {
            self.common.truncate(same);
            self.differ = true;
        }
    }

    /// The pattern that fits all that was seen, and no more than it must; `None` if there is none.
    pub fn pattern(&self, place: &Place) -> Option<String> {
        let fixed = match place {
            Place::Begins(fixed) if self.differ => fixed,
            _ => return is_known(&self.common).then(|| whole(&self.common)),
        };
        let longest = self.common.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= PATTERN_MAX);
        let common = self.common.get(..longest.last().unwrap_or(0))?;
        // `/users/1*` would fit 10 to 19, because those were the ones seen.
        let end = common.rfind(['/', '?', '&', '=', ' ']).map_or(0, |at| at + 1).max(fixed.len());
        let begin = common.get(..end).filter(|begin| is_known(begin))?;
        Some(format!("{begin}*"))
    }
}

/// The pattern of this text alone: a star at its end would stand for any rest.
fn whole(text: &str) -> String {
    match text.strip_suffix('*') {
        Some(before) => format!("{before}\\*"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use portcullis_policy::text::Pattern;

    use super::*;

    fn fixed(argument: &str) -> Option<&str> {
        open_from(argument).map(|open| &argument[..open])
    }

    #[test]
    fn only_what_says_what_it_is_about_is_open() {
        for (argument, expected) in [
            ("http://localhost:8080/health", "http://localhost:8080/"),
            ("https://u:p@host/a/b?c", "https://u:p@host/"),
            ("http://host?x=1", "http://host?"),
            ("http://localhost:80\\@evil.example/x", "http://localhost:80\\@evil.example/"),
            ("/srv/app/cache/17", "/srv/app/cache/"),
            ("/srv/x/", "/srv/x/"),
            ("--output=/srv/app/17", "--output=/srv/app/"),
            ("--url=http://h/1", "--url=http://h/"),
            ("X-Request-Id: 17", "X-Request-Id: "),
        ] {
            assert_eq!(fixed(argument), Some(expected), "{argument}");
        }
        for argument in [
            // The host is all there is.
            "http://localhost:8080",
            "http:///x",
            "://host/x",
            "1://host/x",
            "10.0.0.1",
            "4444",
            "-fsS",
            "-o/srv/app/17",
            "-e/bin/sh",
            "/bin/sh",
            "/tmp/x",
            "host:/srv/app/x",
            "user@host",
            "--data=17",
            "--=/srv/app/x",
            "cd /srv/app: x",
            "-H: x",
            ": x",
            "",
            "é",
        ] {
            assert_eq!(fixed(argument), None, "{argument}");
        }
    }

    fn pattern(arguments: &[&str]) -> Option<String> {
        let place = Place::of(arguments[0]);
        assert!(arguments.iter().all(|argument| Place::of(argument) == place), "they have one shape");
        let mut seen = Seen::new(arguments[0]);
        arguments[1..].iter().for_each(|argument| seen.add(argument));
        let pattern = seen.pattern(&place)?;
        let compiled: Pattern = pattern.parse().unwrap();
        assert!(arguments.iter().all(|argument| argument.contains('\u{fffd}') || compiled.fits(argument.as_bytes())));
        assert_eq!(compiled.is_whole(), arguments.iter().all(|argument| *argument == arguments[0]));
        Some(pattern)
    }

    #[test]
    fn what_differs_is_open_from_the_last_border_on() {
        for (arguments, expected) in [
            (&["http://h:80/a/b"][..], "http://h:80/a/b"),
            (&["http://h:80/a/b", "http://h:80/a/b"], "http://h:80/a/b"),
            (&["http://h:80/a/b", "http://h:80/a/c"], "http://h:80/a/*"),
            (&["http://h:80/a/12", "http://h:80/a/13", "http://h:80/a/1"], "http://h:80/a/*"),
            (&["http://h:80/a", "http://h:80/ab"], "http://h:80/*"),
            (&["http://h:80/a", "http://h:80/"], "http://h:80/*"),
            (&["http://h:80/a?b=1&c=2", "http://h:80/a?b=1&c=3"], "http://h:80/a?b=1&c=*"),
            (&["/srv/app/1", "/srv/app/2"], "/srv/app/*"),
            (&["X-Id: 1a", "X-Id: 1b"], "X-Id: *"),
            (&["X-Id: a b", "X-Id: a c"], "X-Id: a *"),
        ] {
            assert_eq!(pattern(arguments).as_deref(), Some(expected), "{arguments:?}");
        }
        let long = |end: &str| format!("http://h/{}/{end}", "é".repeat(80));
        assert_eq!(pattern(&[&long("a"), &long("b")]).as_deref(), Some("http://h/*"));
        assert_eq!(pattern(&[&long("a")]), None, "one alone is no reason for a star");
        assert_eq!(pattern(&["http://h/*"]).as_deref(), Some("http://h/\\*"), "a star that was seen is a star");
        assert_eq!(pattern(&["a\\*"]).as_deref(), Some("a\\\\*"));
        assert_eq!(pattern(&[""]).as_deref(), Some(""));
        assert_eq!(pattern(&["http://h/*", "http://h/a"]).as_deref(), Some("http://h/*"));
        assert_eq!(pattern(&["http://h/\u{fffd}", "http://h/a"]).as_deref(), Some("http://h/*"));
    }

    #[test]
    fn other_arguments_have_another_shape() {
        let places = |arguments: &[&str]| places(&arguments.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        let health = places(&["-fsS", "http://localhost:8080/a"]).unwrap();
        assert_eq!(places(&["-fsS", "http://localhost:8080/b"]), Some(health.clone()));
        for other in [
            &["-fsS", "http://localhost:8081/a"][..],
            &["-fsS", "http://localhost:8080.evil.example/a"],
            &["-fsSL", "http://localhost:8080/a"],
            &["-fsS", "http://localhost:8080/a", "-o/x"],
            &["http://localhost:8080/a", "-fsS"],
            &["-fsS"],
            &[],
        ] {
            assert_ne!(places(other), Some(health.clone()), "{other:?}");
            assert!(places(other).is_some(), "{other:?}");
        }
    }

    #[test]
    fn what_an_exception_cannot_say_has_no_shape() {
        let long = "x".repeat(PATTERN_MAX + 1);
        for odd in ["...", "\u{fffd}", &long, &format!("http://{long}/a")] {
            assert_eq!(places(&[odd.to_owned()]), None, "{odd}");
        }
        assert!(places(&[String::new(), "a*".to_owned(), "http://h/*".to_owned(), "x".repeat(PATTERN_MAX)]).is_some());
        assert!(places(&vec!["x".to_owned(); ARGUMENTS_MAX]).is_some());
        assert_eq!(places(&vec!["x".to_owned(); ARGUMENTS_MAX + 1]), None);
    }
}
