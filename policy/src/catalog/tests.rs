//! Of the catalogue and of what may be added to it.

use super::*;

#[test]
fn shipped_catalogue_is_valid_and_explicit() {
    let catalog = Catalog::shipped().unwrap();
    let names: Vec<&str> = catalog.tools().iter().flat_map(|tool| &tool.names).map(String::as_str).collect();
    for expected in ["nc", "nc.openbsd", "nslookup", "curl", "nmap", "ligolo-ng", "lwp-download", "ssl_client"] {
        assert!(names.contains(&expected), "{expected}");
    }
    // The false positives of a `nc*` glob, and hosts of many tools, which are no tools themselves.
    for innocent in ["ncdu", "ncal", "busybox", "sh", "python3"] {
        assert!(!names.contains(&innocent), "{innocent}");
    }
    for tool in catalog.tools() {
        assert_eq!(catalog.tool(tool.kernel_id()), Some(tool));
        assert!(tool.techniques.iter().all(|technique| technique.starts_with('T')), "{tool:?}");
    }
}

#[test]
fn kernel_ids_do_not_change() {
    let catalog = Catalog::shipped().unwrap();
    let nc = catalog.tools().iter().find(|tool| tool.id == "nc").unwrap();
    assert_eq!(nc.kernel_id(), 0x5636_5d16);
}

const BASE: &str = "[category.a]\ntitle = 'A'\nseverity = 'low'\ntechniques = []\n[category.a.tools]\n";

fn error(catalog: Catalog, text: &str) -> String {
    catalog.with("c.toml", text).unwrap_err().to_string()
}

#[test]
fn senseless_catalogues_are_refused_with_the_place() {
    let base_error = |tools: &str| error(Catalog::default(), &format!("{BASE}{tools}"));
    assert_eq!(
        base_error("x = { names = ['ok', 'a/b'] }"),
        "c.toml:6:22: the name \"a/b\" must have 1 to 62 bytes and no slash"
    );
    assert!(base_error("x = { names = [''] }").contains("1 to 62 bytes"));
    assert!(base_error(&format!("x = {{ names = ['{}'] }}", "n".repeat(63))).contains("1 to 62 bytes"));
    assert_eq!(
        base_error("x = { names = ['n'] }\ny = { names = ['n'] }"),
        "c.toml:7:16: tool \"x\" and tool \"y\" share the name \"n\""
    );
    assert!(base_error("x = { nmaes = ['n'] }").starts_with("c.toml:6:7: unknown field `nmaes`"));
    assert!(base_error("'' = { names = [] }").contains("must not be empty"));
    assert!(base_error("x = {}\n[shell]\nnames = ['x']").contains("tool \"x\" and shell \"shell\" share the name"));
    assert!(base_error("[multicall.box]\nprefix = ''").starts_with("c.toml:7:10: the prefix \"\" must have"));
    assert!(base_error("[loader]\nvalue_options = ['--a']\nargv0_options = ['--a']").contains("among the others"));
    let one_line = base_error("[dns]");
    assert!(one_line.contains("unknown field `dns`") && !one_line.contains('\n'), "{one_line}");
    assert!(base_error("x = {\n").starts_with("c.toml:"));
}

#[test]
fn a_file_adds_to_the_shipped_catalogue() {
    let shipped = || Catalog::shipped().unwrap();
    let text = "[category.scanner.tools]\nprobe = { names = ['acme-probe'], severity = 'critical' }\n[category.acme]\n\
                title = 'ACME'\nseverity = 'low'\ntechniques = []\n[category.acme.tools]\nacme = {}\n[shell]\nnames = ['acmesh']";
    let catalog = shipped().with("c.toml", text).unwrap();
    let tool = |id: &str| catalog.tools().iter().find(|tool| tool.id == id).unwrap();
    assert_eq!((tool("probe").severity, tool("probe").techniques[0].as_str()), (Severity::Critical, "T1046"));
    assert_eq!(tool("acme").category, "acme");
    assert!(catalog.names().any(|name| name.name == "acmesh" && name.kind == Kind::Shell));
    assert_ne!(catalog.version(), shipped().version());
    let twice = error(shipped(), "[category.scanner.tools]\nnmap = {}");
    assert_eq!(twice, "c.toml:2:8: the tools \"nmap\" and \"nmap\" share an id");
    assert!(error(shipped(), "[category.acme.tools]\nacme = {}").contains("needs title, severity and techniques"));
    assert!(error(shipped(), "[category.dns]\nseverity = 'low'").contains("change severities in the policy"));
    assert!(error(shipped(), "[category.behaviour.tools]\nx = {}").contains("by themselves"));
}

#[test]
fn prefixes_are_few() {
    let multicall = |id: &str, prefix: &str| format!("[multicall.{id}]\nprefix = '{prefix}'\n");
    let catalog = Catalog::shipped().unwrap();
    // The same prefix takes no place of its own.
    let catalog = catalog.with("c.toml", &multicall("bb", "busybox")).unwrap();
    let catalog = catalog.with("c.toml", &(multicall("a", "abox") + &multicall("b", "bbox"))).unwrap();
    assert_eq!(catalog.multicall_prefixes(), ["busybox", "toybox", "abox", "bbox"]);
    assert_eq!(catalog.meaning_of_name("bb").unwrap().kind, Kind::Multicall);
    assert!(error(catalog, &multicall("c", "cbox")).contains("there may be 4 prefixes; busybox, toybox, abox, bbox"));
    assert!(error(Catalog::default(), &multicall("c", "cbox-and-17-bytes")).contains("1 to 16 bytes"));
}

