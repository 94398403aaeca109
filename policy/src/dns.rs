//! What a DNS tool asks for: its question, from its arguments or from a datagram. Both are hostile; nothing is allocated that
//! is longer than a name may be.

use std::fmt::Write;

/// Bytes of a name as people write it (RFC 1035, 2.3.4).
const NAME_MAX: usize = 255;
/// Labels of one: each takes two bytes at least.
const LABELS_MAX: usize = 128;

/// A name and a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Without the final dot. A byte that is no printable ASCII is written as `\DDD`, as in zone files.
    pub name: String,
    /// For example "TXT"; empty when it is not said.
    pub kind: String,
}

/// The types that have a name among those that are asked for; others are written as in RFC 3597.
const TYPES: [(u16, &str); 24] = [
    (1, "A"),
    (2, "NS"),
    (5, "CNAME"),
    (6, "SOA"),
    (10, "NULL"),
    (12, "PTR"),
    (13, "HINFO"),
    (15, "MX"),
    (16, "TXT"),
    (28, "AAAA"),
    (29, "LOC"),
    (33, "SRV"),
    (35, "NAPTR"),
    (39, "DNAME"),
    (43, "DS"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (48, "DNSKEY"),
    (52, "TLSA"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (251, "IXFR"),
    (252, "AXFR"),
    (255, "ANY"),
];

/// How a tool is told the type, and which of its options something follows.
struct Syntax {
    tool: &'static str,
    /// Options that the type follows.
    kinds: &'static [&'static str],
    /// Options that something else follows.
    values: &'static [&'static str],
    /// Options that the name follows.
    names: &'static [&'static str],
    /// Options that an address follows, whose name is asked for.
    reverse: &'static [&'static str],
    /// Whether a word that is a type is one.
    bare_kind: bool,
}

const DIG_VALUES: [&str; 8] = ["-b", "-c", "-f", "-k", "-p", "-y", "-s", "-l"];

const SYNTAXES: [Syntax; 6] = [
    Syntax { tool: "dig", kinds: &["-t"], values: &DIG_VALUES, names: &["-q"], reverse: &["-x"], bare_kind: true },
    Syntax { tool: "kdig", kinds: &["-t"], values: &DIG_VALUES, names: &["-q"], reverse: &["-x"], bare_kind: true },
    Syntax {
        tool: "delv",
        kinds: &["-t"],
        values: &["-a", "-b", "-c", "-d", "-p"],
        names: &["-q"],
        reverse: &["-x"],
        bare_kind: true,
    },
    Syntax {
        tool: "drill",
        kinds: &[],
        values: &["-b", "-c", "-f", "-i", "-k", "-o", "-p", "-r", "-w", "-y", "-d"],
        names: &[],
        reverse: &["-x"],
        bare_kind: true,
    },
    Syntax {
        tool: "host",
        kinds: &["-t"],
        values: &["-c", "-m", "-N", "-R", "-W", "-p"],
        names: &[],
        reverse: &[],
        bare_kind: false,
    },
    Syntax { tool: "nslookup", kinds: &[], values: &[], names: &[], reverse: &[], bare_kind: false },
];