#[test]
fn what_the_kernels_tables_cannot_hold_is_refused() {
    let quoted = |count: usize| (0..count).map(|number| format!("'n{number}',")).collect::<Vec<_>>().concat();
    let names = |count| format!("{BASE}x = {{ names = [{}] }}", quoted(count));
    assert!(Catalog::default().with("c.toml", &names(NAMES_MAX)).is_ok());
    assert!(error(Catalog::default(), &names(NAMES_MAX + 1)).ends_with("there may be 8192 names"));
    let options = format!("[loader]\nvalue_options = [{}]", quoted(LOADER_OPTIONS_MAX + 1));
    assert!(error(Catalog::default(), &options).ends_with("there may be 128 options of loaders"));
    let tools = (0..=TOOLS_MAX).map(|number| format!("t{number} = {{ names = [] }}\n")).collect::<Vec<_>>().concat();
    assert!(error(Catalog::default(), &format!("{BASE}{tools}")).ends_with("there may be 8192 tools"));
    let entry = |value| format!("[[fingerprint]]\nruns = 'shell'\nvalue = '{value:016x}'\n");
    let fingerprints = (1..=FINGERPRINTS_MAX + 1).map(entry).collect::<Vec<_>>().concat();
    assert!(error(Catalog::default(), &fingerprints).ends_with("there may be 16384 fingerprints"));
}

#[test]
fn contents_stand_for_tools_or_for_what_runs_them() {
    let entry = |what: &str, value: &str| format!("[[fingerprint]]\n{what}\nvalue = '{value}'\nnote = 'n'\n");
    let shipped = || Catalog::shipped().unwrap();
    let own = "[category.scanner.tools]\nprobe = { names = [] }\n";
    let text = entry("tool = 'probe'", "0123456789abcdef") + &entry("runs = 'shell'", "00000000000000FF") + own;
    let catalog = shipped().with("c.toml", &text).unwrap();
    let probe = catalog.tools().iter().find(|tool| tool.id == "probe").unwrap().kernel_id();
    let known = |value| catalog.fingerprints().find(|known| known.value == value).map(|known| known.kind);
    let of_probe = Fingerprint { value: 0x0123_4567_89ab_cdef, kernel_id: probe, kind: Kind::Tool };
    assert!(catalog.fingerprints().any(|known| known == of_probe));
    assert_eq!(known(0xff), Some(Kind::Shell));
    assert_eq!(catalog.meaning_of_fingerprint(0xff).unwrap().to_string(), "shell \"shell\"");
    assert_eq!(
        catalog.version(),
        shipped().with("c.toml", own).unwrap().version(),
        "what is learnt depends on names only"
    );

    let nc = entry("tool = 'nc'", "0123456789abcdef");
    assert!(shipped().with("c.toml", &nc.repeat(2)).is_ok());
    assert!(
        error(catalog, &nc).ends_with("tool \"probe\" and tool \"nc\" share the fingerprint 0123456789abcdef"),
        "one content is one program"
    );
    let unknown = error(shipped(), &entry("tool = 'netcat'", "0123456789abcdef"));
    assert_eq!(unknown, "c.toml:2:8: unknown tool \"netcat\"; this is a name of the tool \"nc\"");
    assert!(error(shipped(), &entry("tool = 'reverse_shell'", "0123456789abcdef")).contains("unknown tool"));
    for what in ["", "tool = 'nc'\nruns = 'shell'"] {
        assert!(error(shipped(), &entry(what, "0123456789abcdef")).contains("either `tool` or `runs`"));
    }
    assert!(error(shipped(), &entry("runs = 'tool'", "0123456789abcdef")).contains("unknown variant `tool`"));
    for value in
        ["0000000000000000", "123456789abcdef", "00123456789abcdef", "+123456789abcdef", "0123456789abcdeg", ""]
    {
        assert!(error(shipped(), &entry("tool = 'nc'", value)).contains("16 hexadecimal digits"), "{value}");
    }
}

#[test]
fn names_know_what_they_stand_for() {
    let catalog = Catalog::shipped().unwrap();
    let kind = |name: &str| catalog.names().find(|known| known.name == name).map(|known| known.kind);
    assert_eq!(kind("nc.openbsd"), Some(Kind::Tool));
    assert_eq!(kind("toybox"), Some(Kind::Multicall));
    assert_eq!(kind("ld-musl-x86_64.so.1"), Some(Kind::Loader));
    assert_eq!(kind("dash"), Some(Kind::Shell));
    assert_eq!(kind("python3.11"), Some(Kind::Interpreter));
    assert_eq!(kind("reverse_shell"), None);
    assert_eq!(catalog.multicall_prefixes(), ["busybox", "toybox"]);
}