/// The question that a tool was told to ask, the first of several. `None` if it is no such tool, or none is in its arguments.
pub fn from_arguments(tool: &str, argv: &[Vec<u8>]) -> Option<Question> {
    let syntax = SYNTAXES.iter().find(|syntax| syntax.tool == tool)?;
    // Behind a loader or a multi-call program its own name comes later.
    let own = argv.iter().position(|word| word.rsplit(|byte| *byte == b'/').next() == Some(tool.as_bytes()));
    let mut words = argv.iter().skip(own.unwrap_or(0) + 1).map(Vec::as_slice);
    let (mut name, mut kind) = (None, None);
    while let Some(word) = words.next() {
        let is = |options: &[&str]| options.iter().any(|option| option.as_bytes() == word);
        if is(syntax.kinds) {
            kind = kind.or(words.next().map(kind_word));
        } else if is(syntax.values) {
            words.next();
        } else if is(syntax.names) || is(syntax.reverse) {
            // An empty one asks for nothing.
            name = name.or(words.next().filter(|word| !word.is_empty()));
            if is(syntax.reverse) {
                kind = kind.or(Some("PTR".to_owned()));
            }
        } else if let Some(option) = word.strip_prefix(b"-") {
            kind = kind.or(kind_of_option(syntax, option));
        } else if word.is_empty() || matches!(word.first(), Some(b'@' | b'+')) {
            // The server, or how to ask.
        } else if syntax.bare_kind && kind.is_none() && is_kind(word) {
            kind = Some(kind_word(word));
        } else if !(syntax.bare_kind && matches!(word, b"IN" | b"in" | b"CH" | b"ch")) {
            name = name.or(Some(word));
        }
    }
    let text = escaped(name?);
    let name = text.strip_suffix('.').filter(|name| !name.is_empty()).unwrap_or(&text).to_owned();
    Some(Question { name, kind: kind.unwrap_or_default() })
}

/// `-type=TXT`, `-querytype=TXT`, `-q=TXT`; or `-tTXT`.
fn kind_of_option(syntax: &Syntax, option: &[u8]) -> Option<String> {
    if syntax.tool == "nslookup" {
        let at = option.iter().position(|byte| *byte == b'=')?;
        let (name, value) = option.split_at(at);
        let is_kind = matches!(name, b"type" | b"ty" | b"t" | b"querytype" | b"query" | b"q");
        return is_kind.then(|| kind_word(value.get(1..).unwrap_or_default()));
    }
    let value = option.strip_prefix(b"t").filter(|_| !syntax.kinds.is_empty())?;
    is_kind(value).then(|| kind_word(value))
}

fn is_kind(word: &[u8]) -> bool {
    let upper = word.to_ascii_uppercase();
    TYPES.iter().any(|(_, name)| name.as_bytes() == upper)
        || upper.strip_prefix(b"TYPE").is_some_and(|rest| !rest.is_empty() && rest.iter().all(u8::is_ascii_digit))
}

fn kind_word(word: &[u8]) -> String {
    let mut text = escaped(word.get(..word.len().min(16)).unwrap_or_default());
    text.make_ascii_uppercase();
    text
}

/// Printable ASCII as it is, the rest as zone files write it; cut to what a name may have.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes.iter().take(NAME_MAX) {
        push(&mut text, *byte);
    }
    text
}

fn push(text: &mut String, byte: u8) {
    if byte.is_ascii_graphic() {
        text.push(char::from(byte));
    } else {
        // Writing to a string never fails.
        let _ = write!(text, "\\{byte:03}");
    }
}

/// The first question of a query (RFC 1035, 4.1). `None` if it is none, or not whole.
pub fn from_datagram(datagram: &[u8]) -> Option<Question> {
    let header = datagram.get(..12)?;
    let flags = u16::from_be_bytes([*header.get(2)?, *header.get(3)?]);
    let questions = u16::from_be_bytes([*header.get(4)?, *header.get(5)?]);
    // An answer, or another operation than a query.
    if flags & 0xf800 != 0 || questions == 0 {
        return None;
    }
    let mut rest = datagram.get(12..)?;
    let (mut name, mut bytes) = (String::new(), 0);
    for _ in 0..LABELS_MAX {
        let (len, after) = rest.split_first()?;
        if *len == 0 {
            let kind = u16::from_be_bytes([*after.first()?, *after.get(1)?]);
            // A class as well, or it is cut.
            after.get(2..4)?;
            let known = TYPES.iter().find(|(number, _)| *number == kind);
            let kind = known.map_or_else(|| format!("TYPE{kind}"), |(_, name)| (*name).to_owned());
            return Some(Question { name: if name.is_empty() { ".".to_owned() } else { name }, kind });
        }
        // More than 63 is no length: a question's name has nothing before it that a pointer could lead to.
        let len = usize::from(*len);
        let (label, after) = after.split_at_checked(len).filter(|_| len <= 63)?;
        bytes += len + 1;
        if bytes > NAME_MAX {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for byte in label {
            match byte {
                b'.' => name.push_str("\\."),
                byte => push(&mut name, *byte),
            }
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn asks(command: &str, name: &str, kind: &str) {
        let argv: Vec<Vec<u8>> = command.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        let tool = argv.iter().map(|word| String::from_utf8_lossy(word).rsplit('/').next().unwrap().to_owned());
        let tool = tool.into_iter().find(|word| SYNTAXES.iter().any(|syntax| syntax.tool == word)).unwrap();
        let found = from_arguments(&tool, &argv).map(|question| (question.name, question.kind));
        assert_eq!(found, (!name.is_empty()).then(|| (name.to_owned(), kind.to_owned())), "{command}");
    }

    #[test]
    fn arguments_of_each_tool() {
        asks("dig example.com", "example.com", "");
        asks("dig @10.0.0.1 -p 5353 -t TXT x.example.com. +short", "x.example.com", "TXT");
        asks("/usr/bin/dig example.com mx IN", "example.com", "MX");
        asks("dig -x 10.0.0.1", "10.0.0.1", "PTR");
        asks("dig -q any.example -tTYPE65 +tcp", "any.example", "TYPE65");
        asks("dig @10.0.0.1", "", "");
        asks("drill -p 53 example.com @1.1.1.1 aaaa", "example.com", "AAAA");
        asks("host -t TXT -W 1 example.com 10.0.0.1", "example.com", "TXT");
        asks("host txt", "txt", "");
        asks("nslookup -type=TXT x.example.com 127.0.0.1", "x.example.com", "TXT");
        asks("busybox nslookup -q=mx example.com", "example.com", "MX");
        asks("/lib/ld-musl.so.1 /bin/busybox nslookup example.com", "example.com", "");
        asks("nslookup", "", "");
        asks("nslookup .", ".", "");
        asks("dig -q ", "", "");
        asks("dig -x  example.com", "example.com", "PTR");
        assert_eq!(from_arguments("nc", &[b"nc".to_vec(), b"host".to_vec()]), None);
        let odd = from_arguments("host", &[b"host".to_vec(), b"a\x1b\xff".repeat(200)]).unwrap();
        assert!(odd.name.starts_with("a\\027\\255a") && odd.name.len() <= 4 * NAME_MAX);
    }

    fn query(labels: &[&[u8]], kind: u16) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(*label);
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes
    }

    #[test]
    fn a_question_in_a_datagram() {
        let ask = |labels: &[&[u8]], kind| from_datagram(&query(labels, kind)).map(|q| (q.name, q.kind));
        assert_eq!(ask(&[b"x", b"example", b"com"], 16), Some(("x.example.com".into(), "TXT".into())));
        assert_eq!(ask(&[b"a.b", b"\x00\xff"], 65280), Some(("a\\.b.\\000\\255".into(), "TYPE65280".into())));
        assert_eq!(ask(&[], 2), Some((".".into(), "NS".into())));
        assert_eq!(ask(&[&[b'x'; 63][..]; 5], 1), None, "longer than a name");
        assert_eq!(ask(&[&[b'x'; 64][..]], 1), None, "longer than a label");
    }

    #[test]
    fn what_is_no_question() {
        let whole = query(&[b"x", b"example"], 1);
        for len in 0..whole.len() {
            assert_eq!(from_datagram(&whole[..len]), None, "{len}");
        }
        let mut answer = whole.clone();
        answer[2] |= 0x80;
        let mut none = whole.clone();
        none[5] = 0;
        let mut pointer = whole;
        pointer[12] = 0xc0;
        assert_eq!([answer, none, pointer].map(|bytes| from_datagram(&bytes)), [None, None, None]);
    }
}
